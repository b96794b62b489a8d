//! The spool's folder, disk and file.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::unistd::geteuid;
use rusqlite::Connection;

use super::rig::{Faults, Setup, padded_recall, recall_query};
use super::{Checked, check, check_all};

/// All files below a folder, with their content. That of SQLite's index of the WAL changes with every reader.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path.clone());
                found.insert(path, Vec::new());
            } else if path.is_file() {
                let is_index = path.extension().is_some_and(|ending| ending == "db-shm");
                let content = if is_index {
                    Vec::new()
                } else {
                    fs::read(&path).unwrap()
                };
                found.insert(path, content);
            }
        }
    }
    found
}

#[test]
fn a_folder_that_is_missing_or_cannot_be_made_is_reported_and_nothing_is_created() {
    let setup = Setup::new();
    let checked = check(&setup, &[]);
    checked.assert_no_failure();
    checked.assert("spool", "file", "ok", "its folder can be created in");
    checked.assert("spool", "file system", "ok", "not a network file system");
    checked.assert("spool", "space", "ok", "spool.max_bytes (1GiB) fits");
    assert_eq!(checked.of("spool", "sync").len(), 1, "{checked}");
    assert_eq!(files(setup.folder()), BTreeMap::new());

    fs::create_dir(setup.folder().join("data")).unwrap();
    check(&setup, &[]).assert("spool", "file", "ok", "data is writable");
    assert_eq!(files(setup.folder()).len(), 1);

    fs::write(setup.folder().join("file"), "").unwrap();
    let path = setup.folder().join("file/data/spool.db");
    let setup = setup.with("RECALL_SPOOL__PATH", path.to_str().unwrap());
    check(&setup, &[]).assert_only_failed("spool", "folder", "/file is not a folder");
    // The system lets nobody create files there.
    let setup = setup.with("RECALL_SPOOL__PATH", "/proc/spool.db");
    check(&setup, &[]).assert("spool", "sync", "failed", "cannot be written and synced");
}

