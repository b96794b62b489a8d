//! Escapes characters of outside text that would end a log line, control a terminal or reorder what it shows.
//!
//! Neither format of the log does this completely: JSON may contain every character above U+001F, and text prints the
//! values of fields as they are.

use std::fmt::{self, Write as _};
use std::io;

use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::{DefaultFields, Writer};

/// Whether a character is a control character (C0, DEL and C1), ends a line, or changes the direction of text.
fn is_unsafe(char: char) -> bool {
    char.is_control()
        || matches!(
            char,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
}

/// Passes text on with unsafe characters written as `\u001b`, which also means the same within a JSON string.
struct Escaped<W>(W);

impl<W: fmt::Write> fmt::Write for Escaped<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.chars().try_for_each(|char| {
            if is_unsafe(char) {
                write!(self.0, "\\u{:04x}", u32::from(char))
            } else {
                self.0.write_char(char)
            }
        })
    }
}

/// Text with unsafe characters escaped.
#[must_use]
pub fn escape(text: &str) -> String {
    // Most texts are harmless, and this is many times as fast.
    if text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        return text.to_owned();
    }
    let mut escaped = Escaped(String::with_capacity(text.len()));
    // Writing to a string cannot fail.
    let _ = escaped.write_str(text);
    escaped.0
}

/// Formats the fields of a text line, escaped. Fields have no colours: those consist of control characters, too.
#[derive(Debug)]
pub(super) struct EscapedFields;

impl<'writer> FormatFields<'writer> for EscapedFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut escaped = Escaped(writer);
        DefaultFields::new().format_fields(Writer::new(&mut escaped), fields)
    }
}

/// Escapes lines of JSON. Each write must be one line: only its last line feed is kept.
#[derive(Debug)]
pub(super) struct EscapedLines<W>(pub(super) W);

impl<W: io::Write> io::Write for EscapedLines<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        let escaped = escape(text.strip_suffix('\n').unwrap_or(&text));
        self.0.write_all(format!("{escaped}\n").as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use serde_json::Value;
    use tracing::{debug, info_span};
    use tracing_subscriber::layer::SubscriberExt as _;
    use tracing_subscriber::registry;

    use super::super::{json_layer, log_to, text_layer};
    use super::*;

    /// Every kind of unsafe character, and harmless ones.
    const HOSTILE: &str = "a\r\nERROR forged\0\t\u{1b}]0;t\u{7}\u{7f}\u{85}\u{9b}2J\u{2028}\u{2029}\u{202e}\u{2066}\
                           \u{200f}\u{61c}\\é消息";

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Written {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    /// Logs the text in each way in which a value can be logged.
    fn log_everywhere() {
        let error = io::Error::other(HOSTILE);
        let error: &(dyn std::error::Error + 'static) = &error;
        let _span = info_span!("span", value = %HOSTILE).entered();
        debug!(case = "text", value = HOSTILE, "message");
        debug!(case = "display", value = %HOSTILE, "message");
        debug!(case = "debug", value = ?HOSTILE, "message");
        debug!(case = "debug_of_display", value = ?format_args!("{HOSTILE}"), "message");
        debug!(case = "error", value = error, "message");
        debug!(case = "message", "{HOSTILE}");
    }

    #[track_caller]
    fn assert_six_safe_lines(written: &str) {
        let lines: Vec<_> = written.strip_suffix('\n').unwrap().split('\n').collect();
        assert_eq!(lines.len(), 6, "{written:?}");
        for line in lines {
            assert!(!line.contains(is_unsafe), "{line:?}");
            assert!(line.contains("é消息"), "{line:?}");
        }
    }

    #[test]
    fn no_value_forges_a_line_or_controls_a_terminal() {
        let text = Written::default();
        let writer = text.clone();
        let layer = text_layer(move || writer.clone()).with_ansi(false);
        log_to(registry().with(layer), log_everywhere);
        assert_six_safe_lines(&text.text());

        let json = Written::default();
        let writer = json.clone();
        let layer = json_layer(move || writer.clone());
        log_to(registry().with(layer), log_everywhere);
        assert_six_safe_lines(&json.text());
        for line in json.text().lines() {
            let line: Value = serde_json::from_str(line).unwrap();
            let is_same = |value: &Value| value == HOSTILE || *value == format!("{HOSTILE:?}");
            assert!(
                is_same(&line["value"]) || is_same(&line["message"]),
                "{line}"
            );
        }
    }

    #[test]
    fn the_only_controls_on_a_terminal_are_colours_of_the_log() {
        let text = Written::default();
        let writer = text.clone();
        let layer = text_layer(move || writer.clone()).with_ansi(true);
        log_to(registry().with(layer), log_everywhere);
        let mut written = text.text();
        assert!(written.contains("\u{1b}[34mDEBUG\u{1b}[0m"), "{written:?}");
        for colour in ["[0m", "[1m", "[2m", "[34m"] {
            written = written.replace(&format!("\u{1b}{colour}"), "");
        }
        assert_six_safe_lines(&written);
    }
}
