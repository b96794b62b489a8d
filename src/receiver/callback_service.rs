//! Handles a request, from its head to its answer.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Body;
use hyper::header::{CONNECTION, CONTENT_LENGTH, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, Version};
use prometheus_client::registry::Registry;
use tokio::sync::OwnedSemaphorePermit;
use tracing::{debug, warn};

use super::answer::Outcome;
use super::auth::{Admitted, Auth, AuthError};
use super::body::{BodyReader, Buffered};
use super::config::Config;
use super::counts::Counts;
use super::durability::{Durability, Kept, NotKept};
use super::unaccepted::UnacceptedRecalls;
use crate::callback::{
    self, Class, ParseError, Query, Recall, classify, known_command, parse_recall,
};
use crate::event::{Event, Rejected, UnixMillis};
use crate::upstream::{self, Backend, Outgoing, ReceivedHeaders, Sender, Upstream, UpstreamError};

/// Receives requests and answers them.
#[derive(Debug)]
pub struct CallbackService<D> {
    path: String,
    bodies: BodyReader,
    /// Replaced when the settings are reloaded; a request uses one from its head to its answer.
    auth: RwLock<Arc<Auth>>,
    durability: D,
    upstream: Arc<Upstream>,
    counts: Counts,
    closing: AtomicBool,
}

/// What later steps need of a request besides its body. Its headers are dropped before the body is read, unless they
/// are to be handed on: then the body's permit covers their memory, too.
struct Head<'a> {
    query: Query<'a>,
    auth: Arc<Auth>,
    /// Whether `auth.allowed_sources` allows the source address.
    source: Result<(), AuthError>,
    received_at: UnixMillis,
    onward: Option<Onward>,
}

impl Head<'_> {
    /// The token that signed the request.
    fn signed_by(&self) -> Result<Option<u32>, callback::SignatureError> {
        self.auth.check_signature(&self.query, self.received_at)
    }
}

/// What a request to the backend needs.
struct Onward {
    backend: Arc<Backend>,
    headers: ReceivedHeaders,
    /// The memory that the headers and the query take.
    bytes: usize,
}

/// What to do with a request.
enum Verdict {
    Answer(Outcome),
    /// Hand it on, and return the backend's answer.
    HandOn(Arc<Backend>, Sender, Result<Outgoing, UpstreamError>),
    /// Store the event. If the recall could not be parsed, the event is its dead letter.
    Keep {
        event: Event,
        permit: OwnedSemaphorePermit,
        parse_error: Option<ParseError>,
        /// What to send to the backend once the event is durable.
        copy: Option<(Arc<Backend>, Result<Outgoing, UpstreamError>)>,
    },
}

/// Counts a request of this command with this outcome if this guard is dropped while it still holds a value.
struct CountIfDropped<'a>(Option<(&'a Counts, &'static str, Outcome)>);

impl Drop for CountIfDropped<'_> {
    fn drop(&mut self) {
        if let Some((counts, command, outcome)) = self.0.take() {
            counts.count(command, &outcome, Instant::now());
        }
    }
}

impl<D: Durability> CallbackService<D> {
    /// A service that stores events in `durability`, and hands other callbacks on to `upstream`. Registers its metrics.
    #[must_use]
    pub fn new(
        config: Config,
        auth: Auth,
        durability: D,
        upstream: Arc<Upstream>,
        registry: &mut Registry,
    ) -> Self {
        let bodies = BodyReader::new(&config);
        let counts = Counts::register(registry, auth.tokens(), bodies.buffered_bytes());
        Self {
            bodies,
            path: config.path,
            auth: RwLock::new(Arc::new(auth)),
            durability,
            upstream,
            counts,
            closing: AtomicBool::new(false),
        }
    }

    /// The recalls that were not accepted.
    #[must_use]
    pub const fn unaccepted(&self) -> &Arc<UnacceptedRecalls> {
        &self.counts.unaccepted
    }

    /// The upstream.
    #[must_use]
    pub const fn upstream(&self) -> &Arc<Upstream> {
        &self.upstream
    }

    /// Authenticates the requests that arrive from now on with `auth`.
    pub fn set_auth(&self, auth: Auth) {
        self.counts.init_tokens(auth.tokens());
        *self.auth.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(auth);
    }

    /// Hands the callbacks that arrive from now on to this backend, if there is one. Reads certificates, so it blocks.
    pub fn set_backend(&self, config: Option<&upstream::Config>) {
        if config.is_some() {
            self.counts.init_backend();
        }
        self.upstream.set(config);
    }

