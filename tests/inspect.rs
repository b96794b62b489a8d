//! Looking into the spool: `where`, `spool status`, `spool list` and `spool show`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod rig;

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use recall_relay::vendor::{BodyFormat, CallbackKind};
use rig::{APP, Broker as _, Kafka, Relay, Setup, large_recall, recall_query, shape, until};
use rusqlite::{Connection, params};
use serde_json::{Value, json};

/// A relay whose Kafka never answers: its events wait.
fn with_kafka_down() -> Setup {
    Setup::new().set("RECALL_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1")
}

/// Runs a command, and asserts that it succeeds; returns its output.
#[track_caller]
fn output(setup: &Setup, arguments: &[&str]) -> String {
    let (code, stdout, stderr) = setup.run(arguments);
    assert_eq!(code, 0, "{arguments:?}: {stdout}{stderr}");
    stdout
}

/// The lines of JSON that a command prints.
#[track_caller]
fn lines(setup: &Setup, arguments: &[&str]) -> Vec<Value> {
    let arguments: Vec<_> = arguments.iter().copied().chain(["--json"]).collect();
    let printed = output(setup, &arguments);
    printed
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// The only line of JSON that a command prints.
#[track_caller]
fn line(setup: &Setup, arguments: &[&str]) -> Value {
    let mut lines = lines(setup, arguments);
    assert_eq!(lines.len(), 1, "{lines:?}");
    lines.remove(0)
}

/// Runs a command, and asserts that it fails; returns its exit code and stderr.
#[track_caller]
fn failure(setup: &Setup, arguments: &[&str]) -> (i32, String) {
    let (code, stdout, stderr) = setup.run(arguments);
    assert_ne!(code, 0, "{arguments:?}: {stdout}");
    assert_eq!(stdout, "", "{arguments:?}");
    (code, stderr)
}

fn numbers(lines: &[Value]) -> Vec<u64> {
    lines
        .iter()
        .map(|line| line["seq"].as_u64().unwrap())
        .collect()
}

fn state_at<'a>(receipt: &'a Value, sink: &str) -> &'a Value {
    let sinks = receipt["sinks"].as_array().unwrap();
    sinks.iter().find(|state| state["sink"] == sink).unwrap()
}

/// Sends a one-to-one recall.
fn recall_c2c(relay: &Relay, from: &str, to: &str, seq: u64) {
    let body = BodyFormat::default().c2c(from, to, seq, 1_670_574_414_123);
    let answer = relay.post(&CallbackKind::C2c.query(APP, None), body);
    assert!(answer.is_ok(), "{answer:?}");
}

/// Asserts what the commands say about two recalls of a group `a`, and one of a group `b`, that are confirmed.
#[track_caller]
fn assert_commands_work(setup: &Setup) {
    let listed = lines(setup, &["spool", "list"]);
    assert_eq!(numbers(&listed), [3, 2, 1]);
    assert_eq!(listed[0]["event"]["subject"], "b");
    let of_a = lines(setup, &["spool", "list", "--group", "a", "--kind", "group"]);
    assert_eq!(numbers(&of_a), [2, 1]);
    assert!(lines(setup, &["spool", "list", "--until", "1h"]).is_empty());
    assert_eq!(
        lines(setup, &["spool", "list", "--since", "1h", "--limit", "1"]),
        listed[..1]
    );
    assert!(lines(setup, &["spool", "list", "--waiting"]).is_empty());

    let status = line(setup, &["spool", "status"]);
    assert_eq!(status["events"]["count"], 3);
    assert_eq!(status["sinks"][0]["confirmed_seq"], 3, "{status}");
    let id = listed[1]["event"]["id"].as_str().unwrap();
    let shown = line(setup, &["spool", "show", id]);
    assert_eq!(shown, line(setup, &["spool", "show", "2"]));
    assert_eq!(shown["event"], listed[1]["event"]);
    assert_eq!(state_at(&shown, "stdout")["state"], "confirmed");
    assert_eq!(line(setup, &["where", id]), shown);
    assert_eq!(
        line(setup, &["where", "--group", "a", "--message", "2"]),
        shown
    );
    assert_eq!(
        line(setup, &["where", "--group", "a", "--message", "a-2"]),
        shown
    );
}