/// For root, who may write everywhere, the folder is read-only in a mount namespace of its own.
#[test]
fn a_folder_that_is_not_writable_is_reported() {
    let setup = Setup::new();
    let data = setup.folder().join("data");
    fs::create_dir(&data).unwrap();
    let checked = if geteuid().is_root() {
        let relay = setup.command(&[]);
        let environment = relay
            .get_envs()
            .filter_map(|(name, value)| Some((name, value?)));
        let output = Command::new("unshare")
            .args(["--mount", "sh", "-c"])
            .arg(r#"mount -t tmpfs -o ro none "$1" && exec "$2" check --json"#)
            .arg("sh")
            .arg(&data)
            .arg(relay.get_program())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .envs(environment)
            .output()
            .unwrap();
        Checked::of_output(&output)
    } else {
        fs::set_permissions(&data, Permissions::from_mode(0o500)).unwrap();
        check(&setup, &[])
    };
    checked.assert_only_failed("spool", "folder", "data is not writable");
}

/// The numbers are those of `linux/magic.h`.
#[test]
fn a_network_file_system_is_reported() {
    let faults = Faults::new();
    let setup = Setup::new().with_faults(&faults);
    for (magic, name) in [
        (0x6969, "NFS"),
        (0x517b, "SMB"),
        (0xff53_4d42, "SMB"),
        (0xfe53_4d42, "SMB"),
    ] {
        faults.set_file_system(magic);
        let text = format!("{name}: SQLite's WAL does not work");
        check(&setup, &[]).assert_only_failed("spool", "file system", &text);
    }
}

#[test]
fn a_disk_without_space_is_reported() {
    let huge = Setup::new().set("RECALL_SPOOL__MAX_BYTES", "1EiB");
    let [tight, full] = check_all([huge.clone(), huge.set("RECALL_SPOOL__RESERVE", "1EiB")]);
    tight.assert_no_failure();
    let text = "before spool.max_bytes (1073741824GiB)";
    tight.assert("spool", "space", "warning", text);
    full.assert_only_failed("spool", "space", "callbacks are refused");
}

/// Events that every sink has confirmed are purged when space is needed, so only the others fill the spool.
#[test]
fn only_events_that_a_sink_has_not_confirmed_fill_the_spool() {
    let faults = Faults::new();
    let setup = Setup::new().with_faults(&faults);
    let relay = setup.start();
    for number in 1..=100 {
        let answer = relay.post(&recall_query(), padded_recall("g", number, 10_000));
        assert!(answer.is_ok(), "{answer:?}");
    }
    relay.until_drained("stdout");
    relay.stop();
    let used = fs::metadata(setup.spool()).unwrap().len();
    assert!(used > 1_000_000, "{used}");
    let limited = |percent: u64| {
        let limit = (used * 100 / percent).to_string();
        setup.with("RECALL_SPOOL__MAX_BYTES", &limit)
    };
    // It has no cursor yet: every event waits for it.
    let waiting = |setup: Setup| setup.set("RECALL_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1");
    let [confirmed, some, most, all] = check_all([
        limited(100),
        waiting(limited(50)),
        waiting(limited(85)),
        waiting(limited(100)),
    ]);
    confirmed.assert("spool", "space", "ok", "fits");
    some.assert("spool", "space", "ok", "fits");
    most.assert("spool", "space", "warning", "then callbacks are refused");
    all.assert("spool", "space", "failed", "and callbacks are refused");

    // The disk is down to the reserve.
    let reserve = 1 << 20;
    faults.set_capacity(used + reserve);
    let reserved = setup.set("RECALL_SPOOL__RESERVE", &reserve.to_string());
    let [confirmed, all] = check_all([reserved.clone(), waiting(reserved)]);
    confirmed.assert("spool", "space", "warning", "before spool.max_bytes");
    all.assert(
        "spool",
        "space",
        "failed",
        "the disk is full, and callbacks are refused",
    );
}

#[test]
fn slow_and_failing_syncs_are_reported() {
    let faults = Faults::new();
    let setup = Setup::new();
    fs::create_dir(setup.folder().join("data")).unwrap();
    let setup = setup.with_faults(&faults);
    faults.slow_syncs(Duration::from_millis(250));
    let checked = check(&setup, &[]);
    // A slow machine may turn the warning into a failure.
    assert!(longest_sync(&checked) >= 0.25, "{checked}");
    let slow = &checked.of("spool", "sync")[0]["result"];
    assert!(
        slow == "warning" || longest_sync(&checked) >= 2.0,
        "{checked}"
    );
    faults.slow_syncs(Duration::from_millis(2100));
    let checked = check(&setup, &[]);
    checked.assert_only_failed("spool", "sync", "the vendor waits 2 s");
    assert!(longest_sync(&checked) >= 2.1, "{checked}");
    faults.heal();
    faults.fail_syncs();
    check(&setup, &[]).assert_only_failed("spool", "sync", "cannot be written and synced");
    faults.heal();
    faults.hang_syncs();
    check(&setup, &[]).assert_only_failed("spool", "sync", "did not end within 4 s");
}

/// The longest sync in seconds, as the line says.
#[track_caller]
fn longest_sync(checked: &Checked) -> f64 {
    let line = checked.of("spool", "sync")[0]["text"].as_str().unwrap();
    let longest = line.split("longest ").nth(1).unwrap();
    let longest = longest.split(':').next().unwrap();
    match longest.strip_suffix("ms") {
        Some(millis) => millis.parse::<f64>().unwrap() / 1000.0,
        None => longest.strip_suffix('s').unwrap().parse().unwrap(),
    }
}

#[test]
fn a_spool_is_read_and_not_changed() {
    let setup = Setup::new().set("RECALL_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1");
    let relay = setup.start();
    relay.recalls("g", 1..=3);
    relay.kill();
    let before = files(setup.folder());
    let checked = check(
        &setup.clone().without("RECALL_KAFKA__BOOTSTRAP_SERVERS"),
        &[],
    );
    assert!(files(setup.folder()) == before);
    checked.assert_no_failure();
    checked.assert("spool", "file", "ok", "it keeps 3 events");
    let removed = "kafka is not configured any more, and events are kept for it";
    checked.assert("spool", "sinks", "warning", removed);

    let spool = Connection::open(setup.spool()).unwrap();
    spool
        .execute_batch(
            "INSERT INTO dead_letters SELECT 'kafka', seq, time, 'too_large', 'why', id, kind, conversation, subject,
             group_type, time, body FROM events WHERE seq <= 2;
             INSERT INTO gaps VALUES (9, 11, 1);
             INSERT OR REPLACE INTO cursors VALUES ('kafka', 1, 1, 0);",
        )
        .unwrap();
    drop(spool);
    fs::write(setup.spool().with_extension("db.damaged-1"), "").unwrap();
    let checked = check(&setup, &[]);
    checked.assert("spool", "damage", "warning", "damage has lost 3 events");
    checked.assert(
        "spool",
        "damage",
        "warning",
        "spool.db.damaged-1 is a damaged file",
    );
    checked.assert(
        "spool",
        "dead letters",
        "warning",
        "2 dead letters of kafka",
    );
    checked.assert(
        "spool",
        "sinks",
        "warning",
        "the cursor of kafka is damaged",
    );
}

#[test]
fn a_file_that_cannot_be_used_is_reported() {
    let setup = Setup::new();
    setup.start().stop();
    let spool = Connection::open(setup.spool()).unwrap();
    spool.execute_batch("PRAGMA user_version = 999").unwrap();
    drop(spool);
    let checked = check(&setup, &[]);
    assert_eq!(checked.failed(), 1, "{checked}");
    checked.assert("spool", "file", "failed", "; ");

    fs::write(
        setup.spool(),
        "not a spool, but a text that is long enough to be read as one",
    )
    .unwrap();
    check(&setup, &[]).assert_only_failed("spool", "file", "spool");
    for ending in ["", "-wal", "-shm", ".lock"] {
        let mut path = setup.spool().into_os_string();
        path.push(ending);
        let _ = fs::remove_file(path);
    }
    fs::write(setup.spool(), "a diary").unwrap();
    check(&setup, &[]).assert_only_failed("spool", "file", "is not a spool of recall-relay");
}
