//! `recall-relay tail` prints what is published, on a real Kafka and a real RabbitMQ; and `find` finds it in Kafka.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod rig;

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use recall_relay::event::UnixMillis;
use recall_relay::sink::kafka::{self, Place};
use rig::kafka::{Operation, PASSWORD, Record, Resource, STRICT, USER};
use rig::{Broker as _, Kafka, Lines, Proxy, RabbitMq, Setup, recall_query, until};
use uuid::Uuid;

const TIMEOUT: Duration = Duration::from_secs(30);

/// One broker for all tests of this file, on which [`USER`] has only the rights that it was given.
fn strict_kafka() -> MutexGuard<'static, Kafka> {
    static KAFKA: LazyLock<Mutex<Kafka>> = LazyLock::new(|| Mutex::new(Kafka::start_with(&STRICT)));
    KAFKA.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A running `recall-relay tail`.
struct Tail {
    child: Child,
    out: Lines,
    err: Lines,
}

impl Tail {
    fn spawn(setup: &Setup, arguments: &[&str]) -> Self {
        let mut command = setup.command(&[&["tail"], arguments].concat());
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (out, err) = (Lines::default(), Lines::default());
        out.collect_from(child.stdout.take().unwrap());
        err.collect_from(child.stderr.take().unwrap());
        Self { child, out, err }
    }

    /// Starts it, and waits until it is subscribed.
    #[track_caller]
    fn start(setup: &Setup, arguments: &[&str]) -> Self {
        let tail = Self::spawn(setup, arguments);
        tail.until_told("listening to ");
        tail
    }

    /// Waits for a line on stderr that contains a text; returns it.
    #[track_caller]
    fn until_told(&self, text: &str) -> String {
        until(&format!("{text:?} in {:?}", self.err.all()), || {
            self.err.all().into_iter().find(|line| line.contains(text))
        })
    }

    /// Waits for this many lines on stdout; returns them.
    #[track_caller]
    fn until_printed(&self, count: usize) -> Vec<String> {
        until(
            &format!("{count} lines; stderr: {:?}", self.err.all()),
            || Some(self.out.all()).filter(|lines| lines.len() >= count),
        )
    }

    /// Sends Ctrl-C, and asserts that it succeeds; returns its output.
    #[track_caller]
    fn interrupt(mut self) -> Vec<String> {
        let pid = Pid::from_raw(self.child.id().try_into().unwrap());
        kill(pid, Signal::SIGINT).unwrap();
        assert_eq!(self.exit_code(), 0, "{:?}", self.err.all());
        self.out.until_closed();
        self.out.all()
    }

