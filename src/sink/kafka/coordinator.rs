//! Calls to the cluster's transaction coordinator. They block, so they run on blocking threads.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, Producer as _};
use tokio::task::{JoinHandle, spawn_blocking};
use tracing::info;
use uuid::Uuid;

use super::errors::stopping;
use super::group_offset::{Committed, GroupOffset};
use super::producer::Producer;
use super::reports::Reports;
use super::rights::TopicRight;
use crate::sink::{CommittedPosition, SessionError};

/// Timeout of one blocking call, except sending the offset. The stop flag and the deadline are checked between calls.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(1);

/// How long the group's coordinator may take to accept the offset; after that, the transaction fails. If the
/// coordinator does not answer at all, the call takes longer (librdkafka issue 5456).
const OFFSET_TIMEOUT: Duration = Duration::from_secs(20);

/// How long to wait for another thread to finish handling a delivery report, before checking again.
const REPORT_PAUSE: Duration = Duration::from_micros(100);

/// How long the cluster may take to initialize a new producer: it first ends the transaction of an earlier one.
const INIT_TIMEOUT: Duration = Duration::from_secs(30);

/// How long the cluster may take to abort. After that, another producer ends the transaction.
const ABORT_TIMEOUT: Duration = Duration::from_secs(10);

/// The identity under which the cluster knows this relay.
#[derive(Debug)]
pub(super) struct Identity {
    /// The transactional id, which is also the name of the consumer group.
    pub id: String,
    /// Identifies this process.
    owner: Uuid,
    /// The owner that this process replaced. Set before this process first writes its own owner to the cluster.
    replaced: Arc<OnceLock<Option<Uuid>>>,
}

impl Identity {
    /// The identity of a spool's relay.
    pub(super) fn of(spool_id: Uuid) -> Self {
        Self {
            id: format!("recall-relay-{spool_id}"),
            owner: Uuid::new_v4(),
            replaced: Arc::default(),
        }
    }
}

/// Begins and ends the transactions of one producer.
pub(super) struct Coordinator {
    producer: Arc<BaseProducer<Reports>>,
    offset: GroupOffset,
    stopped: Arc<AtomicBool>,
}

impl Coordinator {
    /// Ends the transaction of an earlier producer, reads the committed position, and registers this process as the
    /// owner. Returns the position, as far as the cluster knows it.
    ///
    /// # Errors
    /// [`SessionError::Fenced`] if another process has registered since this one did.
    pub(super) async fn open(
        session_producer: &Producer,
        client: &ClientConfig,
        topic: &str,
        identity: &Identity,
    ) -> Result<(Self, CommittedPosition), SessionError> {
        let (producer, stopped) = (
            Arc::clone(session_producer.client()),
            Arc::clone(session_producer.stopped()),
        );
        let (client, topic) = (client.clone(), topic.to_owned());
        let (id, owner) = (identity.id.clone(), identity.owner);
        let replaced = Arc::clone(&identity.replaced);
        let open = move || {
            let deadline = Instant::now() + INIT_TIMEOUT;
            let cancelled = || stopped.load(Ordering::Acquire) || Instant::now() >= deadline;
            let (id, topic) = (id.as_str(), topic.as_str());
            let reports = producer.context();
            let failed = |action: &str, right| {
                let action = format!("{action} {id}");
                move |error: KafkaError| reports.request_failed(action, right, topic, error)
            };
            // This fences an earlier producer, and waits until its transaction has ended.
            retry(cancelled, || producer.init_transactions(CALL_TIMEOUT)).map_err(failed(
                "could not initialize transactions of transactional id",
                TopicRight::Write,
            ))?;
            let (offset, committed) = GroupOffset::read(&client, id, topic, owner, INIT_TIMEOUT)
                .map_err(failed(
                    "could not read the committed offset of consumer group",
                    TopicRight::Describe,
                ))?;
            let last_owner = committed.as_ref().and_then(|found| found.owner);
            // If the cluster has lost its newest offsets, it returns the owner that this process replaced.
            let is_known = last_owner.is_none_or(|last| last == owner)
                || replaced
                    .get()
                    .is_some_and(|replaced| *replaced == last_owner);
            if replaced.get().is_some() && !is_known {
                return Err(SessionError::Fenced(format!(
                    "another relay publishes as {id}: it runs on the same spool or a copy of it; stop one of \
                     the two, then restart the other"
                )));
            }
            replaced.get_or_init(|| {
                info!(
                    code = "exactly_once_started",
                    transactional_id = id,
                    "transactions are initialized: events are published exactly once"
                );
                last_owner
            });
            let position = position(id, committed);
            let coordinator = Self {
                producer: Arc::clone(&producer),
                offset,
                stopped: Arc::clone(&stopped),
            };
            // Write our owner now, so that another process with this id finds out that it was replaced.
            coordinator
                .producer
                .begin_transaction()
                .and_then(|()| coordinator.commit(position, cancelled))
                .map_err(failed(
                    "could not commit the offset of consumer group",
                    TopicRight::Read,
                ))?;
            Ok((coordinator, position))
        };
        spawn_blocking(open).await.map_err(stopping)?
    }

