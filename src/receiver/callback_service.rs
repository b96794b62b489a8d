//! Handles a request, from its head to its answer.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
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
use super::durability::{Durability, NotKept};
use super::metrics::{AnswerLabels, CommandLabels, FieldLabels, Metrics, TokenLabels};
use super::unaccepted::UnacceptedRecalls;
use crate::callback::{
    self, Class, IgnoredField, NO_COMMAND, OTHER_COMMAND, ParseError, Query, Recall, classify,
    known_command, parse_recall,
};
use crate::event::{Event, Rejected, UnixMillis};

/// Receives requests and answers them.
#[derive(Debug)]
pub struct CallbackService<D> {
    path: String,
    bodies: BodyReader,
    /// Replaced when the settings are reloaded; a request uses one from its head to its answer.
    auth: RwLock<Arc<Auth>>,
    durability: D,
    metrics: Metrics,
    unaccepted: Arc<UnacceptedRecalls>,
    logged_fields: Mutex<HashSet<IgnoredField>>,
    logged_commands: Mutex<HashSet<&'static str>>,
    closing: AtomicBool,
}

/// What later steps need of a request besides its body. Its headers are dropped before the body is read, because no
/// permit covers their memory.
struct Head<'a> {
    query: Query<'a>,
    auth: Arc<Auth>,
    /// Whether `auth.allowed_sources` allows the source address.
    source: Result<(), AuthError>,
    received_at: UnixMillis,
}

/// What to do with a request.
enum Verdict {
    Answer(Outcome),
    /// Store the event. If the recall could not be parsed, the event is its dead letter.
    Keep {
        event: Event,
        permit: OwnedSemaphorePermit,
        parse_error: Option<ParseError>,
    },
}

/// Counts a request of this command as abandoned if this guard is dropped while it still holds a value.
struct CountIfDropped<'a, D: Durability>(Option<(&'a CallbackService<D>, &'static str)>);

impl<D: Durability> Drop for CountIfDropped<'_, D> {
    fn drop(&mut self) {
        if let Some((service, command)) = self.0.take() {
            service.count(command, &Outcome::Abandoned, Instant::now());
        }
    }
}

impl<D: Durability> CallbackService<D> {
    /// A service that stores events in `durability`. Registers its metrics.
    #[must_use]
    pub fn new(config: Config, auth: Auth, durability: D, registry: &mut Registry) -> Self {
        let bodies = BodyReader::new(&config);
        let metrics = Metrics::register(registry, auth.tokens(), bodies.buffered_bytes());
        Self {
            bodies,
            path: config.path,
            auth: RwLock::new(Arc::new(auth)),
            durability,
            metrics,
            unaccepted: Arc::default(),
            logged_fields: Mutex::default(),
            logged_commands: Mutex::default(),
            closing: AtomicBool::new(false),
        }
    }

    /// The recalls that were not accepted.
    #[must_use]
    pub const fn unaccepted(&self) -> &Arc<UnacceptedRecalls> {
        &self.unaccepted
    }

