//! The relay is down: it was killed, or stopped.

use nix::sys::signal::Signal;

use super::page::Incident;
use super::rig::{Setup, free_port};

/// A relay whose operators' listener has a fixed address, and that address.
fn with_admin() -> (Setup, String) {
    let address = format!("127.0.0.1:{}", free_port());
    let setup = Setup::new()
        .without("RECALL_ADMIN__LISTEN")
        .set("RECALL_ADMIN__LISTEN", &address);
    (setup, address)
}

/// What the commands say when no relay runs.
fn asked(incident: Incident, setup: &Setup, address: &str) -> Incident {
    let incident = incident.called(address, "127.0.0.1:8081");
    let (code, out, err) = setup.run(&["ready"]);
    assert_eq!((code, out.as_str()), (1, ""), "{err}");
    let incident = incident.also_shows("`recall-relay ready` (exit code 1)", &err);
    let (code, out, err) = setup.run(&["check"]);
    assert_eq!(code, 0, "{err}");
    // The other lines depend on the machine.
    let line = out.lines().find(|line| line.contains("process:")).unwrap();
    incident.also_shows("`recall-relay check`, among others", line)
}

#[test]
fn the_relay_is_killed() {
    let (setup, address) = with_admin();
    let mut relay = setup.start();
    relay.recalls("a", 1..=3);
    relay.until_drained("stdout");
    let incident = Incident::begin("relay-killed", &relay);
    relay.signal(Signal::SIGKILL);
    relay.wait();
    let log = relay.log_after_exit();
    asked(incident, &setup, &address).compare_with_page(&setup, &log, None);
    let relay = setup.start();
    relay.recalls("a", 4..=4);
    relay.stop();
}

#[test]
fn the_relay_is_stopped() {
    let (setup, address) = with_admin();
    let mut relay = setup.start();
    relay.recalls("a", 1..=3);
    relay.until_drained("stdout");
    let incident = Incident::begin("relay-stopped", &relay);
    relay.signal(Signal::SIGTERM);
    assert!(relay.wait().success());
    let log = relay.log_after_exit();
    asked(incident, &setup, &address).compare_with_page(&setup, &log, None);
}
