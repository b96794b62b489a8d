//! One round of load on one server, and the medians of several rounds.

use std::time::{Duration, Instant};

use nix::unistd::sync;

use super::cores::Cores;
use super::load::Load;
use super::server::{POLL_INTERVAL, Server};
use super::wait::wait;

/// The timeout for a sink to confirm the events of a round after the load.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(120);

/// The timeout for confirmed events to be purged.
const PURGE_TIMEOUT: Duration = Duration::from_secs(2);

/// How to treat a sink that lags at the end of the load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SinkWait<'a> {
    /// There is no sink, or the round ignores it.
    Ignored,
    /// The round includes draining the sink, and its cost.
    UntilDrained(&'a str),
    /// The round waits until the sink is drained, but at most this long after the load.
    For(&'a str, Duration),
}

/// The results of a round, or the medians of several.
#[derive(Debug, Clone, Copy, Default)]
pub struct Round {
    /// Callbacks answered OK per second.
    pub answers: f64,
    /// The latency of an answer, in milliseconds.
    pub p50: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
    /// The server's user and system time, in seconds per million callbacks.
    pub cpu: f64,
    /// Bytes written to disk per event.
    pub written: f64,
    /// The peak resident set, in MiB.
    pub memory: f64,
    /// Events confirmed per second, from the start of the load to the end of the drain.
    pub sink: Option<f64>,
    /// The sink's lag when the load ended.
    pub lag: Option<f64>,
    /// The fraction of callbacks that were not answered OK.
    pub refused: f64,
    /// The generator's CPU use, in cores.
    pub generator: f64,
}

/// Loads a server once.
///
/// # Panics
///
/// If nothing is answered OK, or the sink does not drain in time.
pub fn measure(server: &Server, load: &Load, cores: &Cores, sink_wait: SinkWait<'_>) -> Round {
    let sink = match sink_wait {
        SinkWait::Ignored => None,
        SinkWait::UntilDrained(sink) | SinkWait::For(sink, _) => Some(sink),
    };
    let position = || sink.and_then(|sink| server.position(sink));
    // Otherwise dirty pages of earlier rounds, mostly of the brokers' files, would be written back during this one.
    sync();
    server.reset_peak_memory();
    let (began, before, first) = (Instant::now(), server.usage(), position());
    let answers = load.run(server.address, cores);
    let at_load_end = position();
    let last = match sink_wait {
        SinkWait::Ignored => None,
        SinkWait::UntilDrained(sink) => {
            Some(server.wait_for_sink(sink, DRAIN_TIMEOUT, |it| it.lag == 0))
        }
        SinkWait::For(sink, time) => {
            let until = began + load.duration + time;
            let time_is_up = || Instant::now() >= until;
            Some(server.wait_for_sink(sink, DRAIN_TIMEOUT, |it| it.lag == 0 || time_is_up()))
        }
    };
    // Before the wait for the purge, which is not part of the sink's rate.
    let elapsed = began.elapsed();
    if let SinkWait::UntilDrained(_) = sink_wait {
        // Confirmed events are purged soon, unless the retention keeps them. The purge is part of the CPU time.
        wait(PURGE_TIMEOUT, POLL_INTERVAL, || {
            position().is_none_or(|it| it.spool_events == 0)
        });
    }
    let after = server.usage();
    assert!(answers.ok > 0, "no callback was answered OK: {answers:?}");

    let (ok, milliseconds) = (answers.ok as f64, |time: Duration| time.as_secs_f64() * 1e3);
    let confirmed = first
        .zip(last)
        .map(|(first, last)| last.cursor - first.cursor);
    Round {
        answers: ok / answers.elapsed.as_secs_f64(),
        p50: milliseconds(answers.p50),
        p99: milliseconds(answers.p99),
        p999: milliseconds(answers.p999),
        max: milliseconds(answers.max),
        cpu: after.cpu.saturating_sub(before.cpu).as_secs_f64() / ok * 1e6,
        written: (after.written - before.written) as f64 / ok,
        memory: mib(server.peak_memory()),
        sink: confirmed.map(|events| events as f64 / elapsed.as_secs_f64()),
        lag: at_load_end.map(|position| position.lag as f64),
        refused: {
            let bad = (answers.refused + answers.unanswered) as f64;
            bad / (ok + bad)
        },
        generator: answers.generator.as_secs_f64() / answers.elapsed.as_secs_f64(),
    }
}

pub fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// The median of a non-empty list; of two values, the larger.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The median of each result; for the longest answer and for memory, the maximum.
pub fn medians(rounds: &[Round]) -> Round {
    let median_of = |field: fn(&Round) -> f64| median(rounds.iter().map(field));
    let maximum = |field: fn(&Round) -> f64| rounds.iter().map(field).fold(0.0, f64::max);
    let median_if_any = |field: fn(&Round) -> Option<f64>| {
        let values: Vec<f64> = rounds.iter().filter_map(field).collect();
        (!values.is_empty()).then(|| median(values))
    };
    Round {
        answers: median_of(|it| it.answers),
        p50: median_of(|it| it.p50),
        p99: median_of(|it| it.p99),
        p999: median_of(|it| it.p999),
        max: maximum(|it| it.max),
        cpu: median_of(|it| it.cpu),
        written: median_of(|it| it.written),
        memory: maximum(|it| it.memory),
        sink: median_if_any(|it| it.sink),
        lag: median_if_any(|it| it.lag),
        refused: median_of(|it| it.refused),
        generator: median_of(|it| it.generator),
    }
}

/// The median of the ratios between rounds of one server and the corresponding rounds of another.
pub fn ratio(rounds: &[Round], reference: &[Round], field: fn(&Round) -> f64) -> f64 {
    let pairs = rounds.iter().zip(reference);
    median(pairs.map(|(round, reference)| field(round) / field(reference)))
}
