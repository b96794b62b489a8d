//! The callback URL, as the vendor will call it.

use std::net::TcpListener;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use rcgen::CertificateParams;
use rcgen::ExtendedKeyUsagePurpose::ServerAuth;
use tempfile::TempDir;

use super::certificates::self_signed;
use super::rig::{APP, Authority, Backend, Reply, Setup, free_port};
use super::{Checked, check, check_each, text};

const TOKEN: &str = "a-token-of-16-ch";
const OK: &str = r#"{"ActionStatus":"OK","ErrorInfo":"","ErrorCode":0}"#;

#[test]
fn a_relay_with_tls_answers_the_probe_and_makes_no_event() {
    let authority = Authority::new();
    let soon = SystemTime::now() + Duration::from_secs(5 * 24 * 60 * 60 + 60);
    let (cert, key) = authority.sign("relay", ServerAuth);
    let (soon, soon_key) = authority.sign_until("soon", ServerAuth, Some(soon));
    let with = |cert, key| {
        Setup::new()
            .set("RECALL_AUTH__TOKENS", TOKEN)
            .set("RECALL_HTTP__PATH", "/im")
            .set("RECALL_HTTP__TLS__CERT", text(cert))
            .set("RECALL_HTTP__TLS__KEY", text(key))
    };
    let setup = with(&cert, &key);
    let relay = setup.start();
    let port = relay.callbacks.port();
    let url = format!("https://localhost:{port}/im");
    let ca = authority.ca();
    let (plain, path, name) = (
        format!("http://localhost:{port}/im"),
        format!("https://localhost:{port}/other"),
        format!("https://127.0.0.2:{port}/im"),
    );
    let ca = text(&ca);
    let [fine, foreign, no_tls, wrong_path, no_one, no_ca] = check_each(
        &setup,
        [
            &["--url", &url, "--ca", ca],
            &["--url", &url],
            &["--url", &plain],
            &["--url", &path, "--ca", ca],
            &["--url", &name, "--ca", ca],
            &["--url", &url, "--ca", "/nowhere.pem"],
        ],
    );
    fine.assert_no_failure();
    let shown = "its certificate for 127.0.0.1, localhost is valid until";
    fine.assert("callback_url", &url, "ok", shown);
    fine.assert("callback_url", "probe", "ok", "answered OK after");
    foreign.assert_only_failed("callback_url", &url, "UnknownIssuer");
    no_tls.assert("callback_url", "probe", "failed", "connection lost");
    wrong_path.assert_only_failed("callback_url", "probe", "answered 404");
    let action = &wrong_path.of("callback_url", "probe")[0]["action"];
    assert!(
        action.as_str().unwrap().contains("/im (http.path)"),
        "{action}"
    );
    no_one.assert_only_failed("callback_url", &name, "Connection refused");
    no_ca.assert_only_failed("callback_url", &url, "--ca /nowhere.pem");
    assert_eq!(relay.outcome_count("probe"), 1);
    assert_eq!(relay.stop(), Vec::<serde_json::Value>::new());

    let setup = with(&soon, &soon_key);
    let relay = setup.start();
    let url = format!("https://localhost:{}/im", relay.callbacks.port());
    let checked = check(&setup, &["--url", &url, "--ca", ca]);
    checked.assert("callback_url", &url, "warning", "for 5 days more");
    relay.stop();
}

#[test]
fn the_probe_is_that_of_the_console_but_signed() {
    let backend = Backend::start();
    backend.reply(Reply::json(OK));
    let url = format!("http://{}/im?key=hunter2", backend.address());
    let setup = Setup::new().set("RECALL_AUTH__TOKENS", TOKEN);
    let checked = check(&setup, &["--url", &url]);
    checked.assert_no_failure();
    let readable = "signatures can be read on the way";
    checked.assert("callback_url", "scheme", "warning", readable);
    checked.assert("callback_url", "probe", "ok", "answered OK");
    assert!(!checked.to_string().contains("hunter2"), "{checked}");
    let request = backend.last();
    assert_eq!(
        (request.method.as_str(), request.body.as_slice()),
        ("POST", &b""[..])
    );
    let begin =
        format!("/im?key=hunter2&SdkAppid={APP}&CallbackCommand=Group.CallbackAfterRecallMsg&");
    assert!(request.target.starts_with(&begin), "{}", request.target);
    assert!(request.target.contains("&Sign="), "{}", request.target);
    assert!(!request.target.contains(TOKEN), "{}", request.target);
}

