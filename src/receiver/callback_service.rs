//! Handles a request, from its head to its answer.

mod judge;

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
use super::auth::Auth;
use super::body::BodyReader;
use super::budget::Budget;
use super::config::Config;
use super::counts::Counts;
use super::durability::{AnswerAfter, Durability, Kept, NotKept};
use super::head::{Head, NamedCommand, Onward};
use super::listener::{Peer, Service, Trust};
use super::metrics::AnswerMetrics;
use super::unaccepted::UnacceptedRecalls;
use crate::callback::{ParseError, Query, known_command};
use crate::event::{Event, UnixMillis};
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

    /// What became of requests.
    #[must_use]
    pub fn answers(&self) -> AnswerMetrics {
        self.counts.answers()
    }

    /// The upstream.
    #[must_use]
    pub const fn upstream(&self) -> &Arc<Upstream> {
        &self.upstream
    }

    /// Creates the counter of answers after the broker, at 0.
    pub fn init_broker(&self) {
        self.counts.init_broker();
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
                let stored = self.durability.keep(event, permit).await;
                abandoned.0 = None;
                let outcome = match (stored, parse_error) {
                    (Ok(stored), None) => {
                        if let Some((backend, outgoing)) = copy.filter(|_| stored.is_new) {
                            backend.copy(outgoing);
                        }
                        let kept = |after| {
                            let is_new = stored.is_new;
                            Outcome::Kept(Kept { is_new, after })
                        };
                        // From here on, a client that disconnects loses no recall.
                        let on_disk = (&self.counts, command, kept(AnswerAfter::Disk));
                        let mut disconnected = CountIfDropped(Some(on_disk));
                        let after = self
                            .durability
                            .wait_for_brokers(&stored, began.into())
                            .await;
                        disconnected.0 = None;
                        kept(after)
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
        // Authenticate first: of an unauthenticated request, no more is read than the answer needs.
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
            self.counts.signature(command, &head);
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
