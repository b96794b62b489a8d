//! One session of a forwarder: prefetches events, keeps a window in flight, advances the cursor.

mod refusals;
mod resends;

use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{info, warn};

use self::resends::cancelled;
use super::resend::ActiveResend;
use super::throttle::Throttle;
use super::{Flow, Forwarder, SessionEnd};
use crate::event::Seq;
use crate::sink::{CommittedPosition, Delivery, Progress, Session, SessionError, Sink};
use crate::spool::{ReadError, Reader, Row};

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
        if let Some(confirms) = &self.confirms {
            confirms.partitioned(session.partitioning());
        }
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
        self.advance_cursor(theirs.seq);
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
                if let Some(confirms) = &self.confirms {
                    confirms.confirmed(&seqs, Instant::now());
                }
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

    fn advance_cursor(&self, seq: Seq) {
        self.cursor.advance(seq);
        if let Some(confirms) = &self.confirms {
            confirms.reached(self.cursor.position());
        }
    }

    fn move_cursor(&mut self) {
        if let Some(seq) = self.window.advance() {
            // This moves no cursor if the events were sent again.
            self.advance_cursor(seq);
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
