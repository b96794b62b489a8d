//! What the scenarios share: options, cores, brokers, and relays that are set up alike.

use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};

use lapin::options::QueuePurgeOptions;
use tempfile::TempDir;

use super::backlog::Backlogs;
use super::cores::{Cores, Place};
use super::folder;
use super::options::Options;
use super::rig::{Broker as _, Kafka, RabbitMq, Setup, free_port};
use super::server::Server;

/// Partitions of a topic, as the relay makes them.
pub const PARTITIONS: u32 = 6;

pub struct Bench {
    pub options: Options,
    pub cores: Cores,
    pub backlogs: Backlogs,
    brokers: Brokers,
    /// On the disk that is measured. Last: what is in it goes first.
    folder: TempDir,
}

/// The brokers that run, where they run.
struct Brokers {
    place: Place,
    kafka: Option<Rc<Kafka>>,
    rabbitmq: Option<Rc<RabbitMq>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sink {
    Stdout,
    Kafka,
    RabbitMq,
}

/// A broker, and what one relay calls its own there.
#[derive(Clone)]
pub struct Destination {
    pub sink: Sink,
    /// Of the topic, or of the exchange and the queue.
    pub name: String,
    kafka: Option<Rc<Kafka>>,
    rabbitmq: Option<Rc<RabbitMq>>,
}

impl Sink {
    pub const BROKERS: [Self; 2] = [Self::Kafka, Self::RabbitMq];
    pub const ALL: [Self; 3] = [Self::Stdout, Self::Kafka, Self::RabbitMq];

    /// As the relay calls it.
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
        cores.go(Place::Generator);
        let folder = folder::make(&options.folder);
        Self {
            backlogs: Backlogs::new(folder.path()),
            cores,
            brokers: Brokers::none(Place::Generator),
            options,
            folder,
        }
    }

    /// A folder on the disk that is measured, and the settings of a relay without a broker.
    pub fn setup(&self) -> Setup {
        let folder = self.new_folder();
        let setup = Setup::on(folder)
            .set("RECALL_LOG__FILTER", "warn")
            .set("RECALL_SPOOL__MAX_BYTES", "64GiB")
            // To delete what was forwarded is part of an event's cost.
            .set("RECALL_SPOOL__RETENTION", "0s");
        let more = self.options.settings.iter();
        more.fold(setup, |setup, (name, value)| setup.set(name, value))
    }

    pub fn new_folder(&self) -> TempDir {
        TempDir::new_in(self.folder.path()).expect("a folder")
    }

    pub fn bare(&self) -> Server {
        Server::bare(self.setup(), &self.cores)
    }

    /// A place at a broker that nobody had before; the broker is started where it does not run.
    pub fn destination(&mut self, sink: Sink, place: Place) -> Destination {
        static COUNT: AtomicU32 = AtomicU32::new(0);

        if self.brokers.place != place {
            self.brokers = Brokers::none(place);
        }
        let name = format!("bench-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let brokers = &mut self.brokers;
        let (mut kafka, mut rabbitmq) = (None, None);
        self.cores.on(place, || match sink {
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

    /// Starts a relay for a sink, beside the generator's core; what it has at its broker goes with it.
    pub fn relay(&mut self, sink: Sink) -> (Server, Destination) {
        let destination = self.destination(sink, Place::Generator);
        let setup = destination.settings(self.setup());
        (
            Server::relay(setup, &self.cores, Place::Server),
            destination,
        )
    }

    /// Starts a relay whose broker is not there.
    pub fn relay_without_broker(&self, sink: Sink) -> Server {
        Server::relay(self.setup_without_broker(sink), &self.cores, Place::Server)
    }

    /// The settings of a relay for a broker where nobody listens.
    pub fn setup_without_broker(&self, sink: Sink) -> Setup {
        let nobody = format!("127.0.0.1:{}", free_port());
        match sink {
            Sink::Stdout => self.setup(),
            Sink::Kafka => self.setup().set("RECALL_KAFKA__BOOTSTRAP_SERVERS", &nobody),
            Sink::RabbitMq => {
                let uri = format!("amqp://guest:guest@{nobody}");
                self.setup().set("RECALL_RABBITMQ__URI", &uri)
            }
        }
    }
}

impl Brokers {
    const fn none(place: Place) -> Self {
        Self {
            place,
            kafka: None,
            rabbitmq: None,
        }
    }
}

impl Destination {
    /// The relay's settings for it.
    pub fn settings(&self, mut setup: Setup) -> Setup {
        if let Some(kafka) = &self.kafka {
            setup = kafka.settings(setup, &self.name);
        }
        if let Some(rabbitmq) = &self.rabbitmq {
            setup = rabbitmq.settings(setup, &self.name);
        }
        setup
    }

    /// Throws away what the broker has, which nobody reads.
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

    /// Clears it for good: Kafka keeps the newest files of a topic for as long as it has the topic.
    pub fn remove(self) {
        match &self.kafka {
            Some(kafka) => kafka.delete_topic(&self.name),
            None => self.clear(),
        }
    }

    pub fn kafka(&self) -> &Kafka {
        self.kafka.as_ref().expect("Kafka")
    }

    pub fn rabbitmq(&self) -> &RabbitMq {
        self.rabbitmq.as_ref().expect("RabbitMQ")
    }
}
