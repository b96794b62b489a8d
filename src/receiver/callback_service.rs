//! Handles a request, from its head to its answer.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Incoming};
use hyper::header::{CONNECTION, CONTENT_LENGTH, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, Version};
use prometheus_client::registry::Registry;
use tokio::sync::OwnedSemaphorePermit;
use tracing::{debug, warn};

use super::answer::Outcome;
use super::auth::{Auth, AuthError};
use super::body::{BodyError, BodyReader, Buffered};
use super::budget::Budget;
use super::config::Config;
use super::counts::Counts;
use super::durability::{Durability, Kept, NotKept};
use super::head::{Head, NamedCommand, Onward};
use super::listener::{Peer, Service, Trust};
use super::unaccepted::UnacceptedRecalls;
use crate::callback::{
    self, Class, NO_COMMAND, ParseError, Query, Recall, classify, known_command, parse_recall,
};
use crate::event::{Event, Rejected, UnixMillis};
use crate::upstream::{self, Backend, Outgoing, ReceivedHeaders, Sender, Upstream, UpstreamError};

/// The largest body that is read of a request that is not authenticated and not for a backend. The console's probe has
/// an empty or a small one.
const MAX_UNAUTHENTICATED_BODY: usize = 4 << 10;

/// Receives requests and answers them.
#[derive(Debug)]
pub struct CallbackService<D> {
    path: String,
    max_body_bytes: usize,
    read_timeout: Duration,
    /// The memory of what authenticated requests send (`http.max_buffered_bytes`).
    memory: Budget,
    /// The memory of what all others send (`http.max_unauthenticated_bytes`).
    unauthenticated_memory: Budget,
    /// Replaced when the settings are reloaded; a request uses one from its head to its answer.
    auth: RwLock<Arc<Auth>>,
    durability: D,
    upstream: Arc<Upstream>,
    counts: Counts,
    closing: AtomicBool,
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

/// A request, as far as it was received.
struct Received {
    command: &'static str,
    is_authenticated: bool,
    verdict: Verdict,
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
        let memory = Budget::new("http.max_buffered_bytes", config.max_buffered_bytes).keep_half();
        let unauthenticated_memory = Budget::new(
            "http.max_unauthenticated_bytes",
            config.max_unauthenticated_bytes,
        );
        let buffered = [memory.used_bytes(), unauthenticated_memory.used_bytes()];
        let counts = Counts::register(registry, auth.tokens(), buffered);
        Self {
            path: config.path,
            max_body_bytes: usize::try_from(config.max_body_bytes.0).unwrap_or(usize::MAX),
            read_timeout: *config.read_timeout,
            memory,
            unauthenticated_memory,
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
    pub async fn answer<B>(&self, request: Request<B>, peer: &Peer) -> Response<Full<Bytes>>
    where
        B: Body<Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Unpin,
    {
        let began = Instant::now();
        // The request is dropped here, so hyper can free its buffer. From now on only the event's memory is held while
        // it waits for the disk.
        let Received {
            command,
            is_authenticated,
            verdict,
        } = self.receive(request, peer).await;
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
        debug!(peer = %peer.address(), command, outcome = outcome.name(), "answered");
        self.counts.answered(command, &outcome, began);
        let mut response =
            answer.map_or_else(|| outcome.response(), |answer| answer.map(Full::new));
        let is_for_backend = matches!(outcome, Outcome::HandedOn | Outcome::NotHandedOn(..));
        if peer.has_unread_body()
            || !(is_authenticated || is_for_backend)
            || self.closing.load(Ordering::Relaxed)
        {
            let headers = response.headers_mut();
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    /// Reads a request and decides what to do with it.
    async fn receive<B>(&self, request: Request<B>, peer: &Peer) -> Received
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
        // First, who sends: what is not authenticated is read no further than it must be.
        let (auth, received_at, address) = (self.auth(), UnixMillis::now(), peer.address());
        let is_path = uri.path() == self.path;
        // A copy: hyper's own would keep the whole head in memory.
        let query = uri.query().unwrap_or_default().to_owned();
        drop(uri);
        let query = Query::parse(&query);
        let mut head = Head {
            source: auth.check_source(&headers, address),
            signed_by: auth.check_signature(&query, received_at),
            query,
            auth,
            received_at,
            onward: None,
        };
        let is_authenticated = head.is_authenticated();
        if is_authenticated {
            peer.authenticated();
        }
        let received = |(command, verdict)| Received {
            command,
            is_authenticated,
            verdict,
        };
        let command = known_command(head.query.command());
        let answer_early = |outcome| {
            if !body.is_end_stream() {
                peer.leave_body_unread();
            }
            received((command, Verdict::Answer(outcome)))
        };

        if !is_path {
            return answer_early(Outcome::NotFound);
        }
        if method != Method::POST {
            return answer_early(Outcome::WrongMethod);
        }
        let backend = self.upstream.backend();
        let named = head.named();
        if !is_authenticated && named == NamedCommand::OtherCommand {
            self.counts.signature(command, head.signed_by);
            if let Some(outcome) = self.judge_unread_command(&head, command, backend.is_some()) {
                return answer_early(outcome);
            }
        }
        // Over HTTP/1.0, a body without a length ends when the connection closes, and hyper treats it as empty: a
        // recall would be answered as a probe, and the backend would get another body than the vendor sent.
        let needs_body = backend.is_some() || named != NamedCommand::OtherCommand;
        if version == Version::HTTP_10 && needs_body && !headers.contains_key(CONTENT_LENGTH) {
            return answer_early(Outcome::NoLength);
        }
        let announced = headers
            .get(CONTENT_LENGTH)
            .and_then(|length| length.to_str().ok()?.parse().ok());
        let mut head_bytes = if body.is_end_stream() {
            // Nothing is kept while something else arrives.
            0
        } else {
            head.query.raw().len()
        };
        if let Some(backend) = backend {
            let headers = ReceivedHeaders {
                headers,
                peer: address.ip(),
                is_proxy: head.auth.is_trusted_proxy(address.ip()),
            };
            head_bytes = head.query.raw().len() + headers.bytes();
            head.onward = Some(Onward {
                backend,
                headers,
                bytes: head_bytes,
            });
        } else {
            drop(headers);
        }

        let is_for_backend = head.onward.is_some() && !matches!(named, NamedCommand::Recall(_));
        let reader = BodyReader {
            budget: self.memory_of(&head),
            max_bytes: if is_authenticated || is_for_backend {
                self.max_body_bytes
            } else {
                MAX_UNAUTHENTICATED_BODY
            },
            timeout: self.read_timeout,
            head_bytes,
        };
        received(match reader.read(announced, body).await {
            Ok(buffered) => self.judge(head, buffered),
            Err(error) => {
                peer.leave_body_unread();
                (command, self.judge_unread(head, error))
            }
        })
    }

    /// The memory that a request may take.
    const fn memory_of(&self, head: &Head<'_>) -> &Budget {
        if head.is_authenticated() {
            &self.memory
        } else {
            &self.unauthenticated_memory
        }
    }

    /// Decides what to do with a request that was received in full.
    fn judge(&self, head: Head<'_>, buffered: Buffered) -> (&'static str, Verdict) {
        if !head.is_authenticated() && head.named() == NamedCommand::OtherCommand {
            let command = known_command(head.query.command());
            return (command, self.judge_other(head, command, buffered));
        }
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
                let verdict = self.hand_on(head, buffered);
                (command, verdict.unwrap_or(Verdict::Answer(Outcome::Probe)))
            }
            Class::Other { command } => {
                let command = known_command(command.as_deref());
                self.counts.signature(command, head.signed_by);
                (command, self.judge_other(head, command, buffered))
            }
        }
    }

