//! What commands print on standard output: tables and lines for people, lines of JSON for programs.
//!
//! Colours are used only if standard output is a terminal and `NO_COLOR` is not set. Text from outside is escaped, so
//! that it cannot control the terminal.

use std::io::{self, Write};

use anstream::AutoStream;
use anstyle::{AnsiColor, Style};
use comfy_table::{Cell, CellAlignment, Table};
use serde::Serialize;
use unicode_width::UnicodeWidthChar as _;

use crate::telemetry::escape;

/// A heading of a table.
const HEADING: Style = Style::new().bold();

/// Something that needs attention.
pub(super) const ATTENTION: Style = AnsiColor::Red.on_default();

/// Something that works, but may not for long.
pub(super) const CAUTION: Style = AnsiColor::Yellow.on_default();

/// Something that is in order.
pub(super) const FINE: Style = AnsiColor::Green.on_default();

/// Standard output, with colours if they are wanted. Commands write to nothing else: [`is_closed`] knows its errors.
#[derive(Debug)]
pub(super) struct Stdout(AutoStream<io::Stdout>);

/// Standard output.
pub(super) fn stdout() -> Stdout {
    Stdout(AutoStream::auto(io::stdout()))
}

/// Standard output for lines of JSON, which have neither colours nor other control characters to remove.
pub(super) fn json_stdout() -> Stdout {
    Stdout(AutoStream::always_ansi(io::stdout()))
}

/// Standard output for lines of JSON if `json`, otherwise for people.
pub(super) fn stdout_for(json: bool) -> Stdout {
    if json { json_stdout() } else { stdout() }
}

/// Why standard output could not be written.
#[derive(Debug, thiserror::Error)]
#[error("could not write to standard output: {0}")]
struct StdoutError(io::Error);

fn stdout_error(error: io::Error) -> io::Error {
    io::Error::new(error.kind(), StdoutError(error))
}

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(stdout_error)
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes).map_err(stdout_error)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(stdout_error)
    }
}

/// Whether a command failed only because its reader has closed standard output. The same error of a socket is a failure.
pub(super) fn is_closed(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<io::Error>().is_some_and(|error| {
            let is_stdout = matches!(error.get_ref(), Some(inner) if inner.is::<StdoutError>());
            is_stdout && error.kind() == io::ErrorKind::BrokenPipe
        })
    })
}

/// Prints one line of JSON. It is escaped: JSON may contain control characters above U+001F.
pub(super) fn print_json(out: &mut impl Write, line: &impl Serialize) -> io::Result<()> {
    let line = serde_json::to_string(line).map_err(io::Error::from)?;
    writeln!(out, "{}", escape(&line))
}

/// Prints a value with its name.
pub(super) fn label(out: &mut impl Write, name: &str, value: &str) -> io::Result<()> {
    writeln!(out, "{name:<13} {}", escape(value))
}

/// Text that takes at most `width` columns of a terminal, escaped; it ends with `…` if it is longer.
pub(super) fn fit(text: &str, width: usize) -> String {
    let mut text = escape(text);
    let (mut columns, mut end) = (0, 0);
    for (index, char) in text.char_indices() {
        columns += char.width().unwrap_or(0);
        if columns < width {
            end = index + char.len_utf8();
        } else if columns > width {
            text.truncate(end);
            text.push('…');
            break;
        }
    }
    text
}

/// Text in this style.
pub(super) fn styled(style: Style, text: &str) -> String {
    format!("{style}{text}{style:#}")
}

/// A table without borders.
#[derive(Debug)]
pub(super) struct Columns {
    table: Table,
}

impl Columns {
    /// A table with these headings; those that end with `#` are of numbers, which are aligned to the right.
    pub(super) fn new(headings: &[&str]) -> Self {
        let mut table = Table::new();
        table.load_style(comfy_table::presets::NOTHING);
        let heading = |text: &&str| Cell::new(text.trim_end_matches('#'));
        table.set_header(headings.iter().map(heading));
        for (index, text) in headings.iter().enumerate() {
            if let Some(column) = table.column_mut(index) {
                column.set_padding((0, 2));
                if text.ends_with('#') {
                    column.set_cell_alignment(CellAlignment::Right);
                }
            }
        }
        Self { table }
    }

