//! What commands do on a terminal and in a pipe.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod rig;

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::process::Command;

use nix::pty::{Winsize, openpty};
use rig::{Setup, until};

/// What begins a control sequence.
const ESCAPE: char = '\u{1b}';

/// A setup with a terminal that can show colours.
fn setup() -> Setup {
    Setup::new().set("TERM", "xterm-256color")
}

/// Runs a command whose standard streams are a terminal of this width, on which `answer` is typed. Returns its exit code
/// and what the terminal shows.
fn on_terminal(mut command: Command, columns: u16, answer: &str) -> (i32, String) {
    let size = Winsize {
        ws_row: 24,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let terminal = openpty(&size, None).unwrap();
    let (mut master, slave) = (File::from(terminal.master), terminal.slave);
    command
        .stdin(slave.try_clone().unwrap())
        .stdout(slave.try_clone().unwrap())
        .stderr(slave);
    let mut child = command.spawn().unwrap();
    // Close our copies: otherwise the terminal would have no end.
    drop(command);
    master.write_all(answer.as_bytes()).unwrap();
    let (mut shown, mut buffer) = (Vec::new(), [0; 4096]);
    // At its end, a terminal reports an error.
    while let Ok(count @ 1..) = master.read(&mut buffer) {
        shown.extend(&buffer[..count]);
    }
    let status = until("the command to end", || child.try_wait().unwrap());
    (
        status.code().unwrap_or(-1),
        String::from_utf8(shown).unwrap(),
    )
}

/// What a terminal of 100 columns shows of a command that succeeds.
#[track_caller]
fn shown(setup: &Setup, arguments: &[&str]) -> String {
    let (code, shown) = on_terminal(setup.command(arguments), 100, "");
    assert_eq!(code, 0, "{shown}");
    shown
}

#[test]
fn colours_are_used_only_on_a_terminal_that_has_them() {
    let setup = setup();
    for arguments in [
        &["--help"][..],
        &["spool", "dead-letters", "--help"],
        &["config"],
    ] {
        let coloured = shown(&setup, arguments);
        assert!(coloured.contains(ESCAPE), "{coloured}");
        for (name, value) in [("NO_COLOR", "1"), ("TERM", "dumb")] {
            let plain = shown(&setup.with(name, value), arguments);
            assert!(!plain.contains(ESCAPE), "{name}: {plain}");
        }
        let (code, piped, stderr) = setup.run(arguments);
        assert_eq!((code, stderr.as_str()), (0, ""));
        assert!(!piped.contains(ESCAPE), "{piped}");
    }
}

#[test]
fn bad_usage_is_coloured_only_on_a_terminal() {
    let wrong = ["spool", "dead-letters", "retry"];
    let setup = setup();
    let (code, coloured) = on_terminal(setup.command(&wrong), 100, "");
    assert_eq!(code, 2);
    assert!(coloured.contains(ESCAPE), "{coloured}");
    let (code, stdout, stderr) = setup.run(&wrong);
    assert_eq!((code, stdout.as_str()), (2, ""));
    assert!(!stderr.contains(ESCAPE), "{stderr}");
    assert!(stderr.contains("try '--help'"), "{stderr}");
}

#[test]
fn help_is_as_wide_as_the_terminal_but_at_most_100_columns() {
    let widest = |text: &str| {
        let lines = text.lines().map(|line| line.trim_end().chars().count());
        lines.max().unwrap()
    };
    let setup = setup().set("NO_COLOR", "1");
    for (columns, expected) in [(80, 70..=80), (250, 90..=100)] {
        let (_, help) = on_terminal(setup.command(&["send", "--help"]), columns, "");
        assert!(expected.contains(&widest(&help)), "{columns}: {help}");
    }
    let (_, piped, _) = setup.run(&["send", "--help"]);
    assert!((90..=100).contains(&widest(&piped)), "{piped}");
}

#[test]
fn short_help_has_no_examples_and_long_help_has() {
    let setup = setup();
    let (_, short, _) = setup.run(&["spool", "dead-letters", "drop", "-h"]);
    let (_, long, _) = setup.run(&["spool", "dead-letters", "drop", "--help"]);
    let example = "recall-relay spool dead-letters drop 1207\n";
    assert!(!short.contains("Examples:"), "{short}");
    assert!(long.contains(example), "{long}");
}

/// The output of a command that needs no settings.
#[track_caller]
fn generated(arguments: &[&str]) -> String {
    let setup = setup();
    let run = || {
        let mut command = setup.command(arguments);
        // This file does not exist.
        command.env_clear().env("RECALL_CONFIG", "/no/such/file");
        command.output().unwrap()
    };
    let output = run();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert_eq!(stderr, "");
    assert_eq!(output.stdout, run().stdout, "is not the same again");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn completions_of_every_shell_need_no_settings() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = generated(&["completions", shell]);
        assert!(script.contains("dead-letters"), "{shell}: {script}");
    }
    let (code, _, stderr) = setup().run(&["completions", "tcsh"]);
    assert_eq!(code, 2);
    assert!(stderr.contains("possible values: bash"), "{stderr}");
}

