//! The listener for callbacks with TLS: certificates that are renewed while it runs, and handshakes that go wrong.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod rig;

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::Signal;
use rcgen::ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
use rig::{
    Authority, Connection, HttpsClient, HttpsConnection, Relay, Setup, encode, poll, recall,
    recall_query, until,
};
use rustls::SupportedProtocolVersion;
use rustls::version::{TLS12, TLS13};
use serde_json::Value;

const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// With the files of a certificate and its key.
fn with_certificate(setup: &Setup, cert: &Path, key: &Path) -> Setup {
    setup
        .with("RECALL_HTTP__TLS__CERT", text(cert))
        .set("RECALL_HTTP__TLS__KEY", text(key))
}

/// With a certificate of this authority.
fn with_tls(setup: &Setup, authority: &Authority) -> Setup {
    let (cert, key) = authority.sign("relay", ServerAuth);
    with_certificate(setup, &cert, &key)
}

fn client(authority: &Authority) -> HttpsClient {
    HttpsClient::new(&TLS13, &authority.ca(), None)
}

#[track_caller]
fn deliver(connection: &mut HttpsConnection, number: u64) {
    let answer = connection.post_recall(&recall("g", number)).unwrap();
    assert!(answer.is_ok(), "{answer:?}");
}

/// How many handshakes are counted with this result.
fn handshakes(relay: &Relay, result: &str) -> u64 {
    let name = format!(r#"recall_http_tls_handshakes_total{{result="{result}"}}"#);
    relay.metric(&name).parse().unwrap()
}

/// Waits for the line number `count` with this code.
fn entry(relay: &Relay, code: &str, count: usize) -> Value {
    until(&format!("line {count} of {code}"), || {
        relay.log_entries(code).into_iter().nth(count - 1)
    })
}

#[test]
fn clients_of_both_versions_deliver_recalls() {
    let authority = Authority::new();
    let relay = with_tls(&Setup::new(), &authority).start();
    for result in ["ok", "failed", "client_certificate"] {
        assert_eq!(handshakes(&relay, result), 0);
    }
    for (number, version) in (1..).zip(VERSIONS) {
        let client = HttpsClient::new(version, &authority.ca(), None);
        let mut connection = client.connect(relay.callbacks).unwrap();
        deliver(&mut connection, number * 2);
        deliver(&mut connection, number * 2 + 1);
    }
    let alpn = client(&authority).with_protocol("http/1.1");
    deliver(&mut alpn.connect(relay.callbacks).unwrap(), 6);
    assert_eq!(handshakes(&relay, "ok"), 3);
    assert_eq!(relay.events(5).len(), 5);
    relay.stop();
}

/// Serves the old certificate to connections that are open, and the new one to others.
fn is_served(client: &HttpsClient, relay: &Relay) -> bool {
    client.connect(relay.callbacks).is_ok()
}

#[test]
fn a_certificate_that_is_replaced_as_kubernetes_does_refuses_no_callback() {
    let [old, new] = [Authority::new(), Authority::new()];
    // `tls.crt -> ..data/tls.crt` and `..data -> ..version`; the update renames a new link `..data` into place.
    let setup = Setup::new();
    let folder = setup.folder().join("tls");
    for (version, authority) in [("..1", &old), ("..2", &new)] {
        let (cert, key) = authority.sign("relay", ServerAuth);
        fs::create_dir_all(folder.join(version)).unwrap();
        fs::copy(cert, folder.join(version).join("tls.crt")).unwrap();
        fs::copy(key, folder.join(version).join("tls.key")).unwrap();
    }
    symlink("..1", folder.join("..data")).unwrap();
    for name in ["tls.crt", "tls.key"] {
        symlink(Path::new("..data").join(name), folder.join(name)).unwrap();
    }
    let setup = with_certificate(&setup, &folder.join("tls.crt"), &folder.join("tls.key"));
    let relay = setup.start();
    let [old, new] = [client(&old), client(&new)];
    let mut kept = old.connect(relay.callbacks).unwrap();
    deliver(&mut kept, 1);

    let (stopped, began) = (AtomicBool::new(false), Instant::now());
    let sent = thread::scope(|scope| {
        let (relay, old, new, stopped) = (&relay, &old, &new, &stopped);
        let kept = scope.spawn(move || {
            let mut number = 1;
            while !stopped.load(Ordering::Relaxed) && began.elapsed() < rig::TIMEOUT {
                number += 1;
                deliver(&mut kept, number);
                thread::park_timeout(Duration::from_millis(5));
            }
            number
        });
        // The client trusts both authorities.
        let fresh = scope.spawn(move || {
            let mut number = 0;
            while !stopped.load(Ordering::Relaxed) && began.elapsed() < rig::TIMEOUT {
                number += 1;
                let connection = old.connect(relay.callbacks);
                let connection = connection.or_else(|_| new.connect(relay.callbacks));
                let answer = connection.unwrap().post_recall(&recall("fresh", number));
                assert!(answer.unwrap().is_ok());
                thread::park_timeout(Duration::from_millis(5));
            }
            number
        });
        symlink("..2", folder.join("..data_tmp")).unwrap();
        fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
        let replaced_at = Instant::now();
        until("the new certificate", || {
            is_served(new, relay).then_some(())
        });
        assert!(replaced_at.elapsed() < Duration::from_secs(10));
        stopped.store(true, Ordering::Relaxed);
        kept.join().unwrap() + fresh.join().unwrap()
    });
    assert!(!is_served(&old, &relay));
    assert_eq!(entry(&relay, "reloaded", 1)["changed"], "http.tls");
    assert_eq!(relay.log_entry("reload_failed"), None);
    let sent = usize::try_from(sent).unwrap();
    assert_eq!(relay.events(sent).len(), sent);
    relay.stop();
}

#[test]
fn a_certificate_is_reloaded_at_once_on_sighup_and_a_bad_one_is_not_used() {
    let [old, new] = [Authority::new(), Authority::new()];
    let [old_pair, new_pair] = [&old, &new].map(|authority| authority.sign("relay", ServerAuth));
    let setup = Setup::new();
    let [cert, key] = ["tls.crt", "tls.key"].map(|name| setup.folder().join(name));
    let write = |(new_cert, new_key): (&Path, &Path)| {
        fs::copy(new_cert, &cert).unwrap();
        fs::copy(new_key, &key).unwrap();
    };
    write((&old_pair.0, &old_pair.1));
    let relay = with_certificate(&setup, &cert, &key).start();
    let [old, new] = [client(&old), client(&new)];
    let mut kept = old.connect(relay.callbacks).unwrap();
    deliver(&mut kept, 1);

    // A file that has no certificate, then a certificate that does not belong to the key.
    fs::write(&cert, "nothing").unwrap();
    relay.signal(Signal::SIGHUP);
    let failed = entry(&relay, "reload_failed", 1);
    assert_eq!(failed["level"], "ERROR");
    let reason = failed["reason"].as_str().unwrap();
    assert!(
        reason.contains("http.tls.cert (from RECALL_HTTP__TLS__CERT)"),
        "{reason}"
    );
    assert!(reason.contains("contains no certificate"), "{reason}");
    fs::copy(&new_pair.0, &cert).unwrap();
    relay.signal(Signal::SIGHUP);
    let reason = entry(&relay, "reload_failed", 2)["reason"].to_string();
    assert!(reason.contains("does not belong to the key"), "{reason}");
    assert_eq!(relay.metric("recall_config_last_reload_successful"), "0");
    deliver(&mut kept, 2);
    assert!(is_served(&old, &relay) && !is_served(&new, &relay));

    write((&new_pair.0, &new_pair.1));
    let signalled_at = Instant::now();
    relay.signal(Signal::SIGHUP);
    until("the new certificate", || {
        is_served(&new, &relay).then_some(())
    });
    // Two readings of the files would take 6 s.
    assert!(signalled_at.elapsed() < Duration::from_secs(3));
    deliver(&mut kept, 3);
    assert!(!is_served(&old, &relay));
    relay.stop();
}

#[test]
fn tls_is_switched_on_and_off_by_a_reload() {
    let authority = Authority::new();
    let (cert, key) = authority.sign("relay", ServerAuth);
    let setup = Setup::new();
    let file = setup.folder().join("relay.toml");
    fs::write(&file, "").unwrap();
    let relay = setup.set("RECALL_CONFIG", text(&file)).start();
    let expiry = "recall_http_tls_certificate_expiry_timestamp_seconds";
    let has_expiry = || {
        relay
            .admin("/metrics")
            .text()
            .lines()
            .any(|line| line.starts_with(expiry))
    };
    assert!(!has_expiry());
    let mut plain = Connection::open(relay.callbacks).unwrap();
    assert!(plain.post_recall(&recall("g", 1)).unwrap().is_ok());

    let tls = format!(
        "http.tls = {{ cert = {:?}, key = {:?} }}",
        text(&cert),
        text(&key)
    );
    fs::write(&file, tls).unwrap();
    relay.signal(Signal::SIGHUP);
    entry(&relay, "reloaded", 1);
    let mut encrypted = client(&authority).connect(relay.callbacks).unwrap();
    deliver(&mut encrypted, 2);
    assert!(has_expiry());
    assert!(plain.post_recall(&recall("g", 3)).unwrap().is_ok());
    let refused = Connection::open(relay.callbacks)
        .unwrap()
        .post_recall(&recall("g", 4));
    assert!(refused.is_err(), "{refused:?}");

    fs::write(&file, "").unwrap();
    relay.signal(Signal::SIGHUP);
    entry(&relay, "reloaded", 2);
    assert!(relay.recall("g", 5).is_ok());
    deliver(&mut encrypted, 6);
    assert!(!has_expiry());
    assert_eq!(relay.log_entry("restart_needed"), None);
    relay.stop();
}

#[test]
fn the_end_of_a_certificate_is_announced_and_reported() {
    let authority = Authority::new();
    let now = SystemTime::now();
    let seconds = |time: SystemTime| {
        time.duration_since(SystemTime::UNIX_EPOCH)
            .unwrap()
            .as_secs()
    };
    let expires = now + Duration::from_secs(8);
    let (cert, key) = authority.sign_until("relay", ServerAuth, Some(expires));
    let relay = with_certificate(&Setup::new(), &cert, &key).start();
    let expiring = entry(&relay, "certificate_expiring", 1);
    assert_eq!(expiring["level"], "WARN");
    assert_eq!(expiring["days"], 0, "{expiring}");
    assert_eq!(expiring["file"], text(&cert));
    let metric = "recall_http_tls_certificate_expiry_timestamp_seconds";
    assert_eq!(relay.metric(metric), seconds(expires).to_string());
    let mut kept = client(&authority).connect(relay.callbacks).unwrap();
    let reported = entry(&relay, "certificate_expired", 1);
    assert!(SystemTime::now() + Duration::from_secs(1) > expires);
    assert_eq!(reported["level"], "ERROR");
    // Who does not check it is served.
    deliver(&mut kept, 1);
    assert_eq!(relay.log_entries("certificate_expiring").len(), 1);

    let in_ten_days = now + Duration::from_secs(10 * 24 * 3600 + 60);
    let (new_cert, new_key) = authority.sign_until("new", ServerAuth, Some(in_ten_days));
    fs::copy(&new_key, &key).unwrap();
    fs::copy(&new_cert, &cert).unwrap();
    relay.signal(Signal::SIGHUP);
    let expiring = entry(&relay, "certificate_expiring", 2);
    assert_eq!(expiring["days"], 10);
    assert_eq!(relay.metric(metric), seconds(in_ten_days).to_string());
    relay.stop();

    // An expired certificate does not keep the relay from starting.
    let (cert, key) = authority.sign_until("old", ServerAuth, Some(now - Duration::from_secs(90)));
    let relay = with_certificate(&Setup::new(), &cert, &key).start();
    let reported = entry(&relay, "certificate_expired", 1);
    let since = reported["seconds"].as_u64().unwrap();
    assert!((90..150).contains(&since), "{reported}");
    assert_eq!(relay.log_entries("certificate_expired").len(), 1);
    relay.stop();
}

#[test]
fn a_relay_whose_certificate_is_unusable_does_not_start() {
    let authority = Authority::new();
    let (cert, _) = authority.sign("relay", ServerAuth);
    let (_, key) = authority.sign("other", ServerAuth);
    let setup = Setup::new();
    for (cert, key, problem) in [
        (&cert, &key, "does not belong to the key"),
        (&key, &key, "contains no certificate"),
        (&cert, &cert, "has no private key"),
        (
            &cert,
            &authority.ca().with_extension("missing"),
            "cannot be read",
        ),
    ] {
        let (code, _, log) = with_certificate(&setup, cert, key).run(&[]);
        assert_eq!(code, 78, "{log}");
        assert!(
            log.contains("start_failed") && log.contains(problem),
            "{log}"
        );
        assert!(log.contains("(from RECALL_HTTP__TLS__"), "{log}");
    }
}

/// Whether a recall arrives over a connection of this client. A client of TLS 1.3 learns only with the first answer
/// that the relay has refused its certificate.
fn is_let_in(client: &HttpsClient, relay: &Relay, number: u64) -> io::Result<()> {
    let mut connection = client.connect(relay.callbacks)?;
    let answer = connection.post_recall(&recall("g", number))?;
    assert!(answer.is_ok(), "{answer:?}");
    Ok(())
}

#[test]
fn only_clients_with_a_certificate_of_the_authority_are_let_in() {
    let [authority, clients, others] = [(); 3].map(|()| Authority::new());
    let ca = clients.ca();
    let relay = with_tls(&Setup::new(), &authority)
        .set("RECALL_HTTP__TLS__CLIENT_CA", text(&ca))
        .start();
    let unchecked = entry(&relay, "signatures_unchecked", 1);
    assert_eq!(unchecked["checked"], "http.tls.client_ca");
    let right = clients.sign("client", ClientAuth);
    let wrong = others.sign("client", ClientAuth);
    let yesterday = SystemTime::now() - Duration::from_secs(24 * 3600);
    let expired = clients.sign_until("expired", ClientAuth, Some(yesterday));
    let mut refused = 0;
    for (number, version) in (1..).zip(VERSIONS) {
        let client = |(cert, key): &(_, _)| {
            HttpsClient::new(
                version,
                &authority.ca(),
                Some((Path::new(cert), Path::new(key))),
            )
        };
        is_let_in(&client(&right), &relay, number).unwrap();
        let none = HttpsClient::new(version, &authority.ca(), None);
        for client in [none, client(&wrong), client(&expired)] {
            let error = is_let_in(&client, &relay, 0).unwrap_err();
            assert!(error.to_string().contains("alert"), "{version:?}: {error}");
            refused += 1;
            until("the refusal to be counted", || {
                (handshakes(&relay, "client_certificate") == refused).then_some(())
            });
        }
    }
    assert_eq!(handshakes(&relay, "ok"), 2);
    assert_eq!(handshakes(&relay, "failed"), 0);
    let line = entry(&relay, "client_certificate_refused", 1);
    assert_eq!(line["level"], "WARN");
    assert_eq!(line["times"], 1);
    assert_eq!(relay.log_entries("client_certificate_refused").len(), 1);
    assert_eq!(relay.events(2).len(), 2);
    relay.stop();
}

/// Waits until the relay has closed a connection.
#[track_caller]
fn until_closed(stream: &mut TcpStream) {
    stream.set_read_timeout(Some(rig::TIMEOUT)).unwrap();
    let ended = stream.read_to_end(&mut Vec::new());
    let is_reset = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionReset;
    assert!(
        ended.is_ok() || ended.as_ref().is_err_and(is_reset),
        "{ended:?}"
    );
}

/// A client that sends its hello and nothing else.
fn stalled(client: &HttpsClient, relay: &Relay) -> TcpStream {
    let mut stream = TcpStream::connect(relay.callbacks).unwrap();
    client.hello().write_tls(&mut stream).unwrap();
    // The relay's answer has arrived, so the handshake is under way.
    stream.set_read_timeout(Some(rig::TIMEOUT)).unwrap();
    stream.read_exact(&mut [0; 5]).unwrap();
    stream
}

#[test]
fn a_handshake_that_stalls_or_is_none_is_closed() {
    let authority = Authority::new();
    let setup = with_tls(&Setup::new(), &authority).set("RECALL_HTTP__READ_TIMEOUT", "2s");
    let relay = setup.set("RECALL_LOG__FILTER", "debug").start();
    let client = client(&authority);
    let failed = |count| {
        until("the handshake to be counted", || {
            (handshakes(&relay, "failed") == count).then_some(())
        });
    };

    let began = Instant::now();
    until_closed(&mut stalled(&client, &relay));
    assert!(began.elapsed() >= Duration::from_secs(2));
    failed(1);

    // A plain request gets no answer in plain text.
    let mut plain = TcpStream::connect(relay.callbacks).unwrap();
    let request = encode("POST", &format!("/?{}", recall_query()), b"");
    plain.write_all(&request).unwrap();
    let began = Instant::now();
    plain.shutdown(std::net::Shutdown::Write).unwrap();
    until_closed(&mut plain);
    assert!(began.elapsed() < Duration::from_secs(2));
    failed(2);

    // HTTP/2 alone is not spoken.
    assert!(client.with_protocol("h2").connect(relay.callbacks).is_err());
    failed(3);

    // The first 13,000 bytes of a hello of 60,000: more than is buffered for a handshake.
    let mut long = TcpStream::connect(relay.callbacks).unwrap();
    let began = Instant::now();
    let hello = [&[22, 3, 1, 0x32, 0xc8, 1, 0, 0xea, 0x60][..], &[0; 12_996]].concat();
    long.write_all(&hello).unwrap();
    until_closed(&mut long);
    assert!(began.elapsed() < Duration::from_secs(2));
    failed(4);
    until("the reason to be logged", || {
        relay.log().contains("more than 12288 bytes").then_some(())
    });

    // A stop does not wait for handshakes.
    let _stalled = stalled(&client, &relay);
    let began = Instant::now();
    relay.stop();
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "{:?}",
        began.elapsed()
    );
}

