//! Strips white space, a byte order mark and quotes around a value; finds control characters in it.

/// The text without what surrounds it: white space (CR, LF and NBSP included), a byte order mark, and one pair of
/// quotes. Env files keep both: those that an editor saved with CRLF or a byte order mark, and those whose reader
/// takes quotes for text (`docker --env-file`).
///
/// If the same quote also occurs inside, nothing is stripped: `"a","b"` is unchanged. To keep quotes, put quotes of the other kind
/// around them: `'"a"'` is `"a"`.
#[must_use]
pub fn clean(text: &str) -> &str {
    let surrounds = |char: char| char.is_whitespace() || char == '\u{feff}';
    let text = text.trim_matches(surrounds);
    let unquoted = ['"', '\''].into_iter().find_map(|quote| {
        let inside = text.strip_prefix(quote)?.strip_suffix(quote)?;
        (!inside.contains(quote)).then_some(inside)
    });
    unquoted.map_or(text, |inside| inside.trim_matches(surrounds))
}

/// Whether the text has a control character. A line break is one unless `lines` is set.
pub(crate) fn has_control_character(text: &str, lines: bool) -> bool {
    text.chars()
        .any(|char| char.is_control() && !(lines && matches!(char, '\r' | '\n')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_byte_order_mark_and_one_pair_of_quotes_go() {
        for text in [
            "a",
            " a\t",
            "a\r\n",
            "\u{feff}a",
            "\u{feff} a",
            "\u{a0}a\u{3000}",
            "\"a\"",
            "'a'",
            " \" a \"\r\n",
            "\u{feff}\"a\"\n",
        ] {
            assert_eq!(clean(text), "a", "{text:?}");
        }
        for text in ["", " ", "\r\n", "\u{feff}", "\"\"", "''", "\" \""] {
            assert_eq!(clean(text), "", "{text:?}");
        }
    }

    #[test]
    fn other_quotes_stay() {
        for (text, expected) in [
            ("'\"a\"'", "\"a\""),
            ("\"'a'\"", "'a'"),
            ("\"a\",\"b\"", "\"a\",\"b\""),
            ("\"a", "\"a"),
            ("\"a'", "\"a'"),
            ("\"", "\""),
            ("a\"b", "a\"b"),
        ] {
            assert_eq!(clean(text), expected);
        }
    }
}
