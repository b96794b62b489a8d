//! The table of results.

use std::time::Duration;

/// What was measured during an attack.
#[derive(Default)]
pub struct Row {
    pub attack: String,
    pub connections: usize,
    pub opened: u64,
    /// How long the attack went on.
    pub lasted: Duration,
    pub sent: usize,
    /// Answered OK within 2 s.
    pub in_time: usize,
    /// How many of these on a connection that had been used before.
    pub on_kept: usize,
    pub quiet_p99: Duration,
    pub p99: Duration,
    pub longest: Duration,
    pub slowest_livez: Duration,
    /// Peak memory in bytes.
    pub peak_memory: u64,
}

const HEAD: [&str; 11] = [
    "attack",
    "connections",
    "opens a second",
    "honest sent",
    "OK within 2 s",
    "on kept connections",
    "quiet p99, ms",
    "p99, ms",
    "longest, ms",
    "slowest `/livez`, ms",
    "peak memory, MiB",
];

impl Row {
    fn cells(&self) -> [String; 11] {
        let ms = |time: Duration| format!("{:.0}", time.as_secs_f64() * 1000.0);
        [
            format!("`{}`", self.attack),
            self.connections.to_string(),
            (u128::from(self.opened) * 1000 / self.lasted.as_millis().max(1)).to_string(),
            self.sent.to_string(),
            self.in_time.to_string(),
            self.on_kept.to_string(),
            ms(self.quiet_p99),
            ms(self.p99),
            ms(self.longest),
            ms(self.slowest_livez),
            (self.peak_memory >> 20).to_string(),
        ]
    }
}

/// A Markdown table.
pub fn markdown(rows: &[Row]) -> String {
    let line = |cells: [String; 11]| format!("| {} |\n", cells.join(" | "));
    let head = line(HEAD.map(str::to_owned));
    let rule = format!("|---{}|\n", "|--:".repeat(HEAD.len() - 1));
    let rows = rows.iter().map(|row| line(row.cells()));
    [head, rule].into_iter().chain(rows).collect()
}
