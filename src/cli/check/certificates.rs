//! The certificates in the relay's own files. Those that servers show are reported with the servers.

use std::path::Path;
use std::sync::Arc;

use futures_util::future::join_all;
use jiff::{SignedDuration, Timestamp};

use super::report::{Area, DISK_TIMEOUT};
use crate::config::{self, Loaded};
use crate::setting::CertificateFacts;

/// A certificate that expires within this time is about to. Let's Encrypt's are renewed 30 days before.
const SOON: SignedDuration = SignedDuration::from_hours(14 * 24);

/// How many names of a certificate are shown.
const MAX_NAMES: usize = 5;

/// Whether a certificate is valid now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Validity {
    Valid,
    ExpiresSoon(SignedDuration),
    Expired,
    NotYetValid,
}

impl Validity {
    pub(super) fn of(facts: &CertificateFacts) -> Self {
        Self::at(facts, Timestamp::now())
    }

    fn at(facts: &CertificateFacts, now: Timestamp) -> Self {
        let left = facts.not_after.duration_since(now);
        if facts.not_before > now {
            Self::NotYetValid
        } else if left <= SignedDuration::ZERO {
            Self::Expired
        } else if left <= SOON {
            Self::ExpiresSoon(left)
        } else {
            Self::Valid
        }
    }
}

/// A duration in days, for people.
pub(super) fn days_left(left: SignedDuration) -> String {
    format!("{} days", left.as_hours() / 24)
}

pub(super) async fn check(loaded: Arc<Loaded>, area: Area) {
    let config = &loaded.config;
    let mut named = Vec::new();
    let mut name = |key: &str, path: Option<&Path>| {
        if let Some(path) = path {
            named.push((key.to_owned(), path.to_owned()));
        }
    };
    let tls = &config.http.tls;
    name("http.tls.cert", tls.cert.as_deref());
    name("http.tls.client_ca", tls.client_ca.as_deref());
    if let Some(upstream) = &config.upstream {
        name("upstream.tls.ca", upstream.tls.ca.as_deref());
        name("upstream.tls.cert", upstream.tls.cert.as_deref());
    }
    #[cfg(feature = "kafka")]
    for (key, path) in config
        .kafka
        .iter()
        .flat_map(crate::sink::kafka::Config::certificates)
    {
        name(&key, Some(path));
    }
    #[cfg(feature = "rabbitmq")]
    if let Some(rabbitmq) = &config.rabbitmq {
        name("rabbitmq.tls.ca", rabbitmq.tls.ca.as_deref());
        name("rabbitmq.tls.cert", rabbitmq.tls.cert.as_deref());
    }
    if tls.cert.is_none() {
        let text = "not set: callbacks arrive over plain HTTP, so a proxy in front must speak TLS";
        area.ok("http.tls", text).await;
    }
    let reading = named.into_iter().map(async |(key, path)| {
        let step = format!("reading {}", path.display());
        let name = key.clone();
        let read = area.blocking(&key, &step, DISK_TIMEOUT, move || {
            CertificateFacts::read(&name, &path)
        });
        let read = read.await;
        (key, read)
    });
    let files = join_all(reading).await;
    let problems = if files.iter().any(|(_, read)| read.is_none()) {
        let text =
            "whether the certificates belong to their keys was not tried: reading them would hang";
        area.untried("files", text).await;
        Vec::new()
    } else {
        report_files(&loaded, &area).await
    };
    for (key, read) in &files {
        match read {
            Some(Ok(found)) => report_file(&area, key, found).await,
            Some(Err(error)) if !problems.iter().any(|known| known.contains(key)) => {
                // librdkafka also takes a folder.
                let text = format!("its certificates were not checked: {}", error.problem);
                area.untried(key, text).await;
            }
            // That is reported already.
            Some(Err(_)) | None => {}
        }
    }
}

/// Reports files that cannot be used. Returns why.
async fn report_files(loaded: &Arc<Loaded>, area: &Area) -> Vec<String> {
    let loading = Arc::clone(loaded);
    let step = "reading the files of certificates and keys";
    let read = area.blocking("files", step, DISK_TIMEOUT, move || {
        // The listener's must be usable for a start; the others for their connections.
        [
            loading.server_certificate().err(),
            loading.check_certificates().err(),
        ]
    });
    let problems = read.await.into_iter().flatten().flatten();
    let reasons = problems.flat_map(|problem| config::reasons(&problem.into()));
    let reasons: Vec<_> = reasons.collect();
    for reason in &reasons {
        let action = "correct the setting, or replace the file";
        area.failed("files", reason, action).await;
    }
    reasons
}

