//! The keys of all settings, derived from the settings' types.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use serde_json::Value;

use super::Config;

/// Settings whose values are never shown, in addition to Kafka's secret properties.
const SECRETS: [&str; 2] = ["auth.tokens", "rabbitmq.uri"];

/// The prefix of keys that librdkafka defines.
pub(super) const PROPERTIES: &str = "kafka.properties.";

/// Every key, and its default value.
static KNOWN: LazyLock<Vec<(String, String)>> = LazyLock::new(|| flatten(&every_section()));

/// The defaults with all optional sections.
fn every_section() -> Config {
    Config {
        upstream: Some(crate::upstream::Config::default()),
        #[cfg(feature = "kafka")]
        kafka: Some(crate::sink::kafka::Config::default()),
        #[cfg(feature = "rabbitmq")]
        rabbitmq: Some(crate::sink::rabbitmq::Config::default()),
        ..Config::default()
    }
}

/// Every key and its default, in a build with all sections.
#[cfg(all(test, feature = "kafka", feature = "rabbitmq"))]
pub(super) fn known() -> &'static [(String, String)] {
    &KNOWN
}

/// Each setting's key and value, sorted by name.
pub(super) fn flatten(config: &Config) -> Vec<(String, String)> {
    let mut flat = Vec::new();
    if let Ok(value) = serde_json::to_value(config) {
        walk(String::new(), &value, &mut flat);
    }
    flat
}

fn walk(key: String, value: &Value, flat: &mut Vec<(String, String)>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let key = if key.is_empty() {
                    name.clone()
                } else {
                    format!("{key}.{name}")
                };
                walk(key, value, flat);
            }
        }
        // A key without a dot: the section or the setting is absent.
        Value::Null if !key.contains('.') => {}
        Value::Null => flat.push((key, String::new())),
        Value::String(text) => flat.push((key, text.clone())),
        other => flat.push((key, other.to_string())),
    }
}

pub(super) fn is_secret(key: &str) -> bool {
    if SECRETS.contains(&key) {
        return true;
    }
    #[cfg(feature = "kafka")]
    if let Some(property) = key.strip_prefix(PROPERTIES) {
        return crate::sink::kafka::SECRETS.contains(&property);
    }
    false
}

/// Whether this setting may be empty: only `rabbitmq.queue`, which then means that the relay has no queue of its own.
pub(super) fn may_be_empty(key: &str) -> bool {
    key == "rabbitmq.queue"
}

/// Whether this setting's text may have several lines: a list in a secret's file, or a certificate or private key.
pub(super) fn may_have_lines(key: &str) -> bool {
    SECRETS.contains(&key) || (key.starts_with(PROPERTIES) && key.rsplit('.').next() == Some("pem"))
}

/// Whether a key is a setting of ours or one that librdkafka defines.
pub(super) fn is_setting(key: &str) -> bool {
    KNOWN.iter().any(|(known, _)| known == key)
        || (cfg!(feature = "kafka") && key.starts_with(PROPERTIES))
}

/// Why a key is not a setting; `None` if it is one.
pub(super) fn unknown(key: &str) -> Option<String> {
    if is_setting(key) {
        return None;
    }
    let settings = KNOWN.iter().map(|(known, _)| known.as_str());
    Some(not_built_in(key).unwrap_or_else(|| {
        let nearest = nearest(key, settings);
        let variable = nearest.to_uppercase().replace('.', "__");
        format!("is not a setting; did you mean {nearest} (RECALL_{variable})?")
    }))
}

/// Why a key is not a section; `None` if it is one.
pub(super) fn unknown_section(key: &str) -> Option<String> {
    let properties = PROPERTIES.trim_end_matches('.');
    let sections: BTreeSet<&str> = KNOWN
        .iter()
        .filter_map(|(known, _)| Some(known.rsplit_once('.')?.0))
        .chain(cfg!(feature = "kafka").then_some(properties))
        .collect();
    if sections.contains(key) {
        return None;
    }
    Some(not_built_in(key).unwrap_or_else(|| {
        let nearest = nearest(key, sections.into_iter());
        format!("is not a section; did you mean [{nearest}]?")
    }))
}

/// The error for a key in a section that this build does not have.
fn not_built_in(key: &str) -> Option<String> {
    let built_in = [
        ("kafka", cfg!(feature = "kafka")),
        ("rabbitmq", cfg!(feature = "rabbitmq")),
    ];
    let (section, _) = built_in
        .into_iter()
        .find(|(section, built_in)| !built_in && key.split('.').next() == Some(section))?;
    Some(format!(
        "is not available: this program was built without {section}"
    ))
}

fn nearest<'a>(key: &str, known: impl Iterator<Item = &'a str>) -> &'a str {
    let near = |known: &str| strsim::normalized_damerau_levenshtein(key, known);
    known
        .max_by(|a, b| near(a).total_cmp(&near(b)))
        .unwrap_or_default()
}
