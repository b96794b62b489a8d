//! One producer: what waits to be sent, what is sent, and what the cluster says of it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::config::FromClientConfigAndContext as _;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _, PurgeConfig};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::errors::refusal_at_once;
use super::lanes::{Lane, Lanes, partition_of};
use super::poller::Poller;
use super::reports::{RecordId, Report, Reports};
use super::topics::Partitions;
use crate::event::{CONTENT_TYPE, Envelope};
use crate::sink::{Delivery, Progress, Refusal, SessionError};

/// How often we look whether a partition has confirmed nothing for too long.
const LOOK_EVERY: Duration = Duration::from_mins(1);

/// How long the thread may take to notice that it is over.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// A producer with records in flight.
pub(super) struct Outbox {
    producer: Arc<BaseProducer<Reports>>,
    topic: String,
    dead_letter_topic: String,
    /// Known once the topics are.
    partitions: Arc<OnceLock<Partitions>>,
    lanes: Lanes,
    /// What librdkafka had no room for yet.
    backlog: VecDeque<Delivery>,
    over: Arc<AtomicBool>,
    ended: oneshot::Receiver<()>,
}

impl Outbox {
    /// Makes a producer; it connects in the background.
    pub(super) fn open(
        client: &ClientConfig,
        topic: &str,
        dead_letter_topic: &str,
    ) -> Result<Self, SessionError> {
        let producer = BaseProducer::from_config_and_context(client, Reports::default())
            .map(Arc::new)
            .map_err(|error| SessionError::unavailable("could not make a producer", error))?;
        let over = Arc::new(AtomicBool::new(false));
        let partitions = Arc::new(OnceLock::new());
        let (tell_end, ended) = oneshot::channel();
        let poller = Poller {
            producer: Arc::clone(&producer),
            topic: topic.to_owned(),
            dead_letter_topic: dead_letter_topic.to_owned(),
            partitions: Arc::clone(&partitions),
            over: Arc::clone(&over),
        };
        thread::Builder::new()
            .name("kafka".to_owned())
            .spawn(move || {
                poller.run();
                drop(poller);
                let _ = tell_end.send(());
            })
            .map_err(|error| SessionError::unavailable("could not start a thread", error))?;
        Ok(Self {
            producer,
            topic: topic.to_owned(),
            dead_letter_topic: dead_letter_topic.to_owned(),
            partitions,
            lanes: Lanes::default(),
            backlog: VecDeque::new(),
            over,
            ended,
        })
    }

    pub(super) const fn producer(&self) -> &Arc<BaseProducer<Reports>> {
        &self.producer
    }

    /// The topics are there and have so many partitions.
    pub(super) fn starts(&mut self, partitions: Partitions) {
        let _ = self.partitions.set(partitions);
    }

    pub(super) fn reports(&self) -> &Reports {
        self.producer.context()
    }

    /// Tells what works for this outbox on other threads that it is over.
    pub(super) const fn over(&self) -> &Arc<AtomicBool> {
        &self.over
    }

    /// Takes events, in order.
    pub(super) fn publish(&mut self, deliveries: impl IntoIterator<Item = Delivery>) {
        self.backlog.extend(deliveries);
        self.send_backlog();
    }

    /// What has happened since; waits until there is something. Cancel safe.
    pub(super) async fn progress(&mut self) -> Result<Progress, SessionError> {
        loop {
            if let Some(lane) = self.lanes.forgotten(Instant::now()) {
                let reason = format!("partition {} confirms nothing", lane.partition);
                return Err(SessionError::Unavailable(reason, None));
            }
            if let Ok(report) = timeout(LOOK_EVERY, self.reports().next()).await {
                return Ok(self.act_on(report?));
            }
        }
    }

    /// Sends as a producer that the brokers may not know: all that was sent is reported, and was aborted.
    pub(super) fn publish_anew(&mut self, deliveries: impl IntoIterator<Item = Delivery>) {
        self.lanes = Lanes::default();
        self.publish(deliveries);
    }

    /// Gives up what is under way, and lets go of the connections. Ends within a bounded time.
    pub(super) async fn close(mut self) {
        self.over.store(true, Ordering::Release);
        self.producer
            .purge(PurgeConfig::default().queue().inflight());
        let _ = timeout(CLOSE_TIMEOUT, &mut self.ended).await;
        // To destroy a producer blocks.
        let _ = tokio::task::spawn_blocking(move || drop(self)).await;
    }

