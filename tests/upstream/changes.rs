//! Certificates, and settings that change while the relay runs.

use super::*;

#[test]
fn https_needs_the_right_authority_name_and_client_certificate() {
    let authority = Authority::new();
    let backend = Backend::start_tls(&authority);
    let (cert, key) = authority.sign("client", ExtendedKeyUsagePurpose::ClientAuth);
    let (ca, url) = (authority.ca(), url("https", &backend));
    let right = Setup::new()
        .set("RECALL_UPSTREAM__URL", &url)
        .set("RECALL_UPSTREAM__TLS__CA", text(&ca))
        .set("RECALL_UPSTREAM__TLS__CERT", text(&cert))
        .set("RECALL_UPSTREAM__TLS__KEY", text(&key));
    let relay = right.start();
    for _ in 0..3 {
        assert_handed_on(&relay, &backend);
    }
    assert_eq!(backend.connections(), 1);
    let address = backend.address().to_string();
    assert_eq!(backend.last().header("host"), [address]);
    relay.stop();

    let other_authority = Authority::new();
    let (other_ca, (foreign, foreign_key)) = (
        other_authority.ca(),
        other_authority.sign("client", ExtendedKeyUsagePurpose::ClientAuth),
    );
    let http = url.replace("https", "http");
    let without = |names: &[&str]| {
        names.iter().fold(right.clone(), |setup, name| {
            setup.without(&format!("RECALL_UPSTREAM__TLS__{name}"))
        })
    };
    for (setup, reason) in [
        (without(&["CA"]), "UnknownIssuer"),
        (
            without(&["CA"]).set("RECALL_UPSTREAM__TLS__CA", text(&other_ca)),
            "invalid peer certificate",
        ),
        (without(&["CERT", "KEY"]), "CertificateRequired"),
        (
            without(&["CERT", "KEY"])
                .set("RECALL_UPSTREAM__TLS__CERT", text(&foreign))
                .set("RECALL_UPSTREAM__TLS__KEY", text(&foreign_key)),
            "alert",
        ),
        (
            Setup::new().set("RECALL_UPSTREAM__URL", &http),
            "no usable answer",
        ),
    ] {
        let before = backend.count();
        let relay = setup.start();
        // With TLS 1.3, a client may learn only while it sends that its certificate is refused: then the connection is
        // just gone, and the reason is told by another attempt.
        until(reason, || {
            let answer = other(&relay);
            assert_eq!(answer.status, 502, "{answer:?}");
            let logged = relay.log_entries("upstream_failed");
            let mut told = logged.iter().filter_map(|entry| entry["reason"].as_str());
            told.find(|told| told.contains(reason)).map(drop)
        });
        assert_eq!(backend.count(), before);
        assert!(relay.recall("g", 1).is_ok());
        relay.stop();
    }
}

#[test]
fn an_authority_that_is_no_certificate_is_only_the_upstreams_problem() {
    let authority = Authority::new();
    let backend = Backend::start_tls(&authority);
    let setup = Setup::new().set("RECALL_UPSTREAM__URL", &url("https", &backend));
    let (own_cert, own_key) = authority.sign("client", ExtendedKeyUsagePurpose::ClientAuth);
    let file = |name: &str| setup.folder().join(name);
    let (ca, cert, key) = (file("ca.pem"), file("client.pem"), file("client.key"));
    fs::write(&ca, "not a certificate").unwrap();
    // Of another authority.
    let other_authority = Authority::new();
    let (foreign, foreign_key) =
        other_authority.sign("client", ExtendedKeyUsagePurpose::ClientAuth);
    fs::copy(foreign, &cert).unwrap();
    fs::copy(foreign_key, &key).unwrap();
    let relay = setup
        .with("RECALL_UPSTREAM__TLS__CA", text(&ca))
        .set("RECALL_UPSTREAM__TLS__CERT", text(&cert))
        .set("RECALL_UPSTREAM__TLS__KEY", text(&key))
        .start();
    let logged = until("the reason", || relay.log_entry("upstream_failed"));
    let reason = logged["reason"].as_str().unwrap();
    assert!(reason.contains("upstream.tls.ca"), "{logged}");
    assert!(relay.recall("g", 1).is_ok());
    assert_eq!(relay.admin("/readyz").status, 200);
    assert_fails(&other(&relay), 502, "upstream.tls.ca");

    // The authority, then the client's certificate are replaced.
    fs::copy(authority.ca(), &ca).unwrap();
    relay.signal(Signal::SIGHUP);
    until_reloaded(&relay, 1);
    assert_eq!(other(&relay).status, 502);
    assert_eq!(backend.count(), 0);
    fs::copy(own_key, &key).unwrap();
    fs::copy(own_cert, &cert).unwrap();
    until_reloaded(&relay, 2);
    assert_handed_on(&relay, &backend);
    relay.stop();
}

#[test]
fn the_backend_changes_while_the_relay_runs() {
    let backends = [Backend::start(), Backend::start()];
    let setup = Setup::new();
    let file = setup.folder().join("relay.toml");
    let write = |more: &str| fs::write(&file, more).unwrap();
    let section = |backend: &Backend| format!("[upstream]\nurl = \"{}\"\n", url("http", backend));
    write("");
    let relay = setup.set("RECALL_CONFIG", text(&file)).start();
    assert!(relay.log_entry("no_upstream").is_some());
    assert!(other(&relay).is_ok());
    until("the line", || relay.log_entry("command_ignored"));
    assert!(relay.readiness().get("upstream").is_none());

    write(&section(&backends[0]));
    relay.signal(Signal::SIGHUP);
    until_reloaded(&relay, 1);
    assert_handed_on(&relay, &backends[0]);
    assert_eq!(relay.metric("recall_upstream_up"), "1");

    // An exchange that is under way stays with its backend.
    backends[0].reply(Reply::json(BACKENDS_ANSWER).late(Duration::from_millis(500)));
    let target = format!("/?{}", other_query());
    let mut waiting = Connection::open(relay.callbacks).unwrap();
    waiting.send(&rig::encode("POST", &target, b"{}")).unwrap();
    backends[0].until_received(2);
    write(&section(&backends[1]));
    relay.signal(Signal::SIGHUP);
    until_reloaded(&relay, 2);
    assert_handed_on(&relay, &backends[1]);
    assert_eq!(waiting.answer().unwrap().text(), BACKENDS_ANSWER);

    write("[upstream]\nurl = \"ftp://x\"\n");
    relay.signal(Signal::SIGHUP);
    let failed = until("the failure", || relay.log_entry("reload_failed"));
    assert!(
        failed["reason"].as_str().unwrap().contains("upstream.url"),
        "{failed}"
    );
    assert_handed_on(&relay, &backends[1]);

    write("");
    relay.signal(Signal::SIGHUP);
    until_reloaded(&relay, 3);
    let warned = until("the warning", || {
        relay.log_entries("no_upstream").into_iter().nth(1)
    });
    assert_eq!(warned["level"], "WARN", "{warned}");
    assert!(other(&relay).is_ok());
    assert!(relay.readiness().get("upstream").is_none());
    assert_eq!(backends.map(|backend| backend.count()), [2, 2]);
    relay.stop();
}
