//! Reads bodies, within the memory budget of all callbacks together.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use http_body_util::BodyExt as _;
use hyper::body::Body;
use prometheus_client::encoding::{EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::answer::Outcome;
use super::config::Config;
use super::durability::NotKept;
use crate::upstream::Reserve;

/// Bytes per semaphore permit.
const UNIT: usize = 256;

fn units(bytes: usize) -> u32 {
    u32::try_from(bytes / UNIT + 1).unwrap_or(u32::MAX)
}

/// Reads bodies and hands out the permits for their memory.
#[derive(Debug, Clone)]
pub(super) struct BodyReader {
    permits: Arc<Semaphore>,
    max_bytes: usize,
    max_buffered_bytes: usize,
    timeout: Duration,
}

/// The bytes that requests hold of `http.max_buffered_bytes`, as a metric.
#[derive(Debug)]
pub(super) struct BufferedBytes {
    permits: Arc<Semaphore>,
    all: usize,
}

impl EncodeMetric for BufferedBytes {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let used = self.all.saturating_sub(self.permits.available_permits());
        encoder.encode_gauge(&((used * UNIT) as u64))
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Gauge
    }
}

/// A body and its memory permit, held until the event is durable or dropped, even if the client disconnects: while a
/// disk hangs, waiting events must not take more memory than `http.max_buffered_bytes`.
pub(super) struct Buffered {
    pub(super) body: Bytes,
    pub(super) permit: OwnedSemaphorePermit,
}

impl BodyReader {
    pub(super) fn new(config: &Config) -> Self {
        let bytes = |size: u64| usize::try_from(size).unwrap_or(usize::MAX);
        let max_buffered_bytes = bytes(config.max_buffered_bytes.0);
        let permits = (units(max_buffered_bytes) as usize).min(Semaphore::MAX_PERMITS);
        Self {
            permits: Arc::new(Semaphore::new(permits)),
            max_bytes: bytes(config.max_body_bytes.0),
            max_buffered_bytes,
            timeout: *config.read_timeout,
        }
    }

    pub(super) fn buffered_bytes(&self) -> BufferedBytes {
        BufferedBytes {
            permits: Arc::clone(&self.permits),
            // Only called before the first request.
            all: self.permits.available_permits(),
        }
    }

    /// Reads a body within the size limit and the timeout. `head` is the number of bytes of the request's head that are
    /// kept.
    pub(super) async fn read<B>(
        &self,
        head: usize,
        announced: Option<u64>,
        body: B,
    ) -> Result<Buffered, Outcome>
    where
        B: Body<Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Unpin,
    {
        if announced.is_some_and(|announced| announced > self.max_bytes as u64) {
            return Err(Outcome::TooLarge);
        }
        timeout(self.timeout, self.collect(head, body))
            .await
            .unwrap_or(Err(Outcome::TooSlow))
    }

    /// Collects a body. Permits cover only bytes that have arrived, those of the head included.
    async fn collect<B>(&self, head: usize, mut body: B) -> Result<Buffered, Outcome>
    where
        B: Body<Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Unpin,
    {
        let mut first = Bytes::new();
        let mut rest = Vec::new();
        let mut permit = self.acquire(0)?;
        self.enlarge(&mut permit, head)?;
        while let Some(frame) = body.frame().await {
            let Ok(mut data) = frame.map_err(|_| Outcome::Broken)?.into_data() else {
                continue;
            };
            let length = data.remaining();
            if first.len() + rest.len() + length > self.max_bytes {
                return Err(Outcome::TooLarge);
            }
            // Permits are counted for the whole body, so a client that sends it byte by byte does not take more.
            self.enlarge(&mut permit, head + first.len() + rest.len() + length)?;
            if first.is_empty() {
                first = data.copy_to_bytes(length);
            } else {
                rest.extend_from_slice(&data.copy_to_bytes(length));
            }
        }
        let body = if rest.is_empty() {
            first
        } else {
            [&first, &rest[..]].concat().into()
        };
        Ok(Buffered { body, permit })
    }

    /// Enlarges the permit to this many bytes. A single body can always get its permit, however large it is.
    pub(super) fn enlarge(
        &self,
        permit: &mut OwnedSemaphorePermit,
        bytes: usize,
    ) -> Result<(), Outcome> {
        let bytes = bytes.min(self.max_buffered_bytes);
        let has = u32::try_from(permit.num_permits()).unwrap_or(u32::MAX);
        permit.merge(self.acquire(units(bytes).saturating_sub(has))?);
        Ok(())
    }

    /// Enlarges the permit on demand, and holds it until the result is dropped. Leaves half of the memory to bodies, so
    /// that no recall is refused because of the answers of a backend.
    pub(super) fn reserve(&self, mut permit: OwnedSemaphorePermit) -> Reserve {
        let bodies = self.clone();
        Box::new(move |bytes| {
            let half = bodies.max_buffered_bytes / 2;
            let bytes = bytes.min(half);
            let missing = (units(bytes) as usize).saturating_sub(permit.num_permits());
            (missing == 0 || bodies.has_half_left(missing))
                && bodies.enlarge(&mut permit, bytes).is_ok()
        })
    }

    /// Whether half of the memory would still be free after taking this many permits.
    pub(super) fn has_half_left(&self, more: usize) -> bool {
        self.permits.available_permits() >= self.max_buffered_bytes / 2 / UNIT + more
    }

    /// Reserves this many bytes; none if less than half of the memory would then be free.
    pub(super) fn reserve_new(&self, bytes: usize) -> Option<Reserve> {
        let mut reserve = self.reserve(self.acquire(0).ok()?);
        reserve(bytes).then_some(reserve)
    }

    fn acquire(&self, units: u32) -> Result<OwnedSemaphorePermit, Outcome> {
        Arc::clone(&self.permits)
            .try_acquire_many_owned(units)
            .map_err(|_| {
                Outcome::NotKept(NotKept::Unavailable(
                    "request bodies use all of http.max_buffered_bytes".to_owned(),
                    "use a faster disk, raise http.max_buffered_bytes, or find out who sends large bodies",
                ))
            })
    }
}
