//! What a session does for a resend: begins and ends it, and handles its confirms.

use super::super::Forwarder;
use super::super::poison_search::PoisonSearch;
use super::super::resend::{ActiveResend, ResendRequest};
use crate::event::Seq;
use crate::sink::Sink;
use crate::spool::AppendError;

impl<S: Sink> Forwarder<S> {
    /// Begins a resend. Nothing is in flight.
    pub(super) fn begin_resend(&mut self, request: ResendRequest) {
        let confirmed = self.cursor.position();
        let resend = ActiveResend::begin(request, self.sink.name(), confirmed, &self.spool);
        // Events are sent again even if they are known to be refused, or were confirmed before others.
        self.poison_search = PoisonSearch::default();
        self.window.forget_confirmed();
        if let Some(position) = resend.position() {
            self.reader.seek(position);
        }
        self.resend = Some(resend);
        self.finish_resend_at(Seq(0));
    }

    /// Stops the resend, if there is one, and continues with events that were never confirmed.
    pub(in crate::forwarder) fn stop_resend(&mut self, reason: &'static str) {
        self.requested = None;
        let Some(resend) = self.resend.take() else {
            return;
        };
        resend.stop(reason);
        let confirmed = self.cursor.position();
        if self.reader.position() < confirmed {
            self.reader.seek(confirmed);
        }
    }

    /// Every event in flight up to here is confirmed: finishes the resend if it has reached its end.
    pub(super) fn finish_resend_at(&mut self, position: Seq) {
        if let Some(resend) = self.resend.take_if(|resend| resend.reached(position)) {
            resend.finish();
        }
    }

    /// Handles confirms of events that were sent again. Dead letters are removed from the spool first: if that fails,
    /// they are published once more, but never lost.
    pub(super) async fn confirm_resent(&mut self, seqs: &[Seq]) -> Result<(), AppendError> {
        let Some(resend) = &mut self.resend else {
            return Ok(());
        };
        let is_resent = |seq: &&Seq| {
            let delivery = self.window.delivery(**seq);
            delivery.is_some_and(|delivery| delivery.is_resent)
        };
        let confirmed: Vec<Seq> = seqs.iter().filter(is_resent).copied().collect();
        let dead_letters = resend.dead_letters(&confirmed);
        if !dead_letters.is_empty() {
            self.spool.remove_dead_letters(dead_letters).await?;
        }
        for seq in confirmed {
            resend.confirmed(seq);
        }
        Ok(())
    }
}

/// Completes when nobody waits for the resend any more; never if there is none.
pub(super) fn cancelled(resend: Option<&ActiveResend>) -> impl Future<Output = ()> + Send + use<> {
    let cancelled = resend.map(ActiveResend::cancellation);
    async move {
        match cancelled {
            Some(cancelled) => cancelled.cancelled_owned().await,
            None => std::future::pending().await,
        }
    }
}
