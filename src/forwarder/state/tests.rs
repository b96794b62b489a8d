use super::*;
use crate::telemetry::CapturedLog;

struct Rig {
    state: SinkState,
    log: CapturedLog,
    began: Instant,
}

impl Rig {
    fn new() -> Self {
        Self {
            state: SinkState::new("fake"),
            log: CapturedLog::default(),
            began: Instant::now(),
        }
    }

    fn at(&self, seconds: u64) -> Instant {
        self.began + Duration::from_secs(seconds)
    }

    /// Runs `act`; returns what it logs.
    fn logged(&self, act: impl FnOnce(&SinkState)) -> Vec<String> {
        self.log.lines(|| act(&self.state))
    }

    fn down(&self, seconds: u64, reason: &str) -> Vec<String> {
        self.logged(|state| state.down(reason, false, backlog(7), self.at(seconds)))
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
    let first = rig.down(0, "refused");
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
        lines.extend(rig.down(second, &reason));
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
fn a_reason_is_logged_once_in_an_outage_however_long_it_lasts() {
    let rig = Rig::new();
    rig.down(0, "refused");
    rig.down(1, "wrong password");
    let mut lines = Vec::new();
    // Past the reminder after two hours.
    for second in 3700..7300 {
        let reason = ["refused", "wrong password"][usize::from(second % 2 == 1)];
        lines.extend(rig.down(second, reason));
    }
    let seconds = |line: &String| {
        line.split(' ')
            .find(|field| field.starts_with("seconds="))
            .map(str::to_owned)
    };
    let logged: Vec<_> = lines.iter().filter_map(seconds).collect();
    // The first is overdue.
    assert_eq!(logged, ["seconds=3700", "seconds=7200"], "{lines:?}");
}

#[test]
fn the_end_is_logged_with_its_duration_and_what_was_caught_up() {
    let rig = Rig::new();
    rig.down(0, "refused");
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
    assert_eq!(rig.down(100, "refused").len(), 1);
}

#[test]
fn what_was_confirmed_before_the_sink_was_up_counts_as_caught_up() {
    let rig = Rig::new();
    rig.down(0, "refused");
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
    rig.down(0, "refused");
    let lines = rig.logged(|state| {
        state.down("another relay", true, backlog(7), rig.at(3));
        state.remind(|| backlog(8), rig.at(60));
    });
    assert_eq!(lines, [stopped(3, 7), stopped(60, 8)]);
}

#[test]
fn a_sink_that_was_up_is_only_logged_as_stopped() {
    let rig = Rig::new();
    let lines = rig.logged(|state| {
        state.down("another relay", true, backlog(7), rig.at(0));
        state.remind(|| backlog(7), rig.at(1));
    });
    assert_eq!(lines, [stopped(0, 7)]);
}

fn stopped(seconds: u64, waiting: u64) -> String {
    format!(
        "sink_stopped reason=another relay seconds={seconds} waiting={waiting} \
         spool_full_in_seconds=3600"
    )
}