#[test]
fn the_longest_handshake_is_shed_for_the_next() {
    let authority = Authority::new();
    // A quarter of it is for TLS: eight connections of 16 KiB.
    let relay = with_tls(&Setup::new(), &authority)
        .set("RECALL_HTTP__MAX_BUFFERED_BYTES", "512KiB")
        .set("RECALL_HTTP__READ_TIMEOUT", "1h")
        .start();
    let client = client(&authority);
    // A connection that has brought a recall holds none of it.
    let mut kept = client.connect(relay.callbacks).unwrap();
    deliver(&mut kept, 1);
    let mut hanging: Vec<_> = (0..8).map(|_| stalled(&client, &relay)).collect();
    assert_eq!(relay.log_entry("memory_budget_used_up"), None);
    let held = || relay.metric("recall_http_tls_bytes");
    assert_eq!(held(), (8 * 16 * 1024).to_string());

    let mut connection = client.connect(relay.callbacks).unwrap();
    deliver(&mut connection, 2);
    until_closed(&mut hanging[0]);
    assert_eq!(
        entry(&relay, "memory_budget_used_up", 1)["setting"],
        "a quarter of http.max_buffered_bytes"
    );
    let is_closed = poll(Duration::from_millis(300), || {
        let mut rest = hanging[1..].iter();
        rest.any(|stream| {
            stream.set_nonblocking(true).unwrap();
            // What is left of the relay's first messages.
            let mut buffer = [0; 16_384];
            while let Ok(read) = stream.peek(&mut buffer) {
                if read == 0 {
                    return true;
                }
                (&mut &*stream).read_exact(&mut buffer[..read]).unwrap();
            }
            false
        })
    });
    assert!(!is_closed, "more than one handshake was closed");

    // Handshakes that end free their memory.
    drop(hanging);
    until("the memory to be free", || (held() == "0").then_some(()));
    deliver(&mut kept, 3);
    assert_eq!(relay.stop().len(), 3);
}

