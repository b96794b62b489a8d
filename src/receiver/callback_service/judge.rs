//! Decides what to do with a request, once its body was read as far as it is worth it.

use super::{CallbackService, Verdict};
use crate::callback::{
    self, Class, NO_COMMAND, ParseError, Recall, classify, known_command, parse_recall,
};
use crate::event::{Event, Rejected};
use crate::receiver::answer::Outcome;
use crate::receiver::auth::AuthError;
use crate::receiver::body::{BodyError, Buffered};
use crate::receiver::budget::Budget;
use crate::receiver::durability::{Durability, NotKept};
use crate::receiver::head::{Head, NamedCommand};
use crate::upstream::{Sender, UpstreamError};

impl<D: Durability> CallbackService<D> {
    /// The memory that a request may take.
    pub(super) const fn memory_of(&self, head: &Head<'_>) -> &Budget {
        if head.is_authenticated() {
            &self.memory
        } else {
            &self.unauthenticated_memory
        }
    }

    /// Decides what to do with a request that was received in full.
    pub(super) fn judge(&self, head: Head<'_>, buffered: Buffered) -> (&'static str, Verdict) {
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
                self.counts.signature(command, &head);
                (command, self.judge_other(head, command, buffered))
            }
        }
    }

    /// Decides what to do with an unauthenticated request for another command, if its body is not needed for that. If
    /// the body names a recall, that does not count.
    pub(super) fn judge_unread_command(
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
    pub(super) fn judge_unread(&self, head: Head<'_>, error: BodyError) -> Verdict {
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
            self.counts.signature(recall.command(), head);
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
