//! One session of a forwarder: reading ahead, keeping a window in flight, moving the cursor.

use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{error, warn};

use super::pace::Pace;
use super::{End, Flow, Forwarder};
use crate::event::{Seq, Stored};
use crate::sink::{Delivery, Progress, Refusal, Session, SessionError, Sink, Standing};
use crate::spool::{AppendError, ReadError, Row, SetAside, Tail};

/// Bytes of events in flight after which no more are read: librdkafka keeps a copy of each.
const WINDOW_BYTES: usize = 16 << 20;

impl<S: Sink> Forwarder<S> {
    /// Forwards through one session until it ends.
    pub(super) async fn forward(&mut self, mut session: S::Session) -> End {
        let end = self.forward_until_end(&mut session).await;
        session.close().await;
        end
    }

    async fn forward_until_end(&mut self, session: &mut S::Session) -> End {
        self.flow = Flow::Flowing;
        let start = match self.start(session.standing()).await {
            Ok(start) => start,
            Err(error) => return End::Lost(SessionError::unavailable("spool", error)),
        };
        let mut tail = match self.spool.tail(start) {
            Ok(tail) => tail,
            Err(error) => return End::Lost(SessionError::unavailable("no reader", error)),
        };
        if start >= self.spool.status().last {
            self.state.up();
        }
        let mut pace = Pace::new(self.spool.status().last);
        let mut quiet_since = Instant::now();
        let mut tick = interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let draining = self.stop.drain.is_cancelled();
            if draining && self.window.is_empty() && tail.position() >= self.spool.status().last {
                return End::Stopped;
            }
            let size = self.suspects.window(self.sink.window());
            let room = self.window.room(size, WINDOW_BYTES).min(pace.turn());
            tokio::select! {
                biased;
                () = self.stop.now.cancelled() => return End::Stopped,
                () = self.stop.drain.cancelled(), if !draining => {}
                progress = session.progress() => {
                    quiet_since = Instant::now();
                    if let Some(end) = self.progressed(progress, session).await {
                        return end;
                    }
                }
                read = read(&mut tail, room) => match read {
                    Ok(rows) => {
                        if self.window.is_empty() {
                            quiet_since = Instant::now();
                        }
                        self.hand_over(rows, session);
                        pace.rest(tail.position(), self.spool.status().last).await;
                    }
                    Err(error) => {
                        return End::Lost(SessionError::unavailable("spool", error));
                    }
                },
                _ = tick.tick() => {
                    // A session that says itself why nothing goes through knows more.
                    let quiet = quiet_since.elapsed() >= self.stalled_after;
                    if quiet && self.flow == Flow::Flowing && !self.window.is_empty() {
                        let waited = self.stalled_after.as_secs();
                        self.state.stalled(&format!("nothing confirmed for {waited} s"));
                    }
                }
            }
        }
    }

    /// Where to go on: behind what the spool's cursor and the sink's own say that the broker has.
    ///
    /// A spool that came back from a backup gives numbers out again, and a sink may know them from before: so
    /// its cursor counts only where the spool has that very event.
    async fn start(&mut self, standing: Option<Standing>) -> Result<Seq, ReadError> {
        let ours = self.cursor.position();
        let Some(theirs) = standing.filter(|theirs| theirs.seq > ours) else {
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
                sink = self.sink.name(), cursor = %ours, seq = %theirs.seq,
                "the cursor kept by the broker is not of this spool's history, as after a backup was put \
                 back; going on from the spool's own, and some events may be published a second time"
            );
            return Ok(ours);
        }
        self.cursor.advance(theirs.seq);
        self.window.forget(theirs.seq);
        self.state.confirmed(theirs.seq.0 - ours.0);
        Ok(theirs.seq)
    }

    fn hand_over(&mut self, rows: Vec<Row>, session: &mut S::Session) {
        let mut to_send = Vec::with_capacity(rows.len());
        for row in rows {
            match row {
                Row::Event(stored) => {
                    let delivery = self.suspects.mark(stored);
                    if self.window.admit(delivery.clone()) {
                        to_send.push(delivery);
                    }
                }
                Row::Unreadable(seq) | Row::Missing(seq) => self.window.pass(seq),
            }
        }
        self.move_cursor();
        if !to_send.is_empty() {
            session.publish(to_send);
        }
    }

    /// Acts on what a session reported; some end where the session is over.
    async fn progressed(
        &mut self,
        progress: Result<Progress, SessionError>,
        session: &mut S::Session,
    ) -> Option<End> {
        match progress {
            Ok(Progress::Confirmed(seqs)) => {
                let confirmed = self.window.confirm(&seqs);
                self.state.confirmed(confirmed);
                self.move_cursor();
                if self.flow == Flow::Flowing {
                    self.state.up();
                }
            }
            Ok(Progress::Flowing) => {
                self.flow = Flow::Flowing;
                self.state.up();
            }
            Ok(Progress::Stalled(reason)) => {
                self.flow = Flow::Stalled;
                self.state.stalled(&reason);
            }
            Ok(Progress::Refused(seq, refusal)) => {
                let delivery = self.window.delivery(seq)?.clone();
                if delivery.is_dead_letter() {
                    if let Err(error) = self.set_aside(&delivery.stored, &refusal).await {
                        return Some(End::Lost(SessionError::unavailable("spool", error)));
                    }
                } else {
                    self.log_refusal(seq, &refusal);
                    self.suspects.condemn(seq, refusal.clone());
                    let letter = Delivery {
                        refusal: Some(refusal),
                        ..delivery
                    };
                    self.window.replace(letter.clone());
                    session.publish(vec![letter]);
                }
            }
            Err(SessionError::Refused(refusal)) => {
                return Some(self.one_was_refused(refusal).await);
            }
            Err(error) => return Some(End::Lost(error)),
        }
        None
    }

    /// Some event in flight was refused and ended the session. If it was alone, it is this one.
    async fn one_was_refused(&mut self, refusal: Refusal) -> End {
        if refusal.is_of_dead_letters() {
            return self.no_letter_is_taken(&refusal).await;
        }
        let mut in_flight = self.window.in_flight();
        let first = in_flight.next().cloned();
        let others = in_flight.count();
        match first {
            None => End::Lost(SessionError::Refused(refusal)),
            Some(_) if others > 0 => {
                self.suspects.narrow(others + 1, self.window.last());
                End::Again
            }
            Some(delivery) if delivery.is_dead_letter() => {
                self.suspects.found(delivery.stored.seq);
                match self.set_aside(&delivery.stored, &refusal).await {
                    Ok(()) => End::Again,
                    Err(error) => End::Lost(SessionError::unavailable("spool", error)),
                }
            }
            Some(delivery) => {
                self.log_refusal(delivery.stored.seq, &refusal);
                self.suspects.condemn_alone(delivery.stored.seq, refusal);
                End::Again
            }
        }
    }

    /// No need to look for the one that was refused: none of the dead letters in flight would be taken.
    async fn no_letter_is_taken(&mut self, refusal: &Refusal) -> End {
        let in_flight = self.window.in_flight();
        let letters = in_flight.filter(|delivery| delivery.is_dead_letter());
        let letters: Vec<Stored> = letters.map(|letter| letter.stored.clone()).collect();
        if letters.is_empty() {
            return End::Lost(SessionError::Refused(refusal.clone()));
        }
        for letter in letters {
            if self.stop.now.is_cancelled() {
                return End::Stopped;
            }
            if let Err(error) = self.set_aside(&letter, refusal).await {
                return End::Lost(SessionError::unavailable("spool", error));
            }
        }
        End::Again
    }

    /// Keeps in the spool what not even the dead letters take.
    async fn set_aside(&mut self, stored: &Stored, refusal: &Refusal) -> Result<(), AppendError> {
        error!(
            sink = self.sink.name(), seq = %stored.seq, id = %stored.event.id, reason = %refusal,
            "not even the dead letters take this event; it stays in the spool's table dead_letters"
        );
        let letter = SetAside::new(self.sink.name(), stored, refusal.reason, &refusal.detail);
        self.spool.set_aside(letter).await?;
        self.window.confirm(&[stored.seq]);
        // One that the broker refused first among the events was counted then.
        if !self.suspects.is_condemned(stored.seq) {
            self.state.refused();
        }
        self.move_cursor();
        Ok(())
    }

    fn log_refusal(&self, seq: Seq, refusal: &Refusal) {
        self.state.refused();
        warn!(
            sink = self.sink.name(), %seq, reason = %refusal,
            "the broker will never take this event; it goes to the dead letters"
        );
    }

    fn move_cursor(&mut self) {
        if let Some(seq) = self.window.advance() {
            self.cursor.advance(seq);
            if self.suspects.passed(seq) {
                self.sink.make_smaller_batches();
            }
        }
    }
}

/// Reads ahead while there is room.
async fn read(tail: &mut Tail, room: usize) -> Result<Vec<Row>, ReadError> {
    if room == 0 {
        std::future::pending().await
    } else {
        tail.next(room).await
    }
}