#[test]
fn send_speaks_https_and_says_why_it_cannot() {
    let authority = Authority::new();
    let ca = authority.ca();
    let setup = with_tls(&Setup::new(), &authority);
    let relay = setup.start();
    let elsewhere = setup
        .with("RECALL_HTTP__LISTEN", "127.0.0.2:0")
        .set("RECALL_SPOOL__PATH", "elsewhere/spool.db")
        .start();
    let send = |host: &str, options: &[&str]| {
        let relay = if host == "127.0.0.2" {
            &elsewhere
        } else {
            &relay
        };
        let url = format!("https://{host}:{}/", relay.callbacks.port());
        let fixed = ["send", "--url", &url, "--timeout", "30s"];
        Setup::new().run(&[&fixed, options].concat())
    };
    for host in ["localhost", "127.0.0.1"] {
        let (code, out, log) = send(host, &["--ca", text(&ca), "--count", "2"]);
        assert_eq!(code, 0, "{out}{log}");
    }
    assert_eq!(relay.events(4).len(), 4);
    assert_eq!(handshakes(&relay, "ok"), 2);
    for (host, options, reason) in [
        (
            "127.0.0.1",
            &[][..],
            "UnknownIssuer; --ca names an authority to trust",
        ),
        (
            "127.0.0.2",
            &["--ca", text(&ca)],
            "TLS handshake failed: invalid peer certificate: certificate not valid for name \"127.0.0.2\"",
        ),
        (
            "127.0.0.1",
            &["--ca", "missing"],
            "--ca missing: cannot be read",
        ),
    ] {
        let (code, _, log) = send(host, options);
        assert_eq!(code, 1, "{log}");
        assert!(log.contains(reason), "{log}");
    }
    elsewhere.stop();
    relay.stop();

    let plain = Setup::new().start();
    let to_plain = |scheme: &str, options: &[&str]| {
        let url = format!("{scheme}://{}/", plain.callbacks);
        Setup::new().run(&[&["send", "--url", &url], options].concat())
    };
    let (code, _, log) = to_plain("https", &["--ca", text(&ca)]);
    assert_eq!(code, 1, "{log}");
    assert!(log.contains("does the relay speak plain HTTP?"), "{log}");
    for options in [&["--ca", text(&ca)][..], &["--cert", text(&ca)]] {
        let (code, _, log) = to_plain("http", options);
        assert_eq!(code, 2, "{log}");
    }
    plain.stop();
}

#[test]
fn send_shows_a_certificate() {
    let authority = Authority::new();
    let ca = authority.ca();
    let (cert, key) = authority.sign("client", ClientAuth);
    let relay = with_tls(&Setup::new(), &authority)
        .set("RECALL_HTTP__TLS__CLIENT_CA", text(&ca))
        .start();
    let url = format!("https://localhost:{}/", relay.callbacks.port());
    let fixed = ["send", "--url", &url, "--timeout", "30s", "--ca", text(&ca)];
    let with_certificate = [&fixed[..], &["--cert", text(&cert), "--key", text(&key)]].concat();
    let (code, out, log) = Setup::new().run(&with_certificate);
    assert_eq!(code, 0, "{out}{log}");
    let (code, out, log) = Setup::new().run(&fixed);
    assert_eq!(code, 1, "{log}");
    assert!(out.contains("CertificateRequired"), "{out}{log}");
    assert_eq!(relay.events(1).len(), 1);
    relay.stop();
}
