//! What becomes of events that the broker refuses: they are published as dead letters, else stored in the spool.

use std::sync::Arc;

use tracing::{error, warn};

use super::super::{Forwarder, SessionEnd};
use super::STORE;
use crate::event::Seq;
use crate::sink::{Delivery, Refusal, Session as _, SessionError, Sink};
use crate::spool::{AppendError, DeadLetter};

impl<S: Sink> Forwarder<S> {
    /// Handles events that were refused individually. They become dead letters. Dead letters that were refused are
    /// stored in the spool.
    pub(super) async fn handle_refused(
        &mut self,
        refused: Vec<(Seq, Refusal)>,
        session: &mut S::Session,
    ) -> Option<SessionEnd> {
        let (mut refused_dead_letters, mut to_republish) = (Vec::new(), Vec::new());
        for (seq, refusal) in refused {
            let Some(mut delivery) = self.window.delivery(seq).cloned() else {
                continue;
            };
            if delivery.is_dead_letter() {
                refused_dead_letters.push(self.dead_letter(&delivery, &refusal));
                continue;
            }
            self.log_refusal(&delivery, &refusal);
            self.poison_search.mark_poison(seq, refusal.clone());
            delivery.refusal = Some(refusal);
            self.window.replace(delivery);
            to_republish.push(seq);
        }
        if !to_republish.is_empty() {
            session.publish(&self.window, &to_republish);
        }
        let error = self.store_dead_letters(refused_dead_letters).await.err()?;
        Some(SessionEnd::Lost(SessionError::unavailable(STORE, error)))
    }

    /// Some event in flight was refused, which ended the session. If only one was in flight, it is that one.
    pub(super) async fn handle_session_refusal(&mut self, refusal: Refusal) -> SessionEnd {
        let mut in_flight = self.window.in_flight();
        let dead_letters = if refusal.is_of_dead_letters() {
            // No search is needed: the broker accepts none of the dead letters in flight.
            let in_flight = in_flight.filter(|delivery| delivery.is_dead_letter());
            in_flight
                .map(|delivery| self.dead_letter(delivery, &refusal))
                .collect()
        } else {
            let first = in_flight.next();
            let others = in_flight.count();
            match first {
                Some(_) if others > 0 => {
                    self.poison_search.bisect(others + 1, self.window.last());
                    return SessionEnd::Reconnect;
                }
                Some(delivery) if !delivery.is_dead_letter() => {
                    let seq = delivery.seq;
                    self.log_refusal(delivery, &refusal);
                    self.poison_search.mark_poison_alone(seq, refusal);
                    return SessionEnd::Reconnect;
                }
                Some(delivery) => {
                    self.poison_search.finish_at(delivery.seq);
                    vec![self.dead_letter(delivery, &refusal)]
                }
                // Nothing was in flight, so the refusal is of no event.
                None => Vec::new(),
            }
        };
        if dead_letters.is_empty() {
            return SessionEnd::Lost(SessionError::Refused(refusal));
        }
        match self.store_dead_letters(dead_letters).await {
            Ok(()) => SessionEnd::Reconnect,
            Err(error) => SessionEnd::Lost(SessionError::unavailable(STORE, error)),
        }
    }

    fn dead_letter(&self, delivery: &Delivery, refusal: &Refusal) -> DeadLetter {
        DeadLetter {
            sink: self.sink.name(),
            seq: delivery.seq,
            event: Arc::clone(&delivery.event),
            reason: refusal.reason,
            detail: refusal.detail.clone(),
        }
    }

    /// Stores in the spool, in one transaction, the dead letters that the broker refused.
    async fn store_dead_letters(
        &mut self,
        dead_letters: Vec<DeadLetter>,
    ) -> Result<(), AppendError> {
        let Some(first) = dead_letters.first() else {
            return Ok(());
        };
        let (sink, events, seq, id) = (first.sink, dead_letters.len(), first.seq, first.event.id);
        let (reason, detail) = (first.reason, first.detail.clone());
        let seqs: Vec<Seq> = dead_letters
            .iter()
            .map(|dead_letter| dead_letter.seq)
            .collect();
        self.spool.store_dead_letters(dead_letters).await?;
        error!(
            code = "dead_letters_stored", sink, events, first_seq = %seq, first_id = %id, reason, detail,
            "broker refused events even as dead letters; they are stored in the spool: repair the dead-letter topic or \
             queue, then run `recall-relay spool dead-letters retry --all`"
        );
        for seq in &seqs {
            let is_resent = self
                .window
                .delivery(*seq)
                .is_some_and(|delivery| delivery.is_resent);
            if let Some(resend) = self.resend.as_mut().filter(|_| is_resent) {
                resend.refused(*seq);
            }
        }
        if let Some(confirms) = &self.confirms {
            confirms.refused(&seqs);
        }
        self.window.confirm(&seqs);
        for seq in seqs {
            // If the broker refused the event itself before, it is already counted.
            if !self.poison_search.is_poison(seq) {
                self.state.refused();
            }
        }
        self.move_cursor();
        Ok(())
    }

    fn log_refusal(&self, delivery: &Delivery, refusal: &Refusal) {
        self.state.refused();
        let (seq, id) = (delivery.seq, delivery.event.id);
        warn!(
            code = "poison_event", sink = self.sink.name(), %seq, %id, reason = %refusal,
            "broker will never accept this event, and it is published as a dead letter; for `too_large`, raise the \
             broker's limit; read the event in the dead-letter topic or queue"
        );
    }
}