#[test]
fn commands_work_beside_a_running_relay_and_after_its_end() {
    let setup = Setup::new();
    let send = |relay: &Relay| {
        relay.recalls("a", 1..=2);
        relay.recalls("b", 1..=1);
        relay.until_drained("stdout");
        // The cursor is saved a moment later.
        until("the saved cursor", || {
            let status = line(&setup, &["spool", "status"]);
            (status["sinks"][0]["confirmed_seq"] == 3).then_some(())
        });
    };
    let relay = setup.start();
    send(&relay);
    assert_commands_work(&setup);
    relay.kill();
    assert_commands_work(&setup);
    let relay = setup.start();
    assert_commands_work(&setup);
    relay.stop();
    assert_commands_work(&setup);
    setup.start().stop();
}

/// A change here breaks programs that read the output: docs/reference/cli-json.md promises these forms.
#[test]
fn the_json_forms_are_frozen() {
    let setup = with_kafka_down();
    let relay = setup.start();
    relay.recalls("a", 1..=2);
    relay.until_sink("kafka", "down");
    relay.stop();
    let kept = json!({"seq": "integer", "state": "string", "stored_at": "time", "event": "event"});
    assert_eq!(
        shape(&json!(lines(&setup, &["spool", "list"]))),
        json!([kept])
    );

    let receipt = |sink: Value| {
        json!({"seq": "integer", "id": "uuid", "state": "string", "stored_at": "time", "event": "event",
               "sinks": [sink], "at_risk": "bool"})
    };
    let waiting = receipt(json!({
        "sink": "string", "state": "string", "waiting_before": "integer", "sink_state": "string", "reason": "string",
    }));
    assert_eq!(shape(&line(&setup, &["spool", "show", "2"])), waiting);
    assert_eq!(
        shape(&line(&setup, &["where", "--group", "a", "--message", "1"])),
        waiting
    );
    assert_eq!(
        shape(&line(&setup, &["spool", "status"])),
        json!({
            "path": "string", "relay_running": "bool",
            "events": {"count": "integer", "first_seq": "integer", "last_seq": "integer",
                       "oldest_stored_at": "time", "newest_stored_at": "time"},
            "used_bytes": "integer", "max_bytes": "integer",
            "lost": {"count": "integer", "ranges": []}, "quarantined": [],
            "sinks": [{
                "sink": "string", "configured": "bool", "state": "string", "confirmed_seq": "integer",
                "cursor_damaged": "bool", "waiting": "integer", "oldest_waiting_stored_at": "time",
                "pins": "bool", "dead_letters": "integer",
            }],
        })
    );

    let spool = Connection::open(setup.spool()).unwrap();
    spool
        .execute(
            "INSERT INTO dead_letters SELECT 'kafka', seq, time, 'too_large', 'why', id, kind, conversation, subject,
             group_type, time, body FROM events WHERE seq = 1",
            [],
        )
        .unwrap();
    let dead_letter = receipt(json!({
        "sink": "string", "state": "string", "reason": "string", "detail": "string", "at": "time",
    }));
    assert_eq!(shape(&line(&setup, &["spool", "show", "1"])), dead_letter);

    spool
        .execute("UPDATE events SET body = '{}' WHERE seq = 2", [])
        .unwrap();
    let listed = lines(&setup, &["spool", "list"]);
    assert_eq!(listed[0], json!({"seq": 2, "state": "damaged"}));
    let shown = line(&setup, &["spool", "show", "2"]);
    assert_eq!(
        (&shown["state"], shown.get("event")),
        (&json!("damaged"), None)
    );
    spool
        .execute("INSERT INTO gaps VALUES (9, 9, 1)", [])
        .unwrap();
    std::fs::write(setup.spool().with_extension("db.damaged-1"), "").unwrap();
    let status = line(&setup, &["spool", "status"]);
    assert_eq!(status["lost"], json!({"count": 1, "ranges": [[9, 9]]}));
    assert!(
        status["quarantined"][0]
            .as_str()
            .unwrap()
            .ends_with("spool.db.damaged-1")
    );
}

