//! The callback URL, as the vendor will call it: the console's probe, which makes no event.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::http::uri::Scheme;
use jiff::Timestamp;
use tokio::time::timeout;

use super::reach::{ServerTlsCheck, client_tls, reach};
use super::report::Area;
use crate::callback::VENDOR_TIMEOUT;
use crate::cli::send::{Callback, Connection, Endpoint, HttpAnswer, Requests, answer_problem};
use crate::config::Loaded;
use crate::setting::{ClientTls, Secret};
use crate::vendor::CallbackKind;

/// An answer that takes longer leaves little time on a bad day.
const SLOW: Duration = Duration::from_secs(1);

/// How long to wait here, to tell how late an answer is.
const TIMEOUT: Duration = Duration::from_secs(5);

pub(super) async fn check(
    loaded: Arc<Loaded>,
    url: Option<Endpoint>,
    ca: Option<PathBuf>,
    area: Area,
) {
    let Some(url) = url else {
        let text = "pass the callback URL from the console as --url";
        return area.untried("url", text).await;
    };
    let subject = url.to_string();
    let tls = if url.scheme == Scheme::HTTPS {
        let files = ClientTls {
            ca,
            ..ClientTls::default()
        };
        match client_tls(files, "--").await {
            Ok(tls) => Some(tls),
            Err(problem) => return area.failed(&subject, problem, "correct --ca").await,
        }
    } else {
        let text = "http: signatures can be read on the way, and used for other callbacks";
        let action = "use https: set http.tls.cert, or have a proxy in front speak TLS";
        area.warning("scheme", text, action).await;
        None
    };
    match reach(&url.host, url.port, tls.as_ref()).await {
        Ok(reached) => reached.report(&area, &subject).await,
        Err(error) => return area.failed(&subject, error.reason, error.action).await,
    }
    let began = Instant::now();
    match timeout(TIMEOUT, probe(&loaded, url, tls)).await {
        Ok(Ok(answer)) => report_answer(&loaded, &area, &answer, began.elapsed()).await,
        Ok(Err(reason)) => {
            let action = "see the log of the relay, and of the proxy in front";
            area.failed("probe", reason, action).await;
        }
        Err(_) => {
            let text = format!(
                "no answer within {} s; the vendor waits 2 s",
                TIMEOUT.as_secs()
            );
            let action = "see the log of the relay, of the proxy in front, and of the backend";
            area.failed("probe", text, action).await;
        }
    }
}

/// Sends the console's probe: the query of a recall, signed if there is a token, and no body.
async fn probe(
    loaded: &Loaded,
    url: Endpoint,
    tls: Option<ServerTlsCheck>,
) -> Result<HttpAnswer, String> {
    let config = &loaded.config;
    let sdk_app_id = config.sdk_app_ids.first().copied().unwrap_or_default();
    let mut tokens = config.auth.tokens.iter();
    let token = tokens.find(|token| token.application.is_none_or(|app| app == sdk_app_id));
    let requests = Requests {
        endpoint: url.clone(),
        sdk_app_id,
        token: token.map(|token| Secret::clone(&token.secret)),
        tls: ClientTls::default(),
    };
    let callback = Callback {
        kind: CallbackKind::Group,
        body: String::new(),
    };
    let now = u64::try_from(Timestamp::now().as_second()).unwrap_or_default();
    let request = requests.request(callback, now);
    let request = request.map_err(|error| error.to_string())?;
    let mut connection = Connection::new(url, tls.map(|tls| tls.config));
    let posted = connection.post(request).await;
    posted.map_err(|error| error.to_string())
}

async fn report_answer(loaded: &Loaded, area: &Area, answer: &HttpAnswer, took: Duration) {
    let path = &loaded.config.http.path;
    let status = answer.status;
    if status.is_redirection() {
        let to = answer.location.as_deref().unwrap_or("nowhere");
        // The query may have the operator's own secrets, and has the signature of the probe.
        let to = to.split(['?', '#']).next().unwrap_or_default();
        let text = format!("redirects to {to:.200} ({status}); the vendor does not follow that");
        let action = "enter the target of the redirect in the console";
        return area.failed("probe", text, action).await;
    }
    if let Some(problem) = answer_problem(answer) {
        let action = match status.as_u16() {
            200 => {
                "correct the URL, or see the log of the relay, or of the backend that has answered"
                    .to_owned()
            }
            404 => format!(
                "end the URL with the relay's path {path} (http.path), or have the proxy rewrite it to that"
            ),
            502..=504 => {
                "see the log of the proxy in front, which may not reach the relay, and of the relay"
                    .to_owned()
            }
            _ => "see the log of the relay, and of the proxy in front".to_owned(),
        };
        return area
            .failed("probe", format!("answered {problem}"), action)
            .await;
    }
    let text = format!("answered OK after {took:.1?}; the vendor waits 2 s");
    let action = "put the relay nearer to its callers, or see why the proxy or the backend is slow";
    if took >= VENDOR_TIMEOUT {
        area.failed("probe", text, action).await;
    } else if took >= SLOW {
        area.warning("probe", text, action).await;
    } else {
        area.ok("probe", text).await;
    }
}
