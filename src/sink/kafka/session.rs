//! One producer and the thread that polls it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::config::FromClientConfigAndContext as _;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _, PurgeConfig};
use tokio::sync::oneshot;

use super::Config;
use super::reports::{RecordId, Reports, refusal_at_once};
use crate::event::{CONTENT_TYPE, Envelope};
use crate::sink::{Delivery, Progress, Refusal, Session, SessionError};

/// How long one poll waits; what ends the thread is looked at in between.
const POLL: Duration = Duration::from_millis(100);

/// How often a cluster that could not be reached is asked whether it is back.
const PROBE_EVERY: Duration = Duration::from_secs(2);
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// How long the thread may take to notice that it is over.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// A producer with records in flight.
pub struct KafkaSession {
    producer: Arc<BaseProducer<Reports>>,
    topic: String,
    dead_letter_topic: String,
    /// What librdkafka had no room for yet.
    backlog: VecDeque<Delivery>,
    over: Arc<AtomicBool>,
    ended: oneshot::Receiver<()>,
}

impl std::fmt::Debug for KafkaSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaSession")
            .field("topic", &self.topic)
            .finish_non_exhaustive()
    }
}

impl KafkaSession {
    /// Makes a producer; it connects in the background.
    pub(super) fn open(config: &Config) -> Result<Self, SessionError> {
        let producer = BaseProducer::from_config_and_context(&config.client(), Reports::default())
            .map(Arc::new)
            .map_err(|error| SessionError::unavailable("could not make a producer", error))?;
        let over = Arc::new(AtomicBool::new(false));
        let (tell_end, ended) = oneshot::channel();
        let poller = Poller {
            producer: Arc::clone(&producer),
            topic: config.topic.clone(),
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
            topic: config.topic.clone(),
            dead_letter_topic: config.dead_letter_topic.clone(),
            backlog: VecDeque::new(),
            over,
            ended,
        })
    }

    pub(super) const fn producer(&self) -> &Arc<BaseProducer<Reports>> {
        &self.producer
    }

    fn reports(&self) -> &Reports {
        self.producer.context()
    }

    /// Hands librdkafka what it has room for.
    fn send_backlog(&mut self) {
        while let Some(delivery) = self.backlog.pop_front() {
            let mut outcome = Ok(());
            let sent = self
                .reports()
                .unless_failed(|| outcome = self.send(&delivery));
            let error = match outcome {
                Ok(()) if sent => continue,
                Ok(()) => {
                    self.backlog.clear();
                    return;
                }
                Err(error) => error,
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

    fn send(&self, delivery: &Delivery) -> Result<(), KafkaError> {
        let event = &delivery.stored.event;
        let topic = if delivery.is_dead_letter() {
            &self.dead_letter_topic
        } else {
            &self.topic
        };
        let record = BaseRecord::with_opaque_to(topic, RecordId::of(delivery).opaque())
            .payload(&event.bytes[..]);
        // An event that is not one of ours has no key: it still is somebody's data.
        let envelope = Envelope::parse(&event.bytes).ok();
        let key = envelope
            .as_ref()
            .map(|envelope| envelope.partitionkey.as_ref());
        let headers = headers(envelope.as_ref(), delivery.refusal.as_ref());
        let record = match key {
            Some(key) => record.key(key).headers(headers),
            None => record.headers(headers),
        };
        self.producer.send(record).map_err(|(error, _)| error)
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

impl Session for KafkaSession {
    fn publish(&mut self, deliveries: Vec<Delivery>) {
        self.backlog.extend(deliveries);
        self.send_backlog();
    }

    async fn progress(&mut self) -> Result<Progress, SessionError> {
        let progress = self.producer.context().next().await;
        if progress.is_ok() {
            self.send_backlog();
        }
        progress
    }

    async fn close(mut self) {
        self.over.store(true, Ordering::Release);
        self.producer
            .purge(PurgeConfig::default().queue().inflight());
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, &mut self.ended).await;
        // To destroy a producer blocks.
        let _ = tokio::task::spawn_blocking(move || drop(self)).await;
    }
}

impl Drop for KafkaSession {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
    }
}

struct Poller {
    producer: Arc<BaseProducer<Reports>>,
    topic: String,
    over: Arc<AtomicBool>,
}

impl Poller {
    fn run(&self) {
        let mut probe_due = Instant::now();
        while !self.over.load(Ordering::Acquire) {
            self.producer.poll(POLL);
            let reports = self.producer.context();
            reports.tick();
            if reports.is_stalled() && probe_due <= Instant::now() {
                let found = self
                    .producer
                    .client()
                    .fetch_metadata(Some(&self.topic), PROBE_TIMEOUT);
                if found.is_ok() {
                    reports.flowing();
                }
                probe_due = Instant::now() + PROBE_EVERY;
            }
        }
    }
}
