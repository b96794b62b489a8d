//! Budgets of memory for what clients send.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::warn;

use crate::setting::Size;
use crate::telemetry::Recurrence;
use crate::upstream::Reserve;

/// Bytes per semaphore permit.
const UNIT: usize = 256;

fn units(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX)
}

/// A budget of memory. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Budget {
    /// Its setting, for the log.
    setting: &'static str,
    permits: Arc<Semaphore>,
    bytes: usize,
    /// What requests for a backend must leave free for other requests.
    kept_free: usize,
    used_up: Arc<Recurrence>,
}

/// All of a budget is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct UsedUp;

impl Budget {
    /// A budget of `size`, the value of `setting`.
    pub(super) fn new(setting: &'static str, size: Size) -> Self {
        let bytes = usize::try_from(size.0).unwrap_or(usize::MAX);
        let permits = (units(bytes) as usize).min(Semaphore::MAX_PERMITS);
        Self {
            setting,
            permits: Arc::new(Semaphore::new(permits)),
            bytes,
            kept_free: 0,
            used_up: Arc::default(),
        }
    }

    /// Keeps half of the budget free of requests for a backend, so that no recall is refused because of them.
    pub(super) fn keep_half(self) -> Self {
        let kept_free = self.bytes / 2;
        Self { kept_free, ..self }
    }

    /// The bytes in use, as a metric.
    pub(super) fn used_bytes(&self) -> UsedBytes {
        UsedBytes {
            permits: Arc::clone(&self.permits),
            // Only called before the first request.
            all: self.permits.available_permits(),
        }
    }

    /// A permit for this many bytes.
    pub(super) fn acquire(&self, bytes: usize) -> Result<OwnedSemaphorePermit, UsedUp> {
        self.acquire_units(units(bytes.min(self.bytes)))
    }

    /// Waits for a permit for this many bytes. Who waits longest gets it first.
    pub(super) async fn wait(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let permits = Arc::clone(&self.permits);
        let acquired = permits.acquire_many_owned(units(bytes.min(self.bytes)));
        acquired.await.ok()
    }

    /// Enlarges the permit to this many bytes. A single body can always get its permit, however large it is.
    pub(super) fn enlarge(
        &self,
        permit: &mut OwnedSemaphorePermit,
        bytes: usize,
    ) -> Result<(), UsedUp> {
        let has = u32::try_from(permit.num_permits()).unwrap_or(u32::MAX);
        let missing = units(bytes.min(self.bytes)).saturating_sub(has);
        if missing > 0 {
            permit.merge(self.acquire_units(missing)?);
        }
        Ok(())
    }

    /// Enlarges the permit on demand, and holds it until the result is dropped. Leaves free what is to be kept free.
    pub(super) fn reserve(&self, mut permit: OwnedSemaphorePermit) -> Reserve {
        let budget = self.clone();
        Box::new(move |bytes| {
            let bytes = bytes.min(budget.bytes - budget.kept_free);
            let missing = (units(bytes) as usize).saturating_sub(permit.num_permits());
            (missing == 0 || budget.has_left(missing * UNIT))
                && budget.enlarge(&mut permit, bytes).is_ok()
        })
    }

    /// Reserves this many bytes; none if they are not free, or are to be kept free.
    pub(super) fn reserve_new(&self, bytes: usize) -> Option<Reserve> {
        let mut reserve = self.reserve(self.acquire(0).ok()?);
        reserve(bytes).then_some(reserve)
    }

    /// Whether what is to be kept free would still be free after taking this many bytes more.
    pub(super) fn has_left(&self, bytes: usize) -> bool {
        self.permits.available_permits() >= self.kept_free.div_ceil(UNIT) + bytes.div_ceil(UNIT)
    }

    fn acquire_units(&self, units: u32) -> Result<OwnedSemaphorePermit, UsedUp> {
        let permits = Arc::clone(&self.permits);
        permits.try_acquire_many_owned(units).map_err(|_| {
            self.log_used_up();
            UsedUp
        })
    }

    fn log_used_up(&self) {
        if let Some((lasted, times)) = self.used_up.occurred(Instant::now()) {
            let (setting, bytes) = (self.setting, self.bytes);
            let free = self.permits.available_permits() * UNIT;
            warn!(
                code = "memory_budget_used_up",
                setting,
                bytes,
                free,
                times,
                seconds = lasted.as_secs(),
                "clients need more memory than the setting allows, and some are refused or must wait; use a faster \
                 disk, find out who sends large or slow bodies or opens many connections, or raise the limit"
            );
        }
    }
}

/// The bytes of a budget that are in use, as a metric.
#[derive(Debug)]
pub(super) struct UsedBytes {
    permits: Arc<Semaphore>,
    all: usize,
}

impl EncodeMetric for UsedBytes {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let used = self.all.saturating_sub(self.permits.available_permits());
        encoder.encode_gauge(&((used * UNIT) as u64))
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Gauge
    }
}
