//! The control socket, and the commands that change the spool.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod rig;

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::Shutdown;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use rig::{Faults, Relay, Setup, poll, until};
use serde_json::{Value, json};
use tempfile::TempDir;

fn socket(setup: &Setup) -> PathBuf {
    setup.spool().with_extension("db.sock")
}

/// Sends bytes to the control socket; returns the replies until the relay closes the connection.
fn ask(setup: &Setup, request: &[u8]) -> Vec<Value> {
    let mut stream = UnixStream::connect(socket(setup)).unwrap();
    // A relay that refuses the connection replies without reading.
    let _ = stream.write_all(request);
    let _ = stream.shutdown(Shutdown::Write);
    // If the relay has not read the whole request, the connection is reset after its reply.
    let lines = BufReader::new(stream).lines().map_while(Result::ok);
    lines
        .map(|line| serde_json::from_str(&line).unwrap())
        .collect()
}

/// A spool with a cursor of RabbitMQ that pins events, and a running relay without RabbitMQ.
fn with_removed_sink() -> (Setup, Relay) {
    let setup = Setup::new();
    let relay = setup
        .with("RECALL_RABBITMQ__URI", "amqp://a:b@127.0.0.1:1")
        .start();
    relay.recalls("a", 1..=3);
    relay.kill();
    let relay = setup.start();
    assert!(relay.log_entry("sink_removed").is_some(), "{}", relay.log());
    (setup, relay)
}

#[test]
fn the_socket_is_for_the_relays_user_alone_and_goes_with_the_relay() {
    let setup = Setup::new();
    let relay = setup.start();
    let found = fs::metadata(socket(&setup)).unwrap();
    assert!(found.file_type().is_socket());
    assert_eq!(found.permissions().mode() & 0o777, 0o600);
    assert_eq!(found.uid(), nix::unistd::geteuid().as_raw());
    assert_eq!(
        ask(&setup, b"{\"version\":1,\"command\":\"status\"}\n"),
        [json!({"version": 1, "reply": "status",
                "sinks": [{"sink": "stdout", "state": "up", "confirmed_seq": 0}]})]
    );
    relay.stop();
    assert!(!socket(&setup).exists());
}

#[test]
fn a_socket_that_a_killed_relay_left_is_replaced() {
    let setup = Setup::new();
    setup.start().kill();
    assert!(socket(&setup).exists());
    // No relay answers, so the command works on the file.
    let (code, _, error) = setup.run(&["spool", "forget", "kafka"]);
    assert_eq!(code, 1);
    assert!(error.contains("no cursor of a sink `kafka`"), "{error}");
    let relay = setup.start();
    assert_eq!(
        ask(&setup, b"{\"version\":1,\"command\":\"status\"}\n").len(),
        1
    );
    relay.stop();
}

#[test]
fn requests_that_are_not_understood_are_answered() {
    let setup = Setup::new();
    let relay = setup.start();
    let long = vec![b'x'; 100 << 10];
    for (request, why) in [
        (&b""[..], "no line feed"),
        (b"{\"version\":1,\"command\":\"status\"}", "no line feed"),
        (&long, "no line feed"),
        (b"\xff\xfe\n", "not JSON"),
        (b"{\"version\":99,\"command\":\"status\"}\n", "version 99"),
        (b"{\"version\":1,\"command\":\"erase\"}\n", "erase"),
        (
            b"{\"version\":1,\"command\":\"replay\",\"sink\":\"kafka\",\"from_seq\":1}\n",
            "has no sink kafka; it has stdout",
        ),
        (
            b"{\"version\":1,\"command\":\"forget\",\"sink\":\"stdout\"}\n",
            "stdout is configured",
        ),
    ] {
        let mut stream = UnixStream::connect(socket(&setup)).unwrap();
        // The relay stops reading a request that is too long.
        let _ = stream.write_all(request);
        let _ = stream.shutdown(Shutdown::Write);
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        let reply: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(reply["reply"], "failed");
        assert!(reply["reason"].as_str().unwrap().contains(why), "{reply}");
    }
    relay.stop();
}

/// Silent clients take neither the relay's memory nor its time: a few are served, and each for a few seconds.
#[test]
fn silent_clients_are_few_and_end_soon() {
    let setup = Setup::new();
    let relay = setup.start();
    let mut silent = Vec::new();
    let refused = until("a refusal", || {
        let stream = UnixStream::connect(socket(&setup)).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_millis(200)))
            .unwrap();
        let mut line = String::new();
        match BufReader::new(&stream).read_line(&mut line) {
            Ok(_) if !line.is_empty() => Some(serde_json::from_str::<Value>(&line).unwrap()),
            _ => {
                silent.push(stream);
                None
            }
        }
    });
    assert!(silent.len() <= 4, "{}", silent.len());
    assert!(
        refused["reason"]
            .as_str()
            .unwrap()
            .contains("try again later"),
        "{refused}"
    );
    until("the time-out of the silent ones", || {
        let replies = ask(&setup, b"{\"version\":1,\"command\":\"status\"}\n");
        (replies.first()?["reply"] == "status").then_some(())
    });
    for stream in silent {
        stream.set_read_timeout(None).unwrap();
        let mut line = String::new();
        assert_eq!(BufReader::new(stream).read_line(&mut line).unwrap(), 0);
    }
    relay.stop();
}