    /// Decides what to do with a request for another command that is not authenticated, if its body is not needed for
    /// that. The body might still name a recall, but not one that counts.
    fn judge_unread_command(
        &self,
        head: &Head<'_>,
        command: &'static str,
        has_backend: bool,
    ) -> Option<Outcome> {
        if !has_backend {
            self.counts.ignored_command(command);
            return Some(Outcome::Ignored);
        }
        head.source.err().map(Outcome::Barred)
    }

    /// Decides what to do with a request whose body was not read to the end.
    fn judge_unread(&self, head: Head<'_>, error: BodyError) -> Verdict {
        let is_authenticated = head.is_authenticated();
        let outcome = match error {
            BodyError::Broken => Outcome::Broken,
            BodyError::TooSlow => Outcome::TooSlow,
            BodyError::TooLarge if is_authenticated => Outcome::TooLarge,
            BodyError::UsedUp if is_authenticated => no_memory(),
            BodyError::TooLarge | BodyError::UsedUp => {
                return self.judge_unauthenticated(head, error);
            }
        };
        Verdict::Answer(outcome)
    }

    /// Decides what to do with a request that is not authenticated and takes more memory than it may.
    fn judge_unauthenticated(&self, head: Head<'_>, error: BodyError) -> Verdict {
        // A probe is smaller; if there is no memory even for one, it can be tried again.
        if let NamedCommand::Recall(recall) = head.named()
            && let Err(refusal) = self.admit(&head, recall)
        {
            return Verdict::Answer(Outcome::Refused(refusal));
        }
        let too_large = error == BodyError::TooLarge;
        match head.onward {
            Some(_) if too_large => Verdict::Answer(Outcome::TooLarge),
            Some(onward) => match head.source {
                Ok(()) => {
                    let outgoing = Err(UpstreamError::TooMany);
                    Verdict::HandOn(onward.backend, Sender::Unknown, outgoing)
                }
                Err(refusal) => Verdict::Answer(Outcome::Barred(refusal)),
            },
            None if too_large => {
                self.counts.ignored_command(NO_COMMAND);
                Verdict::Answer(Outcome::Ignored)
            }
            None => Verdict::Answer(Outcome::NotKept(NotKept::Unavailable(
                "requests that are not authenticated use all of http.max_unauthenticated_bytes"
                    .to_owned(),
                "find out who sends them, or raise http.max_unauthenticated_bytes",
            ))),
        }
    }

