//! Counts what becomes of requests, and logs what is new about them.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use prometheus_client::registry::Registry;
use tracing::warn;

use super::answer::Outcome;
use super::auth::AuthError;
use super::budget::UsedBytes;
use super::head::Head;
use super::metrics::{
    AnswerLabels, AnswerMetrics, CommandLabels, FieldLabels, Metrics, TokenLabels,
};
use super::unaccepted::UnacceptedRecalls;
use crate::callback::{IgnoredField, NO_COMMAND, OTHER_COMMAND, Recall};
use crate::telemetry::Recurrence;

/// Counts and logs.
#[derive(Debug)]
pub(super) struct Counts {
    metrics: Metrics,
    pub(super) unaccepted: Arc<UnacceptedRecalls>,
    logged_fields: Mutex<HashSet<IgnoredField>>,
    logged_commands: Mutex<HashSet<&'static str>>,
    bad_signatures: Recurrence,
}

impl Counts {
    /// Registers the metrics.
    pub(super) fn register(registry: &mut Registry, tokens: u32, buffered: [UsedBytes; 2]) -> Self {
        Self {
            metrics: Metrics::register(registry, tokens, buffered),
            unaccepted: Arc::default(),
            logged_fields: Mutex::default(),
            logged_commands: Mutex::default(),
            bad_signatures: Recurrence::default(),
        }
    }

    /// What became of requests.
    pub(super) fn answers(&self) -> AnswerMetrics {
        self.metrics.answers()
    }

    /// Starts the counters of these tokens at 0.
    pub(super) fn init_tokens(&self, tokens: u32) {
        self.metrics.init_token_counters(tokens);
    }

    /// Starts the counter of answers that wait for the brokers at 0.
    pub(super) fn init_broker(&self) {
        self.metrics.init_broker_counter();
    }

    /// Starts the counters of what happens only with a backend at 0.
    pub(super) fn init_backend(&self) {
        self.metrics.init_backend_counters();
    }

    /// Counts an answer, and how long it took if that was the relay's own time.
    pub(super) fn answered(&self, command: &'static str, outcome: &Outcome, began: Instant) {
        let now = Instant::now();
        self.count(command, outcome, now);
        if let Outcome::Kept(kept) = outcome {
            self.metrics.answered_ok(kept.after);
        }
        if !matches!(outcome, Outcome::HandedOn | Outcome::NotHandedOn(..)) {
            let took = now.duration_since(began);
            self.metrics.answer_seconds.observe(took.as_secs_f64());
        }
    }

    /// Counts a request.
    pub(super) fn count(&self, command: &'static str, outcome: &Outcome, now: Instant) {
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

    /// Logs each command once; those that the vendor does not document count as one.
    pub(super) fn ignored_command(&self, command: &'static str) {
        let command = if command == NO_COMMAND {
            OTHER_COMMAND
        } else {
            command
        };
        if lock(&self.logged_commands).insert(command) {
            warn!(
                code = "command_ignored",
                command,
                "callback is answered OK and not handed on; if a backend needs it, set upstream.url to its URL, \
                 otherwise switch the callback off in the console"
            );
        }
    }

    /// Counts who signed a request, and records when.
    pub(super) fn signature(&self, command: &'static str, head: &Head<'_>) {
        if let Some(skew) = head.clock_skew() {
            self.metrics.clock_skew.set(skew);
        }
        match head.signed_by {
            Ok(Some(token)) => {
                let signatures = &self.metrics.signatures;
                signatures.get_or_create(&TokenLabels { token }).inc();
            }
            Ok(None) => {}
            Err(error) => {
                let bad_signatures = &self.metrics.bad_signatures;
                bad_signatures
                    .get_or_create(&CommandLabels { command })
                    .inc();
                // A recall is refused, which the log says as `recalls_not_accepted`.
                if Recall::named(command).is_none() {
                    self.log_bad_signature(command, AuthError::Signature(error));
                }
            }
        }
    }

    /// Other commands are far more frequent than recalls: this tells of a wrong token before a recall is lost.
    fn log_bad_signature(&self, command: &'static str, error: AuthError) {
        if let Some((lasted, times)) = self.bad_signatures.occurred(Instant::now()) {
            warn!(
                code = "bad_signature", command, reason = %error, times, seconds = lasted.as_secs(),
                "callbacks other than recalls have no valid signature; a recall like them would be refused and lost; \
                 {}; if they are not the vendor's, there is nothing to do", error.advice()
            );
        }
    }

    /// Counts the fields that a recall's event lacks. Each is logged once.
    pub(super) fn ignored_fields(&self, ignored_fields: &[IgnoredField], recall: Recall) {
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
