//! The relay's process lacks file descriptors, or nobody reads its log.

use std::fs;
use std::net::TcpStream;

use nix::sys::signal::Signal;

use super::page::{Incident, Seen};
use super::rig::{Connection, Setup, recall_query, until};

/// A hard limit of open files that is too low for anything but a few connections.
const OPEN_FILES: u64 = 64;

/// Silent clients of the admin listener use up what the limit of open files leaves.
#[test]
fn few_file_descriptors_are_left() {
    let setup = Setup::new()
        .set("RECALL_AUTH__TOKENS", "token")
        .with_open_files(OPEN_FILES);
    let relay = setup.start();
    let incident = Incident::at_start("few-file-descriptors")
        .called(&relay.callbacks.to_string(), "0.0.0.0:8080")
        .called(&relay.admin.to_string(), "127.0.0.1:8081");
    until("the sink to be up", || relay.log_entry("sink_up"));
    // Later, the admin listener cannot answer.
    let seen = Seen::of(&relay);
    assert_eq!(relay.metric("process_max_fds"), format!("{OPEN_FILES}.0"));
    let open_files = || {
        fs::read_dir(format!("/proc/{}/fd", relay.pid()))
            .unwrap()
            .count() as u64
    };
    let mut silent = Vec::new();
    until("the descriptors to be used up", || {
        silent.push(TcpStream::connect(relay.admin).unwrap());
        (open_files() >= OPEN_FILES).then_some(())
    });
    let mut waiting = Connection::open(relay.callbacks).unwrap();
    until("the line", || {
        let failed = relay.log_entries("accept_failed");
        let address = relay.callbacks.to_string();
        failed.into_iter().find(|line| line["address"] == *address)
    });
    drop(silent);
    // The console's probe.
    let answer = waiting.post_recall("").unwrap();
    assert!(answer.is_ok(), "{answer:?}");
    drop(waiting);
    // The listener may have accepted that connection before it failed. Only one is allowed at a time.
    until("the end", || {
        if relay.metric("recall_http_connections") == "0" {
            let mut another = Connection::open(relay.callbacks).unwrap();
            assert!(another.post_recall("").unwrap().is_ok());
        }
        relay.log_entry("accept_recovered")
    });
    incident.compare_with_page(&setup, &relay.log(), Some(&seen));
    relay.stop();
}

/// `log.filter` is `debug`, and what reads standard error stops for a while.
#[test]
fn nobody_reads_the_log() {
    let setup = Setup::new();
    let file = setup.folder().join("relay.toml");
    fs::write(&file, "").unwrap();
    let setup = setup.set("RECALL_CONFIG", file.to_str().unwrap());
    let relay = setup.start();
    let incident = Incident::begin("log-not-read", &relay);
    fs::write(&file, "log.filter = \"debug\"\n").unwrap();
    relay.signal(Signal::SIGHUP);
    until("the new filter", || relay.log_entry("reloaded"));
    let unread = relay.pause_log_reader();
    until("lines to be dropped", || {
        for _ in 0..1000 {
            // Each is a line at the level of debug, and takes no time on the disk.
            assert!(relay.post(&recall_query(), "").is_ok());
        }
        (relay.metric("recall_log_lines_dropped_total") != "0").then_some(())
    });
    let seen = Seen::of(&relay);
    drop(unread);
    until("the line", || relay.log_entry("log_lines_dropped"));
    let log = relay.log();
    let is_shown = |line: &&str| !line.contains(r#""level":"DEBUG""#);
    let shown: Vec<_> = log.lines().filter(is_shown).collect();
    incident.compare_with_page(&setup, &shown.join("\n"), Some(&seen));
    relay.stop();
}
