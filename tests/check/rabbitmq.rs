//! RabbitMQ.

use std::time::{Duration, Instant};

use lapin::ExchangeKind;
use lapin::options::ExchangeDeclareOptions;
use lapin::types::FieldTable;
use rcgen::ExtendedKeyUsagePurpose::ClientAuth;

use super::rig::{Authority, Broker as _, RabbitMq, Setup, free_port};
use super::{check, check_all, text};

const URI: &str = "RECALL_RABBITMQ__URI";
const DECLARE: &str = "RECALL_RABBITMQ__DECLARE";

/// All exchanges, queues and bindings.
fn layout(rabbitmq: &RabbitMq) -> String {
    let lists: [&[&str]; 3] = [
        &["list_exchanges", "name", "type", "arguments"],
        &["list_queues", "name", "type", "arguments"],
        &["list_bindings"],
    ];
    let mut lines: Vec<String> = Vec::new();
    for list in lists {
        lines.extend(rabbitmq.ctl(list).lines().map(str::to_owned));
    }
    lines.sort();
    lines.join("\n")
}

/// One node for all: it takes several seconds to start. It has TLS, and asks for a client's certificate there.
#[test]
fn what_is_wrong_with_rabbitmq_is_reported_and_nothing_is_changed() {
    let authority = Authority::new();
    let rabbitmq = authority.rabbitmq();
    // The relay declares what it needs.
    let relay = rabbitmq.settings(Setup::new(), "there").start();
    relay.recalls("g", 1..=1);
    relay.until_drained("rabbitmq");
    relay.stop();
    rabbitmq.with_channel(async |channel| {
        let durable = ExchangeDeclareOptions {
            durable: true,
            ..ExchangeDeclareOptions::default()
        };
        let (kind, none) = (ExchangeKind::Fanout, FieldTable::default());
        let declared = channel.exchange_declare("fanout".into(), kind, durable, none);
        declared.await.unwrap();
    });
    rabbitmq.declare_exchange("classic");
    rabbitmq.declare_queue("classic", "classic");
    rabbitmq.ctl(&["add_user", "reader", "reader"]);
    rabbitmq.ctl(&["set_permissions", "reader", "^$", ".*", ".*"]);
    rabbitmq.ctl(&["add_user", "nobody", "nobody"]);
    let before = layout(&rabbitmq);
    connections(&rabbitmq, &authority);
    exchanges_and_queues(&rabbitmq);
    assert_eq!(layout(&rabbitmq), before);
    assert_eq!(rabbitmq.drain("there").len(), 1);
    assert_eq!(rabbitmq.drain("there.dead").len(), 0);
    frozen(&rabbitmq);
}

fn of(rabbitmq: &RabbitMq, name: &str) -> Setup {
    rabbitmq.settings(Setup::new(), name)
}

fn connections(rabbitmq: &RabbitMq, authority: &Authority) {
    let there = of(rabbitmq, "there");
    let nobody = format!("127.0.0.1:{}", free_port());
    let port = rabbitmq.port();
    let at = |uri: &str| there.with(URI, uri);
    let as_user = |user: &str, vhost: &str| at(&format!("amqp://{user}@127.0.0.1:{port}{vhost}"));
    let tls = at(&rabbitmq.tls_uri());
    let trusting = tls.with("RECALL_RABBITMQ__TLS__CA", text(&authority.ca()));
    let (cert, key) = authority.sign("client", ClientAuth);
    let [
        refused,
        unresolved,
        one_refused,
        wrong_password,
        no_vhost,
        one_without_vhost,
        no_access,
        no_tls,
        foreign,
        no_certificate,
        trusted,
    ] = check_all([
        at(&format!("amqp://{nobody}")),
        at("amqp://no-such-host.invalid"),
        at(&format!("amqp://{nobody},{}", rabbitmq.uri())),
        as_user("guest:hunter2", ""),
        as_user("guest:guest", "/none"),
        at(&format!("{},{}/none", rabbitmq.uri(), rabbitmq.uri())),
        as_user("nobody:nobody", ""),
        at(&format!("amqps://guest:guest@localhost:{port}")),
        tls,
        trusting.clone(),
        trusting
            .set("RECALL_RABBITMQ__TLS__CERT", text(&cert))
            .set("RECALL_RABBITMQ__TLS__KEY", text(&key)),
    ]);
    refused.assert_only_failed("rabbitmq", &nobody, "Connection refused");
    refused.assert("rabbitmq", "login", "untried", "no node was reached");
    let unknown = "its name cannot be resolved";
    unresolved.assert_only_failed("rabbitmq", "no-such-host.invalid", unknown);
    one_refused.assert_no_failure();
    one_refused.assert("rabbitmq", &nobody, "warning", "the relay uses the others");
    wrong_password.assert_only_failed("rabbitmq", "login", "ACCESS_REFUSED");
    assert!(
        !wrong_password.to_string().contains("hunter2"),
        "{wrong_password}"
    );
    no_vhost.assert_only_failed("rabbitmq", "login", "vhost none not found");
    one_without_vhost.assert_no_failure();
    let one = "vhost none not found";
    one_without_vhost.assert("rabbitmq", "login", "warning", one);
    one_without_vhost.assert("rabbitmq", "login", "ok", "accepts the user");
    no_access.assert_only_failed("rabbitmq", "login", "NOT_ALLOWED");
    no_tls.assert_only_failed("rabbitmq", "localhost", "TLS: ");
    foreign.assert_only_failed("rabbitmq", "localhost", "UnknownIssuer");
    no_certificate.assert_only_failed("rabbitmq", "localhost", "TLS: ");
    trusted.assert_no_failure();
    let shown = "its certificate for 127.0.0.1, localhost is valid until";
    trusted.assert("rabbitmq", "localhost", "ok", shown);
    trusted.assert("rabbitmq", "login", "ok", "accepts the user and the vhost");
}

