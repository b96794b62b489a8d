//! Checks that every log line has a code, and that `docs/reference/log.md` lists all codes with their levels.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The macros whose lines need a code, and their levels.
const MACROS: [(&str, &str); 3] = [("error!(", "ERROR"), ("warn!(", "WARN"), ("info!(", "INFO")];

type Code = (String, &'static str);

/// The codes of a source file's log lines; `Err` with the line's number if a log line does not begin with a code.
fn codes(source: &str) -> Vec<Result<Code, usize>> {
    let mut found = Vec::new();
    for (name, level) in MACROS {
        for (at, _) in source.match_indices(name) {
            let (before, rest) = source.split_at(at);
            let line = before.rsplit('\n').next().unwrap_or_default();
            let is_comment = line.trim_start().starts_with("//");
            // Another macro, such as `log_error!`.
            let is_longer = before.ends_with(|char: char| char.is_alphanumeric() || char == '_');
            if is_comment || is_longer {
                continue;
            }
            let code = rest
                .strip_prefix(name)
                .and_then(|arguments| arguments.trim_start().strip_prefix("code = \""))
                .and_then(|code| code.split_once('"'));
            found.push(match code {
                Some((code, _)) => Ok((code.to_owned(), level)),
                None => Err(before.matches('\n').count() + 1),
            });
        }
    }
    found
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|end| end == "rs")
            && !path.ends_with("telemetry/codes.rs")
        {
            files.push(path);
        }
    }
    files
}

#[test]
fn every_log_line_has_a_code_that_the_reference_lists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut in_source = BTreeSet::new();
    for path in sources(&root.join("src")) {
        for code in codes(&fs::read_to_string(&path).unwrap()) {
            let place = |line| {
                format!(
                    "{}:{line}: a log line must begin with a code",
                    path.display()
                )
            };
            let (code, level) = code.map_err(place).unwrap();
            let is_snake = |char: char| char.is_ascii_lowercase() || char == '_';
            assert!(code.chars().all(is_snake), "{code} is not snake_case");
            in_source.insert((code, level.to_owned()));
        }
    }
    let page = fs::read_to_string(root.join("docs/reference/log.md")).unwrap();
    let rows: Vec<(String, String)> = page
        .lines()
        .filter_map(|line| {
            let (code, rest) = line.strip_prefix("| `")?.split_once("` | ")?;
            Some((code.to_owned(), rest.split_once(" | ")?.0.to_owned()))
        })
        .collect();
    let listed: BTreeSet<_> = rows
        .iter()
        .flat_map(|(code, levels)| {
            levels
                .split(", ")
                .map(|level| (code.clone(), level.to_owned()))
        })
        .collect();
    let missing: Vec<_> = in_source.difference(&listed).collect();
    let unknown: Vec<_> = listed.difference(&in_source).collect();
    assert!(
        missing.is_empty() && unknown.is_empty(),
        "not in docs/reference/log.md: {missing:?}; only there: {unknown:?}"
    );
    let names: BTreeSet<_> = rows.iter().map(|(code, _)| code).collect();
    assert_eq!(names.len(), rows.len(), "a code is listed twice");
}

#[test]
fn a_log_line_without_a_code_is_found() {
    let with_code = "warn!(\n    code = \"sink_down\",\n    sink, \"sink is down\"\n);\n";
    assert_eq!(codes(with_code), [Ok(("sink_down".to_owned(), "WARN"))]);
    for (source, line) in [
        ("\n\ntracing::error!(\"lost\");", 3),
        (
            "info!(\n    sink,\n    code = \"sink_up\", \"sink is up\"\n);",
            1,
        ),
    ] {
        assert_eq!(codes(source), [Err(line)], "{source}");
    }
    for source in [
        "// error!(\"lost\")",
        "print_error!(\"lost\")",
        "debug!(\"lost\")",
    ] {
        assert_eq!(codes(source), [], "{source}");
    }
}