#[test]
fn the_answer_is_judged() {
    let backend = Backend::start();
    backend.reply_by(|request| {
        let (path, _) = request.target.split_once('?').unwrap();
        match path {
            "/moved" => {
                let location = "Location: https://elsewhere.example/im?key=hunter2&Sign=3\r\n";
                Reply::new(301, location, b"")
            }
            "/bad-gateway" => Reply::new(502, "", b"<html>"),
            "/page" => Reply::json("<html>"),
            "/fail" => Reply::json(r#"{"ActionStatus":"FAIL","ErrorInfo":"why","ErrorCode":1}"#),
            "/slow" => Reply::json(OK).late(Duration::from_millis(1200)),
            "/late" => Reply::json(OK).late(Duration::from_millis(2100)),
            _ => Reply::hang(),
        }
    });
    let url = |path: &str| format!("http://{}/{path}", backend.address());
    let paths = [
        "moved",
        "bad-gateway",
        "page",
        "fail",
        "slow",
        "late",
        "never",
    ]
    .map(url);
    let arguments = paths.each_ref().map(|url| ["--url", url]);
    let arguments = arguments.each_ref().map(<[_; 2]>::as_slice);
    let [moved, bad_gateway, page, fail, slow, late, never] = check_each(&Setup::new(), arguments);
    let failed = |checked: &Checked, text: &str| {
        checked.assert_only_failed("callback_url", "probe", text);
    };
    failed(&moved, "redirects to https://elsewhere.example/im (301");
    assert!(!moved.to_string().contains("hunter2"), "{moved}");
    failed(&bad_gateway, "answered 502");
    failed(&page, "not an answer the vendor reads");
    failed(&fail, "FAIL/1 why");
    slow.assert_no_failure();
    slow.assert("callback_url", "probe", "warning", "answered OK after 1.");
    failed(&late, "answered OK after 2.");
    failed(&never, "no answer within 5 s");
}

#[test]
fn a_certificate_that_callers_refuse_is_reported() {
    let authority = Authority::new();
    let past = SystemTime::now() - Duration::from_secs(60);
    let serve = |(cert, key): (PathBuf, PathBuf)| {
        let setup = Setup::new()
            .set("RECALL_HTTP__TLS__CERT", text(&cert))
            .set("RECALL_HTTP__TLS__KEY", text(&key));
        let relay = setup.start();
        let url = format!("https://localhost:{}/", relay.callbacks.port());
        (relay, url)
    };
    let (expired, expired_url) = serve(authority.sign_until("expired", ServerAuth, Some(past)));
    let folder = TempDir::new().unwrap();
    let other = CertificateParams::new(vec!["relay.example".to_owned()]).unwrap();
    let (cert, key) = self_signed(folder.path(), "other", &other);
    let (misnamed, misnamed_url) = serve((cert.clone(), key));
    // It accepts connections, and says nothing.
    let silent = TcpListener::bind(("127.0.0.1", free_port())).unwrap();
    let silent_url = format!("https://{}/", silent.local_addr().unwrap());
    let ca = authority.ca();
    let [expired_seen, misnamed_seen, silent_seen] = check_each(
        &Setup::new(),
        [
            &["--url", &expired_url, "--ca", text(&ca)],
            &["--url", &misnamed_url, "--ca", text(&cert)],
            &["--url", &silent_url],
        ],
    );
    let refused = |checked: &Checked, url: &str, reason: &str, advice: &str| {
        checked.assert_only_failed("callback_url", url, reason);
        let action = &checked.of("callback_url", url)[0]["action"];
        assert!(action.as_str().unwrap().contains(advice), "{checked}");
    };
    let renew = "renew the server's certificate";
    refused(&expired_seen, &expired_url, "expired", renew);
    let name = "use a host name that the server's certificate has";
    refused(&misnamed_seen, &misnamed_url, "relay.example", name);
    let late = "the TLS handshake took longer than 3 s";
    refused(&silent_seen, &silent_url, late, "it may not speak TLS");
    expired.stop();
    misnamed.stop();
}

#[test]
fn a_url_that_nobody_answers_is_reported() {
    let nobody = format!("http://127.0.0.1:{}/", free_port());
    let unknown = "http://no-such-host.invalid/";
    let [refused, unresolved] =
        check_each(&Setup::new(), [&["--url", &nobody], &["--url", unknown]]);
    refused.assert_only_failed("callback_url", &nobody, "Connection refused");
    unresolved.assert_only_failed("callback_url", unknown, "cannot be resolved");
}
