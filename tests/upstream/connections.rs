//! Connections are kept, renewed and reopened.

use super::*;

#[test]
fn connections_are_kept_and_closed_ones_lose_nothing() {
    let backend = Backend::start();
    let relay = setup(&backend).start();
    for _ in 0..50 {
        assert_handed_on(&relay, &backend);
    }
    assert_eq!(backend.connections(), 1);
    for round in 0..10 {
        backend.reply(Reply::json("{}").then_close());
        assert_eq!(other(&relay).status, 200);
        backend.until_unconnected();
        assert_eq!(backend.connections(), 1 + round);
    }
    for _ in 0..10 {
        backend.reply(Reply::new(200, "Connection: close\r\n", b"{}").then_close());
        assert_eq!(other(&relay).status, 200);
    }
    assert_eq!(backend.count(), 70);
    assert_eq!(handed_on(&relay, "answered"), 70);
}

#[test]
fn a_backend_that_moves_to_another_address_is_found() {
    let port = free_port();
    let at = |last| Backend::start_at(SocketAddr::from(([127, 0, 0, last], port)));
    let faults = Faults::new();
    let setup = Setup::new()
        .set(
            "RECALL_UPSTREAM__URL",
            &format!("http://moving.test:{port}/"),
        )
        .with_faults(&faults);
    let relay = setup.start();
    assert_fails(&other(&relay), 502, "cannot be reached");
    let failed = until("the reason", || relay.log_entry("upstream_failed"));
    let reason = failed["reason"].as_str().unwrap();
    assert!(
        reason.contains("resolve") || reason.contains("lookup"),
        "{failed}"
    );

    faults.set_host_address(Ipv4Addr::LOCALHOST);
    let mut first = at(1);
    assert_handed_on(&relay, &first);
    assert_eq!(first.last().header("host"), [format!("moving.test:{port}")]);
    faults.set_host_address(Ipv4Addr::new(127, 0, 0, 2));
    let second = at(2);
    // A connection that works is kept.
    assert_handed_on(&relay, &first);
    first.stop();
    let answer = until("the backend at its new address", || {
        let answer = other(&relay);
        (answer.status == 200).then_some(answer)
    });
    assert!(answer.took < VENDOR_WAITS);
    assert_eq!((first.count(), second.count()), (2, 1));
}