    fn exit_code(&mut self) -> i32 {
        until("the end", || self.child.try_wait().unwrap())
            .code()
            .unwrap_or(-1)
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A file with a password, in the setup's folder.
fn password_file(setup: &Setup, password: &str) -> String {
    let path: PathBuf = setup.folder().join("password");
    fs::write(&path, format!("{password}\n")).unwrap();
    path.to_str().unwrap().to_owned()
}

fn sorted(mut lines: Vec<String>) -> Vec<String> {
    lines.sort_unstable();
    lines
}

/// The bytes of every event in the spool.
fn spooled(setup: &Setup) -> Vec<String> {
    let spool = rusqlite::Connection::open(setup.spool()).unwrap();
    let mut bodies = spool.prepare("SELECT body FROM events").unwrap();
    let bodies = bodies.query_map([], |row| row.get::<_, String>(0)).unwrap();
    sorted(bodies.map(Result::unwrap).collect())
}

fn payloads(records: &[Record]) -> Vec<String> {
    let payloads = records.iter().map(|record| record.payload.clone());
    sorted(
        payloads
            .map(|bytes| String::from_utf8(bytes).unwrap())
            .collect(),
    )
}

fn producer(kafka: &Kafka, transactional_id: Option<&str>) -> BaseProducer {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", kafka.bootstrap_servers());
    if let Some(id) = transactional_id {
        config.set("transactional.id", id);
    }
    config.create().unwrap()
}

/// Publishes a record, as any other producer may.
fn produce(producer: &BaseProducer, topic: &str, partition: i32, value: Option<&str>) {
    let mut record: BaseRecord<'_, str, str> = BaseRecord::to(topic).partition(partition);
    record.payload = value;
    producer.send(record).map_err(|(error, _)| error).unwrap();
    producer.flush(TIMEOUT).unwrap();
}

#[test]
fn kafka_events_are_printed_from_any_point_in_time() {
    let kafka = strict_kafka();
    let setup = kafka.settings(Setup::new(), "points");
    let relay = setup.start();
    relay.recalls("a", 1..=2);
    relay.until_drained("kafka");
    let between = UnixMillis::now().to_string();
    let now = Tail::start(&setup, &["--json"]);
    relay.recalls("a", 3..=4);
    relay.recalls("b", 1..=2);
    let printed = sorted(now.until_printed(4));
    relay.until_drained("kafka");
    let published = kafka.read_all("points");
    let all = payloads(&published);
    let later: Vec<String> = all
        .iter()
        .filter(|event| printed.contains(event))
        .cloned()
        .collect();
    // Exactly the published bytes.
    assert_eq!(printed, later);

    let since = Tail::start(&setup, &["kafka", "--json", "--since", &between]);
    assert_eq!(sorted(since.until_printed(4)), later);
    let beginning = Tail::start(&setup, &["--from-beginning", "--json"]);
    assert_eq!(sorted(beginning.until_printed(6)), all);
    let back = Tail::start(&setup, &["--since", "1h", "--group", "a"]);
    let lines = back.until_printed(4);
    assert!(lines[0].contains("  group a  message 1"), "{lines:?}");
    let other_kind = Tail::start(&setup, &["--from-beginning", "--kind", "c2c"]);

    // What they print next shows that they have not printed anything else before.
    relay.recalls("a", 5..=5);
    for (tail, count) in [(now, 5), (since, 5), (beginning, 7), (back, 5)] {
        tail.until_printed(count);
        assert_eq!(tail.interrupt().len(), count);
    }
    assert_eq!(other_kind.interrupt(), Vec::<String>::new());
}

#[test]
fn in_binary_mode_the_envelope_is_rebuilt() {
    let kafka = strict_kafka();
    let setup = kafka.settings(Setup::new(), "binary");
    let setup = setup.set("RECALL_KAFKA__CONTENT_MODE", "binary");
    let relay = setup.start();
    relay.recalls("\u{e9}\"\\", 1..=3);
    relay.until_drained("kafka");
    let tail = Tail::start(&setup, &["--json", "--from-beginning"]);
    let printed = sorted(tail.until_printed(3));
    relay.stop();
    assert_eq!(printed, spooled(&setup));
    let event = kafka.read_all("binary")[0].event();
    let id: Uuid = event["id"].as_str().unwrap().parse().unwrap();
    let found = find(
        &kafka,
        "binary",
        id,
        event["partitionkey"].as_str().unwrap(),
    );
    assert_eq!(found.unwrap().offset, kafka.read_all("binary")[0].offset);
}

#[test]
fn events_of_an_aborted_transaction_are_not_printed() {
    let kafka = strict_kafka();
    let setup = kafka.settings(Setup::new(), "aborted");
    let setup = setup.set("RECALL_KAFKA__EXACTLY_ONCE", "true");
    let relay = setup.start();
    relay.recalls("a", 1..=1);
    relay.until_drained("kafka");
    let event = payloads(&kafka.read_all("aborted"))[0].clone();
    let now = Tail::start(&setup, &["--json"]);
    let aborting = producer(&kafka, Some("aborting"));
    aborting.init_transactions(TIMEOUT).unwrap();
    aborting.begin_transaction().unwrap();
    for partition in 0..6 {
        produce(&aborting, "aborted", partition, Some(&event));
    }
    aborting.abort_transaction(TIMEOUT).unwrap();
    let beginning = Tail::start(&setup, &["--json", "--from-beginning"]);
    relay.recalls("a", 2..=2);
    relay.until_drained("kafka");
    assert_eq!(beginning.until_printed(2).len(), 2);
    assert_eq!(now.until_printed(1).len(), 1);
    assert_eq!(beginning.interrupt().len(), 2);
    assert_eq!(now.interrupt().len(), 1);
    // The last offsets of the partitions are markers of transactions, which no consumer gets.
    assert_eq!(find(&kafka, "aborted", Uuid::nil(), "x"), None);
}

#[test]
fn another_user_needs_only_describe_and_read_on_the_topic() {
    let kafka = strict_kafka();
    let relay = kafka.settings(Setup::new(), "rights").start();
    relay.recalls("a", 1..=1);
    relay.until_drained("kafka");
    let setup = kafka.settings(Setup::new(), "rights");
    let setup = kafka.as_user(setup.without("RECALL_KAFKA__BOOTSTRAP_SERVERS"));
    let setup = setup
        .without("RECALL_KAFKA__PROPERTIES__SASL_USERNAME")
        .without("RECALL_KAFKA__PROPERTIES__SASL_PASSWORD")
        .set("RECALL_KAFKA__PROPERTIES__SASL_USERNAME", "nobody")
        .set("RECALL_KAFKA__PROPERTIES__SASL_PASSWORD", "wrong");
    let file = password_file(&setup, PASSWORD);
    let arguments = ["--from-beginning", "--user", USER, "--password-file", &file];

    let (code, _, stderr) = setup.run(&["tail"]);
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("uthentication failed"), "{stderr}");
    kafka.permit(Resource::Topic("rights"), Operation::Describe);
    let (code, _, stderr) = setup.run(&[&["tail"][..], &arguments].concat());
    assert_eq!(code, 1, "{stderr}");
    let missing = format!("user {USER} lacks the right Read on topic rights");
    assert!(stderr.contains(&missing), "{stderr}");
    kafka.permit(Resource::Topic("rights"), Operation::Read);
    let tail = Tail::start(&setup, &arguments);
    tail.until_printed(1);
    relay.recalls("a", 2..=2);
    tail.until_printed(2);
    // The group's coordinator is not asked for anything, so its refusal is not told.
    let listening = tail.err.all();
    assert_eq!(listening.len(), 1, "{listening:?}");
    tail.interrupt();
}

#[test]
fn records_that_are_no_events_are_named() {
    let kafka = strict_kafka();
    kafka.create_topic("foreign", 1, &[]);
    let foreign = producer(&kafka, None);
    let event = r#"{"type":"com.tencent.im.group.message.recalled","time":"t","partitionkey":"7:g","subject":"g",
        "data":{"conversation":{"group_id":"g"},"messages":[{"seq":1}]}}"#;
    for value in [
        Some("hello\u{1b}[2J"),
        None,
        Some(event),
        Some("{\"type\":\"\u{1b}\"}"),
    ] {
        produce(&foreign, "foreign", 0, value);
    }
    let setup = kafka.settings(Setup::new(), "foreign");
    let tail = Tail::start(&setup, &["--from-beginning"]);
    tail.until_told("record 0 of partition 0: not an event");
    tail.until_told("record 1 of partition 0: not an event: the record has no value");
    tail.until_told("record 3 of partition 0: not an event");
    assert_eq!(tail.until_printed(1), ["t  7  group g  message 1"]);
    assert!(!tail.err.all().concat().contains('\u{1b}'));
    tail.interrupt();
}