    fn auth(&self) -> Arc<Auth> {
        Arc::clone(&self.auth.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// From now on each answer closes its connection, so that a proxy opens the next one elsewhere (RFC 9112, section
    /// 9.6).
    pub fn close_connections(&self) {
        self.closing.store(true, Ordering::Relaxed);
    }

    /// Answers a request.
    pub async fn answer<B>(
        self: Arc<Self>,
        request: Request<B>,
        peer: SocketAddr,
    ) -> Response<Full<Bytes>>
    where
        B: Body<Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Unpin,
    {
        let began = Instant::now();
        // The request is dropped here, so hyper can free its buffer. From now on only the event's memory is held while
        // it waits for the disk.
        let (command, verdict) = self.receive(request, peer).await;
        let (outcome, answer) = match verdict {
            Verdict::Answer(outcome) => (outcome, None),
            Verdict::HandOn(backend, sender, outgoing) => {
                let mut disconnected =
                    CountIfDropped(Some((&self.counts, command, Outcome::Disconnected)));
                let answer = backend.exchange(command, sender, outgoing).await;
                disconnected.0 = None;
                match answer {
                    Ok(answer) => (Outcome::HandedOn, Some(answer)),
                    Err(error) => (Outcome::NotHandedOn(error, backend.on_failure), None),
                }
            }
            Verdict::Keep {
                event,
                permit,
                parse_error,
                copy,
            } => {
                let id = event.id;
                // hyper drops this future if the client disconnects, as the vendor does after 2 s.
                let mut abandoned =
                    CountIfDropped(Some((&self.counts, command, Outcome::Abandoned)));
                let kept = self.durability.keep(event, permit).await;
                abandoned.0 = None;
                let outcome = match (kept, parse_error) {
                    (Ok(kept), None) => {
                        if let (Kept::New, Some((backend, outgoing))) = (kept, copy) {
                            backend.copy(outgoing);
                        }
                        Outcome::Kept(kept)
                    }
                    (Ok(_), Some(parse_error)) => {
                        warn!(
                            code = "callback_rejected", %id, command, reason = %parse_error,
                            "callback could not be parsed and is published as a dead letter; inspect it in the dead-letter topic or queue"
                        );
                        Outcome::Rejected(parse_error)
                    }
                    (Err(error @ NotKept::DeadLettersFull(_)), Some(parse_error)) => {
                        Outcome::Dropped(parse_error, error)
                    }
                    (Err(error), _) => Outcome::NotKept(error),
                };
                (outcome, None)
            }
        };
        debug!(%peer, command, outcome = outcome.name(), "answered");
        self.counts.answered(command, &outcome, began);
        let mut response =
            answer.map_or_else(|| outcome.response(), |answer| answer.map(Full::new));
        if self.closing.load(Ordering::Relaxed) {
            let headers = response.headers_mut();
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    /// Reads a request and decides what to do with it.
    async fn receive<B>(&self, request: Request<B>, peer: SocketAddr) -> (&'static str, Verdict)
    where
        B: Body<Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Unpin,
    {
        let (parts, body) = request.into_parts();
        let Parts {
            method,
            uri,
            version,
            headers,
            ..
        } = parts;
        let query = uri.query().unwrap_or_default();
        let refuse = |outcome: Outcome| {
            let command = known_command(Query::parse(query).command());
            (command, Verdict::Answer(outcome))
        };
        if uri.path() != self.path {
            return refuse(Outcome::NotFound);
        }
        if method != Method::POST {
            return refuse(Outcome::WrongMethod);
        }
        let auth = self.auth();
        let backend = self.upstream.backend();
        let announced = headers
            .get(CONTENT_LENGTH)
            .and_then(|length| length.to_str().ok()?.parse().ok());
        let mut head = Head {
            query: Query::parse(query),
            source: auth.check_source(&headers, peer),
            received_at: UnixMillis::now(),
            onward: None,
            auth,
        };
        // Over HTTP/1.0, a body without a length ends when the connection closes, and hyper treats it as empty: a
        // recall would be answered as a probe, and the backend would get another body than the vendor sent.
        let needs_body = backend.is_some()
            || (head.query.command()).is_none_or(|name| Recall::named(name).is_some());
        if version == Version::HTTP_10 && needs_body && !headers.contains_key(CONTENT_LENGTH) {
            return refuse(Outcome::NoLength);
        }
        let mut head_bytes = query.len();
        if let Some(backend) = backend {
            let headers = ReceivedHeaders {
                headers,
                peer: peer.ip(),
                is_proxy: head.auth.is_trusted_proxy(peer.ip()),
            };
            head_bytes += headers.bytes();
            head.onward = Some(Onward {
                backend,
                headers,
                bytes: head_bytes,
            });
        } else {
            drop(headers);
        }
        match self.bodies.read(head_bytes, announced, body).await {
            Ok(buffered) => self.judge(head, buffered),
            Err(outcome) => refuse(outcome),
        }
    }

    /// Decides what to do with a request that was received in full.
    fn judge(&self, head: Head<'_>, buffered: Buffered) -> (&'static str, Verdict) {
        let body = buffered.body.clone();
        match classify(&head.query, &body) {
            Class::Recall { recall, body } => {
                let verdict = match self.admit(&head, recall) {
                    Ok(sdk_app_id) => self.take(head, sdk_app_id, recall, &body, buffered),
                    Err(refusal) => Verdict::Answer(Outcome::Refused(refusal)),
                };
                (recall.command(), verdict)
            }
            Class::Probe => {
                let command = known_command(head.query.command());
                let is_signed = head.signed_by().is_ok();
                let verdict = self.hand_on(head, is_signed, buffered);
                (command, verdict.unwrap_or(Verdict::Answer(Outcome::Probe)))
            }
            Class::Other { command } => {
                let command = known_command(command.as_deref());
                let signed_by = head.signed_by();
                self.counts.signature(command, signed_by);
                let verdict = self.hand_on(head, signed_by.is_ok(), buffered);
                let verdict = verdict.unwrap_or_else(|| {
                    self.counts.ignored_command(command);
                    Verdict::Answer(Outcome::Ignored)
                });
                (command, verdict)
            }
        }
    }

    /// Hands on what is not a recall. None if there is no backend.
    fn hand_on(&self, head: Head<'_>, is_signed: bool, buffered: Buffered) -> Option<Verdict> {
        let onward = head.onward?;
        if let Err(refusal) = head.source {
            return Some(Verdict::Answer(Outcome::Barred(refusal)));
        }
        // The backend sees the signature, too, and decides as it does without the relay.
        let sender = if is_signed {
            Sender::Vendor
        } else {
            Sender::Unknown
        };
        let Buffered { body, permit } = buffered;
        let reserved = onward.bytes + body.len();
        // Bodies that wait for a backend must not take the memory of recalls.
        let outgoing = if self.bodies.has_half_left(0) {
            let reserve = self.bodies.reserve(permit);
            let (query, headers) = (head.query.raw(), onward.headers);
            (onward.backend).outgoing(query, headers, body, reserved, reserve)
        } else {
            Err(UpstreamError::TooMany)
        };
        Some(Verdict::HandOn(onward.backend, sender, outgoing))
    }

    /// Checks whether a recall may become an event. Returns its application.
    fn admit(&self, head: &Head<'_>, recall: Recall) -> Result<u64, AuthError> {
        let admitted = head
            .source
            .and_then(|()| head.auth.admit(&head.query, head.received_at));
        match admitted {
            Ok(Admitted { signed_by, .. }) => {
                self.counts.signature(recall.command(), Ok(signed_by));
            }
            Err(AuthError::Signature(refusal)) => {
                self.counts.signature(recall.command(), Err(refusal));
            }
            Err(_) => {}
        }
        Ok(admitted?.sdk_app_id)
    }

    /// Makes the event of a recall.
    fn take(
        &self,
        head: Head<'_>,
        sdk_app_id: u64,
        recall: Recall,
        read: &callback::Body<'_>,
        buffered: Buffered,
    ) -> Verdict {
        let Buffered { body, mut permit } = buffered;
        let parsed = parse_recall(sdk_app_id, recall, &head.query, read, head.received_at);
        let (event, parse_error) = match parsed {
            Ok(parsed) => {
                self.counts.ignored_fields(&parsed.ignored_fields, recall);
                (parsed.event, None)
            }
            Err(parse_error) => {
                let event = Self::reject(&head, sdk_app_id, recall, &parse_error, &body);
                (event, Some(parse_error))
            }
        };
        // The event can be several times as long as the body.
        if let Err(outcome) = self.bodies.enlarge(&mut permit, event.body.len()) {
            return Verdict::Answer(outcome);
        }
        let onward = head.onward.filter(|onward| onward.backend.copy_recalls);
        let copy = onward.map(|onward| {
            let reserved = onward.bytes + body.len();
            // A recall is not refused because memory for its copy is lacking.
            let reserve = self.bodies.reserve_new(reserved);
            let outgoing = reserve.ok_or(UpstreamError::TooMany).and_then(|reserve| {
                let (query, headers) = (head.query.raw(), onward.headers);
                (onward.backend).outgoing(query, headers, body, reserved, reserve)
            });
            (onward.backend, outgoing)
        });
        Verdict::Keep {
            event,
            permit,
            parse_error,
            copy,
        }
    }

    /// The dead letter of a callback that could not be parsed: it contains the whole callback.
    fn reject(
        head: &Head<'_>,
        sdk_app_id: u64,
        recall: Recall,
        parse_error: &ParseError,
        body: &[u8],
    ) -> Event {
        Rejected {
            sdk_app_id,
            reason: parse_error.reason(),
            detail: &parse_error.to_string(),
            command: Some(recall.command()),
            query: &head.query.without_signature(),
            body,
            received_at: head.received_at,
        }
        .event()
    }
}

#[cfg(test)]
mod tests;
