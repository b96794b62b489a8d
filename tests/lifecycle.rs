//! What an operator does with the program: stop, kill, restart, configure.
#![allow(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    clippy::float_cmp,
    clippy::print_stdout,
    reason = "a test fails by panicking"
)]

mod rig;

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::net::TcpStream;
use std::ops::RangeInclusive;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::sys::statvfs::statvfs;
use rig::{
    Connection, Relay, Setup, assert_kept, free_port, kill_repeatedly, poll, read_spool, recall,
    recall_query, request, until,
};

#[test]
fn a_callback_is_published_once_across_a_restart() {
    let setup = Setup::new();
    let relay = setup.start();
    assert!(relay.recall("g", 1).is_ok());
    assert_eq!(relay.stop().len(), 1);
    let relay = setup.start();
    assert!(relay.recall("g", 1).is_ok(), "a repeated recall");
    assert!(relay.recall("g", 2).is_ok());
    let events = relay.stop();
    assert_eq!(events.len(), 1);
    assert_eq!(events[0]["data"]["messages"][0]["seq"], 2);
}

#[test]
fn acknowledged_callbacks_are_kept_after_kill_9() {
    let setup = Setup::new();
    let acknowledged = kill_repeatedly(&setup, "stdout", 5);
    assert!(acknowledged.len() > 1500);
    assert_eq!(assert_kept(&acknowledged, &read_spool(&setup)), 0);
}

#[test]
fn callbacks_are_accepted_during_the_stop_delay() {
    let setup = Setup::new().set("RECALL_HTTP__STOP_DELAY", "2s");
    let mut relay = setup.start();
    assert_eq!(relay.admin("/readyz").status, 200);
    assert_eq!(relay.recall("g", 0).header("connection"), None);
    relay.signal(Signal::SIGTERM);
    until("/readyz to be 503", || {
        (relay.admin("/readyz").status == 503).then_some(())
    });
    assert_eq!(relay.readiness()["reason"], "relay is stopping");
    assert_eq!(relay.admin("/livez").status, 200);
    let answer = relay.recall("g", 1);
    assert!(answer.is_ok(), "callbacks must be accepted: {answer:?}");
    assert_eq!(answer.header("connection"), Some("close"));
    assert!(relay.wait().success());
    assert!(std::net::TcpStream::connect(relay.callbacks).is_err());
}

#[test]
fn a_stop_finishes_open_requests() {
    let relay = Setup::new().start();
    let body = recall("g", 1);
    let mut connection = Connection::open(relay.callbacks).unwrap();
    let head = format!(
        "POST /?{} HTTP/1.1\r\nHost: r\r\nContent-Length: {}\r\n\r\n{{",
        recall_query(),
        body.len()
    );
    connection.send(head.as_bytes()).unwrap();
    // An answer on a second connection shows that the relay has read the head on the first one.
    assert!(relay.post("", "").is_ok());
    relay.signal(Signal::SIGINT);
    until("the stop to begin", || relay.log_entry("stopping"));
    connection.send(&body.as_bytes()[1..]).unwrap();
    assert!(connection.answer().unwrap().is_ok());
    assert_eq!(relay.wait_for_clean_exit().len(), 1);
}