#[test]
fn kafka_is_read_again_when_it_is_back() {
    let kafka = strict_kafka();
    let setup = kafka.settings(Setup::new(), "back");
    let relay = setup.start();
    relay.until_sink("kafka", "up");
    let network = || Proxy::start(kafka.proxied().advertised, kafka.proxied().listens);
    let proxy = network();
    let setup = setup
        .without("RECALL_KAFKA__BOOTSTRAP_SERVERS")
        .set(
            "RECALL_KAFKA__BOOTSTRAP_SERVERS",
            &format!("127.0.0.1:{}", proxy.port()),
        )
        .set("RECALL_KAFKA__PROPERTIES__RECONNECT_BACKOFF_MAX_MS", "200");
    let tail = Tail::start(&setup, &["--json"]);
    drop(proxy);
    let told = tail.until_told("cannot read 6 of 6 partitions of topic back, and will retry: ");
    assert!(told.contains("127.0.0.1"), "{told}");
    relay.recalls("a", 1..=1);
    relay.until_drained("kafka");
    let _proxy = network();
    tail.until_told("all 6 partitions of topic back can be read again");
    tail.until_printed(1);
    relay.recalls("a", 2..=2);
    tail.until_printed(2);
    assert_eq!(tail.err.all().len(), 3, "{:?}", tail.err.all());
    tail.interrupt();
}

