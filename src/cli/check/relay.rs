//! The running relay, as `/readyz` and `/status` describe it.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use serde::Deserialize;
use tokio::time::timeout;

use super::report::Area;
use crate::cli::ready;
use crate::config::Loaded;
use crate::telemetry::chain;

/// How long the relay may take to answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// What `/readyz` answers, as far as it is used here.
#[derive(Debug, Deserialize)]
struct ReadinessAnswer {
    ready: bool,
    reason: Option<String>,
    sinks: BTreeMap<String, StateAnswer>,
    upstream: Option<StateAnswer>,
    recalls_not_accepted_last_minute: BTreeMap<String, u64>,
}

#[derive(Debug, Deserialize)]
struct StateAnswer {
    state: String,
    reason: Option<String>,
    since: Option<String>,
    lag: Option<u64>,
}

/// What `/status` answers, as far as it is used here.
#[derive(Debug, Deserialize)]
struct StatusAnswer {
    callbacks: CallbacksAnswer,
}

#[derive(Debug, Deserialize)]
struct CallbacksAnswer {
    /// By outcome.
    total: BTreeMap<String, u64>,
}

/// The outcomes of commands other than recalls.
const OTHER_COMMANDS: [&str; 3] = ["handed_on", "ignored", "not_handed_on"];

/// The outcomes that only a recall has, once it is received in full.
const RECALLS: [&str; 7] = [
    "abandoned",
    "accepted",
    "dropped",
    "refused",
    "rejected",
    "repeated",
    "unavailable",
];

/// A page of the listener for operators and its status; None if nothing listens there.
///
/// # Errors
/// Says why there is no page.
pub(super) async fn page(
    loaded: &Loaded,
    path: &'static str,
) -> Result<Option<(StatusCode, String)>, String> {
    let address = ready::reachable(loaded.config.admin.listen);
    if address.port() == 0 {
        return Ok(None);
    }
    match timeout(TIMEOUT, ready::get(address, path)).await {
        Ok(Ok(answer)) => Ok(Some(answer)),
        Ok(Err(error)) => {
            let refused = error.downcast_ref::<io::Error>();
            let kind = refused.map(io::Error::kind);
            if kind == Some(io::ErrorKind::ConnectionRefused) {
                return Ok(None);
            }
            Err(format!(
                "{address} gives no answer: {}",
                chain(error.as_ref())
            ))
        }
        Err(_) => Err(format!(
            "{address} did not answer within {} s",
            TIMEOUT.as_secs()
        )),
    }
}

pub(super) async fn check(loaded: Arc<Loaded>, area: Area) {
    let listen = loaded.config.admin.listen;
    // A relay that is not ready answers with another status, and with the same fields.
    let body = match page(&loaded, "/readyz").await {
        Ok(Some((_, body))) => body,
        Ok(None) => {
            let text = format!("no relay runs here: nothing listens on {listen} (admin.listen)");
            return area.ok("process", text).await;
        }
        Err(text) => {
            let action = "see the log of the relay, or set admin.listen to its address";
            return area.failed("process", text, action).await;
        }
    };
    let Ok(answer) = serde_json::from_str::<ReadinessAnswer>(&body) else {
        let text =
            format!("what listens on {listen} (admin.listen) is not a relay of this version");
        let action = "if another program listens there, set admin.listen to a free address; if it is a relay, run the \
                      check of its version";
        return area.failed("process", text, action).await;
    };
    if answer.ready {
        area.ok("process", "a relay runs here and is ready").await;
    } else {
        let reason = answer.reason.unwrap_or_default();
        let text = format!("a relay runs here and is not ready: {reason}");
        area.failed("process", text, "see the log of the relay")
            .await;
    }
    for (sink, state) in &answer.sinks {
        report_state(&area, &format!("sink {sink}"), state).await;
    }
    if let Some(state) = &answer.upstream {
        report_state(&area, "backend", state).await;
    }
    if !answer.recalls_not_accepted_last_minute.is_empty() {
        let counts = answer.recalls_not_accepted_last_minute.iter();
        let counts: Vec<_> = counts
            .map(|(name, count)| format!("{count} {name}"))
            .collect();
        let text = format!(
            "recalls not accepted within the last minute: {}",
            counts.join(", ")
        );
        let action = "see docs/how-to/runbook.md, and the log of the relay";
        area.warning("recalls", text, action).await;
    }
    report_missing_recalls(&loaded, &area).await;
}

/// Reports if callbacks arrive, but never a recall. The log has no line about this, because recalls may just be rare.
async fn report_missing_recalls(loaded: &Loaded, area: &Area) {
    let Ok(Some((_, body))) = page(loaded, "/status").await else {
        return;
    };
    let Ok(StatusAnswer { callbacks }) = serde_json::from_str(&body) else {
        return;
    };
    let number = |outcomes: &[&str]| -> u64 {
        let counts = outcomes.iter().map(|name| callbacks.total.get(*name));
        counts.flatten().sum()
    };
    let others = number(&OTHER_COMMANDS);
    if others > 0 && number(&RECALLS) == 0 {
        let text = format!(
            "none has arrived since the relay's start, but callbacks of other commands have: {others}"
        );
        let action =
            "recall a message; if that brings none, switch the recall callbacks on in the console";
        area.warning("recalls", text, action).await;
    }
}

async fn report_state(area: &Area, subject: &str, answer: &StateAnswer) {
    let StateAnswer {
        state,
        reason,
        since,
        lag,
    } = answer;
    let waiting = lag.map_or_else(String::new, |lag| format!(", {lag} events wait"));
    match state.as_str() {
        "up" => area.ok(subject, format!("up{waiting}")).await,
        "down" => {
            let since = since.as_deref().unwrap_or("?");
            let reason = reason.as_deref().unwrap_or("?");
            let text = format!("down since {since}{waiting}: {reason}");
            let action =
                "see this report's lines about the broker or the backend, and the log of the relay";
            area.failed(subject, text, action).await;
        }
        state => {
            let text = format!("{state}{waiting}");
            area.warning(subject, text, "wait, and check again").await;
        }
    }
}