#[test]
fn bash_completes_commands_and_options() {
    let script = generated(&["completions", "bash"]);
    let complete = |words: &[&str]| {
        let last = words.len() - 1;
        // `complete -p` prints `complete … -F FUNCTION …`.
        let test = format!(
            "{script}\n[[ $(complete -p recall-relay) =~ -F[[:space:]]([^[:space:]]+) ]]\n\
             COMP_WORDS=({}); COMP_CWORD={last}\n\
             ${{BASH_REMATCH[1]}} recall-relay '{}' '{}'; echo \"${{COMPREPLY[@]}}\"",
            words.join(" "),
            words[last],
            words[last - 1],
        );
        let output = Command::new("bash").args(["-c", &test]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    assert_eq!(complete(&["recall-relay", "spool", "dead"]), "dead-letters");
    let words = ["recall-relay", "spool", "dead-letters", "drop", "--y"];
    assert_eq!(complete(&words), "--yes");
    assert_eq!(
        complete(&["recall-relay", "send", "--command", "off"]),
        "official-account"
    );
}

#[test]
fn the_manual_page_needs_no_settings() {
    let page = generated(&["man"]);
    assert!(page.contains(".TH recall-relay 1 "), "{page}");
    assert!(!page.contains("/no/such/file"), "{page}");
    assert!(!page.contains(ESCAPE), "{page}");
}

#[test]
fn a_command_whose_reader_has_gone_ends_quietly() {
    let setup = setup();
    for arguments in [
        &["config"][..],
        &["man"],
        &["completions", "bash"],
        &["send", "--print", "--count", "3"],
        &["--help"],
        &["--version"],
    ] {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let output = setup.command(arguments).stdout(writer).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(
            (output.status.code(), &*stderr),
            (Some(0), ""),
            "{arguments:?}"
        );
    }
}

#[test]
fn an_output_that_cannot_be_written_is_a_failure() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let setup = setup();
    let mut command = setup.command(&["config"]);
    let output = command.stdout(full).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    let expected = "recall-relay: could not write to standard output: No space left on device";
    assert!(stderr.starts_with(expected), "{stderr}");
}

/// A setup whose spool keeps dead letters of Kafka and RabbitMQ, and the ids of their two events.
fn with_dead_letters() -> (Setup, [String; 2]) {
    let setup = setup();
    let relay = setup.start();
    relay.recalls("group", 1..=2);
    relay.events(2);
    relay.stop();
    let spool = rusqlite::Connection::open(setup.spool()).unwrap();
    for (sink, reason) in [
        ("kafka", "dead_letter_topic"),
        ("rabbitmq", "dead_letter_queue"),
    ] {
        let inserted = spool.execute(
            "INSERT INTO dead_letters SELECT ?1, seq, 1670574414123, ?2, 'it is' || char(27) || '[2J full', id, kind,
             conversation, subject, group_type, time, body FROM events",
            [sink, reason],
        );
        assert_eq!(inserted.unwrap(), 2);
    }
    let id = |seq: u64| -> String {
        let hex: String = spool
            .query_row("SELECT hex(id) FROM events WHERE seq = ?1", [seq], |row| {
                row.get(0)
            })
            .unwrap();
        uuid::Uuid::parse_str(&hex).unwrap().to_string()
    };
    let ids = [id(1), id(2)];
    (setup, ids)
}

fn count_dead_letters(setup: &Setup) -> u64 {
    let spool = rusqlite::Connection::open(setup.spool()).unwrap();
    let count = "SELECT count(*) FROM dead_letters";
    spool.query_row(count, [], |row| row.get(0)).unwrap()
}

/// Runs `spool dead-letters` with these arguments.
fn dead_letters(setup: &Setup, arguments: &[&str]) -> (i32, String, String) {
    setup.run(&[&["spool", "dead-letters"], arguments].concat())
}

#[test]
fn dead_letters_are_listed_and_shown() {
    let (setup, ids) = with_dead_letters();
    let (code, table, stderr) = dead_letters(&setup, &["list"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    let rows: Vec<Vec<&str>> = table
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    let at = "2022-12-09T08:26:54.123Z";
    let expected = [
        ["SINK", "SEQ", "STORED", "REASON", "ID", "CONVERSATION"],
        ["kafka", "1", at, "dead_letter_topic", &ids[0], "group"],
        ["kafka", "2", at, "dead_letter_topic", &ids[1], "group"],
        ["rabbitmq", "1", at, "dead_letter_queue", &ids[0], "group"],
        ["rabbitmq", "2", at, "dead_letter_queue", &ids[1], "group"],
    ];
    assert_eq!(rows, expected);

    let (_, lines, _) = dead_letters(&setup, &["list", "--sink", "kafka", "--json"]);
    let lines: Vec<serde_json::Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 2);
    let (_, shown, _) = dead_letters(&setup, &["show", &ids[0], "--json"]);
    let shown = shown.lines().next().unwrap();
    assert_eq!(
        lines[0],
        serde_json::from_str::<serde_json::Value>(shown).unwrap()
    );
    let mut line = lines[0].clone();
    let event = line["event"].take();
    assert_eq!(event["id"], ids[0].as_str());
    let expected = serde_json::json!({
        "sink": "kafka", "seq": 1, "at": at, "reason": "dead_letter_topic",
        "detail": "it is\u{1b}[2J full", "event": null,
    });
    assert_eq!(line, expected, "this form is frozen");

    let (code, text, _) = dead_letters(&setup, &["show", "2"]);
    assert_eq!(code, 0);
    assert_eq!(
        text.matches(&format!("id            {}\n", ids[1])).count(),
        2
    );
    assert!(
        text.contains("detail        it is\\u001b[2J full\n"),
        "{text}"
    );
    assert!(!text.contains(ESCAPE), "{text}");
}

#[test]
fn errors_about_dead_letters_name_the_next_step() {
    let (setup, _) = with_dead_letters();
    for (arguments, expected_code, expected) in [
        (
            &["show", "3"][..],
            1,
            "no dead letter with the event 3; to list those that it keeps, run \
             `recall-relay spool dead-letters list`",
        ),
        (
            &["retry", "1", "3", "4", "--sink", "kafka"],
            1,
            "no dead letter of kafka with the event 3, 4; to list",
        ),
        (&["retry", "--all"], 1, "kafka is not configured"),
        (&["retry"], 2, "<ID|SEQ|--all>"),
        (&["drop", "--all", "1"], 2, "cannot be used with"),
        (&["drop", "--all"], 2, "without a question, add --yes"),
        (
            &["list", "--sink", "kafak"],
            2,
            "a similar value exists: 'kafka'",
        ),
    ] {
        let (code, stdout, stderr) = dead_letters(&setup, arguments);
        assert_eq!((code, stdout.as_str()), (expected_code, ""), "{stderr}");
        assert!(stderr.contains(expected), "{stderr}");
    }
    assert_eq!(count_dead_letters(&setup), 4);

    let (code, _, stderr) = dead_letters(&self::setup(), &["list"]);
    assert_eq!(code, 1);
    assert!(stderr.contains("check spool.path"), "{stderr}");
}

#[test]
fn drop_names_the_dead_letters_and_asks_on_a_terminal() {
    let (setup, ids) = with_dead_letters();
    let drop = ["spool", "dead-letters", "drop", "1"];
    for answer in ["n\n", "\n", "yeah\n", "\u{4}"] {
        let (code, shown) = on_terminal(setup.command(&drop), 200, answer);
        assert_eq!(code, 1, "{shown}");
        assert!(shown.contains("Delete these 2 dead letters?"), "{shown}");
        assert!(shown.contains("nothing was deleted"), "{shown}");
        assert_eq!(shown.matches(&ids[0]).count(), 2, "{shown}");
        assert!(!shown.contains(&ids[1]), "{shown}");
    }
    assert_eq!(count_dead_letters(&setup), 4);

    // What cannot be named is not deleted.
    let (reader, writer) = io::pipe().unwrap();
    std::mem::drop(reader);
    let mut command = setup.command(&[&drop[..], &["--yes"]].concat());
    let output = command.stdout(writer).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr.contains("nothing was deleted: could not write"),
        "{stderr}"
    );
    assert_eq!(count_dead_letters(&setup), 4);
}

#[test]
fn send_shows_rate_and_latencies_on_a_terminal_and_a_histogram_at_the_end() {
    let setup = setup();
    let relay = setup.start();
    let url = format!("http://{}/", relay.callbacks);
    let send = ["send", "--url", &url, "--rate", "50", "--count", "120"];
    let (code, shown) = on_terminal(setup.command(&send), 120, "");
    assert_eq!(code, 0, "{shown}");
    // After one second and after two.
    let line = shown
        .split('\r')
        .filter(|line| line.contains(" of 120  ") && line.contains("/s  "))
        .find(|line| line.contains("  p50 ") && line.contains("  p99 "))
        .unwrap_or_else(|| panic!("{shown:?}"));
    assert!(line.contains("  failed 0"), "{line}");
    let (_, rate) = line.split_once(" of 120  ").unwrap();
    let rate: f64 = rate.split_once("/s").unwrap().0.parse().unwrap();
    assert!((25.0..=75.0).contains(&rate), "{line}");

    // In a pipe, there is no line.
    let send = ["send", "--url", &url, "--count", "100"];
    let (code, report, stderr) = setup.run(&send);
    assert_eq!((code, stderr.as_str()), (0, ""), "{report}");
    let (before, histogram) = report.split_once("  up to ").unwrap();
    assert!(before.contains("\nlatency   p50 "), "{report}");
    assert!((1..=15).contains(&histogram.lines().count()), "{report}");
    let (_, counts, _) = setup.run(&[&send[..], &["--json"]].concat());
    let counts: serde_json::Value = serde_json::from_str(&counts).unwrap();
    assert_eq!(
        (&counts["sent"], &counts["outcomes"]["ok"]),
        (&100.into(), &100.into())
    );
    let buckets = counts["latency"]["histogram"].as_array().unwrap();
    let counted: u64 = buckets
        .iter()
        .map(|bucket| bucket["count"].as_u64().unwrap())
        .sum();
    assert_eq!(counted, 100, "{counts}");
    relay.stop();
}