#[test]
fn a_path_that_is_too_long_for_a_socket_works() {
    let home = TempDir::new().unwrap();
    let folder = home.path().join("x".repeat(120));
    fs::create_dir(&folder).unwrap();
    let setup = Setup::new().set(
        "RECALL_SPOOL__PATH",
        folder.join("spool.db").to_str().unwrap(),
    );
    let relay = setup.start();
    assert!(
        relay.log_entry("control_socket_unavailable").is_none(),
        "{}",
        relay.log()
    );
    relay.recalls("a", 1..=3);
    relay.until_drained("stdout");
    let (code, output, error) = setup.run(&["spool", "replay", "stdout", "--since", "seq:1"]);
    assert_eq!(code, 0, "{error}");
    assert!(output.contains("confirmed 3 events again"), "{output}");
    relay.stop();
}

#[test]
fn a_socket_that_cannot_be_created_is_a_warning() {
    let setup = Setup::new();
    fs::create_dir(setup.spool().parent().unwrap()).unwrap();
    fs::write(socket(&setup), "diary").unwrap();
    let relay = setup.start();
    let warning = relay.log_entry("control_socket_unavailable").unwrap();
    assert_eq!(warning["level"], "WARN");
    assert!(
        warning["message"]
            .as_str()
            .unwrap()
            .contains("spool replay"),
        "{warning}"
    );
    relay.recalls("a", 1..=1);
    let (code, _, error) = setup.run(&["spool", "forget", "kafka"]);
    assert_eq!(code, 1);
    assert!(error.contains("control"), "{error}");
    relay.stop();
    assert_eq!(fs::read_to_string(socket(&setup)).unwrap(), "diary");
}

#[test]
fn a_cursor_is_forgotten_by_the_running_relay() {
    let (setup, relay) = with_removed_sink();
    let (code, output, error) = setup.run(&["spool", "forget", "rabbitmq"]);
    assert_eq!((code, error.as_str()), (0, ""));
    assert!(
        output.contains("deleted the cursor of rabbitmq"),
        "{output}"
    );
    assert!(
        relay.log_entry("sink_forgotten").is_some(),
        "{}",
        relay.log()
    );
    let (code, _, error) = setup.run(&["spool", "forget", "rabbitmq"]);
    assert_eq!(code, 1);
    assert!(error.contains("no cursor of a sink `rabbitmq`"), "{error}");
    relay.stop();
    let relay = setup.start();
    assert!(relay.log_entry("sink_removed").is_none(), "{}", relay.log());
    relay.stop();
}

#[test]
fn a_cursor_is_forgotten_in_the_file_if_no_relay_runs() {
    let (setup, relay) = with_removed_sink();
    relay.stop();
    let (code, output, error) = setup.run(&["spool", "forget", "rabbitmq"]);
    assert_eq!((code, error.as_str()), (0, ""));
    assert!(
        output.contains("deleted the cursor of rabbitmq"),
        "{output}"
    );
    let relay = setup.start();
    assert!(relay.log_entry("sink_removed").is_none(), "{}", relay.log());
    relay.stop();
}

/// Whether the cursor is deleted or not, the spool is whole, and no event is lost.
#[test]
fn killing_the_relay_while_it_forgets_a_cursor_damages_nothing() {
    let (setup, relay) = with_removed_sink();
    relay.kill();
    let faults = Faults::new();
    let relay = setup.with_faults(&faults).start();
    faults.hang_syncs();
    let mut command = setup
        .command(&["spool", "forget", "rabbitmq"])
        .spawn()
        .unwrap();
    // The command waits for the commit.
    assert!(!poll(Duration::from_millis(500), || command
        .try_wait()
        .unwrap()
        .is_some()));
    relay.kill();
    assert_eq!(command.wait().unwrap().code(), Some(1));
    let relay = setup.start();
    assert_eq!(relay.readiness()["spool"]["lost"], 0);
    assert_eq!(relay.readiness()["spool"]["last_seq"], 3);
    relay.stop();
}

#[test]
fn the_cursor_of_a_configured_sink_is_not_deleted() {
    let setup = Setup::new();
    let relay = setup.start();
    let (code, _, error) = setup.run(&["spool", "forget", "stdout"]);
    assert_eq!(code, 1);
    assert!(error.contains("stdout is configured"), "{error}");
    // The command has other settings than the running relay.
    let other = setup.with("RECALL_RABBITMQ__URI", "amqp://a:b@127.0.0.1:1");
    let (code, _, error) = other.run(&["spool", "forget", "stdout"]);
    assert_eq!(code, 1);
    assert!(error.contains("stdout is configured"), "{error}");
    relay.stop();
}

#[test]
fn a_command_does_not_salvage() {
    let (setup, relay) = with_removed_sink();
    relay.stop();
    let file = File::options().write(true).open(setup.spool()).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[0; 4096], 0).unwrap();
    let before = fs::read(setup.spool()).unwrap();
    let (code, _, error) = setup.run(&["spool", "forget", "rabbitmq"]);
    assert_eq!(code, 1);
    assert!(error.contains("damaged"), "{error}");
    assert_eq!(fs::read(setup.spool()).unwrap(), before);
    let relay = setup.start();
    assert_eq!(relay.readiness()["spool"]["last_seq"], 3);
    relay.stop();
}

#[test]
fn a_start_waits_for_a_command_that_has_the_spool() {
    let setup = Setup::new();
    setup.start().stop();
    let lock = File::options()
        .read(true)
        .write(true)
        .open(setup.spool().with_extension("db.lock"))
        .unwrap();
    lock.lock().unwrap();
    let starting = {
        let setup = setup.clone();
        thread::spawn(move || setup.start())
    };
    assert!(!poll(Duration::from_millis(700), || starting.is_finished()));
    lock.unlock().unwrap();
    starting.join().unwrap().stop();
}
