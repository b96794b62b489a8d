//! The program does what the README shows.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod rig;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use rig::{Broker as _, Kafka, RabbitMq, Setup};

/// How a command of the README is checked.
enum Check {
    /// A test of this file runs it.
    Test(&'static str),
    /// A step of `.ci/run` runs it, or checks what it needs.
    Step(&'static str),
}

/// The README's `sh` blocks: the beginning, the number of lines, and the check.
const BLOCKS: [(&str, usize, Check); 8] = [
    (
        "RECALL_SDK_APP_IDS=1400000001 cargo run --release --no-default-features\n",
        1,
        Check::Test("the_first_command_prints_the_sample_event"),
    ),
    (
        "curl 'http://127.0.0.1:8080/?SdkAppid=",
        2,
        Check::Test("the_first_command_prints_the_sample_event"),
    ),
    (
        "RECALL_SDK_APP_IDS=1400000001 cargo run --release --no-default-features -- send\n",
        1,
        Check::Test("the_relay_accepts_callbacks_from_send"),
    ),
    (
        "RECALL_SDK_APP_IDS=1400000001 RECALL_KAFKA__BOOTSTRAP_SERVERS=",
        1,
        Check::Test("one_more_variable_connects_kafka"),
    ),
    (
        "RECALL_SDK_APP_IDS=1400000001 RECALL_RABBITMQ__URI=",
        1,
        Check::Test("one_more_variable_connects_rabbitmq"),
    ),
    (
        "docker compose --profile kafka up\n",
        1,
        Check::Step("compose file"),
    ),
    (
        "curl http://127.0.0.1:8081/readyz\n",
        2,
        Check::Test("troubleshooting_commands_show_state_and_causes"),
    ),
    ("tests/run\n", 1, Check::Step("tests")),
];

#[test]
fn every_readme_command_is_tested() {
    let this = read("tests/readme.rs");
    let steps = read(".ci/run");
    let blocks = blocks();
    assert_eq!(blocks.len(), BLOCKS.len(), "sh blocks and BLOCKS differ");
    for (block, (begin, lines, check)) in blocks.iter().zip(BLOCKS) {
        let known = block.starts_with(begin) && block.lines().count() == lines;
        assert!(known, "no test runs this block: {block}");
        match check {
            Check::Test(name) => assert!(this.contains(&format!("fn {name}()")), "{name}"),
            Check::Step(name) => assert!(steps.contains(&format!("\nstep \"{name}\" ")), "{name}"),
        }
    }
    // `tests/compose` checks the profile that the README uses.
    assert!(read("tests/compose").contains("\nexpect kafka relay-kafka kafka\n"));
}

/// The README's `sh` blocks.
fn blocks() -> Vec<String> {
    let readme = read("README.md");
    let blocks = readme.split("\n```sh\n").skip(1);
    blocks
        .map(|rest| rest.split_once("```").unwrap().0.to_owned())
        .collect()
}

/// The only line in the README's `sh` blocks that begins like this.
#[track_caller]
fn command(begin: &str) -> Command {
    let lines: Vec<_> = blocks()
        .iter()
        .flat_map(|block| block.lines())
        .filter(|line| line.starts_with(begin))
        .map(Command::parse)
        .collect();
    let [command] = <[_; 1]>::try_from(lines).expect(begin);
    command
}

/// A line that runs the program: `VARIABLE=VALUE… cargo run --release [--no-default-features] [-- ARGUMENT…]`.
#[derive(Debug)]
struct Command {
    variables: Vec<(String, String)>,
    arguments: Vec<String>,
}

impl Command {
    #[track_caller]
    fn parse(line: &str) -> Self {
        let (variables, arguments) = line.split_once(" cargo run --release").expect(line);
        let features = " --no-default-features";
        let arguments = arguments.strip_prefix(features).unwrap_or(arguments);
        let arguments = arguments.strip_prefix(" --").unwrap_or(arguments);
        let variables = variables.split(' ').map(|assignment| {
            let (name, value) = assignment.split_once('=').expect(line);
            (name.to_owned(), value.to_owned())
        });
        Self {
            variables: variables.collect(),
            arguments: arguments.split_whitespace().map(str::to_owned).collect(),
        }
    }

    /// A setup with the command's variables; `other` replaces the value of one. Ports and folder are the test's own.
    #[track_caller]
    fn setup(&self, other: Option<(&str, &str)>) -> Setup {
        assert!(
            other.is_none_or(|(name, _)| self.variables.iter().any(|(known, _)| known == name))
        );
        let setup = self
            .variables
            .iter()
            .fold(Setup::new(), |setup, (name, value)| setup.set(name, value));
        other.map_or(setup.clone(), |(name, value)| setup.with(name, value))
    }

    fn arguments(&self) -> Vec<&str> {
        self.arguments.iter().map(String::as_str).collect()
    }
}

fn read(file: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).expect(file)
}

/// The README's text between `begin` and `end`.
#[track_caller]
fn readme_text_between(begin: &str, end: &str) -> String {
    file_text_between("README.md", begin, end)
}

#[track_caller]
fn file_text_between(file: &str, begin: &str, end: &str) -> String {
    let text = read(file);
    let (_, rest) = text.split_once(begin).expect(begin);
    rest.split_once(end).expect(end).0.to_owned()
}

#[test]
fn the_first_command_prints_the_sample_event() {
    let query = readme_text_between("curl 'http://127.0.0.1:8080/?", "'");
    let body = readme_text_between("--data '", "'\n");
    let answer = readme_text_between("The answer:\n\n```json\n", "\n");
    let event = readme_text_between(
        "The event, on the relay's standard output",
        "\n```\n\nSend it",
    );
    let event = event.lines().last().unwrap();

    let first = Command::parse(blocks()[0].trim_end());
    let relay = first.setup(None).start();
    for _ in 0..2 {
        let answered = relay.post(&query, &body);
        assert_eq!((answered.status, answered.text()), (200, answer.as_str()));
    }
    let printed = relay.lines_until_stopped();
    assert_eq!(printed.len(), 1, "{printed:?}");
    let (before, after) = around_received_at(&printed[0]);
    assert_eq!((before, after), around_received_at(event));

    // The book shows the same event and the same commands.
    assert!(read("docs/reference/event.md").contains(event));
    let tutorial = read("docs/tutorials/first-event.md");
    for text in [&blocks()[0], &blocks()[1], &answer] {
        assert!(tutorial.contains(text.as_str()), "{text}");
    }
}

const TOPIC: &str = "im.message.recalled";
const DEAD_LETTERS: &str = "im.message.recalled.dead-letter";

#[test]
fn one_more_variable_connects_kafka() {
    let kafka = Kafka::start();
    let servers = kafka.bootstrap_servers();
    let command = command("RECALL_SDK_APP_IDS=1400000001 RECALL_KAFKA__");
    let setup = command.setup(Some(("RECALL_KAFKA__BOOTSTRAP_SERVERS", &servers)));
    publish(&setup, "kafka");
    assert_eq!(kafka.recalls(TOPIC, 3).len(), 3);
    assert_eq!(kafka.read(DEAD_LETTERS, 1, rig::TIMEOUT).len(), 1);
}

#[test]
fn one_more_variable_connects_rabbitmq() {
    let rabbitmq = RabbitMq::start();
    let uri = rabbitmq.uri();
    let command = command("RECALL_SDK_APP_IDS=1400000001 RECALL_RABBITMQ__");
    let setup = command.setup(Some(("RECALL_RABBITMQ__URI", &uri)));
    publish(&setup, "rabbitmq");
    assert_eq!(rabbitmq.recalls(TOPIC, 3).len(), 3);
    assert_eq!(rabbitmq.read(DEAD_LETTERS, 1, rig::TIMEOUT).len(), 1);
}

/// Publishes three recalls, and a callback that cannot be parsed.
fn publish(setup: &Setup, sink: &str) {
    let relay = setup.start();
    relay.recalls("a", 1..=3);
    assert_eq!(relay.post(&rig::recall_query(), "{").status, 400);
    relay.until_drained(sink);
    relay.stop();
}

#[test]
fn troubleshooting_commands_show_state_and_causes() {
    let check = command("RECALL_SDK_APP_IDS=1400000001 cargo run --release -- check");
    let setup = check.setup(None);
    let relay = setup.start();
    let path = readme_text_between("curl http://127.0.0.1:8081", "\n");
    let readiness = relay.admin(&path);
    assert_eq!(readiness.status, 200);
    assert!(readiness.text().contains(r#""sinks":{"stdout":"#));
    let (code, stdout, stderr) = setup.run(&check.arguments());
    assert_eq!(code, 0, "{stdout}{stderr}");
    assert!(stdout.contains("spool"), "{stdout}");
    relay.stop();
}

/// The text before and after `received_at`, the only value that differs each time.
#[track_caller]
fn around_received_at(event: &str) -> (&str, &str) {
    let (before, rest) = event.split_once(r#""received_at":""#).expect(event);
    (before, rest.split_once('"').expect(event).1)
}

#[test]
fn the_relay_accepts_callbacks_from_send() {
    let relay = Setup::new()
        .set("RECALL_AUTH__TOKENS", "old,hunter2")
        .start();
    let url = format!("http://{}/", relay.callbacks);
    let command =
        command("RECALL_SDK_APP_IDS=1400000001 cargo run --release --no-default-features -- send");
    let send = |token: &str| {
        let more = ["--command", "all", "--count", "6", "--url", &url];
        let arguments = [&command.arguments()[..], &more, &["--token", token]].concat();
        command.setup(None).run(&arguments)
    };
    let (code, stdout, stderr) = send("other");
    assert_eq!(code, 1, "{stdout}{stderr}");
    assert!(stderr.contains("6 of 6 callbacks"), "{stderr}");
    let (code, stdout, stderr) = send("hunter2");
    assert_eq!(code, 0, "{stdout}{stderr}");

    let mut types = BTreeMap::new();
    for event in relay.stop() {
        let name = event["type"].as_str().unwrap().to_owned();
        *types.entry(name).or_insert(0) += 1;
    }
    let expected = [
        ("com.tencent.im.c2c.message.recalled", 2),
        ("com.tencent.im.group.message.recalled", 2),
        ("com.tencent.im.official_account.message.recalled", 2),
    ];
    assert_eq!(
        types,
        expected
            .map(|(name, count)| (name.to_owned(), count))
            .into()
    );
}

#[test]
fn stop_grace_periods_cover_the_longest_stop() {
    let seconds = |text: String| text.parse::<u64>().unwrap();
    let drain = file_text_between("config/recall-relay.toml", "\n#drain_timeout = \"", "s\"\n");
    let closing = file_text_between(
        "docs/how-to/deploy.md",
        "`http.stop_delay` + `drain_timeout` + ",
        " seconds",
    );
    let (drain, closing) = (seconds(drain), seconds(closing));
    let kubernetes = "deploy/kubernetes/statefulset.yaml";
    let delay = seconds(file_text_between(
        kubernetes,
        "RECALL_HTTP__STOP_DELAY, value: ",
        "s}",
    ));
    for (file, begin, end, delay) in [
        (kubernetes, "terminationGracePeriodSeconds: ", "\n", delay),
        ("deploy/recall-relay.service", "TimeoutStopSec=", "s\n", 0),
        ("docker-compose.yml", "stop_grace_period: ", "s\n", 0),
    ] {
        let waits = seconds(file_text_between(file, begin, end));
        assert!(waits > delay + drain + closing, "{file}: {waits} s");
    }
}

#[test]
fn the_documented_versions_of_the_brokers_are_the_tested_ones() {
    let page = "docs/reference/broker-layout-and-rights.md";
    let versions = read("tests/brokers/kafka/versions");
    let kafka: Vec<_> = versions.lines().collect();
    let documented = file_text_between(page, "| 3.3 and newer | ", " |\n");
    assert_eq!(documented.split(", ").collect::<Vec<_>>(), kafka);
    let image = file_text_between("docker-compose.yml", "image: apache/kafka:", "\n");
    assert_eq!(kafka.last(), Some(&image.as_str()));

    let rabbitmq = file_text_between(page, "| 3.10 and newer | ", " |\n");
    let image = file_text_between("docker-compose.yml", "image: rabbitmq:", "-management\n");
    assert_eq!(rabbitmq.split(", ").last(), Some(image.as_str()));
    let tested = file_text_between("tests/brokers/compose.yml", "image: rabbitmq:", "\n");
    assert_eq!(image, tested);
}