    /// Authenticates the requests that arrive from now on with `auth`.
    pub fn set_auth(&self, auth: Auth) {
        self.metrics.init_token_counters(auth.tokens());
        *self.auth.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(auth);
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
        let outcome = match verdict {
            Verdict::Answer(outcome) => outcome,
            Verdict::Keep {
                event,
                permit,
                parse_error,
            } => {
                let id = event.id;
                // hyper drops this future if the client disconnects, as the vendor does after 2 s.
                let mut abandoned = CountIfDropped(Some((&self, command)));
                let kept = self.durability.keep(event, permit).await;
                abandoned.0 = None;
                match (kept, parse_error) {
                    (Ok(kept), None) => Outcome::Kept(kept),
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
                }
            }
        };
        debug!(%peer, command, outcome = outcome.name(), "answered");
        let now = Instant::now();
        self.count(command, &outcome, now);
        self.metrics
            .answer_seconds
            .observe(now.duration_since(began).as_secs_f64());
        let mut response = outcome.response();
        if self.closing.load(Ordering::Relaxed) {
            let headers = response.headers_mut();
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    fn count(&self, command: &'static str, outcome: &Outcome, now: Instant) {
        if Recall::named(command).is_some() {
            if outcome.is_loss() {
                self.unaccepted.add(outcome, now);
            } else if matches!(outcome, Outcome::Kept(_)) {
                self.unaccepted.accepted(now);
            }
        }
        let outcome = outcome.name();
        let labels = AnswerLabels { command, outcome };
        debug_assert!(
            self.metrics.callbacks.get(&labels).is_some(),
            "{labels:?} does not start at 0"
        );
        self.metrics.callbacks.get_or_create(&labels).inc();
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
        let head = Head {
            query: Query::parse(query),
            source: auth.check_source(&headers, peer),
            auth,
            received_at: UnixMillis::now(),
        };
        let announced = headers
            .get(CONTENT_LENGTH)
            .and_then(|length| length.to_str().ok()?.parse().ok());
        // Over HTTP/1.0 the end of such a body is the end of the connection, and hyper takes it for empty: a recall
        // would be answered as a probe.
        let needs_body = head
            .query
            .command()
            .is_none_or(|name| Recall::named(name).is_some());
        if version == Version::HTTP_10 && needs_body && !headers.contains_key(CONTENT_LENGTH) {
            return refuse(Outcome::NoLength);
        }
        drop(headers);
        match self.bodies.read(query.len(), announced, body).await {
            Ok(buffered) => self.judge(&head, buffered),
            Err(outcome) => refuse(outcome),
        }
    }

    /// Decides what to do with a request that was received in full.
    fn judge(&self, head: &Head<'_>, buffered: Buffered) -> (&'static str, Verdict) {
        let Buffered { body, permit } = buffered;
        match classify(&head.query, &body) {
            Class::Recall { recall, body: read } => {
                let verdict = match self.admit(head, recall) {
                    Ok(sdk_app_id) => self.take(head, sdk_app_id, recall, &read, &body, permit),
                    Err(refusal) => Verdict::Answer(Outcome::Refused(refusal)),
                };
                (recall.command(), verdict)
            }
            Class::Probe => (
                known_command(head.query.command()),
                Verdict::Answer(Outcome::Probe),
            ),
            Class::Other { command } => {
                let command = known_command(command.as_deref());
                let signed_by = head.auth.check_signature(&head.query, head.received_at);
                self.count_signature(command, signed_by);
                self.report_command(command);
                (command, Verdict::Answer(Outcome::Ignored))
            }
        }
    }

    /// Checks whether a recall may become an event. Returns its application.
    fn admit(&self, head: &Head<'_>, recall: Recall) -> Result<u64, AuthError> {
        let admitted = head
            .source
            .and_then(|()| head.auth.admit(&head.query, head.received_at));
        match admitted {
            Ok(Admitted { signed_by, .. }) => self.count_signature(recall.command(), Ok(signed_by)),
            Err(AuthError::Signature(refusal)) => {
                self.count_signature(recall.command(), Err(refusal));
            }
            Err(_) => {}
        }
        Ok(admitted?.sdk_app_id)
    }

    /// Makes the event of a recall.
    fn take(
        &self,
        head: &Head<'_>,
        sdk_app_id: u64,
        recall: Recall,
        read: &callback::Body<'_>,
        body: &[u8],
        mut permit: OwnedSemaphorePermit,
    ) -> Verdict {
        let parsed = parse_recall(sdk_app_id, recall, &head.query, read, head.received_at);
        let (event, parse_error) = match parsed {
            Ok(parsed) => {
                self.report(&parsed.ignored_fields, recall);
                (parsed.event, None)
            }
            Err(parse_error) => {
                let event = Self::reject(head, sdk_app_id, recall, &parse_error, body);
                (event, Some(parse_error))
            }
        };
        // The event can be several times as long as the body.
        if let Err(outcome) = self.bodies.enlarge(&mut permit, event.body.len()) {
            return Verdict::Answer(outcome);
        }
        Verdict::Keep {
            event,
            permit,
            parse_error,
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

    /// Logs each command once; those that the vendor does not document count as one.
    fn report_command(&self, command: &'static str) {
        let command = if command == NO_COMMAND {
            OTHER_COMMAND
        } else {
            command
        };
        if lock(&self.logged_commands).insert(command) {
            warn!(
                code = "command_ignored",
                command,
                "callback is answered OK and not handed on; if a backend needs it, split the callback URL, \
                 otherwise switch it off in the console"
            );
        }
    }

    fn count_signature(
        &self,
        command: &'static str,
        signed_by: Result<Option<u32>, callback::SignatureError>,
    ) {
        match signed_by {
            Ok(Some(token)) => {
                let signatures = &self.metrics.signatures;
                signatures.get_or_create(&TokenLabels { token }).inc();
            }
            Ok(None) => {}
            Err(_) => {
                let bad_signatures = &self.metrics.bad_signatures;
                bad_signatures
                    .get_or_create(&CommandLabels { command })
                    .inc();
            }
        }
    }

    /// Counts the fields that a recall's event lacks. Each is logged once.
    fn report(&self, ignored_fields: &[IgnoredField], recall: Recall) {
        for ignored in ignored_fields {
            let (field, problem) = match ignored {
                IgnoredField::Missing(field) => (*field, "missing"),
                IgnoredField::Unusable(field) => (*field, "unusable"),
            };
            self.metrics
                .fields
                .get_or_create(&FieldLabels { field, problem })
                .inc();
            if lock(&self.logged_fields).insert(*ignored) {
                warn!(
                    code = "field_omitted",
                    field,
                    problem,
                    command = recall.command(),
                    "field of a callback is missing or unusable, and its event omits it; further ones are only \
                     counted in recall_callback_fields_absent_total"
                );
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
