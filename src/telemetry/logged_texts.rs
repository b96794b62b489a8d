//! Remembers which texts were logged, so that one that recurs is not logged each time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// A text that still recurs after this time is logged again.
const AGAIN_AFTER: Duration = Duration::from_secs(60 * 60);

/// How many texts are remembered. While there are this many, no other is logged.
const CAPACITY: usize = 64;

/// The texts that were logged. Texts are one if they differ only in numbers, such as durations, ports and
/// counts, or in what librdkafka adds: `(after 12ms in state CONNECT, 5 identical error(s) suppressed)` at the end, and
/// `/bootstrap` in place of a broker's number.
#[derive(Debug, Default)]
pub struct LoggedTexts(BTreeMap<String, Instant>);

impl LoggedTexts {
    /// Whether to log `text`, because it was not logged within the last hour. If so, it counts as logged.
    pub fn is_due(&mut self, text: &str, now: Instant) -> bool {
        self.0
            .retain(|_, logged| now.saturating_duration_since(*logged) < AGAIN_AFTER);
        self.is_new(text, now)
    }

    /// Whether to log `text`, because it was not logged before. If so, it counts as logged.
    pub fn is_new(&mut self, text: &str, now: Instant) -> bool {
        let text = without_variable_parts(text);
        let is_new = self.0.len() < CAPACITY && !self.0.contains_key(&text);
        if is_new {
            self.0.insert(text, now);
        }
        is_new
    }
}

/// The text without librdkafka's suffix, and with each number replaced by `0`.
fn without_variable_parts(text: &str) -> String {
    let text = text.rsplit_once(" (after ").map_or(text, |(text, _)| text);
    let text = text.replace("/bootstrap", "/0");
    let mut result = String::with_capacity(text.len());
    for char in text.chars() {
        if !char.is_ascii_digit() {
            result.push(char);
        } else if !result.ends_with('0') {
            result.push('0');
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_logged_once_an_hour_whatever_its_numbers() {
        let began = Instant::now();
        let mut texts = LoggedTexts::default();
        let mut due =
            |text: &str, seconds: u64| texts.is_due(text, began + Duration::from_secs(seconds));
        assert!(due("kafka-1: refused (after 0ms)", 0));
        assert!(!due("kafka-1: refused (after 12ms, 5 suppressed)", 1));
        assert!(!due("kafka-2: refused (after 34ms)", 2));
        assert!(due("kafka:9092/1: refused", 2));
        assert!(!due("kafka:9092/bootstrap: refused", 2));
        assert!(due("kafka-1: no such host (after 1ms)", 3));
        assert!(!due("kafka-1: refused (after 5ms)", 3599));
        assert!(due("kafka-1: refused (after 5ms)", 3600));
    }

    #[test]
    fn the_number_of_texts_is_bounded() {
        let now = Instant::now();
        let mut texts = LoggedTexts::default();
        let logged = (0..1000).filter(|count| texts.is_due(&"x".repeat(*count), now));
        assert_eq!(logged.count(), CAPACITY);
        assert!(texts.is_due("another", now + AGAIN_AFTER));
    }
}