    /// The transaction's error, if any. librdkafka returns it only to a call that would begin another transaction.
    pub(super) async fn failure(self: &Arc<Self>) -> Option<KafkaError> {
        let coordinator = Arc::clone(self);
        let asked = spawn_blocking(move || coordinator.producer.begin_transaction());
        asked.await.ok()?.err()
    }

    /// Commits the transaction with this offset in it, and begins another one.
    pub(super) fn start_commit(
        self: &Arc<Self>,
        position: CommittedPosition,
    ) -> JoinHandle<KafkaResult<()>> {
        let coordinator = Arc::clone(self);
        spawn_blocking(move || {
            coordinator.commit(position, || coordinator.stopped.load(Ordering::Acquire))
        })
    }

    /// Commits the transaction with this offset in it, and begins another one. Beginning one is local: the cluster
    /// learns of it only with its first records.
    fn commit(&self, position: CommittedPosition, cancelled: impl Fn() -> bool) -> KafkaResult<()> {
        let producer = &self.producer;
        retry(&cancelled, || {
            self.offset.send(position, producer, OFFSET_TIMEOUT)
        })?;
        // Another thread handles the last delivery report, and the record counts as in flight until it has finished.
        // The call below would wait for further reports, which do not come.
        while producer.in_flight_count() > 0 && !cancelled() {
            thread::park_timeout(REPORT_PAUSE);
        }
        retry(&cancelled, || producer.commit_transaction(CALL_TIMEOUT))?;
        producer.begin_transaction()
    }

    /// Aborts the transaction, and begins another one.
    pub(super) fn start_abort(self: &Arc<Self>) -> JoinHandle<KafkaResult<()>> {
        let coordinator = Arc::clone(self);
        let deadline = Instant::now() + ABORT_TIMEOUT;
        spawn_blocking(move || {
            let cancelled =
                || coordinator.stopped.load(Ordering::Acquire) || Instant::now() >= deadline;
            retry(cancelled, || {
                coordinator.producer.abort_transaction(CALL_TIMEOUT)
            })?;
            coordinator.producer.begin_transaction()
        })
    }
}

/// The position that the cluster keeps for the relay.
fn position(group: &str, committed: Option<Committed>) -> CommittedPosition {
    if committed.is_none() {
        info!(
            code = "committed_position_missing",
            group,
            "consumer group has no committed offset: the relay is new to this cluster, or was stopped for longer than \
             offsets.retention.minutes; continuing from the spool's cursor"
        );
    }
    committed.map(|found| found.position).unwrap_or_default()
}

/// Repeats a call that timed out, as librdkafka requires.
fn retry(
    cancelled: impl Fn() -> bool,
    mut call: impl FnMut() -> KafkaResult<()>,
) -> KafkaResult<()> {
    loop {
        match call() {
            Err(error) if is_retriable(&error) && !cancelled() => {}
            outcome => return outcome,
        }
    }
}

fn is_retriable(error: &KafkaError) -> bool {
    match error {
        KafkaError::Transaction(error) => error.is_retriable(),
        KafkaError::Flush(code) => *code == RDKafkaErrorCode::OperationTimedOut,
        _ => false,
    }
}

/// Whether a retry may succeed after the transaction is aborted.
pub(super) fn is_abortable(error: &KafkaError) -> bool {
    matches!(error, KafkaError::Transaction(error) if error.txn_requires_abort())
}