#[test]
fn it_ends_when_its_output_is_closed() {
    let kafka = strict_kafka();
    let setup = kafka.settings(Setup::new(), "closed");
    let relay = setup.start();
    relay.recalls("a", 1..=1);
    relay.until_drained("kafka");
    let mut command = setup.command(&["tail", "--from-beginning"]);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut line).unwrap();
    assert!(line.contains("group a"), "{line}");
    drop(stdout);
    // No further event is published.
    let status = until("the end", || child.try_wait().unwrap());
    assert!(status.success(), "{status}");
}

#[test]
fn it_ends_by_a_signal_even_if_nobody_reads_its_output() {
    let kafka = strict_kafka();
    kafka.create_topic("unread", 1, &[]);
    // More than a pipe holds.
    let padding = "x".repeat(200_000);
    let event = format!(
        r#"{{"type":"com.tencent.im.c2c.message.recalled","time":"t","partitionkey":"7:a:b","data":{{}},"x":"{padding}"}}"#
    );
    produce(&producer(&kafka, None), "unread", 0, Some(&event));
    let setup = kafka.settings(Setup::new(), "unread");
    let mut command = setup.command(&["tail", "--json", "--from-beginning"]);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The pipe stays open.
    let mut stdout = child.stdout.take().unwrap();
    let mut first = [0];
    stdout.read_exact(&mut first).unwrap();
    let err = Lines::default();
    err.collect_from(child.stderr.take().unwrap());
    let mut tail = Tail {
        child,
        out: Lines::default(),
        err,
    };
    let pid = Pid::from_raw(tail.child.id().try_into().unwrap());
    kill(pid, Signal::SIGTERM).unwrap();
    assert_eq!(tail.exit_code(), 0, "{:?}", tail.err.all());
}

#[test]
fn a_topic_that_does_not_exist_is_an_error() {
    let kafka = strict_kafka();
    let (code, _, stderr) = kafka.settings(Setup::new(), "missing").run(&["tail"]);
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("topic missing does not exist"), "{stderr}");
}

#[test]
fn kafka_that_cannot_be_reached_is_an_error() {
    let nobody = format!("127.0.0.1:{}", rig::free_port());
    let setup = Setup::new().set("RECALL_KAFKA__BOOTSTRAP_SERVERS", &nobody);
    let (code, _, stderr) = setup.run(&["tail"]);
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("Connection refused"), "{stderr}");
}

#[test]
fn arguments_that_do_not_fit_are_bad_usage() {
    let kafka = ("RECALL_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1");
    let rabbitmq = ("RECALL_RABBITMQ__URI", "amqp://127.0.0.1:1");
    for (sinks, arguments, code, text) in [
        (&[][..], &[][..], 1, "no broker is configured"),
        (&[kafka, rabbitmq], &[], 2, "add `kafka` or `rabbitmq`"),
        (&[kafka], &["rabbitmq"], 1, "RabbitMQ is not configured"),
        (&[rabbitmq], &["--since", "1h"], 2, "for Kafka only"),
        (&[rabbitmq], &["--from-beginning"], 2, "for Kafka only"),
        (&[kafka], &["--force"], 2, "for RabbitMQ only"),
        (&[kafka], &["--kind", "rejected"], 2, "are dead letters"),
        (&[kafka], &["--user", "u"], 2, "--password-file"),
        (
            &[kafka],
            &["--since", "1h", "--from-beginning"],
            2,
            "--from-beginning",
        ),
        (
            &[kafka],
            &["--user", "u", "--password-file", "/dev/null"],
            1,
            "is empty",
        ),
        (
            &[kafka],
            &["--user", "u", "--password-file", "/proc/self/comm"],
            2,
            "security.protocol has no user",
        ),
    ] {
        let sinks = sinks.iter();
        let setup = sinks.fold(Setup::new(), |setup, (name, value)| setup.set(name, value));
        let (found, _, stderr) = setup.run(&[&["tail"], arguments].concat());
        assert_eq!(found, code, "{arguments:?} {stderr}");
        assert!(stderr.contains(text), "{arguments:?} {stderr}");
    }
}

