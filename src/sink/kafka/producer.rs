//! One producer: queues records, sends them, and handles the reports about them.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::config::FromClientConfigAndContext as _;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _, PurgeConfig};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::Config;
use super::errors::refusal_at_once;
use super::message::{ContentMode, headers_and_value};
use super::partition_state::{Partition, Partitions, partition_of};
use super::poller::Poller;
use super::record_id::RecordId;
use super::reports::{ProducerReport, Reports};
use super::rights::{Rights, TopicRight};
use super::topics::PartitionCounts;
use crate::event::Seq;
use crate::sink::{Delivery, Partitioning, Progress, SessionError, Window};
use crate::telemetry::LoggedTexts;

/// How often to check whether a partition has confirmed nothing for too long.
const CHECK_EVERY: Duration = Duration::from_mins(1);

/// How long the polling thread may take to notice the stop flag.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// A producer with records in flight.
pub(super) struct Producer {
    client: Arc<BaseProducer<Reports>>,
    pub(super) topic: String,
    dead_letter_topic: String,
    content_mode: ContentMode,
    /// Set when the topics have been looked up.
    counts: Arc<OnceLock<PartitionCounts>>,
    partitions: Partitions,
    /// Not sent yet, because librdkafka's queue is full.
    backlog: VecDeque<Seq>,
    stopped: Arc<AtomicBool>,
    ended: oneshot::Receiver<()>,
}

impl Producer {
    /// Creates a producer; it connects in the background.
    pub(super) fn open(
        client: &ClientConfig,
        config: &Config,
        logged: Arc<Mutex<LoggedTexts>>,
    ) -> Result<Self, SessionError> {
        let reports = Reports::new(Rights::of(client), logged);
        let producer = BaseProducer::from_config_and_context(client, reports)
            .map(Arc::new)
            .map_err(|error| SessionError::unavailable("could not create a producer", error))?;
        let stopped = Arc::new(AtomicBool::new(false));
        let counts = Arc::new(OnceLock::new());
        let (exit_sender, ended) = oneshot::channel();
        let poller = Poller {
            producer: Arc::clone(&producer),
            topic: config.topic.clone(),
            dead_letter_topic: config.dead_letter_topic.clone(),
            partitions: Arc::clone(&counts),
            stopped: Arc::clone(&stopped),
        };
        thread::Builder::new()
            .name("kafka".to_owned())
            .spawn(move || {
                poller.run();
                drop(poller);
                let _ = exit_sender.send(());
            })
            .map_err(|error| {
                SessionError::unavailable("could not start the producer's poll thread", error)
            })?;
        Ok(Self {
            client: producer,
            topic: config.topic.clone(),
            dead_letter_topic: config.dead_letter_topic.clone(),
            content_mode: config.content_mode,
            counts,
            partitions: Partitions::default(),
            backlog: VecDeque::new(),
            stopped,
            ended,
        })
    }

    pub(super) const fn client(&self) -> &Arc<BaseProducer<Reports>> {
        &self.client
    }

    /// Sets the partition counts. The topics exist.
    pub(super) fn set_partition_counts(&mut self, partitions: PartitionCounts) {
        let _ = self.counts.set(partitions);
    }

    /// The partitions of the events' topic.
    pub(super) fn partitioning(&self) -> Partitioning {
        let counts = self.counts.get().copied().unwrap_or_default();
        Partitioning {
            count: usize::try_from(counts.events).unwrap_or(1),
            partition_of: |event, count| {
                let count = i32::try_from(count).unwrap_or(i32::MAX);
                let partition = partition_of(event.conversation.as_bytes(), count);
                usize::try_from(partition).unwrap_or_default()
            },
        }
    }

    pub(super) fn reports(&self) -> &Reports {
        self.client.context()
    }

    /// The stop flag for this producer's other threads.
    pub(super) const fn stopped(&self) -> &Arc<AtomicBool> {
        &self.stopped
    }

    /// Publishes events of the window, in order.
    pub(super) fn publish(&mut self, window: &Window, seqs: &[Seq]) {
        self.backlog.extend(seqs);
        self.send_backlog(window);
    }

