//! The backend.

use rcgen::ExtendedKeyUsagePurpose::ClientAuth;

use super::rig::{Authority, Backend, Setup, free_port};
use super::{check, check_all, text};

#[test]
fn the_backend_is_reached_and_gets_no_request() {
    check(&Setup::new(), &[]).assert("upstream", "upstream.url", "warning", "not set");

    let backend = Backend::start();
    let at = |url: &str| Setup::new().set("RECALL_UPSTREAM__URL", url);
    let url = format!("http://{}/callback?key=hunter2", backend.address());
    let checked = check(&at(&url), &[]);
    checked.assert_no_failure();
    let subject = format!("http://{}/callback", backend.address());
    checked.assert("upstream", &subject, "ok", "reached at 127.0.0.1:");
    checked.assert("upstream", "answer", "untried", "no request was sent");
    assert!(!checked.to_string().contains("hunter2"), "{checked}");
    assert_eq!(backend.count(), 0);

    let [refused, unresolved, no_tls] = check_all([
        at(&format!("http://127.0.0.1:{}/", free_port())),
        at("http://no-such-host.invalid/"),
        at(&format!("https://{}/", backend.address())),
    ]);
    refused.assert_only_failed("upstream", "http", "Connection refused");
    unresolved.assert_only_failed("upstream", "http", "cannot be resolved");
    no_tls.assert_only_failed("upstream", "https", "TLS");
}

#[test]
fn certificates_of_both_sides_are_checked() {
    let authority = Authority::new();
    let backend = Backend::start_tls(&authority);
    let port = backend.address().port();
    let setup = Setup::new().set(
        "RECALL_UPSTREAM__URL",
        &format!("https://localhost:{port}/"),
    );
    let trusting = setup.with("RECALL_UPSTREAM__TLS__CA", text(&authority.ca()));
    let (cert, key) = authority.sign("client", ClientAuth);
    let known = trusting
        .with("RECALL_UPSTREAM__TLS__CERT", text(&cert))
        .set("RECALL_UPSTREAM__TLS__KEY", text(&key));
    let [foreign, unknown, fine] = check_all([setup, trusting, known]);
    foreign.assert_only_failed("upstream", "https", "UnknownIssuer");
    unknown.assert_only_failed("upstream", "https", "CertificateRequired");
    fine.assert_no_failure();
    let shown = "its certificate for 127.0.0.1, localhost is valid until";
    fine.assert("upstream", "https", "ok", shown);
    assert_eq!(backend.count(), 0);
}
