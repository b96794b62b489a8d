//! One round of load on one server, and several of them as one.

use std::time::{Duration, Instant};

use nix::unistd::sync;

use super::cores::Cores;
use super::load::Load;
use super::server::{PAUSE, Server};
use super::wait::wait;

/// How long a sink may take to confirm what a round has left.
const DRAIN: Duration = Duration::from_secs(120);

/// How long what was confirmed may take to be deleted.
const DELETION: Duration = Duration::from_secs(2);

/// What happens to a sink that is behind at the end of the load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forwarding<'a> {
    /// There is none, or it is none of this round's business.
    Ignored,
    /// Its end belongs to the round: what it costs is counted.
    UntilDrained(&'a str),
    /// It is watched for so long after the load.
    For(&'a str, Duration),
}

/// What a round, or the median round, has shown.
#[derive(Debug, Clone, Copy, Default)]
pub struct Round {
    /// Answered OK in a second.
    pub answers: f64,
    /// Of the answer, in milliseconds.
    pub p50: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
    /// Of the server, in seconds of user and system time for a million callbacks.
    pub cpu: f64,
    /// Bytes on disk for each event.
    pub written: f64,
    /// MiB.
    pub memory: f64,
    /// Events that the sink confirmed in a second, from the load's beginning to the drain's end.
    pub sink: Option<f64>,
    /// Events that it was behind when the load ended.
    pub lag: Option<f64>,
    /// Part of the callbacks that were not answered OK.
    pub refused: f64,
    /// How busy the generator was, in cores.
    pub generator: f64,
}

/// Loads a server once.
///
/// # Panics
///
/// When nothing is answered OK, or the sink does not get through what was left.
pub fn measure(server: &Server, load: &Load, cores: &Cores, forwarding: Forwarding<'_>) -> Round {
    let sink = match forwarding {
        Forwarding::Ignored => None,
        Forwarding::UntilDrained(sink) | Forwarding::For(sink, _) => Some(sink),
    };
    let position = || sink.and_then(|sink| server.position(sink));
    // What earlier rounds left in memory, the brokers' files above all, would be written back during this one.
    sync();
    server.forget_peak_memory();
    let (began, before, first) = (Instant::now(), server.usage(), position());
    let answers = load.run(server.address, cores);
    let behind = position();
    let last = match forwarding {
        Forwarding::Ignored => None,
        Forwarding::UntilDrained(sink) => Some(server.until_sink(sink, DRAIN, |it| it.lag == 0)),
        Forwarding::For(sink, time) => {
            let until = began + load.duration + time;
            let over = || Instant::now() >= until;
            Some(server.until_sink(sink, DRAIN, |it| it.lag == 0 || over()))
        }
    };
    let took = began.elapsed();
    if let Forwarding::UntilDrained(_) = forwarding {
        // What was confirmed is deleted soon, unless the settings let it stay.
        wait(DELETION, PAUSE, || position().is_none_or(|it| it.kept == 0));
    }
    let after = server.usage();
    assert!(answers.ok > 0, "nothing was answered OK: {answers:?}");

    let (ok, milliseconds) = (answers.ok as f64, |time: Duration| time.as_secs_f64() * 1e3);
    let confirmed = first
        .zip(last)
        .map(|(first, last)| last.cursor - first.cursor);
    Round {
        answers: ok / answers.took.as_secs_f64(),
        p50: milliseconds(answers.p50),
        p99: milliseconds(answers.p99),
        p999: milliseconds(answers.p999),
        max: milliseconds(answers.max),
        cpu: after.cpu.saturating_sub(before.cpu).as_secs_f64() / ok * 1e6,
        written: (after.written - before.written) as f64 / ok,
        memory: mib(server.peak_memory()),
        sink: confirmed.map(|events| events as f64 / took.as_secs_f64()),
        lag: behind.map(|position| position.lag as f64),
        refused: {
            let bad = (answers.refused + answers.unanswered) as f64;
            bad / (ok + bad)
        },
        generator: answers.generator.as_secs_f64() / answers.took.as_secs_f64(),
    }
}

pub fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// The middle one, of at least one; of two the larger.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The median of each figure; of the longest answer and of memory the largest.
pub fn medians(rounds: &[Round]) -> Round {
    let of = |figure: fn(&Round) -> f64| median(rounds.iter().map(figure));
    let largest = |figure: fn(&Round) -> f64| rounds.iter().map(figure).fold(0.0, f64::max);
    let maybe = |figure: fn(&Round) -> Option<f64>| {
        let values: Vec<f64> = rounds.iter().filter_map(figure).collect();
        (!values.is_empty()).then(|| median(values))
    };
    Round {
        answers: of(|it| it.answers),
        p50: of(|it| it.p50),
        p99: of(|it| it.p99),
        p999: of(|it| it.p999),
        max: largest(|it| it.max),
        cpu: of(|it| it.cpu),
        written: of(|it| it.written),
        memory: largest(|it| it.memory),
        sink: maybe(|it| it.sink),
        lag: maybe(|it| it.lag),
        refused: of(|it| it.refused),
        generator: of(|it| it.generator),
    }
}

/// The median of a figure of each round against the same round of another server.
pub fn ratio(rounds: &[Round], to: &[Round], figure: fn(&Round) -> f64) -> f64 {
    median(rounds.iter().zip(to).map(|(a, b)| figure(a) / figure(b)))
}
