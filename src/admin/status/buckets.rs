//! The buckets of a histogram, and estimates from them.

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Upper bounds, the last of which is infinite, and how many observations are not above each.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Buckets(Vec<(f64, u64)>);

impl Buckets {
    /// What a histogram has counted. The crate gives buckets only as text.
    pub(super) fn of(histogram: &Histogram) -> Self {
        let mut registry = Registry::default();
        registry.register("h", "", histogram.clone());
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = encode(&mut text, &registry);
        let bucket = |line: &str| {
            let (bound, count) = line.strip_prefix("h_bucket{le=\"")?.split_once("\"} ")?;
            Some((bound.parse().ok()?, count.parse().ok()?))
        };
        Self(text.lines().filter_map(bucket).collect())
    }

    /// What was counted after `earlier`, which has the same bounds.
    pub(super) fn since(&self, earlier: &Self) -> Self {
        let counts = earlier.0.iter().map(|(_, count)| *count);
        let counts = counts.chain(std::iter::repeat(0));
        let buckets = self.0.iter().zip(counts);
        Self(
            buckets
                .map(|((bound, count), before)| (*bound, count.saturating_sub(before)))
                .collect(),
        )
    }

    /// The value that the part `quantile` of the observations does not exceed: an estimate that assumes that those in
    /// a bucket are spread evenly, as Prometheus does. If it is above the highest finite bound, that bound. None if
    /// there are no observations.
    #[expect(clippy::cast_precision_loss, reason = "metrics are doubles")]
    pub(super) fn quantile(&self, quantile: f64) -> Option<f64> {
        let (_, total) = *self.0.last()?;
        if total == 0 {
            return None;
        }
        let rank = quantile * total as f64;
        let (mut lower, mut below) = (0.0, 0);
        for (bound, count) in &self.0 {
            if *count as f64 >= rank && bound.is_finite() && *count > below {
                let part = (rank - below as f64) / (count - below) as f64;
                return Some(lower + (bound - lower) * part.clamp(0.0, 1.0));
            }
            if bound.is_finite() {
                (lower, below) = (*bound, *count);
            }
        }
        Some(lower)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observed(values: impl IntoIterator<Item = f64>) -> Histogram {
        let histogram = Histogram::new([1.0, 2.0, 4.0]);
        values
            .into_iter()
            .for_each(|value| histogram.observe(value));
        histogram
    }

    #[test]
    fn buckets_are_those_of_the_histogram() {
        let buckets = Buckets::of(&observed([0.5, 1.0, 1.5, 9.0]));
        assert_eq!(
            buckets,
            Buckets(vec![(1.0, 2), (2.0, 3), (4.0, 3), (f64::INFINITY, 4)])
        );
    }

    #[test]
    fn a_quantile_is_interpolated_within_its_bucket() {
        let quantile = |values: &[f64], quantile| {
            Buckets::of(&observed(values.iter().copied())).quantile(quantile)
        };
        assert_eq!(quantile(&[], 0.5), None);
        assert_eq!(quantile(&[0.1], 0.5), Some(0.5));
        assert_eq!(quantile(&[1.5, 1.5], 0.5), Some(1.5));
        assert_eq!(quantile(&[0.5, 0.5, 3.0, 3.0], 0.75), Some(3.0));
        // Above the highest bound.
        assert_eq!(quantile(&[9.0], 0.99), Some(4.0));
    }

    #[test]
    fn only_what_was_observed_since_counts() {
        let histogram = observed([0.5; 100]);
        let before = Buckets::of(&histogram);
        assert_eq!(before.since(&before).quantile(0.5), None);
        histogram.observe(3.0);
        let since = Buckets::of(&histogram).since(&before);
        assert_eq!(since.quantile(0.5), Some(3.0));
    }
}