/// The temporary queues of an exchange.
fn temporary_queues(rabbitmq: &RabbitMq, exchange: &str) -> Vec<String> {
    let queues = rabbitmq.ctl(&["-q", "list_queues", "name"]);
    let prefix = format!("{exchange}.tail.");
    let queues = queues.lines().filter(|name| name.starts_with(&prefix));
    queues.map(ToOwned::to_owned).collect()
}

#[test]
fn rabbitmq_events_are_printed_and_taken_from_nobody() {
    let rabbitmq = RabbitMq::shared();
    let setup = rabbitmq.settings(Setup::new(), "shown");
    let relay = setup.start();
    relay.recalls("a", 1..=1);
    relay.until_drained("rabbitmq");
    let json = Tail::start(&setup, &["--json"]);
    let mut killed = Tail::start(&setup, &["rabbitmq", "--group", "b"]);
    assert_eq!(temporary_queues(&rabbitmq, "shown").len(), 2);
    relay.recalls("a", 2..=3);
    relay.recalls("b", 1..=1);
    let lines = killed.until_printed(1);
    assert!(lines[0].contains("  group b  message 1"), "{lines:?}");
    assert_eq!(lines.len(), 1);
    json.until_printed(3);
    let printed = sorted(json.interrupt());
    killed.child.kill().unwrap();
    until("the queues to be deleted", || {
        temporary_queues(&rabbitmq, "shown")
            .is_empty()
            .then_some(())
    });
    // The relay's own queue has them all; printed are exactly the published bytes.
    let own = rabbitmq.read("shown", 4, TIMEOUT);
    let bodies = own
        .iter()
        .map(|message| String::from_utf8(message.body.clone()).unwrap());
    let mut published = sorted(bodies.collect());
    published.retain(|event| printed.contains(event));
    assert_eq!(own.len(), 4);
    assert_eq!(printed, published);
}

#[test]
fn rabbitmq_is_refused_without_a_queue_of_the_relay() {
    let rabbitmq = RabbitMq::shared();
    let setup = rabbitmq.settings(Setup::new(), "without");
    let refused = |setup: &Setup, reason: &str| {
        let (code, _, stderr) = setup.run(&["tail"]);
        assert_eq!(code, 1, "{stderr}");
        assert!(stderr.contains(reason), "{stderr}");
        assert!(stderr.contains("use --force"), "{stderr}");
    };
    // Nobody has declared it yet.
    refused(&setup, "the relay's own queue cannot be used");
    let setup = setup
        .without("RECALL_RABBITMQ__QUEUE")
        .set("RECALL_RABBITMQ__QUEUE", "");
    refused(&setup, "rabbitmq.queue is empty");
    let relay = setup.start();
    relay.until_sink("rabbitmq", "up");
    let tail = Tail::start(&setup, &["--force"]);
    relay.recalls("a", 1..=1);
    tail.until_printed(1);
    // Nobody else has it: this is why it needs to be forced.
    relay.until_drained("rabbitmq");
    tail.interrupt();
}

#[test]
fn another_user_of_rabbitmq_needs_only_the_documented_rights() {
    let rabbitmq = RabbitMq::shared();
    let setup = rabbitmq.settings(Setup::new(), "others");
    let relay = setup.start();
    relay.until_sink("rabbitmq", "up");
    rabbitmq.ctl(&["add_user", "watcher", "watched"]);
    let (own, both) = (r"^others\.tail\.", r"^others(\.tail\..*)?$");
    rabbitmq.ctl(&["set_permissions", "watcher", own, own, own]);
    let file = password_file(&setup, "watched");
    let arguments = ["--user", "watcher", "--password-file", &file];
    let (code, _, stderr) = setup.run(&[&["tail"][..], &arguments].concat());
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("read on exchange others"), "{stderr}");
    rabbitmq.ctl(&["set_permissions", "watcher", own, own, both]);
    let mut tail = Tail::start(&setup, &arguments);
    relay.recalls("a", 1..=1);
    tail.until_printed(1);

    rabbitmq.ctl(&["close_all_connections", "test"]);
    assert_eq!(tail.exit_code(), 1);
    tail.until_told("lost the connection to 127.0.0.1");
}