    /// Adds a row; its text is escaped.
    pub(super) fn row<T: AsRef<str>>(&mut self, cells: impl IntoIterator<Item = T>) {
        let cells = cells.into_iter().map(|cell| escape(cell.as_ref()));
        self.table.add_row(cells);
    }

    /// Prints the table.
    pub(super) fn print(&self, out: &mut impl Write) -> io::Result<()> {
        // The crate would count the characters of a style as width: the headings get theirs here.
        let text = self.table.to_string();
        let mut lines = text.lines().map(str::trim_end);
        if let Some(headings) = lines.next() {
            writeln!(out, "{}", styled(HEADING, headings))?;
        }
        lines.try_for_each(|line| writeln!(out, "{line}"))
    }
}

#[cfg(test)]
mod tests {
    use anstream::StripStream;
    use anyhow::Context as _;
    use unicode_width::UnicodeWidthStr as _;

    use super::*;

    fn printed(columns: &Columns) -> String {
        let mut out = Vec::new();
        columns.print(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn columns_are_aligned_by_the_width_that_a_terminal_shows() {
        let mut columns = Columns::new(&["NAME", "COUNT#", "TEXT"]);
        columns.row(["消息", "7", "x"]);
        columns.row(["abcde", "1234567", ""]);
        let mut plain = StripStream::new(Vec::new());
        columns.print(&mut plain).unwrap();
        let expected = "NAME     COUNT  TEXT\n消息         7  x\nabcde  1234567\n";
        assert_eq!(String::from_utf8(plain.into_inner()).unwrap(), expected);
    }

    #[test]
    fn only_headings_have_a_style_and_text_from_outside_has_none() {
        let mut columns = Columns::new(&["A", "B"]);
        columns.row(["\u{1b}[31mred\u{9b}2J", "two\nlines\tand \u{202e}"]);
        let text = printed(&columns);
        let (headings, row) = text.split_once('\n').unwrap();
        assert!(headings.starts_with("\u{1b}[1mA "), "{headings:?}");
        assert!(headings.ends_with(" B\u{1b}[0m"), "{headings:?}");
        let expected = r"\u001b[31mred\u009b2J  two\u000alines\u0009and \u202e";
        assert_eq!(row, format!("{expected}\n"));
    }

    #[test]
    fn text_is_cut_to_the_columns_that_it_takes() {
        for (text, fitted) in [
            ("", ""),
            ("group", "group"),
            ("groups", "grou…"),
            ("消息", "消息"),
            ("消息消息", "消息…"),
            ("a\u{1b}[2J", "a\\u0…"),
        ] {
            assert_eq!(fit(text, 5), fitted);
            assert!(fit(text, 5).width() <= 5);
        }
    }

    #[test]
    fn json_is_the_same_without_control_characters() {
        let value = serde_json::json!({ "text": "\u{9b}2J\u{7f}\u{202e}\u{1b}é消" });
        let mut out = Vec::new();
        print_json(&mut out, &value).unwrap();
        let line = String::from_utf8(out).unwrap();
        let text = line.strip_suffix('\n').unwrap();
        assert_eq!(text, r#"{"text":"\u009b2J\u007f\u202e\u001bé消"}"#);
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(text).unwrap(),
            value
        );
    }

    #[test]
    fn a_closed_standard_output_is_no_failure_but_a_closed_socket_is() {
        let broken = || io::Error::from(io::ErrorKind::BrokenPipe);
        let failed = |error: io::Error| Err::<(), _>(error).context("printing").unwrap_err();
        assert!(is_closed(&failed(stdout_error(broken()))));
        assert!(!is_closed(&failed(broken())));
        let full = failed(stdout_error(io::ErrorKind::StorageFull.into()));
        assert!(!is_closed(&full));
        assert_eq!(
            crate::telemetry::chain(full.as_ref()),
            "printing: could not write to standard output: no storage space"
        );
    }
}