#[test]
fn an_unconfirmed_event_waits_and_says_behind_how_many() {
    let setup = with_kafka_down();
    let relay = setup.start();
    relay.recalls("a", 1..=3);
    recall_c2c(&relay, "jared", "Jonh", 7);
    relay.until_sink("kafka", "down");
    let receipt = line(
        &setup,
        &[
            "where",
            "--from",
            "jared",
            "--to",
            "Jonh",
            "--message",
            &key(&setup),
        ],
    );
    let kafka = state_at(&receipt, "kafka");
    assert_eq!(
        (&kafka["state"], &kafka["waiting_before"]),
        (&json!("waiting"), &json!(3))
    );
    assert_eq!(
        numbers(&lines(&setup, &["spool", "list", "--waiting"])),
        [4, 3, 2, 1]
    );
    let of_kafka = [
        "spool",
        "list",
        "--waiting",
        "--sink",
        "kafka",
        "--limit",
        "2",
    ];
    assert_eq!(numbers(&lines(&setup, &of_kafka)), [4, 3]);
    let (code, stderr) = failure(&setup, &["spool", "list", "--waiting", "--sink", "kafkae"]);
    assert_eq!(code, 1);
    assert!(stderr.contains("it has kafka"), "{stderr}");
    let text = output(&setup, &["where", receipt["id"].as_str().unwrap()]);
    assert!(text.contains("jared -> Jonh"), "{text}");
    assert!(text.contains("3 events are before it"), "{text}");
    relay.stop();

    let text = output(
        &setup.without("RECALL_KAFKA__BOOTSTRAP_SERVERS"),
        &["spool", "status"],
    );
    let advice = "kafka is not configured, and its cursor pins 4 events";
    assert!(text.contains(advice), "{text}");
    assert!(text.contains("recall-relay spool forget kafka"), "{text}");
}

/// The key of the message that the newest event recalls.
fn key(setup: &Setup) -> String {
    let newest = line(setup, &["spool", "list", "--kind", "c2c", "--limit", "1"]);
    let key = &newest["event"]["data"]["messages"][0]["key"];
    key.as_str().unwrap().to_owned()
}

#[test]
fn what_is_not_kept_says_since_when_events_are() {
    let setup = Setup::new().set("RECALL_SPOOL__RETENTION", "0s");
    let (code, stderr) = failure(&setup, &["spool", "list"]);
    assert_eq!(code, 1);
    assert!(stderr.contains("there is no spool"), "{stderr}");
    assert!(
        !setup.spool().parent().unwrap().exists(),
        "nothing is created"
    );

    let relay = setup.start();
    relay.recalls("a", 1..=1);
    let id = relay.events(1)[0]["id"].as_str().unwrap().to_owned();
    until("the event to be purged", || {
        let status = line(&setup, &["spool", "status"]);
        (status["events"]["count"] == 0).then_some(())
    });
    let receipt = line(&setup, &["where", &id]);
    let confirmed = json!({"sink": "stdout", "state": "confirmed"});
    assert_eq!(
        receipt,
        json!({"seq": 1, "id": id, "state": "purged", "sinks": [confirmed]})
    );
    let text = output(&setup, &["where", &id]);
    assert!(
        text.contains("purged: every sink had confirmed or refused it"),
        "{text}"
    );
    let other = "e623ed2b-c5ef-5b1b-a59b-1584672e69fa";
    for unknown in [
        &["where", other][..],
        &["where", "--group", "a", "--message", "1"],
        &["spool", "show", "1"],
    ] {
        let (code, stderr) = failure(&setup, unknown);
        assert_eq!(
            (code, stderr.as_str()),
            (1, "recall-relay: not kept; the spool has no events\n")
        );
    }
    relay.stop();

    let kept = setup.with("RECALL_SPOOL__RETENTION", "1h");
    let relay = kept.start();
    relay.recalls("a", 2..=2);
    let stored_at = line(&setup, &["spool", "list"])["stored_at"].clone();
    let (code, stderr) = failure(&setup, &["where", other]);
    let since = format!("events are kept since {}", stored_at.as_str().unwrap());
    assert!(code == 1 && stderr.contains(&since), "{stderr}");
    relay.stop();
}