/// By an earlier version, a restored backup, or an operator.
#[test]
fn files_that_other_users_could_read_become_private() {
    let setup = Setup::new();
    let files = |mode: u32| {
        let files = std::fs::read_dir(setup.spool().parent().unwrap()).unwrap();
        let mut names: Vec<_> = files
            .map(|file| file.unwrap())
            .filter(|file| file.metadata().unwrap().mode() & 0o777 == mode)
            .map(|file| file.file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    let relay = setup.start();
    assert!(relay.recall("g", 1).is_ok());
    assert_eq!(relay.log_entry("spool_mode_narrowed"), None);
    relay.kill();
    let kept = ["spool.db", "spool.db-shm", "spool.db-wal", "spool.db.lock"];
    // Each start creates the control socket anew.
    let socket = "spool.db.sock";
    let all = [&kept[..], &[socket]].concat();
    assert_eq!(files(0o600), all);
    let folder = setup.spool().parent().unwrap().to_owned();
    for name in kept {
        std::fs::set_permissions(folder.join(name), Permissions::from_mode(0o644)).unwrap();
    }
    std::fs::set_permissions(&folder, Permissions::from_mode(0o755)).unwrap();

    // A command is not a start, but writes to the same files.
    let (_, _, stderr) = setup.run(&["spool", "forget", "kafka"]);
    assert!(
        stderr.contains("has no cursor of a sink `kafka`"),
        "{stderr}"
    );
    assert_eq!(files(0o600), [socket]);

    let relay = setup.start();
    assert_eq!(files(0o600), all);
    let warning = relay.log_entry("spool_mode_narrowed").unwrap();
    assert_eq!(warning["level"], "WARN", "{warning}");
    for name in kept {
        let before = format!("{} (0644)", folder.join(name).display());
        assert!(
            warning["files"].as_str().unwrap().contains(&before),
            "{warning}"
        );
    }
    assert_eq!(std::fs::metadata(&folder).unwrap().mode() & 0o777, 0o755);
    assert!(relay.recall("g", 2).is_ok());
    // SQLite still has its locks.
    let (code, _, stderr) = setup.run(&[]);
    assert_eq!(code, 1, "{stderr}");
    relay.kill();
    let relay = setup.start();
    assert_eq!(relay.log_entry("spool_mode_narrowed"), None);
    assert!(relay.recall("g", 3).is_ok());
    assert_eq!(files(0o600), all);
    relay.stop();
    assert_eq!(read_spool(&setup).len(), 3);
}

#[test]
fn a_second_signal_ends_the_relay_at_once() {
    let setup = Setup::new().set("RECALL_HTTP__STOP_DELAY", "60s");
    let mut relay = setup.start();
    relay.signal(Signal::SIGTERM);
    until("the stop to begin", || relay.log_entry("stopping"));
    let began = Instant::now();
    relay.signal(Signal::SIGTERM);
    assert_eq!(relay.wait().code(), Some(1));
    assert!(
        began.elapsed() < Duration::from_secs(30),
        "the stop delay was waited for"
    );
}

#[test]
fn a_second_relay_on_the_same_spool_is_refused() {
    let setup = Setup::new();
    let relay = setup.start();
    let (code, _, stderr) = setup.run(&[]);
    assert_eq!(code, 1);
    assert!(stderr.contains("is in use by another process"), "{stderr}");
    assert!(relay.recall("g", 1).is_ok());
    assert_eq!(relay.stop().len(), 1);
}

/// The whole table is in `config::tests::spellings`.
#[test]
fn a_setting_that_cannot_be_meant_ends_the_program_with_78() {
    for (name, value, reason) in [
        (
            "RECALL_LOG__FILTER",
            "inof",
            "log.filter (from RECALL_LOG__FILTER): `inof` has no level",
        ),
        (
            "RECALL_HTTP__PATH",
            "https://relay.example/callback",
            "must be a path only",
        ),
        (
            "RECALL_SPOOL__PATH",
            "/",
            "spool.path (from RECALL_SPOOL__PATH): names a folder",
        ),
        (
            "RECALL_AUTH__ALLOWED_SOURCES",
            "0.0.0.0",
            "write 0.0.0.0/0 for every address",
        ),
        (
            "RECALL_AUTH__TOKENS",
            "hunter2\u{7}",
            "auth.tokens (from RECALL_AUTH__TOKENS): has a line break or",
        ),
        (
            "RECALL_AUTH__TOKENS_FILE",
            "hunter2",
            "names a file that cannot be read: No such file",
        ),
        (
            "RECALL_RABBITMQ__URI",
            "amqp://u:12#hunter2@h",
            "percent-encode them",
        ),
        (
            "RECALL_KAFKA__BOOTSTRAP_SERVERS",
            "kafka://h:9092",
            "must be host:port without a scheme",
        ),
        (
            "RECALL_KAFKA__TOPIC",
            "\"\"",
            "kafka.topic (from RECALL_KAFKA__TOPIC): is empty",
        ),
        (
            "RECALL_CONFIG",
            "",
            "set --config or RECALL_CONFIG to its path",
        ),
        ("RECALL_CONFIG", "/", "cannot be read: Is a directory"),
    ] {
        let (code, _, stderr) = Setup::new().set(name, value).run(&[]);
        assert_eq!(code, 78, "{name}: {stderr}");
        assert!(stderr.contains(reason), "{name}: {stderr}");
        assert!(!stderr.contains("hunter2"), "{name}: {stderr}");
    }
}

/// `docker --env-file` keeps quotes and CR, and a filter for one library alone once switched off all other lines.
#[test]
fn values_of_an_env_file_are_read_as_meant() {
    let setup = Setup::new()
        .set("RECALL_HTTP__PATH", "\"/callback\"\r\n")
        .set("RECALL_LOG__FILTER", "'librdkafka=debug'");
    let relay = setup.start();
    let target = format!("/callback?{}", recall_query());
    let answer = request(relay.callbacks, "POST", &target, recall("g", 1).as_bytes());
    assert!(answer.is_ok(), "{answer:?}");
    assert!(relay.log_entry("ready").is_some(), "{}", relay.log());
    assert_eq!(relay.stop().len(), 1);
}

#[test]
fn exit_codes_distinguish_usage_config_and_runtime_errors() {
    let setup = Setup::new();
    assert_eq!(setup.run(&["--help"]).0, 0);
    assert_eq!(setup.run(&["--version"]).0, 0);
    assert_eq!(setup.run(&["nonsense"]).0, 2);
    let (code, _, stderr) = setup.run(&["send", "-c", "3", "--conversations", "2"]);
    assert_eq!((code, stderr.contains("Usage:")), (2, true), "{stderr}");
    let (code, _, stderr) = Setup::new().set("RECALL_HTTP__LISTN", "x").run(&[]);
    assert_eq!(code, 78);
    assert!(stderr.contains("did you mean http.listen"), "{stderr}");
    let uri = Setup::new().set("RECALL_SPOOL__PATH", "file:x.db");
    for command in [&[][..], &["spool", "forget", "kafka"]] {
        let (code, _, stderr) = uri.run(command);
        assert_eq!(
            (code, stderr.contains("spool.path")),
            (78, true),
            "{stderr}"
        );
    }
    let (code, _, stderr) = Setup::new()
        .set("RECALL_KAFKA__BOOTSTRAP_SERVERS", "h:1")
        .set("RECALL_KAFKA__PROPERTIES__ACKS", "1")
        .run(&[]);
    assert_eq!(code, 78);
    assert!(
        stderr.contains("RECALL_KAFKA__PROPERTIES__ACKS"),
        "{stderr}"
    );
    let nobody = format!("127.0.0.1:{}", free_port());
    let ready = setup.with("RECALL_ADMIN__LISTEN", &nobody).run(&["ready"]);
    assert_eq!(ready.0, 1, "no relay is running: {ready:?}");
    let taken = Setup::new()
        .set("RECALL_HTTP__LISTEN", "192.0.2.1:80")
        .run(&[]);
    assert_eq!(taken.0, 1);
    assert!(
        taken.2.contains("could not listen on 192.0.2.1:80: "),
        "{}",
        taken.2
    );
}

/// Runs the relay, which cannot start; returns its exit code, and the fields of each line that it wrote.
#[track_caller]
fn failed_start(setup: &Setup) -> (i32, Vec<serde_json::Value>) {
    let (code, stdout, stderr) = setup.run(&[]);
    assert_eq!(stdout, "");
    let lines = stderr
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")));
    (code, lines.collect())
}

#[test]
fn a_failed_start_is_logged_in_the_format_of_the_log() {
    let reasons = |setup: &Setup, expected_code: i32| -> Vec<String> {
        let (code, lines) = failed_start(setup);
        assert_eq!(code, expected_code, "{lines:?}");
        let failures = lines.iter().filter(|line| line["code"] == "start_failed");
        let reason = |line: &serde_json::Value| {
            assert_eq!(line["level"], "ERROR", "{line}");
            assert_eq!(line["exit_code"], expected_code, "{line}");
            line["reason"].as_str().unwrap().to_owned()
        };
        failures.map(reason).collect()
    };
    // The log's format is not known yet when a setting is wrong.
    let problems = Setup::new()
        .set("RECALL_HTTP__PATH", "x")
        .set("RECALL_SPOOL__MAX_WAITING", "0");
    let problems = reasons(&problems, 78);
    assert_eq!(problems.len(), 2, "one for each setting: {problems:?}");
    assert!(problems[0].starts_with("http.path (from RECALL_HTTP__PATH): "));
    assert!(
        problems[1].starts_with("spool.max_waiting "),
        "{problems:?}"
    );
    let filter = Setup::new().set("RECALL_LOG__FILTER", "a=b=c");
    assert!(reasons(&filter, 78)[0].contains("log.filter"));
    let unbound = Setup::new().set("RECALL_HTTP__LISTEN", "192.0.2.1:80");
    assert!(reasons(&unbound, 1)[0].contains("could not listen on 192.0.2.1:80: "));
    let folder = Setup::new();
    std::fs::create_dir_all(folder.spool()).unwrap();
    assert!(reasons(&folder, 1)[0].contains("spool"));

    let text = Setup::new()
        .set("RECALL_LOG__FORMAT", "text")
        .set("RECALL_HTTP__PATH", "x");
    let (code, _, stderr) = text.run(&[]);
    assert_eq!((code, stderr.lines().count()), (78, 1), "{stderr}");
    assert!(stderr.contains("ERROR"), "{stderr}");
    assert!(stderr.contains("code=\"start_failed\""), "{stderr}");
    let silent = unbound.with("RECALL_LOG__FILTER", "off");
    let (_, _, stderr) = silent.run(&[]);
    assert!(stderr.starts_with("recall-relay: "), "{stderr}");
}

#[test]
fn a_spool_of_a_newer_version_is_a_wrong_configuration() {
    let setup = Setup::new();
    setup.start().stop();
    rusqlite::Connection::open(setup.spool())
        .unwrap()
        .pragma_update(None, "user_version", 2)
        .unwrap();
    for command in [&[][..], &["spool", "forget", "kafka"]] {
        let (code, _, stderr) = setup.run(command);
        assert_eq!(code, 78, "{command:?}: {stderr}");
        assert!(stderr.contains("run a newer version"), "{stderr}");
    }
}

#[test]
fn config_prints_the_settings_without_secrets() {
    let setup = Setup::new()
        .set("RECALL_AUTH__TOKENS", "hunter2")
        .set("RECALL_SPOOL__RETENTION", "90s");
    let (code, stdout, stderr) = setup.run(&["config"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert!(!stdout.contains("hunter2"), "{stdout}");
    let line = |key: &str| {
        stdout
            .lines()
            .find(|line| line.starts_with(key))
            .unwrap()
            .to_owned()
    };
    let is = |key: &str, source: &str, value: &str| {
        let line = line(key);
        let words: Vec<_> = line.split_whitespace().collect();
        assert_eq!(words, [key, source, value], "{stdout}");
    };
    is("auth.tokens", "RECALL_AUTH__TOKENS", "[hidden]");
    is("spool.retention", "RECALL_SPOOL__RETENTION", "90s");
    is("http.path", "default", "/");
}

#[test]
fn ready_queries_the_running_relay() {
    let relay = Setup::new().start();
    let ask = |admin: &str| {
        Setup::new()
            .set("RECALL_ADMIN__LISTEN", admin)
            .run(&["ready"])
            .0
    };
    assert_eq!(ask(&relay.admin.to_string()), 0);
    let wildcard = format!("0.0.0.0:{}", relay.admin.port());
    assert_eq!(ask(&wildcard), 0);
    relay.kill();
}

#[test]
fn spool_forget_releases_the_events_of_a_removed_sink() {
    let setup = Setup::new().set("RECALL_SPOOL__RETENTION", "0s");
    let events = |relay: &Relay| relay.readiness()["spool"]["events"].clone();
    let with_kafka = setup.with("RECALL_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1");
    let relay = with_kafka.start();
    assert!(relay.recall("g", 1).is_ok());
    relay.kill();
    let (code, _, stderr) = with_kafka.run(&["spool", "forget", "kafka"]);
    assert_eq!(code, 1);
    assert!(stderr.contains("kafka is configured"), "{stderr}");

    let relay = setup.start();
    let warning = "sink_removed";
    until("a warning", || relay.log_entry(warning));
    relay.until_drained("stdout");
    assert_eq!(events(&relay), 1, "pinned by kafka's cursor");
    relay.stop();
    assert_eq!(setup.run(&["spool", "forget", "kafka"]).0, 0);
    assert_eq!(setup.run(&["spool", "forget", "kafka"]).0, 1);
    let relay = setup.start();
    assert!(relay.log_entry(warning).is_none());
    until("the purge", || (events(&relay) == 0).then_some(()));
    relay.stop();
}

#[test]
fn the_admin_listener_serves_only_its_paths() {
    let relay = Setup::new().start();
    assert_eq!(relay.admin("/").status, 200);
    assert_eq!(relay.admin("/nowhere").status, 404);
    assert_eq!(request(relay.admin, "POST", "/readyz", b"").status, 405);
    let metrics = relay.admin("/metrics");
    assert_eq!(
        metrics.header("content-type").unwrap(),
        "text/plain; version=0.0.4; charset=utf-8"
    );
    assert!(
        metrics
            .text()
            .contains("\nrecall_log_lines_dropped_total 0\n")
    );
    relay.kill();
}

/// A web page in a browser on this host may let its own name resolve to the loopback.
#[test]
fn the_admin_listener_refuses_foreign_names_from_the_loopback() {
    let relay = Setup::new().start();
    let ask = |target: &str, host: &str| {
        let mut connection = Connection::open(relay.admin).unwrap();
        let request = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n");
        connection.send(request.as_bytes()).unwrap();
        connection.answer().unwrap()
    };
    let port = relay.admin.port();
    for host in ["localhost", "127.0.0.1", "[::1]"] {
        assert_eq!(
            ask("/metrics", &format!("{host}:{port}")).status,
            200,
            "{host}"
        );
    }
    for path in ["/livez", "/readyz", "/metrics", "/"] {
        let answer = ask(path, &format!("rebound.example:{port}"));
        assert_eq!(answer.status, 403, "{path}");
        assert!(
            answer.text().contains("use localhost or 127.0.0.1"),
            "{}",
            answer.text()
        );
        assert_eq!(
            ask(&format!("http://rebound.example{path}"), "localhost").status,
            403
        );
    }
    // Without a name, over HTTP/1.0.
    let mut connection = Connection::open(relay.admin).unwrap();
    connection.send(b"GET /livez HTTP/1.0\r\n\r\n").unwrap();
    assert_eq!(connection.answer().unwrap().status, 200);
    relay.stop();
}

/// The value of each metric, by its name and labels as they are printed.
fn metrics(relay: &Relay) -> BTreeMap<String, f64> {
    let answer = relay.admin("/metrics");
    let samples = answer.text().lines().filter(|line| !line.starts_with('#'));
    samples
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name.to_owned(), value.parse().unwrap())
        })
        .collect()
}

#[test]
fn every_series_exists_from_the_start() {
    let setup = Setup::new()
        .set("RECALL_AUTH__TOKENS", "a,b")
        .set("RECALL_SPOOL__MAX_BYTES", "1GiB");
    let relay = setup.start();
    let fresh = metrics(&relay);
    let counters = fresh
        .iter()
        .filter(|(name, _)| name.starts_with("recall_") && name.contains("_total"));
    for (name, value) in counters {
        assert!(*value == 0.0, "{name} is {value}");
    }
    for (name, value) in [
        (
            r#"recall_callbacks_total{command="C2C.CallbackAfterMsgWithDraw",outcome="unavailable"}"#,
            0.0,
        ),
        (
            r#"recall_callbacks_total{command="none",outcome="no_length"}"#,
            0.0,
        ),
        (
            r#"recall_callbacks_total{command="State.StateChange",outcome="ignored"}"#,
            0.0,
        ),
        (
            r#"recall_callback_fields_absent_total{field="EventTime",problem="unusable"}"#,
            0.0,
        ),
        (r#"recall_callback_signatures_total{token="2"}"#, 0.0),
        (
            r#"recall_callback_bad_signatures_total{command="other"}"#,
            0.0,
        ),
        (r#"recall_sink_refused_events_total{sink="stdout"}"#, 0.0),
        ("recall_answer_seconds_count", 0.0),
        ("recall_spool_commit_seconds_count", 0.0),
        ("recall_spool_dead_letters", 0.0),
        ("recall_spool_max_bytes", 1_073_741_824.0),
        ("recall_spool_accepting", 1.0),
        ("recall_http_connections", 0.0),
        ("recall_http_buffered_bytes", 0.0),
        ("recall_log_lines_dropped_total", 0.0),
        (
            concat!(
                r#"recall_build_info{version=""#,
                env!("CARGO_PKG_VERSION"),
                r#""}"#
            ),
            1.0,
        ),
    ] {
        assert_eq!(fresh.get(name), Some(&value), "{name}");
    }
    let disk = statvfs(setup.folder()).unwrap();
    let size = (disk.blocks() * disk.fragment_size()) as f64;
    let free = fresh["recall_spool_free_disk_bytes"];
    assert!(free > 0.0 && free < size, "{free} of {size}");

    // Whatever is asked of the relay adds no series.
    let query = recall_query();
    for (method, path, body) in [
        ("POST", "/nowhere", ""),
        ("GET", "/", ""),
        ("POST", "/", ""),
        ("POST", "/?CallbackCommand=State.StateChange", "{}"),
        ("POST", "/?CallbackCommand=Nobody.Knows", "{}"),
        ("POST", &format!("/?{query}"), "{}"),
        ("POST", &format!("/?{query}"), &recall("g", 1)),
        ("POST", &format!("/?{query}"), &"x".repeat(300 << 10)),
    ] {
        request(relay.callbacks, method, path, body.as_bytes());
    }
    let later = metrics(&relay);
    let added: Vec<_> = later
        .keys()
        .filter(|name| !fresh.contains_key(*name))
        .collect();
    assert!(added.is_empty(), "{added:?}");
    relay.kill();
}

#[test]
fn the_process_metrics_are_those_of_the_kernel() {
    let relay = Setup::new().start();
    let files = || {
        std::fs::read_dir(format!("/proc/{}/fd", relay.pid()))
            .unwrap()
            .count()
    };
    let now = || {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_secs_f64()
    };
    let found = metrics(&relay);
    let within = |name: &str, range: RangeInclusive<f64>| {
        let value = found[name];
        assert!(
            range.contains(&value),
            "{name}: {value} is not in {range:?}"
        );
    };
    within("process_start_time_seconds", now() - 60.0..=now());
    within("process_cpu_seconds_total", 0.001..=60.0);
    let resident = relay.memory().0 as f64;
    within(
        "process_resident_memory_bytes",
        resident / 2.0..=resident * 2.0,
    );
    within("process_virtual_memory_bytes", resident..=1e12);
    within("process_threads", 3.0..=100.0);
    // The scrape has a few more open: its connection, the folder that it lists, the spool's file.
    within(
        "process_open_fds",
        files() as f64 - 3.0..=files() as f64 + 5.0,
    );
    let (soft, _) = limit_of_open_files(&relay);
    within("process_max_fds", soft as f64..=soft as f64);
    relay.kill();
}

/// The soft and the hard limit of open files, as the kernel reports them.
fn limit_of_open_files(relay: &Relay) -> (u64, u64) {
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", relay.pid())).unwrap();
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))
        .unwrap();
    let mut numbers = line
        .split_whitespace()
        .map(|number| number.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

fn set_soft_limit(relay: &Relay, soft: u64) {
    let status = Command::new("prlimit")
        .args([
            "--pid",
            &relay.pid().to_string(),
            &format!("--nofile={soft}:"),
        ])
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
}

#[test]
fn fd_exhaustion_is_logged_when_it_begins_and_ends() {
    // The relay inherits this limit.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 512.min(hard), hard).unwrap();
    let relay = Setup::new()
        .set("RECALL_HTTP__MAX_CONNECTIONS", "4000000000")
        .start();
    assert_eq!(limit_of_open_files(&relay), (hard, hard));
    let too_low = "nofile_limit_low";
    assert_eq!(relay.log_entries(too_low).len(), 1, "{}", relay.log());

    set_soft_limit(&relay, 3);
    let begins = "accept_failed";
    let client = TcpStream::connect(relay.callbacks).unwrap();
    until("the shortage to be logged", || relay.log_entry(begins));
    let again = poll(Duration::from_millis(500), || {
        relay.log_entries(begins).len() != 1
    });
    assert!(!again, "{}", relay.log());
    let ends = "accept_recovered";
    assert_eq!(relay.log_entry(ends), None);
    set_soft_limit(&relay, hard);
    until("the end of the shortage to be logged", || {
        relay.log_entry(ends)
    });
    drop(client);
    assert!(relay.recall("a", 1).is_ok());
    relay.stop();
}

#[test]
fn an_unread_log_does_not_block_the_relay() {
    let relay = Setup::new().set("RECALL_LOG__FILTER", "debug").start();
    let held = relay.pause_log_reader();
    // Write more lines than the pipe and the log queue can buffer.
    let mut sent = 0;
    until("log lines to be dropped", || {
        for _ in 0..1000 {
            sent += 1;
            let answer = relay.recall("g", sent);
            assert!(answer.is_ok(), "{answer:?}");
        }
        (relay.metric("recall_log_lines_dropped_total") != "0").then_some(())
    });
    assert_eq!(relay.admin("/readyz").status, 200);
    relay.signal(Signal::SIGTERM);
    let stat = format!("/proc/{}/stat", relay.pid());
    until("the relay to end", || {
        let stat = std::fs::read_to_string(&stat).unwrap();
        stat.contains(") Z ").then_some(())
    });
    drop(held);
    assert_eq!(relay.wait_for_clean_exit().len() as u64, sent);
}

/// The configuration is compiled in, so it also applies to a program that was built by `cargo install`.
#[test]
fn jemalloc_uses_the_built_in_configuration() {
    let program = Command::new(env!("CARGO_BIN_EXE_recall-relay"))
        .arg("--version")
        .env("MALLOC_CONF", "confirm_conf:true")
        .output()
        .unwrap();
    let output = String::from_utf8(program.stderr).unwrap();
    for setting in ["narenas:1", "dirty_decay_ms:200"] {
        assert!(
            output.contains(&format!("Set conf value: {setting}")),
            "{output}"
        );
    }
}
