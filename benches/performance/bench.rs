//! What the scenarios share: options, cores, brokers, and relays with common settings.

use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};

use lapin::options::QueuePurgeOptions;
use tempfile::TempDir;

use super::backlog::Backlogs;
use super::cores::{CoreSet, Cores};
use super::folder;
use super::options::Options;
use super::rig::{Broker, Kafka, RabbitMq, Setup, free_port};
use super::server::Server;

/// The partitions of a topic, as many as the relay creates.
pub const PARTITIONS: u32 = 6;

pub struct Bench {
    pub options: Options,
    pub cores: Cores,
    pub backlogs: Backlogs,
    brokers: Brokers,
    /// On the measured disk. The last field, so that it is dropped after its users.
    folder: TempDir,
}

/// The running brokers, and their cores.
struct Brokers {
    core_set: CoreSet,
    kafka: Option<Rc<Kafka>>,
    rabbitmq: Option<Rc<RabbitMq>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sink {
    Stdout,
    Kafka,
    RabbitMq,
}

/// A broker, and one relay's topic, or exchange and queue.
#[derive(Clone)]
pub struct Destination {
    pub sink: Sink,
    /// The name of the topic, or of the exchange and the queue.
    pub name: String,
    kafka: Option<Rc<Kafka>>,
    rabbitmq: Option<Rc<RabbitMq>>,
}

impl Sink {
    pub const BROKERS: [Self; 2] = [Self::Kafka, Self::RabbitMq];
    pub const ALL: [Self; 3] = [Self::Stdout, Self::Kafka, Self::RabbitMq];

    /// The sink's name in the relay's status.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Kafka => "kafka",
            Self::RabbitMq => "rabbitmq",
        }
    }
}

impl Bench {
    pub fn new(options: Options) -> Self {
        let cores = Cores::find();
        cores.pin_current_thread(CoreSet::Generator);
        let folder = folder::make(&options.folder);
        Self {
            backlogs: Backlogs::new(folder.path()),
            cores,
            brokers: Brokers::none(CoreSet::Generator),
            options,
            folder,
        }
    }

    /// A new folder on the measured disk, and the settings of a relay without a broker.
    pub fn setup(&self) -> Setup {
        let folder = self.new_folder();
        let setup = Setup::on(folder)
            .set("RECALL_LOG__FILTER", "warn")
            .set("RECALL_SPOOL__MAX_BYTES", "64GiB")
            // Purging forwarded events is part of an event's cost.
            .set("RECALL_SPOOL__RETENTION", "0s");
        let more = self.options.settings.iter();
        more.fold(setup, |setup, (name, value)| setup.set(name, value))
    }

    pub fn new_folder(&self) -> TempDir {
        TempDir::new_in(self.folder.path()).expect("cannot create a folder")
    }

    pub fn bare(&self) -> Server {
        Server::bare(self.setup(), &self.cores, CoreSet::Server)
    }

    /// A new topic, or exchange and queue. Starts the broker if it is not running on these cores.
    pub fn destination(&mut self, sink: Sink, core_set: CoreSet) -> Destination {
        static COUNT: AtomicU32 = AtomicU32::new(0);

        if self.brokers.core_set != core_set {
            self.brokers = Brokers::none(core_set);
        }
        let name = format!("bench-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let brokers = &mut self.brokers;
        let (mut kafka, mut rabbitmq) = (None, None);
        self.cores.run_on(core_set, || match sink {
            Sink::Stdout => {}
            Sink::Kafka => {
                let broker = brokers.kafka.get_or_insert_with(|| Rc::new(Kafka::start()));
                broker.create_topic(&name, PARTITIONS, &[]);
                kafka = Some(Rc::clone(broker));
            }
            Sink::RabbitMq => {
                let start = || Rc::new(RabbitMq::start());
                rabbitmq = Some(Rc::clone(brokers.rabbitmq.get_or_insert_with(start)));
            }
        });
        Destination {
            sink,
            name,
            kafka,
            rabbitmq,
        }
    }

    /// Starts a broker of 1 or 3 nodes for the caller alone, who may kill it. Stops the other brokers, because it uses
    /// their cores.
    pub fn start_broker(&mut self, sink: Sink, nodes: usize) -> Box<dyn Broker + Send> {
        self.brokers = Brokers::none(CoreSet::Generator);
        self.cores
            .run_on(CoreSet::Generator, || -> Box<dyn Broker + Send> {
                match (sink, nodes) {
                    (Sink::Kafka, 1) => Box::new(Kafka::start()),
                    (Sink::Kafka, 3) => Box::new(Kafka::start_cluster()),
                    (Sink::RabbitMq, 1) => Box::new(RabbitMq::start()),
                    (Sink::RabbitMq, 3) => Box::new(RabbitMq::start_cluster()),
                    _ => panic!("cannot start {} with {nodes} nodes", sink.name()),
                }
            })
    }

    /// Starts a relay for a sink on the server's core; also returns its destination.
    pub fn relay(&mut self, sink: Sink) -> (Server, Destination) {
        let destination = self.destination(sink, CoreSet::Generator);
        let setup = destination.settings(self.setup());
        (
            Server::relay(setup, &self.cores, CoreSet::Server),
            destination,
        )
    }

    /// Starts a relay whose broker is down.
    pub fn relay_without_broker(&self, sink: Sink) -> Server {
        Server::relay(
            self.setup_without_broker(sink),
            &self.cores,
            CoreSet::Server,
        )
    }

    /// The settings of a relay for a broker at an address where nothing listens.
    pub fn setup_without_broker(&self, sink: Sink) -> Setup {
        let address = format!("127.0.0.1:{}", free_port());
        match sink {
            Sink::Stdout => self.setup(),
            Sink::Kafka => self
                .setup()
                .set("RECALL_KAFKA__BOOTSTRAP_SERVERS", &address),
            Sink::RabbitMq => {
                let uri = format!("amqp://guest:guest@{address}");
                self.setup().set("RECALL_RABBITMQ__URI", &uri)
            }
        }
    }
}

impl Brokers {
    const fn none(core_set: CoreSet) -> Self {
        Self {
            core_set,
            kafka: None,
            rabbitmq: None,
        }
    }
}

impl Destination {
    /// Adds the relay's settings for this destination.
    pub fn settings(&self, mut setup: Setup) -> Setup {
        if let Some(kafka) = &self.kafka {
            setup = kafka.settings(setup, &self.name);
        }
        if let Some(rabbitmq) = &self.rabbitmq {
            setup = rabbitmq.settings(setup, &self.name);
        }
        setup
    }

    /// Deletes the broker's messages, because nothing consumes them.
    pub fn clear(&self) {
        if let Some(kafka) = &self.kafka {
            kafka.delete_records(&self.name);
        }
        if let Some(rabbitmq) = &self.rabbitmq {
            let queue = self.name.as_str();
            rabbitmq.with_channel(async |channel| {
                let options = QueuePurgeOptions::default();
                let _ = channel.queue_purge(queue.into(), options).await;
            });
        }
    }

    /// Deletes the topic, because Kafka keeps the newest segments of a topic that exists; purges the queue of RabbitMQ.
    pub fn remove(self) {
        match &self.kafka {
            Some(kafka) => kafka.delete_topic(&self.name),
            None => self.clear(),
        }
    }

    pub fn kafka(&self) -> &Kafka {
        self.kafka.as_ref().expect("the destination is not Kafka")
    }

    pub fn rabbitmq(&self) -> &RabbitMq {
        self.rabbitmq
            .as_ref()
            .expect("the destination is not RabbitMQ")
    }
}
