use std::fmt;
use std::fmt::Write as _;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use super::*;

/// Collects the lines that are logged on this thread: each code, and some fields.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let line = &mut self.0;
        match field.name() {
            "message" | "sink" => {}
            "code" => write!(line, "{value:?}").unwrap(),
            name => write!(line, " {name}={value:?}").unwrap(),
        }
    }
}

impl Subscriber for Log {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(String::new());
        event.record(&mut line);
        self.0.lock().unwrap().push(line.0.replace('"', ""));
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

struct Rig {
    state: SinkState,
    log: Log,
    began: Instant,
}

impl Rig {
    fn new() -> Self {
        Self {
            state: SinkState::new("fake"),
            log: Log::default(),
            began: Instant::now(),
        }
    }

    fn at(&self, seconds: u64) -> Instant {
        self.began + Duration::from_secs(seconds)
    }

    /// Runs `act`; returns what it logs.
    fn logged(&self, act: impl FnOnce(&SinkState)) -> Vec<String> {
        tracing::subscriber::with_default(self.log.clone(), || act(&self.state));
        std::mem::take(&mut self.log.0.lock().unwrap())
    }

    fn down(&self, seconds: u64, telling: Telling, reason: &str) -> Vec<String> {
        self.logged(|state| state.down(telling, reason, backlog(7), self.at(seconds)))
    }

    fn reason(&self) -> String {
        match self.state.health() {
            Health::Down { reason, .. } => reason,
            other => format!("{other:?}"),
        }
    }
}

/// So many events wait after number 100.
fn backlog(waiting: u64) -> Backlog {
    Backlog {
        last: Seq(100 + waiting),
        confirmed: Seq(100),
        spool_full_in: Some(Duration::from_secs(3600)),
    }
}

#[test]
fn an_outage_is_logged_again_after_1_5_and_30_minutes_and_then_hourly() {
    let rig = Rig::new();
    let first = rig.down(0, Telling::Cause, "refused");
    assert_eq!(first, ["sink_down reason=refused waiting=7"]);
    let again = rig.logged(|state| {
        for second in 0..=3 * 3600 {
            state.remind(|| backlog(second), rig.at(second));
        }
    });
    let expected = [1, 5, 30, 60, 120, 180].map(|minutes| {
        let seconds = minutes * 60;
        format!(
            "sink_still_down reason=refused seconds={seconds} waiting={seconds} \
             spool_full_in_seconds=3600"
        )
    });
    assert_eq!(again, expected);
}

#[test]
fn each_reason_is_logged_once_even_if_two_alternate() {
    let rig = Rig::new();
    let mut lines = Vec::new();
    for second in 0..60 {
        let peer = ["a", "b"][usize::from(second % 2 == 1)];
        let reason = format!("{peer} refused (after {second}ms)");
        lines.extend(rig.down(second, Telling::Unreachable, &reason));
        assert_eq!(rig.reason(), reason);
    }
    let expected = [
        "sink_down reason=a refused (after 0ms) waiting=7",
        "sink_still_down reason=b refused (after 1ms) seconds=1 waiting=7 \
         spool_full_in_seconds=3600",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn a_symptom_does_not_hide_the_cause() {
    let rig = Rig::new();
    rig.down(0, Telling::Symptom, "nothing confirmed");
    let changed = rig.down(1, Telling::Cause, "wrong password");
    assert_eq!(changed.len(), 1, "{changed:?}");
    let hidden = rig.down(2, Telling::Symptom, "nothing confirmed");
    assert_eq!((hidden.len(), rig.reason().as_str()), (0, "wrong password"));
    // Long after the cause was last reported. The symptom was logged when the outage began.
    let later = rig.down(70, Telling::Symptom, "nothing confirmed");
    assert_eq!(
        (later.len(), rig.reason().as_str()),
        (0, "nothing confirmed")
    );
}

#[test]
fn the_end_is_logged_with_its_duration_and_what_was_caught_up() {
    let rig = Rig::new();
    rig.down(0, Telling::Cause, "refused");
    let lines = rig.logged(|state| {
        state.up(|| backlog(30), rig.at(90));
        state.up(|| panic!("it is up"), rig.at(91));
        state.reached(Seq(129), rig.at(92));
        state.reached(Seq(131), rig.at(93));
        state.reached(Seq(132), rig.at(94));
        state.remind(|| panic!("it is up"), rig.at(9000));
    });
    let expected = [
        "sink_up down_seconds=90 waiting=30",
        "sink_caught_up events=30 seconds=3",
    ];
    assert_eq!(lines, expected);
    // A new outage logs its reason, although the last one had the same.
    assert_eq!(rig.down(100, Telling::Cause, "refused").len(), 1);
}

#[test]
fn what_was_confirmed_before_the_sink_was_up_counts_as_caught_up() {
    let rig = Rig::new();
    rig.down(0, Telling::Cause, "refused");
    let all_confirmed = Backlog {
        confirmed: Seq(107),
        ..backlog(7)
    };
    let lines = rig.logged(|state| state.up(|| all_confirmed, rig.at(9)));
    let expected = [
        "sink_up down_seconds=9 waiting=0",
        "sink_caught_up events=7 seconds=0",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn a_sink_without_a_backlog_has_nothing_to_catch_up() {
    let rig = Rig::new();
    let lines = rig.logged(|state| {
        state.up(|| backlog(0), rig.at(1));
        state.reached(Seq(101), rig.at(2));
    });
    assert_eq!(lines, ["sink_up waiting=0"]);
}

#[test]
fn a_stopped_sink_is_logged_again_too() {
    let rig = Rig::new();
    rig.down(0, Telling::Cause, "another relay");
    let lines = rig.logged(|state| {
        state.stop(backlog(7), rig.at(0));
        state.remind(|| backlog(8), rig.at(60));
    });
    let line = |seconds, waiting| {
        format!(
            "sink_stopped reason=another relay seconds={seconds} waiting={waiting} \
             spool_full_in_seconds=3600"
        )
    };
    assert_eq!(lines, [line(0, 7), line(60, 8)]);
}