/// Reports the certificates of a file.
async fn report_file(area: &Area, key: &str, found: &[Result<CertificateFacts, String>]) {
    let mut certificates = Vec::new();
    for (place, read) in (1..).zip(found) {
        match read {
            Ok(facts) => certificates.push((place, facts)),
            Err(problem) => {
                let text = format!("certificate {place} {problem}");
                let action = "replace it in the file";
                area.warning(key, text, action).await;
            }
        }
    }
    let is_parsed = certificates.len() == found.len();
    let is_own = key.ends_with("cert") || key.ends_with("certificate.location");
    let is_valid = report_validity(area, key, &certificates, is_own).await;
    let is_fine = if is_own && is_parsed {
        let chain: Vec<_> = certificates.iter().map(|(_, facts)| *facts).collect();
        report_chain(area, key, &chain).await
    } else {
        is_parsed
    };
    if !is_valid || !is_fine {
        return;
    }
    let until = certificates.iter().map(|(_, facts)| facts.not_after).min();
    let until = until.unwrap_or(Timestamp::MAX);
    let text = match certificates.first() {
        Some((_, own)) if is_own => format!("{}, valid until {until}", names(own)),
        _ => format!("{} authorities, valid until {until}", certificates.len()),
    };
    area.ok(key, text).await;
}

/// Reports each certificate that is invalid or expires soon; returns whether there is none. An invalid one is a failure
/// if it is the relay's own, or if no authority in the file is valid: beside a valid one, an invalid one does no harm.
async fn report_validity(
    area: &Area,
    key: &str,
    certificates: &[(usize, &CertificateFacts)],
    is_own: bool,
) -> bool {
    let validities = certificates.iter();
    let validities: Vec<_> = validities.map(|(_, facts)| Validity::of(facts)).collect();
    let is_usable =
        |validity: &Validity| matches!(validity, Validity::Valid | Validity::ExpiresSoon(_));
    let any_is_usable = validities.iter().any(is_usable);
    let mut all_are_fine = true;
    for ((place, facts), validity) in certificates.iter().zip(validities) {
        let of = format!("certificate {place}, {}", facts.subject);
        let replace = "replace the file; a running relay reads it by itself";
        let (text, action) = match validity {
            Validity::Valid => continue,
            Validity::Expired => (format!("{of}: expired at {}", facts.not_after), replace),
            Validity::NotYetValid => {
                let text = format!("{of}: not valid before {}", facts.not_before);
                (text, "set the clock, or replace the file")
            }
            Validity::ExpiresSoon(left) => {
                let left = days_left(left);
                let text = format!("{of}: expires in {left}, at {}", facts.not_after);
                (text, replace)
            }
        };
        all_are_fine = false;
        let is_needed = if is_own { *place == 1 } else { !any_is_usable };
        if is_needed && !is_usable(&validity) {
            area.failed(key, text, action).await;
        } else {
            area.warning(key, text, action).await;
        }
    }
    all_are_fine
}

/// Reports the order of the own chain, and the names of its first certificate. Returns whether both are fine.
async fn report_chain(area: &Area, key: &str, chain: &[&CertificateFacts]) -> bool {
    let mut is_fine = true;
    if let Some(place) = out_of_order(chain) {
        let text = format!(
            "certificate {place} was not issued by certificate {}, so clients may refuse the chain",
            place + 1
        );
        let action =
            "put the relay's certificate first in the file, then that of its issuer, and so on";
        area.warning(key, text, action).await;
        is_fine = false;
    }
    if key == "http.tls.cert" && chain.first().is_some_and(|own| own.names.is_empty()) {
        let text = "has no subject alternative name, so clients refuse it for every host";
        let action = "replace it by one for the host in the callback URL";
        area.failed(key, text, action).await;
        is_fine = false;
    }
    is_fine
}

fn names(own: &CertificateFacts) -> String {
    if own.names.is_empty() {
        format!("for {}", own.subject)
    } else {
        format!("for {}", listed(&own.names))
    }
}

/// The first names, for people.
pub(super) fn listed(names: &[String]) -> String {
    let shown = names.iter().take(MAX_NAMES).map(String::as_str);
    let shown = shown.collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(MAX_NAMES) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// The place of the first certificate that is not followed by that of its issuer, counted from 1.
fn out_of_order(chain: &[&CertificateFacts]) -> Option<usize> {
    let pairs = (1..).zip(chain.windows(2));
    let mut wrong = pairs.filter(|(_, pair)| match pair {
        [own, next] => own.issuer != next.subject,
        _ => false,
    });
    wrong.next().map(|(place, _)| place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_expires_soon_for_14_days_and_shows_a_few_names() {
        let time = |seconds| Timestamp::from_second(seconds).unwrap();
        let day = 24 * 60 * 60;
        let facts = CertificateFacts {
            subject: "CN=a".to_owned(),
            issuer: "CN=b".to_owned(),
            names: Vec::new(),
            not_before: time(0),
            not_after: time(30 * day),
        };
        let at = |seconds| Validity::at(&facts, time(seconds));
        assert_eq!(at(-1), Validity::NotYetValid);
        assert_eq!(at(0), Validity::Valid);
        assert_eq!(at(16 * day - 1), Validity::Valid);
        let left = SignedDuration::from_hours(14 * 24);
        assert_eq!(at(16 * day), Validity::ExpiresSoon(left));
        assert_eq!(days_left(left), "14 days");
        let names = ["a", "b", "c", "d", "e", "f"].map(str::to_owned);
        assert_eq!(listed(&names[..2]), "a, b");
        assert_eq!(listed(&names), "a, b, c, d, e and 1 more");
        assert_eq!(at(30 * day), Validity::Expired);
    }
}
