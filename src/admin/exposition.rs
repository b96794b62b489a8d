//! The text formats of `/metrics`, and which one a scraper gets.

use std::fmt::{self, Write as _};

use hyper::HeaderMap;
use hyper::header::ACCEPT;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

/// A text format for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ExpositionFormat {
    /// Prometheus text, which every scraper reads.
    Prometheus,
    /// OpenMetrics text, which has units, too.
    OpenMetrics,
}

impl ExpositionFormat {
    /// The format that `Accept` gives the higher quality (RFC 9110, section 12.5.1); Prometheus text if it prefers
    /// neither, accepts neither or is absent: a scraper rather reads that than 406.
    pub(super) fn negotiate(headers: &HeaderMap) -> Self {
        let quality = |name, version| {
            let values = headers.get_all(ACCEPT).into_iter();
            let values = values.filter_map(|value| value.to_str().ok());
            let ranges = values.flat_map(|value| value.split(','));
            let matching = ranges.filter_map(|range| matched(range, name, version));
            matching
                .max_by(|one, other| (one.0.cmp(&other.0)).then(one.1.total_cmp(&other.1)))
                .map_or(0.0, |(_, quality)| quality)
        };
        if quality("application/openmetrics-text", "1.0.0") > quality("text/plain", "0.0.4") {
            Self::OpenMetrics
        } else {
            Self::Prometheus
        }
    }

    /// The value of `Content-Type`.
    pub(super) const fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// The metrics in this format. Blocks as long as the registry's collectors do.
    ///
    /// # Errors
    /// Fails if a metric cannot be encoded.
    pub(super) fn encode(self, registry: &Registry) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, registry)?;
        Ok(match self {
            Self::Prometheus => to_prometheus(&text),
            Self::OpenMetrics => text,
        })
    }
}

/// How specific a media range is and the quality that it gives, if the media type is in it. A version, if there is one,
/// has to be the type's; other parameters, such as Prometheus' `escaping`, are ignored.
fn matched(range: &str, name: &str, version: &str) -> Option<(u8, f32)> {
    let mut parts = range.split(';').map(str::trim);
    let range = parts.next()?.to_ascii_lowercase();
    let mut specificity = if range == name {
        2
    } else if range
        .strip_suffix('*')
        .is_some_and(|all| all.ends_with('/') && name.starts_with(all))
    {
        1
    } else if range == "*/*" {
        0
    } else {
        return None;
    };
    let mut quality = 1.0;
    for (key, value) in parts.filter_map(|part| part.split_once('=')) {
        if key.eq_ignore_ascii_case("q") {
            quality = value.parse().ok().filter(|q| (0.0..=1.0).contains(q))?;
        } else if key.eq_ignore_ascii_case("version") {
            if value.trim_matches('"') != version {
                return None;
            }
            specificity += 1;
        }
    }
    Some((specificity, quality))
}