    /// Hands librdkafka what may go and what it has room for.
    fn send_backlog(&mut self) {
        let now = Instant::now();
        while let Some(delivery) = self.backlog.pop_front() {
            // An event that is not one of ours has no key: it still is somebody's data.
            let envelope = Envelope::parse(&delivery.stored.event.bytes).ok();
            let lane = self.lane(&delivery, envelope.as_ref());
            if !self.lanes.is_free(lane, now) {
                drop(envelope);
                self.lanes.wait(lane, delivery, now);
                continue;
            }
            let sent = self
                .reports()
                .unless_failed(|| self.send(&delivery, lane, envelope.as_ref()));
            drop(envelope);
            let error = match sent {
                Some(Ok(())) => {
                    self.lanes.sent(lane, now);
                    continue;
                }
                Some(Err(error)) => error,
                None => {
                    self.backlog.clear();
                    return;
                }
            };
            if let Some(refusal) = refusal_at_once(&error) {
                self.reports().refuse(delivery.stored.seq, refusal);
            } else if error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull) {
                self.backlog.push_front(delivery);
                return;
            } else {
                self.reports().fatal(error.to_string());
                return;
            }
        }
    }

    /// Where a record goes. We choose the partition, not librdkafka, because what waits for what depends
    /// on it.
    fn lane(&self, delivery: &Delivery, envelope: Option<&Envelope<'_>>) -> Lane {
        let dead_letter = delivery.is_dead_letter();
        let counts = self.partitions.get().copied().unwrap_or_default();
        let count = if dead_letter {
            counts.dead_letters
        } else {
            counts.events
        };
        let key = envelope.map_or(&b""[..], |envelope| envelope.partitionkey.as_bytes());
        Lane {
            dead_letter,
            partition: partition_of(key, count),
        }
    }

    fn send(
        &self,
        delivery: &Delivery,
        lane: Lane,
        envelope: Option<&Envelope<'_>>,
    ) -> Result<(), KafkaError> {
        let topic = if lane.dead_letter {
            &self.dead_letter_topic
        } else {
            &self.topic
        };
        let record = BaseRecord::with_opaque_to(topic, RecordId::of(delivery).opaque())
            .partition(lane.partition)
            .payload(&delivery.stored.event.bytes[..])
            .headers(headers(envelope, delivery.refusal.as_ref()));
        let record = match envelope {
            Some(envelope) => record.key(envelope.partitionkey.as_ref()),
            None => record,
        };
        self.producer.send(record).map_err(|(error, _)| error)
    }

    /// Passes a report on, after what has waited for it was sent.
    fn act_on(&mut self, report: Report) -> Progress {
        let progress = match report {
            Report::Confirmed(confirmed) => {
                let now = Instant::now();
                let mut seqs = Vec::with_capacity(confirmed.len());
                for (lane, seq) in confirmed {
                    for delivery in self.lanes.confirmed(lane, now).into_iter().rev() {
                        self.backlog.push_front(delivery);
                    }
                    seqs.push(seq);
                }
                Progress::Confirmed(seqs)
            }
            Report::Other(progress) => progress,
        };
        self.send_backlog();
        progress
    }
}

fn headers(envelope: Option<&Envelope<'_>>, refusal: Option<&Refusal>) -> OwnedHeaders {
    let mut headers = OwnedHeaders::new_with_capacity(9);
    let mut add = |key: &str, value: &str| {
        let all = std::mem::replace(&mut headers, OwnedHeaders::new_with_capacity(0));
        headers = all.insert(Header {
            key,
            value: Some(value),
        });
    };
    add("content-type", CONTENT_TYPE);
    if let Some(envelope) = envelope {
        add("ce_specversion", "1.0");
        add("ce_id", envelope.id);
        add("ce_type", envelope.r#type);
        add("ce_source", envelope.source);
        add("ce_time", envelope.time);
        if let Some(subject) = &envelope.subject {
            add("ce_subject", subject);
        }
    }
    if let Some(refusal) = refusal {
        add("recall_reason", refusal.reason);
        add("recall_detail", &refusal.detail);
    }
    headers
}

impl Drop for Outbox {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
    }
}
