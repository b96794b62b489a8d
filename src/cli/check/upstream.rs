//! The backend that all callbacks but the recalls are handed on to.

use std::sync::Arc;

use super::reach::{client_tls, reach};
use super::report::Area;
use crate::config::Loaded;

pub(super) async fn check(loaded: Arc<Loaded>, area: Area) {
    let upstream = loaded.config.upstream.as_ref();
    let Some((url, config)) = upstream.and_then(|config| Some((config.url.as_ref()?, config)))
    else {
        let text = "not set: commands other than recalls are answered OK and discarded";
        let action = "if a backend needs them, set upstream.url to its URL";
        return area.warning("upstream.url", text, action).await;
    };
    let tls = if url.is_https() {
        match client_tls(config.tls.clone(), "upstream.tls.").await {
            Ok(tls) => Some(tls),
            Err(problem) => {
                return area
                    .failed("upstream.url", problem, "correct the file")
                    .await;
            }
        }
    } else {
        None
    };
    let subject = url.without_query();
    match reach(url.host(), url.port(), tls.as_ref()).await {
        Ok(reached) => {
            reached.report(&area, &subject).await;
            let text = "no request was sent: the backend would take it for a callback";
            area.untried("answer", text).await;
        }
        Err(error) => area.failed(&subject, error.reason, error.action).await,
    }
}
