//! Reads what has arrived at the brokers, and compares it with the ledger at the end of a round.

use std::fs;
use std::time::{Duration, Instant};

use super::super::broker::Position;
use super::super::ledger::Ledger;
use super::super::table::Row;
use super::super::verdict::{Arrival, compare};
use super::Stage;

/// The timeout for confirmed events to become visible to the subscriber.
const VISIBILITY_TIMEOUT: Duration = Duration::from_secs(20);

/// What was read from one broker.
#[derive(Default)]
pub(super) struct Seen {
    arrivals: Vec<Arrival>,
    /// Events that the test has deleted together with their open transaction: the relay has not lost them.
    deleted: Vec<Arrival>,
    position: Position,
}

impl Stage<'_> {
    /// Reads what has arrived so far, including open transactions, because the caller is about to delete it.
    pub fn read_before_deletion(&mut self) {
        self.read_now();
        let tag = self.tag();
        for (broker, seen) in self.brokers.iter().zip(&mut self.seen) {
            let deleted = broker.read_open(&self.name, &tag, &seen.position);
            seen.deleted.extend(deleted);
        }
    }

    /// Reads what has arrived so far.
    pub fn read_now(&mut self) {
        let tag = self.tag();
        for (broker, seen) in self.brokers.iter().zip(&mut self.seen) {
            let arrivals = broker.read(&self.name, &tag, &mut seen.position);
            seen.arrivals.extend(arrivals);
        }
    }

    /// Starts reading at offset 0 again, because the topic is a new one.
    pub fn read_from_the_beginning(&mut self) {
        for seen in &mut self.seen {
            seen.position = Position::default();
        }
    }

    /// Ends the load, waits until all events are confirmed, reads them, and compares them with the ledger. The next
    /// round has new conversations.
    pub fn drain(&mut self) -> Vec<Row> {
        self.end_load();
        self.wait_for_lag(0);
        self.sample_memory();
        let ledger = Ledger::read(&self.ledger());
        if ledger.ok == 0 {
            self.report_problem("no callback was answered OK".to_owned());
        }
        self.end_lost_transactions();
        let until = Instant::now() + VISIBILITY_TIMEOUT;
        let mut verdicts;
        let mut losses;
        loop {
            self.read_now();
            (verdicts, losses) = (Vec::new(), Vec::new());
            for seen in &self.seen {
                let mut verdict = compare(&ledger, &seen.arrivals, &seen.deleted);
                losses.push(self.lost_machines.judge(&ledger, &mut verdict));
                verdicts.push(verdict);
            }
            let complete = verdicts.iter().all(|verdict| verdict.missing.is_empty());
            if complete || Instant::now() > until {
                break;
            }
            self.run_for(Duration::from_millis(500));
        }
        let answers_again = self.recoveries.iter();
        let answers_again = answers_again.filter_map(|recovery| ledger.next_ok_after(recovery.at));
        let answers_again = answers_again.max();
        let caught_up = self
            .recoveries
            .iter()
            .filter_map(|recovery| recovery.caught_up);
        let caught_up = caught_up.max();
        let have_lost = !self.lost_machines.is_empty();
        let results = self.brokers.iter().zip(verdicts).zip(losses);
        let rows = results.map(|((broker, verdict), losses)| {
            let mut row = Row::new(&self.name, broker.sink.label(), &ledger, &verdict);
            row.faults = self.recoveries.len();
            row.answers_again = answers_again;
            row.caught_up = caught_up;
            row.peak_memory = self.peak_memory;
            row.losses = have_lost.then_some(losses);
            row.problems.extend(self.problems.iter().cloned());
            row
        });
        let rows = rows.collect();
        fs::remove_file(self.ledger()).unwrap();
        self.rounds += 1;
        self.recoveries.clear();
        self.problems.clear();
        for seen in &mut self.seen {
            seen.arrivals.clear();
            seen.deleted.clear();
        }
        rows
    }

    /// Ends the transactions that lost relays have left open. Otherwise subscribers would wait for a minute, until the
    /// broker aborts them.
    fn end_lost_transactions(&mut self) {
        for id in self.lost_ids.drain(..) {
            for broker in &*self.brokers {
                broker.kafka().end_transaction(&id);
            }
        }
    }

    /// Drains, then stops the relay, which must exit cleanly.
    pub fn finish(&mut self) -> Vec<Row> {
        let rows = self.drain();
        self.stop_relay();
        rows
    }
}