    /// Waits for the next report. Cancel safe.
    pub(super) async fn progress(&mut self, window: &Window) -> Result<Progress, SessionError> {
        loop {
            if let Some(partition) = self.partitions.possibly_expired(Instant::now()) {
                let reason = format!(
                    "partition {} has confirmed nothing for an hour; reconnecting",
                    partition.number
                );
                return Err(SessionError::Unavailable(reason, None));
            }
            if let Ok(report) = timeout(CHECK_EVERY, self.reports().next()).await {
                let report = report.map_err(|error| self.with_cause(error))?;
                return Ok(self.handle(report, window));
            }
        }
    }

    /// The error of a session. If the producer has failed, the records' error is only `Local: Fatal error`.
    fn with_cause(&self, error: SessionError) -> SessionError {
        match (error, self.client.client().fatal_error()) {
            (SessionError::Unavailable(..), Some((code, text))) => {
                let right = TopicRight::Write;
                let rights = &self.reports().rights;
                let action = rights.explain(code, right, &self.topic, text);
                SessionError::unavailable(action, KafkaError::Global(code))
            }
            (error, _) => error,
        }
    }

    /// Publishes a batch again after its transaction was aborted and all its delivery reports have arrived. Forgets
    /// the partition states: the brokers may not know the producer's new epoch.
    pub(super) fn publish_anew(&mut self, window: &Window, seqs: &[Seq]) {
        self.partitions = Partitions::default();
        self.publish(window, seqs);
    }

    /// Purges the records in flight and closes the connections. Returns within a bounded time.
    pub(super) async fn close(mut self) {
        self.stopped.store(true, Ordering::Release);
        self.client.purge(PurgeConfig::default().queue().inflight());
        let _ = timeout(CLOSE_TIMEOUT, &mut self.ended).await;
        // Destroying a producer blocks.
        let _ = tokio::task::spawn_blocking(move || drop(self)).await;
    }

    /// Sends the records that may be sent, until librdkafka's queue is full.
    fn send_backlog(&mut self, window: &Window) {
        let now = Instant::now();
        while let Some(seq) = self.backlog.pop_front() {
            let Some(delivery) = window.delivery(seq) else {
                continue;
            };
            let partition = self.partition(delivery);
            if !self.partitions.is_free(partition, now) {
                self.partitions.wait(partition, seq, now);
                continue;
            }
            let sent = self
                .reports()
                .unless_failed(|| self.send(delivery, partition));
            let error = match sent {
                Some(Ok(())) => {
                    self.partitions.sent(partition, now);
                    continue;
                }
                Some(Err(error)) => error,
                // A record has failed, and no later one may overtake it: the session is about to end.
                None => {
                    self.backlog.clear();
                    return;
                }
            };
            if let Some(refusal) = refusal_at_once(&error) {
                self.reports().refuse(seq, refusal);
            } else if error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull) {
                self.backlog.push_front(seq);
                return;
            } else {
                self.reports().fatal(error.to_string());
                return;
            }
        }
    }

    /// The partition of a record. The relay computes it instead of librdkafka, because which records must wait depends
    /// on it.
    fn partition(&self, delivery: &Delivery) -> Partition {
        let dead_letter = delivery.is_dead_letter();
        let counts = self.counts.get().copied().unwrap_or_default();
        let count = if dead_letter {
            counts.dead_letters
        } else {
            counts.events
        };
        Partition {
            dead_letter,
            number: partition_of(delivery.event.conversation.as_bytes(), count),
        }
    }

    fn send(&self, delivery: &Delivery, partition: Partition) -> Result<(), KafkaError> {
        let topic = if partition.dead_letter {
            &self.dead_letter_topic
        } else {
            &self.topic
        };
        let (headers, value) = headers_and_value(delivery, self.content_mode);
        let record = BaseRecord::with_opaque_to(topic, RecordId::of(delivery).opaque())
            .partition(partition.number)
            .key(&*delivery.event.conversation)
            .payload(value)
            .headers(headers);
        self.client.send(record).map_err(|(error, _)| error)
    }

    /// Passes a report on, after sending the records that waited for it.
    fn handle(&mut self, report: ProducerReport, window: &Window) -> Progress {
        let progress = match report {
            ProducerReport::Confirmed(confirmed) => {
                let now = Instant::now();
                let mut seqs = Vec::with_capacity(confirmed.len());
                for (partition, seq) in confirmed {
                    for waiting in self.partitions.confirmed(partition, now).into_iter().rev() {
                        self.backlog.push_front(waiting);
                    }
                    seqs.push(seq);
                }
                Progress::Confirmed(seqs)
            }
            ProducerReport::Other(progress) => progress,
        };
        self.send_backlog(window);
        progress
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Release);
    }
}
