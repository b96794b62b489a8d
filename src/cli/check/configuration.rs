//! The settings.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::report::Area;
use crate::config::{self, ConfigError, Loaded, Source};

/// Reports each problem of settings that cannot be used.
pub(super) async fn unusable(error: ConfigError, area: Area) {
    for problem in config::reasons(&error.into()) {
        let action = "correct it; docs/reference/settings.md describes each setting";
        area.failed("settings", problem, action).await;
    }
    let text = "nothing else was tried: that needs the settings";
    area.untried("other areas", text).await;
}

pub(super) async fn check(loaded: Arc<Loaded>, area: Area) {
    let set: Vec<_> = loaded
        .listing()
        .into_iter()
        .filter_map(|(key, _, source)| (source != Source::Default).then_some((key, source)))
        .collect();
    let files: BTreeSet<String> = set
        .iter()
        .filter_map(|(_, source)| match source {
            Source::File(path) => Some(path.clone()),
            _ => None,
        })
        .collect();
    let mut sources: Vec<String> = files.into_iter().collect();
    if set
        .iter()
        .any(|(_, source)| matches!(source, Source::Environment(_)))
    {
        sources.push("the environment".to_owned());
    }
    let text = format!(
        "{} set, by {}; `recall-relay config` prints them",
        set.len(),
        sources.join(" and ")
    );
    area.ok("settings", text).await;
    let sinks = loaded.config.sink_names();
    if sinks == [crate::sink::stdout::NAME] {
        let text = "no broker is configured: events are printed to standard output";
        let action = "set kafka.bootstrap_servers or rabbitmq.uri";
        area.warning("sinks", text, action).await;
    } else {
        let text = format!("events are published to {}", sinks.join(" and "));
        area.ok("sinks", text).await;
    }
}
