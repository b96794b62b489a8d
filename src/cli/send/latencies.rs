//! Latencies of answers: their quantiles, and how many there are in logarithmic buckets.

use std::time::Duration;

use anyhow::Context as _;
use hdrhistogram::Histogram;

/// The quantiles that are reported, with their names.
pub const QUANTILES: [(&str, f64); 4] =
    [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)];

/// Bounds of buckets within a factor of ten, in tenths: coarse, the same in every report.
pub const COARSE: &[u64] = &[10, 20, 50];

/// From fine to coarse.
const FINENESSES: [&[u64]; 4] = [
    &[10, 12, 15, 20, 25, 30, 40, 50, 60, 80],
    &[10, 15, 20, 30, 50, 70],
    COARSE,
    &[10],
];

/// Latencies with three significant digits, up to one hour. Its size does not grow.
#[derive(Debug)]
pub struct Latencies(Histogram<u64>);

/// How many latencies are above the bound of the previous bucket, and not above this one's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LatencyBucket {
    /// The bound in microseconds.
    pub up_to_micros: u64,
    /// How many latencies there are.
    pub count: u64,
}

impl Latencies {
    /// No latencies.
    ///
    /// # Errors
    /// Fails if memory for the histogram cannot be allocated.
    pub fn new() -> anyhow::Result<Self> {
        let hour = 3_600_000_000;
        let histogram = Histogram::new_with_bounds(1, hour, 3).context("making a histogram")?;
        Ok(Self(histogram))
    }

    /// Adds one; more than an hour counts as an hour.
    pub fn record(&mut self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.0.saturating_record(micros);
    }

    /// Removes all.
    pub fn clear(&mut self) {
        self.0.reset();
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The latency that this part of all latencies does not exceed, in microseconds.
    pub fn micros_at(&self, quantile: f64) -> u64 {
        self.0.value_at_quantile(quantile)
    }

    /// The longest, in microseconds.
    pub fn max_micros(&self) -> u64 {
        self.0.max()
    }

    /// The finest buckets of which no more than `most` are needed, from the shortest latency to the longest.
    pub fn at_most_buckets(&self, most: usize) -> Vec<LatencyBucket> {
        let mut buckets = Vec::new();
        for mantissas in FINENESSES {
            buckets = self.buckets(mantissas);
            if buckets.len() <= most {
                break;
            }
        }
        buckets
    }

    /// Buckets with these bounds, times powers of ten, from the shortest latency to the longest; none if there are no
    /// latencies.
    pub fn buckets(&self, mantissas: &[u64]) -> Vec<LatencyBucket> {
        let powers = (0..).map_while(|exponent| 10_u64.checked_pow(exponent));
        let bounds = powers.flat_map(|power| {
            let bounds = mantissas.iter().filter_map(move |tenths| {
                let bound = tenths.checked_mul(power)?;
                (bound % 10 == 0).then_some(bound / 10)
            });
            bounds.collect::<Vec<_>>()
        });
        let mut latencies = self.0.iter_recorded().peekable();
        let mut buckets = Vec::new();
        for up_to_micros in bounds {
            if latencies.peek().is_none() {
                break;
            }
            let mut count = 0;
            while let Some(latency) = latencies.next_if(|latency| {
                // The histogram gives the largest of those that it cannot tell apart.
                self.0.lowest_equivalent(latency.value_iterated_to()) <= up_to_micros
            }) {
                count += latency.count_at_value();
            }
            // Empty buckets before the shortest latency are left out, others are not.
            if count > 0 || !buckets.is_empty() {
                buckets.push(LatencyBucket {
                    up_to_micros,
                    count,
                });
            }
        }
        buckets
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn latencies(micros: &[u64]) -> Latencies {
        let mut latencies = Latencies::new().unwrap();
        for micros in micros {
            latencies.record(Duration::from_micros(*micros));
        }
        latencies
    }

    fn pairs(buckets: &[LatencyBucket]) -> Vec<(u64, u64)> {
        let pair = |bucket: &LatencyBucket| (bucket.up_to_micros, bucket.count);
        buckets.iter().map(pair).collect()
    }

    #[test]
    fn buckets_are_logarithmic_and_have_no_gaps() {
        let buckets = latencies(&[200, 201, 500, 500, 3_000, 2_000_000]).buckets(COARSE);
        assert_eq!(
            pairs(&buckets),
            [
                (200, 1),
                (500, 3),
                (1_000, 0),
                (2_000, 0),
                (5_000, 1),
                (10_000, 0),
                (20_000, 0),
                (50_000, 0),
                (100_000, 0),
                (200_000, 0),
                (500_000, 0),
                (1_000_000, 0),
                (2_000_000, 1),
            ]
        );
        assert_eq!(latencies(&[]).buckets(COARSE), []);
    }

    #[test]
    fn as_fine_as_fits() {
        let narrow = latencies(&[1_000, 1_100, 1_300]).at_most_buckets(15);
        assert_eq!(pairs(&narrow), [(1_000, 1), (1_200, 1), (1_500, 1)]);
        let all = [1, 30, 4_000, 500_000, 3_600_000_000];
        let wide = latencies(&all).at_most_buckets(15);
        assert_eq!(wide.len(), 11);
        assert_eq!(wide.iter().map(|bucket| bucket.count).sum::<u64>(), 5);
        assert_eq!(wide[10].up_to_micros, 10_000_000_000);
    }

    #[test]
    fn what_is_longer_than_an_hour_counts_as_an_hour() {
        let mut latencies = Latencies::new().unwrap();
        latencies.record(Duration::MAX);
        latencies.record(Duration::ZERO);
        assert_eq!(latencies.count(), 2);
        assert!(latencies.max_micros() >= 3_600_000_000);
        let counted: u64 = latencies.buckets(COARSE).iter().map(|it| it.count).sum();
        assert_eq!(counted, 2);
    }
}
