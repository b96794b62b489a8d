//! The relay does not start.

use rusqlite::Connection;

use super::page::Incident;
use super::rig::{Relay, Setup};

/// The exit code and the log of a start that fails.
fn failed(setup: &Setup) -> (Option<i32>, String) {
    let mut relay: Relay = setup.launch();
    let code = relay.wait().code();
    (code, relay.log_after_exit())
}

#[test]
fn a_setting_is_wrong_so_restarts_do_not_help() {
    let setup = Setup::new().set("RECALL_SPOOL__RETENTON", "1h");
    let (code, log) = failed(&setup);
    assert_eq!(code, Some(78), "{log}");
    Incident::at_start("restart-wrong-setting").compare_with_page(&setup, &log, None);
}

#[test]
fn the_spool_is_in_use_so_each_start_fails() {
    let setup = Setup::new();
    let running = setup.start();
    let (code, log) = failed(&setup);
    assert_eq!(code, Some(1), "{log}");
    Incident::at_start("restart-spool-in-use").compare_with_page(&setup, &log, None);
    running.stop();
}

/// The older program, after a newer one has changed the format of the spool.
#[test]
fn a_rollback_finds_a_newer_spool() {
    let setup = Setup::new();
    let relay = setup.start();
    relay.recalls("a", 1..=3);
    relay.until_drained("stdout");
    relay.stop();
    let spool = Connection::open(setup.spool()).unwrap();
    spool.pragma_update(None, "user_version", 999).unwrap();
    drop(spool);
    let (code, log) = failed(&setup);
    assert_eq!(code, Some(78), "{log}");
    Incident::at_start("rollback").compare_with_page(&setup, &log, None);
}
