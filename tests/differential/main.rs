//! The relay reads generated and mutated callbacks as another JSON implementation does: the same verdict, and the same
//! id of the event.
//!
//! `RECALL_TEST_CALLBACKS` sets how many callbacks are compared, `RECALL_TEST_SEED` repeats a run.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and reads its options from the environment"
)]

mod callbacks;

use std::collections::BTreeMap;
use std::env;
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::thread;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use callbacks::Case;
use fastrand::Rng;
use recall_relay::callback::{Class, Query, classify, parse_recall};
use recall_relay::event::UnixMillis;

const APP: u64 = 1_400_000_001;

#[test]
fn callbacks_are_read_as_another_parser_reads_them() {
    let setting = |name: &str| env::var(name).ok().and_then(|value| value.parse().ok());
    let seed = setting("RECALL_TEST_SEED").unwrap_or_else(|| fastrand::u64(..1_000_000));
    let count = setting("RECALL_TEST_CALLBACKS").unwrap_or(30_000);
    println!("seed {seed} (RECALL_TEST_SEED)");
    let mut random = Rng::with_seed(seed);
    let cases: Vec<Case> = (0..count).map(|_| Case::generate(&mut random)).collect();

    let mut verdicts: BTreeMap<String, u32> = BTreeMap::new();
    for (case, expected) in cases.iter().zip(reference(&cases)) {
        let found = verdict(case);
        assert_eq!(
            found,
            expected,
            "(ours, the reference's) of {:?}, {}",
            case.command,
            String::from_utf8_lossy(&case.body)
        );
        let kind = if found.len() == 36 { "event" } else { &*found };
        *verdicts.entry(kind.to_owned()).or_default() += 1;
    }
    println!("{verdicts:?}");
    // Otherwise the comparison says little.
    for verdict in [
        "event",
        "other",
        "probe",
        "command",
        "conversation",
        "messages",
        "not_an_object",
        "not_json",
    ] {
        let times = verdicts.get(verdict).copied().unwrap_or_default();
        assert!(
            u64::from(times) * 200 > count,
            "only {times} of {count} are {verdict}"
        );
    }
}

fn verdict(case: &Case) -> String {
    let query = case
        .command
        .map(|command| format!("CallbackCommand={command}"));
    let query = Query::parse(query.as_deref().unwrap_or_default());
    match classify(&query, &case.body) {
        Class::Probe => "probe".to_owned(),
        Class::Other { .. } => "other".to_owned(),
        Class::Recall { recall, body } => {
            let received_at = UnixMillis::new(1_670_574_414_201).unwrap();
            match parse_recall(APP, recall, &query, &body, received_at) {
                Ok(parsed) => parsed.event.id.to_string(),
                Err(error) => error.reason().to_owned(),
            }
        }
    }
}

fn reference(cases: &[Case]) -> Vec<String> {
    let mut python = Command::new("python3")
        .arg("tests/differential/reference.py")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 is missing");
    let mut stdin = python.stdin.take().unwrap();
    let mut lines = String::new();
    for case in cases {
        let (command, body) = (case.command, BASE64_STANDARD.encode(&case.body));
        writeln!(
            lines,
            "{}",
            serde_json::json!({"command": command, "body": body})
        )
        .unwrap();
    }
    let writer = thread::spawn(move || stdin.write_all(lines.as_bytes()));
    let output = python.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(output.status.success(), "the reference failed");
    let verdicts: Vec<String> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect();
    assert_eq!(verdicts.len(), cases.len());
    verdicts
}
