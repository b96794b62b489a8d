//! When the listener's certificate expires: a metric, and log lines before and after.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
use tracing::{error, warn};

use crate::setting::ServerCertificate;
use crate::telemetry::Reminder;

/// The certificate that handshakes use; None without TLS.
pub(super) type CurrentCertificate = Arc<RwLock<Option<ServerCertificate>>>;

/// How long before its end a certificate expires soon. Let's Encrypt's are renewed 30 days before.
const SOON: SignedDuration = SignedDuration::from_hours(14 * 24);

/// How often it is logged that a certificate expires soon.
const WARN_EVERY: SignedDuration = SignedDuration::from_hours(24);

/// How often the clock is looked at. The system may be suspended, or its clock set.
const CHECK_EVERY: Duration = Duration::from_secs(60);

/// Read at each scrape. Without TLS, the metric has no value.
#[derive(Debug)]
pub(super) struct Expiry(pub(super) CurrentCertificate);

impl Collector for Expiry {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let metric = encoder.encode_descriptor(
            "http_tls_certificate_expiry_timestamp",
            "The earliest time at which a certificate in the chain of `http.tls.cert` expires, in Unix time. No value \
             without TLS.",
            Some(&Unit::Seconds),
            MetricType::Gauge,
        )?;
        let current = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let expires = current.as_ref().map(|current| current.expires);
        expires.map_or(Ok(()), |expires| {
            ConstGauge::new(expires.as_second()).encode(metric)
        })
    }
}

/// What has been logged about one certificate.
#[derive(Debug, Default)]
pub(super) struct ExpiryLog {
    warned: Option<Timestamp>,
    expired: Option<Reminder>,
}

impl ExpiryLog {
    /// Logs what is due. Returns how long the next check can wait.
    pub(super) fn check(
        &mut self,
        certificate: &ServerCertificate,
        now: Timestamp,
        instant: Instant,
    ) -> Duration {
        let ServerCertificate { path, expires, .. } = certificate;
        let file = path.display();
        let left = expires.duration_since(now);
        if left <= SignedDuration::ZERO {
            let reminder = self.expired.get_or_insert_with(|| Reminder::new(instant));
            if reminder.due(instant).is_some() {
                error!(
                    code = "certificate_expired", %file, %expires, seconds = left.unsigned_abs().as_secs(),
                    "certificate of http.tls.cert has expired: clients that check it send no callbacks; replace the \
                     file (this needs no restart)"
                );
            }
            return CHECK_EVERY;
        }
        self.expired = None;
        let is_due = self
            .warned
            .is_none_or(|warned| now.duration_since(warned) >= WARN_EVERY);
        if left <= SOON && is_due {
            self.warned = Some(now);
            warn!(
                code = "certificate_expiring", %file, %expires, days = left.as_hours() / 24,
                "certificate of http.tls.cert expires soon, and from then on clients that check it send no callbacks; \
                 replace the file (this needs no restart)"
            );
        }
        // Not before it has expired.
        let until_expired = left.unsigned_abs() + Duration::from_millis(1);
        CHECK_EVERY.min(until_expired)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setting::ServerTls;
    use crate::telemetry::CapturedLog;

    const DAY: i64 = 24 * 60 * 60;

    fn certificate(expires: Timestamp) -> ServerCertificate {
        let folder = tempfile::tempdir().unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["relay".to_owned()]).unwrap();
        let [cert_file, key_file] = ["cert", "key"].map(|name| folder.path().join(name));
        std::fs::write(&cert_file, params.self_signed(&key).unwrap().pem()).unwrap();
        std::fs::write(&key_file, key.serialize_pem()).unwrap();
        let tls = ServerTls {
            cert: Some(cert_file),
            key: Some(key_file),
            client_ca: None,
        };
        ServerCertificate {
            expires,
            path: "tls.crt".into(),
            ..tls.read().unwrap().unwrap()
        }
    }

    #[test]
    fn the_log_warns_daily_from_14_days_before_and_reports_errors_afterwards() {
        let expires = Timestamp::from_second(1_800_000_000).unwrap();
        let certificate = certificate(expires);
        let began = Instant::now();
        let mut log = ExpiryLog::default();
        let mut lines = Vec::new();
        // Every minute from 20 days before until two hours after.
        for minute in -20 * 24 * 60..=2 * 60_i64 {
            let now = expires.as_second() + minute * 60;
            let instant = began
                + Duration::from_secs(u64::try_from(now - expires.as_second() + 20 * DAY).unwrap());
            let now = Timestamp::from_second(now).unwrap();
            let logged = CapturedLog::default().lines(|| {
                log.check(&certificate, now, instant);
            });
            lines.extend(logged.into_iter().map(|line| (minute, line)));
        }
        let minutes: Vec<i64> = lines.iter().map(|(minute, _)| *minute).collect();
        let daily = (-14..0).map(|day| day * 24 * 60);
        let expected: Vec<i64> = daily.chain([0, 1, 5, 30, 60, 120]).collect();
        assert_eq!(minutes, expected);
        let line = |at: i64| {
            lines
                .iter()
                .find(|(minute, _)| *minute == at)
                .unwrap()
                .1
                .clone()
        };
        assert_eq!(
            line(-13 * 24 * 60),
            "certificate_expiring file=tls.crt expires=2027-01-15T08:00:00Z days=13"
        );
        assert_eq!(
            line(5),
            "certificate_expired file=tls.crt expires=2027-01-15T08:00:00Z seconds=300"
        );
    }

    #[test]
    fn the_end_of_a_certificate_is_noticed_at_once() {
        let expires = Timestamp::from_second(1_800_000_000).unwrap();
        let certificate = certificate(expires);
        let wait = |seconds| {
            let now = expires - SignedDuration::from_secs(seconds);
            ExpiryLog::default().check(&certificate, now, Instant::now())
        };
        assert_eq!(wait(100 * DAY), CHECK_EVERY);
        assert_eq!(wait(2), Duration::from_millis(2001));
        assert_eq!(wait(-2), CHECK_EVERY);
    }
}
