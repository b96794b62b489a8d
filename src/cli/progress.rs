//! The progress line of commands that take long: how it looks, and where it is shown.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often the line is drawn while nothing changes, so that a person sees that the command is still running.
const TICK: Duration = Duration::from_millis(250);

/// How the rate of a progress line is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ProgressRate {
    /// By the line itself, over the last seconds.
    Estimated,
    /// By the caller.
    Reported,
}

/// One line on stderr that is drawn anew while a command runs. Hidden if stderr is not a terminal. Text comes first: on a
/// narrow terminal, the bar is what is left out. Dropping it removes the line; do that before something else is printed.
#[derive(Debug)]
pub(super) struct ProgressLine(ProgressBar);

impl ProgressLine {
    /// A line for this many steps; `None` if nobody knows how many there will be.
    pub(super) fn new(total: Option<u64>, rate: ProgressRate) -> Self {
        let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template(&template(total, rate)) {
            bar.set_style(style);
        }
        if !bar.is_hidden() {
            bar.enable_steady_tick(TICK);
        }
        Self(bar)
    }

    /// Whether nobody sees the line.
    pub(super) fn is_hidden(&self) -> bool {
        self.0.is_hidden()
    }

    /// Shows how many steps are done.
    pub(super) fn set_done(&self, done: u64) {
        self.0.set_position(done);
    }

    /// Changes the number of steps.
    pub(super) fn set_total(&self, total: u64) {
        self.0.set_length(total);
    }

    /// Shows the rate that the caller has measured, with its unit.
    pub(super) fn set_rate(&self, rate: String) {
        self.0.set_prefix(rate);
    }

    /// Shows a text; it must be escaped if it is from outside.
    pub(super) fn set_message(&self, message: String) {
        self.0.set_message(message);
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// The look of a line, as indicatif describes it.
fn template(total: Option<u64>, rate: ProgressRate) -> String {
    let rate = match rate {
        ProgressRate::Estimated => "{per_sec}",
        ProgressRate::Reported => "{prefix}",
    };
    match total {
        Some(_) => {
            format!("{{human_pos}} of {{human_len}}  {rate}  {{eta}} left  {{msg}}  {{wide_bar}}")
        }
        None => format!("{{spinner}} {{human_pos}}  {rate}  {{elapsed}}  {{msg}}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_template_is_valid() {
        for total in [None, Some(7)] {
            for rate in [ProgressRate::Estimated, ProgressRate::Reported] {
                ProgressStyle::with_template(&template(total, rate)).unwrap();
            }
        }
    }
}