    /// Hands on what is neither a recall nor a probe, or discards it.
    fn judge_other(&self, head: Head<'_>, command: &'static str, buffered: Buffered) -> Verdict {
        self.hand_on(head, buffered).unwrap_or_else(|| {
            self.counts.ignored_command(command);
            Verdict::Answer(Outcome::Ignored)
        })
    }

    /// Hands on what is not a recall. None if there is no backend.
    fn hand_on(&self, head: Head<'_>, buffered: Buffered) -> Option<Verdict> {
        let memory = self.memory_of(&head);
        let sender = head.sender();
        let onward = head.onward?;
        if let Err(refusal) = head.source {
            return Some(Verdict::Answer(Outcome::Barred(refusal)));
        }
        let Buffered { body, permit } = buffered;
        let reserved = onward.bytes + body.len();
        let outgoing = if memory.has_left(0) {
            let reserve = memory.reserve(permit);
            let (query, headers) = (head.query.raw(), onward.headers);
            (onward.backend).outgoing(query, headers, body, reserved, reserve)
        } else {
            Err(UpstreamError::TooMany)
        };
        Some(Verdict::HandOn(onward.backend, sender, outgoing))
    }

    /// Checks whether a recall may become an event. Returns its application.
    fn admit(&self, head: &Head<'_>, recall: Recall) -> Result<u64, AuthError> {
        let admitted = head.admit();
        if admitted.is_ok() || matches!(admitted, Err(AuthError::Signature(_))) {
            self.counts.signature(recall.command(), head.signed_by);
        }
        admitted
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
        if self.memory.enlarge(&mut permit, event.body.len()).is_err() {
            return Verdict::Answer(no_memory());
        }
        let onward = head.onward.filter(|onward| onward.backend.copy_recalls);
        let copy = onward.map(|onward| {
            let reserved = onward.bytes + body.len();
            // A recall is not refused because memory for its copy is lacking.
            let reserve = self.memory.reserve_new(reserved);
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

/// There is no memory for an authenticated request.
fn no_memory() -> Outcome {
    Outcome::NotKept(NotKept::Unavailable(
        "request bodies use all of http.max_buffered_bytes".to_owned(),
        "use a faster disk, raise http.max_buffered_bytes, or find out who sends large bodies",
    ))
}

impl<D: Durability> Service for Arc<CallbackService<D>> {
    async fn answer(&self, request: Request<Incoming>, peer: Arc<Peer>) -> Response<Full<Bytes>> {
        CallbackService::answer(self, request, &peer).await
    }

    fn trust(&self, peer: IpAddr) -> Trust {
        self.auth().trust(peer)
    }
}

#[cfg(test)]
mod tests;