/// Looks for an event in a topic of the broker, or its dead-letter topic.
fn find(kafka: &Kafka, topic: &str, id: Uuid, conversation: &str) -> Option<Place> {
    let now = UnixMillis::now();
    kafka::find(&config(kafka, topic), id, conversation, now, TIMEOUT).unwrap()
}

fn config(kafka: &Kafka, topic: &str) -> kafka::Config {
    kafka::Config {
        bootstrap_servers: kafka.bootstrap_servers(),
        topic: topic.to_owned(),
        dead_letter_topic: format!("{topic}.dead"),
        ..kafka::Config::default()
    }
}

#[test]
fn an_event_is_found_in_the_cluster() {
    let kafka = strict_kafka();
    let setup = kafka.settings(Setup::new(), "found");
    let before = UnixMillis::now();
    let relay = setup.start();
    for group in ["a", "b"] {
        relay.recalls(group, 1..=3);
    }
    relay.post(&recall_query(), "not JSON");
    relay.until_drained("kafka");
    let records = kafka.read_all("found");
    assert_eq!(records.len(), 6);
    let id = |record: &Record| -> Uuid { record.event()["id"].as_str().unwrap().parse().unwrap() };
    for record in &records {
        let place = find(&kafka, "found", id(record), record.key.as_ref().unwrap()).unwrap();
        assert_eq!(place.topic, "found");
        assert_eq!(
            (place.partition, place.offset),
            (record.partition, record.offset)
        );
        assert!(place.time.unwrap() >= before, "{place:?}");
    }
    // A topic may have had fewer partitions: the place need not be the one that the key says now.
    let first = find(&kafka, "found", id(&records[0]), "another").unwrap();
    assert_eq!(
        (first.partition, first.offset),
        (records[0].partition, records[0].offset)
    );

    let dead = &kafka.read_all("found.dead")[0];
    let place = find(&kafka, "found", id(dead), dead.key.as_ref().unwrap()).unwrap();
    assert_eq!(
        (place.topic.as_str(), place.offset),
        ("found.dead", dead.offset)
    );

    assert_eq!(find(&kafka, "found", Uuid::nil(), "x"), None);
    let later = UnixMillis::new(before.as_millis().unsigned_abs() + 3_600_000).unwrap();
    let config = config(&kafka, "found");
    let key = records[0].key.as_ref().unwrap();
    let found = kafka::find(&config, id(&records[0]), key, later, TIMEOUT);
    assert_eq!(found.unwrap(), None, "published before");
    let error = kafka::find(&config, Uuid::nil(), key, before, Duration::ZERO).unwrap_err();
    assert!(
        error.to_string().contains("took longer than 0 s"),
        "{error}"
    );
    kafka.delete_records("found");
    assert_eq!(find(&kafka, "found", id(&records[0]), key), None);
}

#[test]
fn a_search_that_is_denied_names_the_right() {
    let kafka = strict_kafka();
    kafka.create_topic("denied", 1, &[]);
    kafka.create_topic("denied.dead", 1, &[]);
    produce(&producer(&kafka, None), "denied", 0, Some("{}"));
    kafka.permit(Resource::Topic("denied"), Operation::Describe);
    let mut config = config(&kafka, "denied");
    config.bootstrap_servers = kafka.sasl_servers();
    let properties = [
        ("security.protocol", "SASL_PLAINTEXT"),
        ("sasl.mechanism", "PLAIN"),
        ("sasl.username", USER),
        ("sasl.password", PASSWORD),
    ];
    let properties = properties.map(|(name, value)| (name.to_owned(), value.to_owned()));
    config.properties = properties.into();
    let find = || kafka::find(&config, Uuid::nil(), "x", UnixMillis::now(), TIMEOUT);
    let error = find().unwrap_err().to_string();
    let missing = format!("user {USER} lacks the right Read on topic denied");
    assert!(error.contains(&missing), "{error}");
    kafka.permit(Resource::Topic("denied"), Operation::Read);
    // It may not even be told whether the other topic exists.
    let error = until("the right to be effective", || {
        let error = find().unwrap_err().to_string();
        (!error.contains("topic denied:")).then_some(error)
    });
    assert!(error.contains("Describe on topic denied.dead"), "{error}");
}
