//! One session of a forwarder: prefetches events, keeps a window in flight, advances the cursor.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{error, info, warn};

use super::poison_search::PoisonSearch;
use super::resend::{ActiveResend, ResendRequest};
use super::throttle::Throttle;
use super::{Flow, Forwarder, SessionEnd};
use crate::event::Seq;
use crate::sink::{CommittedPosition, Delivery, Progress, Refusal, Session, SessionError, Sink};
use crate::spool::{AppendError, DeadLetter, ReadError, Reader, Row};

/// How long events in flight may take to be confirmed when the session must be renewed. The next session publishes
/// again those that are not.
const RENEWAL_TIMEOUT: Duration = Duration::from_secs(10);

/// Maximum bytes of events in flight: no more are read above it, because librdkafka keeps a copy of each.
const WINDOW_BYTES: usize = 16 << 20;

/// What failed, in a session's error.
const READ: &str = "could not read events from the spool";
const STORE: &str = "could not store dead letters in the spool";

impl<S: Sink> Forwarder<S> {
    /// Forwards through one session until it ends.
    pub(super) async fn forward(&mut self, mut session: S::Session) -> SessionEnd {
        let end = self.forward_until_end(&mut session).await;
        session.close().await;
        end
    }

    async fn forward_until_end(&mut self, session: &mut S::Session) -> SessionEnd {
        self.flow = Flow::Flowing;
        let start = match self.start(session.committed_position()).await {
            Ok(start) => start,
            Err(error) => return SessionEnd::Lost(SessionError::unavailable(READ, error)),
        };
        self.reader.seek(start);
        if let Some(resend) = &mut self.resend {
            resend.restart();
            // Wherever the sink's position is, the replay continues where it was.
            if let Some(position) = resend.position() {
                self.reader.seek(position);
            }
        }
        // A sink with nothing to publish is up as soon as it is connected; otherwise wait for the first confirm.
        if start >= self.spool.status().last {
            self.up();
        }
        let mut throttle = Throttle::new(self.spool.status().last);
        let mut quiet_since = Instant::now();
        let mut renew_by = None;
        let mut tick = interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let draining = self.stop.drain.is_cancelled();
            if draining {
                self.stop_resend("relay is stopping");
            }
            if self.window.is_empty()
                && let Some(request) = self.requested.take()
            {
                self.begin_resend(request);
            }
            let position = self.reader.position();
            // All events are read and confirmed, and no more will be appended.
            if draining && self.window.is_empty() && position >= self.spool.status().last {
                return SessionEnd::Stopped;
            }
            if renew_by.is_some_and(|by| self.window.is_empty() || by <= Instant::now()) {
                return SessionEnd::Reconnect;
            }
            let size = self.poison_search.window(self.sink.window());
            let capacity = self
                .window
                .capacity(size, WINDOW_BYTES)
                .min(throttle.batch());
            // What is read now is published after what is in flight, so a resend waits for that.
            let may_read = renew_by.is_none() && self.requested.is_none();
            let cancelled = cancelled(self.resend.as_ref());
            // Biased: stopping comes first, then confirms, because they make capacity for the next read.
            tokio::select! {
                biased;
                () = self.stop.now.cancelled() => return SessionEnd::Stopped,
                () = self.stop.drain.cancelled(), if !draining => {}
                progress = session.progress(&self.window) => {
                    quiet_since = Instant::now();
                    if let Some(end) = self.handle_progress(progress, session).await {
                        return end;
                    }
                }
                () = self.sink.connection_changed(), if renew_by.is_none() => {
                    let sink = self.sink.name();
                    info!(
                        code = "session_renewed", sink,
                        "settings or certificates of the sink's connection have changed; reconnecting with the new ones"
                    );
                    renew_by = Some(Instant::now() + RENEWAL_TIMEOUT);
                }
                request = self.requests.next(), if self.resend.is_none() && may_read && !draining => {
                    self.requested = Some(request);
                }
                () = cancelled => {
                    self.stop_resend("nobody waits for it any more");
                }
                read = read(&mut self.reader, self.resend.as_mut(), capacity), if may_read => match read {
                    Ok(rows) => {
                        // An empty window confirms nothing: start the stall timeout with its first event.
                        if self.window.is_empty() {
                            quiet_since = Instant::now();
                        }
                        self.publish_rows(rows, session);
                        throttle.pause(self.reader.position(), self.spool.status().last).await;
                    }
                    Err(error) => {
                        return SessionEnd::Lost(SessionError::unavailable(READ, error));
                    }
                },
                _ = tick.tick() => {
                    // If the session reports its own reason for a stall, that reason is more precise.
                    let quiet = quiet_since.elapsed() >= self.stalled_after;
                    if quiet && self.flow == Flow::Flowing && !self.window.is_empty() {
                        let waited = self.stalled_after.as_secs();
                        let error = session.last_error().map(|error| format!(": {error}"));
                        let error = error.unwrap_or_default();
                        self.down(&format!("broker has confirmed nothing for {waited} s{error}"), false);
                    }
                }
            }
        }
    }

    /// The position to continue after: the higher of the spool's cursor and the position committed at the broker.
    ///
    /// A spool that was restored from a backup assigns numbers again that a sink may already know. So the committed
    /// position is used only if the spool has the same event under that number.
    async fn start(&mut self, committed: Option<CommittedPosition>) -> Result<Seq, ReadError> {
        let ours = self.cursor.position();
        let Some(theirs) = committed.filter(|theirs| theirs.seq > ours) else {
            return Ok(ours);
        };
        let spool = self.spool.clone();
        let event = tokio::task::spawn_blocking(move || spool.event(theirs.seq));
        let Ok(event) = event.await else {
            // The runtime is shutting down.
            return std::future::pending().await;
        };
        if theirs.event.is_none() || event?.map(|event| event.fingerprint()) != theirs.event {
            warn!(
                code = "committed_position_ignored", sink = self.sink.name(), cursor = %ours,
                committed = %theirs.seq,
                "position committed at the broker names an event that this spool does not have, as after a restore \
                 from a backup; continuing from the spool's cursor: expect some events twice"
            );
            return Ok(ours);
        }
        self.cursor.advance(theirs.seq);
        self.window.forget(theirs.seq);
        self.state.confirmed(theirs.seq.0 - ours.0);
        Ok(theirs.seq)
    }

    /// Adds rows to the window and publishes their events, except those that an earlier session has confirmed.
    fn publish_rows(&mut self, rows: Vec<Row>, session: &mut S::Session) {
        let mut to_publish = Vec::with_capacity(rows.len());
        for row in rows {
            let is_resent = self.resend.as_mut().is_some_and(|resend| resend.take(&row));
            let Row { seq, event } = row;
            let Some(event) = event else {
                self.window.skip_unreadable(seq);
                continue;
            };
            let refusal = self.poison_search.refusal(seq);
            if self.window.admit(Delivery {
                seq,
                event,
                refusal,
                is_resent,
            }) {
                to_publish.push(seq);
            }
        }
        // The oldest rows may need no confirm: they are unreadable, or an earlier session has confirmed them.
        self.move_cursor();
        if !to_publish.is_empty() {
            session.publish(&self.window, &to_publish);
        }
    }

    /// Handles a session's report. Returns an end if the session is over.
    async fn handle_progress(
        &mut self,
        progress: Result<Progress, SessionError>,
        session: &mut S::Session,
    ) -> Option<SessionEnd> {
        match progress {
            Ok(Progress::Confirmed(seqs)) => {
                if let Err(error) = self.confirm_resent(&seqs).await {
                    return Some(SessionEnd::Lost(SessionError::unavailable(STORE, error)));
                }
                let confirmed = self.window.confirm(&seqs);
                self.state.confirmed(confirmed);
                // Before the cursor moves, so that what is confirmed now counts as having waited.
                if self.flow == Flow::Flowing {
                    self.up();
                }
                self.move_cursor();
            }
            Ok(Progress::Resumed) => {
                self.flow = Flow::Flowing;
                self.up();
            }
            Ok(Progress::Stalled(reason)) => {
                self.flow = Flow::Stalled;
                self.down(&reason, false);
            }
            Ok(Progress::Refused(refused)) => return self.handle_refused(refused, session).await,
            Err(SessionError::Refused(refusal)) => {
                return Some(self.handle_session_refusal(refusal).await);
            }
            Err(error) => return Some(SessionEnd::Lost(error)),
        }
        None
    }

    /// Begins a resend. Nothing is in flight.
    fn begin_resend(&mut self, request: ResendRequest) {
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
    pub(super) fn stop_resend(&mut self, reason: &'static str) {
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
    fn finish_resend_at(&mut self, position: Seq) {
        if let Some(resend) = self.resend.take_if(|resend| resend.reached(position)) {
            resend.finish();
        }
    }

    /// Handles confirms of events that were sent again. Dead letters are removed from the spool first: if that fails,
    /// they are published once more, but never lost.
    async fn confirm_resent(&mut self, seqs: &[Seq]) -> Result<(), AppendError> {
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

    /// Handles events that were refused individually. They become dead letters. Dead letters that were refused are
    /// stored in the spool.
    async fn handle_refused(
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
            self.log_refusal(seq, &refusal);
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
    async fn handle_session_refusal(&mut self, refusal: Refusal) -> SessionEnd {
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
                    self.log_refusal(seq, &refusal);
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

    fn log_refusal(&self, seq: Seq, refusal: &Refusal) {
        self.state.refused();
        warn!(
            code = "poison_event", sink = self.sink.name(), %seq, reason = %refusal,
            "broker will never accept this event; publishing it as a dead letter: read it there"
        );
    }

    fn move_cursor(&mut self) {
        if let Some(seq) = self.window.advance() {
            // This moves no cursor if the events were sent again.
            self.cursor.advance(seq);
            self.state
                .reached(self.cursor.position(), std::time::Instant::now());
            self.finish_resend_at(seq);
            if self.poison_search.passed(seq) {
                self.sink.make_smaller_batches();
            }
        }
    }
}

/// Reads if there is capacity; otherwise never completes.
async fn read(
    reader: &mut Reader,
    resend: Option<&mut ActiveResend>,
    capacity: usize,
) -> Result<Vec<Row>, ReadError> {
    match resend {
        _ if capacity == 0 => std::future::pending().await,
        Some(retry) if !retry.is_replay() => retry.next_dead_letters(capacity).await,
        _ => reader.next(capacity).await,
    }
}

/// Completes when nobody waits for the resend any more; never if there is none.
fn cancelled(resend: Option<&ActiveResend>) -> impl Future<Output = ()> + Send + use<> {
    let cancelled = resend.map(ActiveResend::cancellation);
    async move {
        match cancelled {
            Some(cancelled) => cancelled.cancelled_owned().await,
            None => std::future::pending().await,
        }
    }
}