#[test]
fn a_rejected_callback_is_found_by_its_id() {
    let setup = with_kafka_down();
    let relay = setup.start();
    let answer = relay.post(
        &recall_query(),
        r#"{"CallbackCommand":"Group.CallbackAfterRecallMsg","GroupId":7}"#,
    );
    assert_eq!(answer.status, 400, "{answer:?}");
    relay.recalls("a", 1..=1);
    let rejected = line(&setup, &["spool", "list", "--kind", "rejected"]);
    let id = rejected["event"]["id"].as_str().unwrap();
    let text = output(&setup, &["where", id]);
    for part in ["rejected", "GroupId", "waiting: it is the next one"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    relay.stop();
}

#[test]
fn a_conversation_of_several_applications_needs_app() {
    let other = APP + 1;
    let setup = with_kafka_down().set("RECALL_SDK_APP_IDS", &format!("{APP},{other}"));
    let relay = setup.start();
    relay.recalls("a", 1..=1);
    let answer = relay.post(&CallbackKind::Group.query(other, None), rig::recall("a", 1));
    assert!(answer.is_ok(), "{answer:?}");
    let message = ["where", "--group", "a", "--message", "1"];
    let (code, stderr) = failure(&setup, &message);
    assert!(
        code == 1 && stderr.contains(&format!("{APP}, {other}")),
        "{stderr}"
    );
    let other = other.to_string();
    let chosen: Vec<_> = message.into_iter().chain(["--app", &other]).collect();
    assert_eq!(line(&setup, &chosen)["seq"], 2);
    relay.stop();
}

#[test]
fn a_table_shows_the_newest_and_says_that_there_are_more() {
    let setup = Setup::new();
    let relay = setup.start();
    relay.recalls("a", 1..=21);
    let (code, table, stderr) = setup.run(&["spool", "list"]);
    assert_eq!((code, table.lines().count()), (0, 21), "{table}");
    assert!(stderr.contains("only the newest 20 are listed"), "{stderr}");
    assert!(
        table
            .lines()
            .nth(1)
            .unwrap()
            .trim_start()
            .starts_with("21 "),
        "{table}"
    );
    assert!(!table.contains('\u{1b}'), "no colours: it is no terminal");
    let (_, table, stderr) = setup.run(&["spool", "list", "--limit", "21"]);
    assert_eq!((table.lines().count(), stderr.as_str()), (22, ""));
    let (_, table, stderr) = setup.run(&["spool", "list", "--group", "b"]);
    assert_eq!(
        (table.as_str(), stderr.as_str()),
        ("", "no event in the spool matches\n")
    );
    relay.stop();
}

#[test]
fn a_newer_spool_is_a_wrong_configuration() {
    let setup = Setup::new();
    setup.start().stop();
    let spool = Connection::open(setup.spool()).unwrap();
    spool.pragma_update(None, "user_version", 2).unwrap();
    for command in [
        &["spool", "status"][..],
        &["spool", "list"],
        &["spool", "show", "1"],
    ] {
        assert_eq!(failure(&setup, command).0, 78, "{command:?}");
    }
}

const MILLION: u64 = 1_000_000;

/// Fills the spool of a relay that has stopped with copies of event 1 as numbers 2 to a million. Their checksums do not
/// match, so they are listed as damaged if their body is read; a search by conversation reads only their other columns.
fn fill(setup: &Setup) {
    let spool = Connection::open(setup.spool()).unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    spool
        .execute_batch("PRAGMA journal_mode = off; PRAGMA synchronous = off; PRAGMA cache_size = -200000; BEGIN")
        .unwrap();
    spool
        .execute(
            "INSERT INTO events SELECT 2, zeroblob(16), 0, '7:crowd', 'crowd', NULL, time, ?1, 0, '{}'
             FROM events WHERE seq = 1",
            [u64::try_from(now.as_millis()).unwrap()],
        )
        .unwrap();
    let mut last = 2;
    while last < MILLION {
        let copied = spool
            .execute(
                "INSERT INTO events SELECT seq + ?1 - 1, id, kind, conversation, subject, group_type, time,
                 appended_at, checksum, body FROM events WHERE seq BETWEEN 2 AND ?2",
                params![last, (MILLION - last + 1).min(last)],
            )
            .unwrap();
        last += copied as u64;
    }
    // Everything is confirmed, so the relay does not publish it.
    let sink = "stdout";
    let cursor = [&MILLION.to_le_bytes()[..], &[1], sink.as_bytes()].concat();
    spool
        .execute(
            "INSERT OR REPLACE INTO cursors VALUES (?1, ?2, 1, ?3)",
            params![sink, MILLION, crc32fast::hash(&cursor)],
        )
        .unwrap();
    spool.execute_batch("COMMIT").unwrap();
}

#[test]
fn a_million_events_are_searched_beside_a_running_relay() {
    let setup = Setup::new();
    let relay = setup.start();
    relay.recalls("first", 1..=1);
    relay.until_drained("stdout");
    relay.stop();
    fill(&setup);
    let relay = setup.start();
    relay.recalls("last", 1..=1);

    // The oldest and the newest of them, each in a search of all.
    let oldest = line(&setup, &["where", "--group", "first", "--message", "1"]);
    assert_eq!(oldest["seq"], 1);
    assert_eq!(
        numbers(&lines(&setup, &["spool", "list", "--group", "last"])),
        [MILLION + 1]
    );
    assert_eq!(
        line(&setup, &["spool", "status"])["events"]["count"],
        MILLION + 1
    );

    // A reader that does not read on stops the search. The WAL can be checkpointed nevertheless.
    let mut search = setup.command(&["spool", "list", "--json"]);
    let mut search = search
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut printed = BufReader::with_capacity(1, search.stdout.take().unwrap());
    let mut first = String::new();
    printed.read_line(&mut first).unwrap();
    assert!(first.contains(r#""subject":"last""#), "{first}");
    relay.recalls("last", 2..=100);
    let spool = Connection::open(setup.spool()).unwrap();
    spool.busy_timeout(Duration::from_secs(1)).unwrap();
    until("a checkpoint of the whole WAL", || {
        let truncate = "PRAGMA wal_checkpoint(TRUNCATE)";
        let busy: bool = spool.query_row(truncate, [], |row| row.get(0)).unwrap();
        (!busy).then_some(())
    });
    assert_eq!(search.try_wait().unwrap(), None, "the search has not ended");
    // Like `head`: the pipe is closed before the end.
    drop(printed);
    let mut stderr = String::new();
    search
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut stderr)
        .unwrap();
    assert_eq!(
        (search.wait().unwrap().code(), stderr.as_str()),
        (Some(0), "")
    );
    relay.stop();
}

/// What `where` says about a message of a group.
fn located(setup: &Setup, group: &str, message: &str) -> (Value, String) {
    let arguments = ["where", "--group", group, "--message", message];
    (line(setup, &arguments), output(setup, &arguments))
}

/// Everything that a sink can have done with an event, on a real Kafka.
#[test]
fn where_says_what_became_of_an_event_in_kafka() {
    let mut kafka = Kafka::start();
    for topic in ["located", "located.dead"] {
        kafka.create_topic(topic, 3, &[("max.message.bytes", "4000")]);
    }
    let setup = kafka.settings(Setup::new(), "located");
    let relay = setup.start();
    for group in ["a", "b"] {
        relay.recalls(group, 1..=3);
    }
    assert_eq!(relay.post(&recall_query(), "{").status, 400);
    assert!(
        relay
            .post(&recall_query(), large_recall("large", 20_000))
            .is_ok()
    );
    relay.until_drained("kafka");
    let place = |receipt: &Value, topic: &str| {
        let sink = state_at(receipt, "kafka");
        assert_eq!(sink["state"], "confirmed", "{sink}");
        let records = kafka.read_all(topic);
        let id = &receipt["id"];
        let record = records.iter().find(|record| record.event()["id"] == *id);
        let record = record.unwrap();
        let (partition, offset) = (record.partition, record.offset);
        let found = &sink["kafka"];
        assert_eq!(
            [&found["topic"], &found["partition"], &found["offset"]],
            [&json!(topic), &json!(partition), &json!(offset)]
        );
        format!("topic {topic}, partition {partition}, offset {offset}")
    };
    until("the saved cursor", || {
        let (receipt, text) = located(&setup, "b", "3");
        (state_at(&receipt, "kafka")["state"] == "confirmed").then_some(())?;
        assert!(text.contains(&place(&receipt, "located")), "{text}");
        Some(())
    });
    let rejected = line(&setup, &["spool", "list", "--kind", "rejected"]);
    let rejected = line(
        &setup,
        &["where", rejected["event"]["id"].as_str().unwrap()],
    );
    place(&rejected, "located.dead");
    let large = lines(&setup, &["spool", "list", "--group", "large"]);
    let text = output(
        &setup,
        &["where", large[0]["event"]["id"].as_str().unwrap()],
    );
    assert!(text.contains("dead letter: too_large"), "{text}");

    kafka.stop();
    relay.until_sink("kafka", "down");
    relay.recalls("a", 4..=5);
    let (waiting, text) = located(&setup, "a", "5");
    let waiting = state_at(&waiting, "kafka");
    assert_eq!(waiting["state"], "waiting", "{waiting}");
    assert_eq!(waiting["sink_state"], "down", "{waiting}");
    let reason = waiting["reason"].as_str().unwrap();
    assert!(text.contains("1 event is before it"), "{text}");
    assert!(text.contains(reason), "{text}");
    let (confirmed, text) = located(&setup, "a", "1");
    let confirmed = state_at(&confirmed, "kafka");
    assert_eq!(confirmed["state"], "confirmed", "{confirmed}");
    assert!(confirmed["lookup_error"].is_string(), "{confirmed}");
    assert!(text.contains("could not be looked up"), "{text}");

    kafka.resume();
    kafka.delete_records("located");
    relay.until_drained("kafka");
    let (gone, _) = located(&setup, "a", "1");
    let error = state_at(&gone, "kafka")["lookup_error"].to_string();
    assert!(error.contains("does not have it any more"), "{error}");
    relay.stop();
}
