//! The columns that most tables use for a round.

use super::round::Round;
use super::table::Cell;

pub const ROUND_COLUMNS: [(&str, &str); 12] = [
    ("answers/s", "answers_per_second"),
    ("p50, ms", "p50_ms"),
    ("p99, ms", "p99_ms"),
    ("p99.9, ms", "p999_ms"),
    ("max, ms", "max_ms"),
    ("CPU s per million", "cpu_seconds_per_million"),
    ("bytes written per event", "bytes_written_per_event"),
    ("peak memory, MiB", "peak_memory_mib"),
    ("sink, events/s", "sink_events_per_second"),
    ("lag at the end", "sink_lag_at_end"),
    ("not OK", "not_ok_share"),
    ("generator, cores", "generator_cores"),
];

pub fn cells(round: &Round) -> [Cell; 12] {
    [
        Cell::Number(round.answers, 0),
        Cell::Number(round.p50, 3),
        Cell::Number(round.p99, 3),
        Cell::Number(round.p999, 2),
        Cell::Number(round.max, 1),
        Cell::Number(round.cpu, 1),
        Cell::Number(round.written, 0),
        Cell::Number(round.memory, 1),
        Cell::of(round.sink, 0),
        Cell::of(round.lag, 0),
        Cell::Number(round.refused, 3),
        Cell::Number(round.generator, 2),
    ]
}
