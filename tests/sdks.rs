//! The official CloudEvents SDKs of four languages read each event as the relay published it. The programs are those of
//! `examples/`; `tests/fetch-sdks` prepares them.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking"
)]

mod rig;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;

use jiff::Timestamp;
use lapin::options::{BasicGetOptions, BasicPublishOptions};
use recall_relay::vendor::{BodyFormat, CallbackKind};
use rig::{APP, Broker as _, Kafka, Lines, RabbitMq, Setup, large_recall, recall_query, until};
use serde_json::Value;

/// The time of the recalls, in Unix milliseconds.
const AT: u64 = 1_670_574_414_123;

/// Events by id.
type Events = BTreeMap<String, Value>;

#[test]
fn sdks_read_each_event_as_it_was_published() {
    let (kafka, rabbitmq) = thread::scope(|scope| {
        let kafka = scope.spawn(Kafka::start);
        let rabbitmq = RabbitMq::start();
        (kafka.join().unwrap(), rabbitmq)
    });
    rabbitmq.declare_exchange("structured");
    let queues = LANGUAGES.map(|language| {
        let queue = format!("{language:?}");
        rabbitmq.declare_queue("structured", &queue)
    });

    let both = rabbitmq.settings(kafka.settings(Setup::new(), "structured"), "structured");
    let structured = publish(&both, &kafka, "structured");
    copy_dead_letters(&rabbitmq, "structured.dead", &queues);
    let binary = kafka.settings(Setup::new(), "binary");
    let binary = binary.set("RECALL_KAFKA__CONTENT_MODE", "binary");
    let binary = publish(&binary, &kafka, "binary");
    let in_both_modes: Events = structured.clone().into_iter().chain(binary).collect();

    let topics = ["structured", "structured.dead", "binary", "binary.dead"];
    let servers = kafka.bootstrap_servers();
    let uri = rabbitmq.uri();
    let mut subscribers = Vec::new();
    for (language, queue) in LANGUAGES.iter().zip(&queues) {
        let group = format!("{language:?}");
        let arguments = [&[servers.as_str(), &group], &topics[..]].concat();
        let from_kafka = Subscriber::start(*language, "Kafka", &arguments);
        let from_rabbitmq = Subscriber::start(*language, "RabbitMq", &[&uri, queue]);
        subscribers.push((from_kafka, &in_both_modes));
        subscribers.push((from_rabbitmq, &structured));
    }
    let mut wrong = Vec::new();
    for (subscriber, published) in &mut subscribers {
        let read = subscriber.events(published.len());
        for (id, event) in *published {
            let found = read.get(id).unwrap_or(&Value::Null);
            if found != event {
                wrong.push(format!("{} read {found}, not {event}", subscriber.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_documents_name_the_tested_versions() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |file: &str| fs::read_to_string(root.join(file)).unwrap();
    let page = read("docs/how-to/cloudevents-sdks.md");
    for (language, file, before) in [
        ("Python", "python/requirements.txt", "cloudevents=="),
        (
            "JavaScript",
            "javascript/package.json",
            "\"cloudevents\": \"",
        ),
        ("Go", "go/go.mod", "kafka_sarama/v2 v"),
        (
            "Java",
            "java/pom.xml",
            "cloudevents-kafka</artifactId>\n      <version>",
        ),
    ] {
        let lock = read(&format!("examples/{file}"));
        let (_, rest) = lock.split_once(before).unwrap();
        let version = rest.split(['"', '<', '\n']).next().unwrap();
        let row = page
            .lines()
            .find(|line| line.starts_with(&format!("| [{language}]")));
        assert!(
            row.unwrap().contains(&format!(" | {version} | ")),
            "{language} {version}"
        );
    }
}

/// Publishes an event of each type and one that Kafka refuses as too large. Returns all of them.
fn publish(setup: &Setup, kafka: &Kafka, name: &str) -> Events {
    kafka.create_topic(name, 2, &[("max.message.bytes", "4000")]);
    let relay = setup.start();
    let format = BodyFormat::default();
    let community = BodyFormat {
        group_type: "Community".to_owned(),
        ..format.clone()
    };
    let group = format!("@TGS#\"{name}\" 群");
    let msg_id = |seq| format!("144115213033478435-{seq}");
    for (kind, body) in [
        (
            CallbackKind::Group,
            format.group(&group, [130, 131], msg_id, AT),
        ),
        (
            CallbackKind::Group,
            community.group(&group, [130], msg_id, AT),
        ),
        (CallbackKind::Group, large_recall(&group, 6000)),
        (CallbackKind::C2c, format.c2c(name, "Jonh:%", 48_374, AT)),
        (
            CallbackKind::OfficialAccount,
            format.official_account(name, [1, 2], AT),
        ),
    ] {
        let answer = relay.post(&kind.query(APP, None), body);
        assert!(answer.is_ok(), "{answer:?}");
    }
    for rejected in [
        [b"{\"GroupId\": \"", name.as_bytes()].concat(),
        [name.as_bytes(), b"\xff"].concat(),
    ] {
        assert_eq!(relay.post(&recall_query(), rejected).status, 400);
    }
    for sink in relay.readiness()["sinks"].as_object().unwrap().keys() {
        relay.until_drained(sink);
    }
    assert_eq!(relay.refused_events("kafka"), 1);
    relay.stop();
    by_id(rig::read_events(setup))
}

/// Copies the dead letters to these queues, unchanged: the relay publishes them to one queue only.
fn copy_dead_letters(rabbitmq: &RabbitMq, from: &str, queues: &[String]) {
    rabbitmq.with_channel(async |channel| {
        while let Some(got) = channel
            .basic_get(from.into(), BasicGetOptions { no_ack: true })
            .await
            .unwrap()
        {
            for queue in queues {
                channel
                    .basic_publish(
                        "".into(),
                        queue.as_str().into(),
                        BasicPublishOptions::default(),
                        &got.data,
                        got.properties.clone(),
                    )
                    .await
                    .unwrap();
            }
        }
    });
}

/// Events by id, without what SDKs change: the number of a time's decimals, and three attributes that Go's adds to
/// records in binary mode.
fn by_id(events: Vec<Value>) -> Events {
    let entry = |mut event: Value| {
        let text = |name: &str| {
            event[name]
                .as_str()
                .unwrap_or_else(|| panic!("no {name}: {event}"))
        };
        let (id, time) = (text("id").to_owned(), text("time").parse::<Timestamp>());
        event["time"] = time.unwrap().to_string().into();
        for added in ["kafkaoffset", "kafkapartition", "kafkatopic"] {
            event.as_object_mut().unwrap().remove(added);
        }
        (id, event)
    };
    events.into_iter().map(entry).collect()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Language {
    Python,
    JavaScript,
    Go,
    Java,
}

const LANGUAGES: [Language; 4] = [
    Language::Python,
    Language::JavaScript,
    Language::Go,
    Language::Java,
];

impl Language {
    /// A program of `examples/`.
    fn command(self, broker: &str) -> Command {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let (sdks, examples) = (root.join("target/sdks"), root.join("examples"));
        let name = format!("subscribe_{}", broker.to_lowercase());
        let (program, arguments): (PathBuf, Vec<PathBuf>) = match self {
            Self::Python => (
                sdks.join("python/bin/python"),
                vec![examples.join(format!("python/{name}.py"))],
            ),
            Self::JavaScript => (
                "node".into(),
                vec![sdks.join(format!("javascript/{name}.js"))],
            ),
            Self::Go => (sdks.join("go").join(name), vec![]),
            Self::Java => (
                "java".into(),
                vec![
                    "--class-path".into(),
                    sdks.join("java/*"),
                    examples.join(format!("java/Subscribe{broker}.java")),
                ],
            ),
        };
        let mut command = Command::new(program);
        command.args(arguments);
        command
    }
}

/// A running program of `examples/`. Dropping it kills the process.
struct Subscriber {
    name: String,
    child: Child,
    stdout: Lines,
    stderr: Lines,
}

impl Subscriber {
    fn start(language: Language, broker: &str, arguments: &[&str]) -> Self {
        let mut child = language
            .command(broker)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("tests/run has not prepared {language:?}: {error}"));
        let (stdout, stderr) = (Lines::default(), Lines::default());
        stdout.collect_from(child.stdout.take().unwrap());
        stderr.collect_from(child.stderr.take().unwrap());
        Self {
            name: format!("{language:?} from {broker}"),
            child,
            stdout,
            stderr,
        }
    }

    /// Waits until it has read this many events.
    #[track_caller]
    fn events(&mut self, count: usize) -> Events {
        until(&format!("{count} events of {}", self.name), || {
            let ended = self.child.try_wait().unwrap();
            let read = by_id(self.stdout.events());
            assert!(
                ended.is_none() || read.len() >= count,
                "{} ended: {ended:?}",
                self.name
            );
            (read.len() >= count).then_some(read)
        })
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!(
                "--- stderr of {}\n{}",
                self.name,
                self.stderr.all().join("\n")
            );
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