/// Converts what `prometheus_client` has encoded: it has no encoder of Prometheus text. The samples are the same in
/// both formats. In Prometheus text, `HELP` and `TYPE` of a counter and an info have the name of its samples, an info
/// is a gauge, and there are neither units nor an end mark.
fn to_prometheus(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    // The help precedes the type.
    let mut help = "";
    for line in open_metrics.lines() {
        if let Some(described) = line.strip_prefix("# HELP ") {
            help = described.split_once(' ').map_or("", |(_, help)| help);
        } else if let Some((name, kind)) = line
            .strip_prefix("# TYPE ")
            .and_then(|typed| typed.split_once(' '))
        {
            let (suffix, kind) = match kind {
                "counter" => ("_total", kind),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                _ => ("", kind),
            };
            let name = [name, suffix].concat();
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        } else if !line.starts_with('#') {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::gauge::Gauge;
    use prometheus_client::metrics::histogram::Histogram;
    use prometheus_client::metrics::info::Info;
    use prometheus_client::registry::Unit;

    use super::*;

    #[test]
    fn accept_decides_the_format() {
        use ExpositionFormat::{OpenMetrics, Prometheus};

        for (accept, format) in [
            (&[][..], Prometheus),
            (&[""], Prometheus),
            (&["*/*"], Prometheus),
            // A browser.
            (
                &["text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"],
                Prometheus,
            ),
            // Prometheus 2 and 3, and one that scrapes with `scrape_protocols: [PrometheusText0.0.4]`.
            (
                &[
                    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                   text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                ],
                OpenMetrics,
            ),
            (
                &[
                    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
                   application/openmetrics-text;version=0.0.1;q=0.4,\
                   text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
                ],
                OpenMetrics,
            ),
            (&["text/plain;version=0.0.4;q=0.2,*/*;q=0.1"], Prometheus),
            // VictoriaMetrics.
            (&["text/plain;version=0.0.4;q=1,*/*;q=0.1"], Prometheus),
            // Quality decides, not the order.
            (
                &["text/plain;q=0.3,application/openmetrics-text;q=0.5"],
                OpenMetrics,
            ),
            (
                &["application/openmetrics-text;q=0.3,text/plain;q=0.5"],
                Prometheus,
            ),
            (&["application/openmetrics-text,text/plain"], Prometheus),
            // The most specific range decides, even against one of higher quality.
            (&["*/*,application/openmetrics-text;q=0.1"], Prometheus),
            (&["*/*,text/plain;q=0.1"], OpenMetrics),
            (&["text/*;q=0.1,*/*"], OpenMetrics),
            (&["application/*;q=0.2,text/*;q=0.1"], OpenMetrics),
            (
                &[
                    "text/plain;q=0.9,text/plain;version=0.0.4;q=0.1,application/openmetrics-text;q=0.5",
                ],
                OpenMetrics,
            ),
            (
                &[
                    "application/openmetrics-text;version=1.0.0;q=0.1,application/openmetrics-text,text/plain;q=0.5",
                ],
                Prometheus,
            ),
            // 0 is not acceptable.
            (&["application/openmetrics-text;q=0"], Prometheus),
            (&["text/plain;q=0,*/*;q=0.001"], OpenMetrics),
            // Only our version.
            (&["application/openmetrics-text;version=0.0.1"], Prometheus),
            (
                &["application/openmetrics-text;version=2.0.0,text/plain;q=0.1"],
                Prometheus,
            ),
            // Case, white space, quotes, several lines.
            (
                &["Application/OpenMetrics-Text ; Version=\"1.0.0\" ;\tQ=0.5 , text/plain ; q=0.4"],
                OpenMetrics,
            ),
            (
                &["text/plain;q=0.5", "application/openmetrics-text"],
                OpenMetrics,
            ),
            // What cannot be read does not count.
            (&["application/openmetrics-text;q=nan"], Prometheus),
            (
                &["application/openmetrics-text;q=2,text/plain;q=0.1"],
                Prometheus,
            ),
            (
                &["application/openmetrics-text;q=,,;;q=1,/,*,text"],
                Prometheus,
            ),
            (&["application/openmetrics-textual, a*, app*"], Prometheus),
        ] {
            let mut headers = HeaderMap::new();
            for value in accept {
                headers.append(ACCEPT, HeaderValue::from_str(value).unwrap());
            }
            assert_eq!(ExpositionFormat::negotiate(&headers), format, "{accept:?}");
        }
    }

    #[test]
    fn both_formats_have_the_same_samples() {
        let mut registry = Registry::default();
        let counter: Counter = Counter::default();
        counter.inc();
        registry.register("calls", "Calls", counter);
        let gauge: Gauge = Gauge::default();
        registry.register_with_unit("used", "Bytes # used", Unit::Bytes, gauge);
        registry.register_with_unit("took", "Time", Unit::Seconds, Histogram::new([0.5]));
        registry.register("build", "Version", Info::new([("version", "# EOF\n")]));
        assert_eq!(
            ExpositionFormat::Prometheus.encode(&registry).unwrap(),
            "# HELP calls_total Calls.\n\
             # TYPE calls_total counter\n\
             calls_total 1\n\
             # HELP used_bytes Bytes # used.\n\
             # TYPE used_bytes gauge\n\
             used_bytes 0\n\
             # HELP took_seconds Time.\n\
             # TYPE took_seconds histogram\n\
             took_seconds_sum 0.0\n\
             took_seconds_count 0\n\
             took_seconds_bucket{le=\"0.5\"} 0\n\
             took_seconds_bucket{le=\"+Inf\"} 0\n\
             # HELP build_info Version.\n\
             # TYPE build_info gauge\n\
             build_info{version=\"# EOF\\n\"} 1\n"
        );
        assert_eq!(
            ExpositionFormat::OpenMetrics.encode(&registry).unwrap(),
            "# HELP calls Calls.\n\
             # TYPE calls counter\n\
             calls_total 1\n\
             # HELP used_bytes Bytes # used.\n\
             # TYPE used_bytes gauge\n\
             # UNIT used_bytes bytes\n\
             used_bytes 0\n\
             # HELP took_seconds Time.\n\
             # TYPE took_seconds histogram\n\
             # UNIT took_seconds seconds\n\
             took_seconds_sum 0.0\n\
             took_seconds_count 0\n\
             took_seconds_bucket{le=\"0.5\"} 0\n\
             took_seconds_bucket{le=\"+Inf\"} 0\n\
             # HELP build Version.\n\
             # TYPE build info\n\
             build_info{version=\"# EOF\\n\"} 1\n\
             # EOF\n"
        );
    }
}