fn exchanges_and_queues(rabbitmq: &RabbitMq) {
    let [there, new] = ["there", "new"].map(|name| of(rabbitmq, name));
    let reader = format!("amqp://reader:reader@127.0.0.1:{}", rabbitmq.port());
    let [
        exists,
        no_queue,
        missing,
        not_declared,
        passive,
        fanout,
        classic,
        no_right_there,
        no_right_new,
    ] = check_all([
        there.clone(),
        there.with("RECALL_RABBITMQ__QUEUE", ""),
        new.clone(),
        new.with(DECLARE, "false"),
        there.with(DECLARE, "false"),
        there.with("RECALL_RABBITMQ__EXCHANGE", "fanout"),
        of(rabbitmq, "classic"),
        there.with(URI, &reader),
        new.with(URI, &reader),
    ]);
    exists.assert_no_failure();
    for subject in [
        "exchange there",
        "queue there",
        "dead-letter queue there.dead",
    ] {
        exists.assert("rabbitmq", subject, "ok", "exists");
    }
    exists.assert(
        "rabbitmq",
        "publishing",
        "untried",
        "to bind and to publish",
    );
    exists.assert("rabbitmq", "largest message", "untried", "max_message_size");
    no_queue.assert("rabbitmq", "queue", "ok", "none of its own");
    missing.assert_no_failure();
    assert_eq!(not_declared.failed(), 2, "{not_declared}");
    for subject in ["exchange new", "queue new", "dead-letter queue new.dead"] {
        missing.assert("rabbitmq", subject, "ok", "the relay may declare it");
        let text = "does not exist, and rabbitmq.declare is false";
        let result = if subject.starts_with("dead") {
            "warning"
        } else {
            "failed"
        };
        not_declared.assert("rabbitmq", subject, result, text);
    }
    passive.assert_no_failure();
    passive.assert(
        "rabbitmq",
        "exchange there",
        "ok",
        "its type is shown only by declaring",
    );
    fanout.assert_only_failed("rabbitmq", "exchange fanout", "inequivalent arg 'type'");
    classic.assert_only_failed("rabbitmq", "queue classic", "x-queue-type");
    for (checked, name) in [(no_right_there, "there"), (no_right_new, "new")] {
        assert_eq!(checked.failed(), 3, "{checked}");
        for kind in ["exchange", "queue", "dead-letter queue"] {
            let subject = format!("{kind} {name}");
            let text = "the user lacks the right configure on";
            checked.assert("rabbitmq", &subject, "failed", text);
        }
    }
}

fn frozen(rabbitmq: &RabbitMq) {
    rabbitmq.freeze();
    let uri = rabbitmq.uri();
    let nodes = of(rabbitmq, "there").set(URI, &[uri.as_str(); 3].join(","));
    let began = Instant::now();
    let checked = check(&nodes, &[]);
    let took = began.elapsed();
    rabbitmq.thaw();
    checked.assert("rabbitmq", "login", "failed", "took longer than 7 s");
    assert_eq!(checked.failed(), 3, "{checked}");
    // At the same time, not one after another.
    assert!(took < Duration::from_secs(20), "{took:?}");
}
