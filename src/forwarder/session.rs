//! One session of a forwarder: prefetches events, keeps a window in flight, advances the cursor.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{error, info, warn};

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
                read = read(&mut self.reader, capacity), if renew_by.is_none() => match read {
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
        for Row { seq, event } in rows {
            let Some(event) = event else {
                self.window.skip_unreadable(seq);
                continue;
            };
            let refusal = self.poison_search.refusal(seq);
            if self.window.admit(Delivery {
                seq,
                event,
                refusal,
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
            "broker refused events even as dead letters; they are stored in the spool's table dead_letters: repair \
             the dead-letter topic or queue, then copy the rows"
        );
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
            self.cursor.advance(seq);
            self.state.reached(seq, std::time::Instant::now());
            if self.poison_search.passed(seq) {
                self.sink.make_smaller_batches();
            }
        }
    }
}

/// Reads if there is capacity; otherwise never completes.
async fn read(reader: &mut Reader, capacity: usize) -> Result<Vec<Row>, ReadError> {
    if capacity == 0 {
        std::future::pending().await
    } else {
        reader.next(capacity).await
    }
}
