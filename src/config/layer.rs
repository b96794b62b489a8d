//! One layer of settings: a file or the environment.
//!
//! Environment values stay text: guessing their types would turn the token `00712` into 712. The keys of Kafka's
//! properties are normalized to librdkafka's form before layers are merged; otherwise a property that is set in both
//! layers would become two properties.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

use figment::value::{Dict, Map, Tag, Value};
use figment::{Metadata, Profile, Provider};

use super::{FileDigests, Problem, Source, keys};
use crate::setting::{self, EMPTY};

/// The prefix of our environment variables.
const PREFIX: &str = "RECALL_";

/// The variable that names the configuration file; the command line reads it.
const CONFIG_FILE: &str = "RECALL_CONFIG";

/// The suffix of a secret's key if the value is the path of a file that contains the secret.
const FILE_SUFFIX: &str = "_file";

/// A layer, and the source of each of its values.
#[derive(Debug, Clone, Default)]
pub(super) struct Layer {
    values: Dict,
    pub(super) sources: BTreeMap<String, Source>,
    /// Sections without a setting: the section alone can turn something on.
    pub(super) empty_sections: BTreeMap<String, Source>,
    /// The files that secrets were read from.
    pub(super) digests: FileDigests,
}

/// Whether to read the setting with this key.
pub(super) type Wanted = fn(&str) -> bool;

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named("configuration")
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Profile::Default.collect(self.values.clone()))
    }
}

impl Layer {
    /// Reads the `wanted` keys of a TOML file.
    pub(super) fn from_file(path: &Path, wanted: Wanted) -> Result<Self, Vec<Problem>> {
        let path = path
            .to_str()
            .map_or(path, |path| Path::new(setting::clean(path)));
        let problem_of = |source, text| {
            let key = "configuration file".to_owned();
            vec![Problem { key, source, text }]
        };
        if path.as_os_str().is_empty() {
            let text = "has an empty name; set --config or RECALL_CONFIG to its path, or remove it";
            return Err(problem_of(Source::Default, text.to_owned()));
        }
        let source = Source::File(path.display().to_string());
        let problem = |text| problem_of(source.clone(), text);
        let text = setting::read_text(path).map_err(problem)?;
        let text = text.trim_start_matches('\u{feff}');
        let values: Dict = toml::from_str(text).map_err(|error| {
            // The error's full text quotes the line, which may contain a secret.
            let line = error
                .span()
                .and_then(|span| text.get(..span.start))
                .map_or(0, |before| before.matches('\n').count() + 1);
            problem(format!("line {line}: {}", error.message()))
        })?;
        let mut layer = Self::default();
        let mut problems = Vec::new();
        for (key, value) in leaves("", values) {
            if !wanted(&key) {
                continue;
            }
            if is_empty_table(&value) && !keys::is_setting(&key) {
                layer.section(key.split('.'));
                layer.empty_sections.insert(key, source.clone());
            } else {
                layer.insert(&key, value, source.clone(), &mut problems);
            }
        }
        layer.into_result(problems)
    }

    /// Reads our variables of the `wanted` keys from an environment.
    pub(super) fn from_environment(
        variables: impl IntoIterator<Item = (OsString, OsString)>,
        wanted: Wanted,
    ) -> Result<Self, Vec<Problem>> {
        let mut layer = Self::default();
        let mut problems = Vec::new();
        for (name, value) in variables {
            let Some(name) = name.to_str().filter(|name| is_ours(name)) else {
                continue;
            };
            let Some(setting) = name.strip_prefix(PREFIX) else {
                continue;
            };
            let key = setting.to_lowercase().replace("__", ".");
            if !wanted(&key) {
                continue;
            }
            let source = Source::Environment(name.to_owned());
            match value.into_string() {
                Ok(text) => layer.insert(&key, Value::from(text), source, &mut problems),
                Err(_) => problems.push(Problem {
                    key,
                    source,
                    text: "is not UTF-8".to_owned(),
                }),
            }
        }
        layer.into_result(problems)
    }

    fn into_result(self, problems: Vec<Problem>) -> Result<Self, Vec<Problem>> {
        if problems.is_empty() {
            Ok(self)
        } else {
            Err(problems)
        }
    }

    /// Removes the value at a path, or the value that contains it.
    pub(super) fn remove(&mut self, path: &[String]) -> Option<Value> {
        let mut dict = &mut self.values;
        for name in path {
            if !matches!(dict.get(name)?, Value::Dict(..)) {
                return dict.remove(name);
            }
            dict = child(dict, name)?;
        }
        None
    }

    /// Adds a clean value; a secret may be given as the path of a file.
    fn insert(&mut self, key: &str, value: Value, source: Source, problems: &mut Vec<Problem>) {
        let (key, value) = match resolve(key, value, &mut self.digests) {
            Ok(resolved) => resolved,
            Err((key, text)) => {
                problems.push(Problem { key, source, text });
                return;
            }
        };
        if let Some(other) = self.sources.get(&key) {
            let text = format!("is set twice; remove this one or that of {other}");
            problems.push(Problem { key, source, text });
            return;
        }
        self.sources.insert(key.clone(), source);
        // The dots in a property's name do not separate sections.
        let (path, name) = if let Some(property) = key.strip_prefix(keys::PROPERTIES) {
            (vec!["kafka", "properties"], property)
        } else {
            let mut path: Vec<&str> = key.split('.').collect();
            let name = path.pop().unwrap_or_default();
            (path, name)
        };
        let Some(dict) = self.section(path) else {
            // A part of the path is a value, not a section; its key is reported as unknown.
            return;
        };
        let is_property = key.starts_with(keys::PROPERTIES);
        dict.insert(
            name.to_owned(),
            if is_property { as_text(value) } else { value },
        );
    }

    /// The values of a section, which is created if it is missing; `None` if a value has its key.
    fn section<'a>(&mut self, path: impl IntoIterator<Item = &'a str>) -> Option<&mut Dict> {
        let mut dict = &mut self.values;
        for part in path {
            let empty = || Value::Dict(Tag::Default, Dict::new());
            dict.entry(part.to_owned()).or_insert_with(empty);
            dict = child(dict, part)?;
        }
        Some(dict)
    }
}

/// Returns a property's key in librdkafka's form, and any other key unchanged.
fn normalize(key: &str) -> String {
    #[cfg(feature = "kafka")]
    if let Some(property) = key.strip_prefix(keys::PROPERTIES) {
        return format!(
            "{}{}",
            keys::PROPERTIES,
            crate::sink::kafka::normalize(property)
        );
    }
    key.to_owned()
}

/// A setting's own key and its clean value; a secret's value may be read from a file. The error is a key and what is
/// wrong with its value.
fn resolve(
    key: &str,
    value: Value,
    digests: &mut FileDigests,
) -> Result<(String, Value), (String, String)> {
    let secret = key.strip_suffix(FILE_SUFFIX).map(normalize);
    let (key, value) = match secret.filter(|secret| keys::is_secret(secret)) {
        None => (normalize(key), value),
        Some(secret) => {
            let key = format!("{secret}{FILE_SUFFIX}");
            let path = clean(&key, value, false).map_err(|problem| (key.clone(), problem))?;
            let path = path.as_str().unwrap_or_default();
            let text = setting::read_text(Path::new(path));
            // The path is not quoted: it may be the secret itself, given in place of a path.
            let text = text.map_err(|problem| (key, format!("names a file that {problem}")))?;
            digests.insert(path, text.as_bytes());
            (secret, Value::from(text))
        }
    };
    if !keys::is_setting(&key) {
        // The name is wrong, whatever the value is.
        return Ok((key, value));
    }
    match clean(&key, value, keys::may_have_lines(&key)) {
        Ok(value) => Ok((key, value)),
        Err(problem) => Err((key, problem)),
    }
}

/// Cleans all text of a setting's value, which may have several `lines`, or says why no setting has that value. The
/// error does not quote it.
fn clean(key: &str, value: Value, lines: bool) -> Result<Value, String> {
    match value {
        Value::String(tag, text) => {
            let text = setting::clean(&text);
            if text.is_empty() && !keys::may_be_empty(key) {
                return Err(EMPTY.to_owned());
            }
            if setting::has_control_character(text, lines) {
                return Err(
                    "has a line break or another control character inside; remove it".to_owned(),
                );
            }
            Ok(Value::String(tag, text.to_owned()))
        }
        Value::Array(tag, items) => {
            let items = (1..).zip(items).map(|(place, item)| {
                clean(key, item, false).map_err(|problem| format!("value {place} {problem}"))
            });
            Ok(Value::Array(tag, items.collect::<Result<_, _>>()?))
        }
        other => Ok(other),
    }
}

/// Converts a value to text: librdkafka accepts only text.
fn as_text(value: Value) -> Value {
    match &value {
        Value::Bool(_, flag) => Value::from(flag.to_string()),
        Value::Num(_, number) => match (number.to_i128(), number.to_f64()) {
            (Some(number), _) => Value::from(number.to_string()),
            (None, Some(number)) => Value::from(number.to_string()),
            (None, None) => value,
        },
        _ => value,
    }
}

fn is_empty_table(value: &Value) -> bool {
    matches!(value, Value::Dict(_, table) if table.is_empty())
}

/// Every value of nested tables, and every empty table, with its full key.
fn leaves(prefix: &str, dict: Dict) -> Vec<(String, Value)> {
    let mut found = Vec::new();
    for (name, value) in dict {
        let key = if prefix.is_empty() {
            name
        } else {
            format!("{prefix}.{name}")
        };
        match value {
            Value::Dict(_, inner) if !inner.is_empty() => found.extend(leaves(&key, inner)),
            value => found.push((key, value)),
        }
    }
    found
}

/// Whether a variable is a setting. The variables that Kubernetes injects for a Service whose name begins with
/// `recall` are not.
fn is_ours(name: &str) -> bool {
    name.starts_with(PREFIX) && name != CONFIG_FILE && !is_injected_by_kubernetes(name)
}

fn is_injected_by_kubernetes(name: &str) -> bool {
    if name.contains("__") {
        return false;
    }
    let port = name.match_indices("_PORT_").any(|(at, mark)| {
        let rest = name.get(at + mark.len()..).unwrap_or_default();
        let protocol = rest.trim_start_matches(|char: char| char.is_ascii_digit());
        protocol.len() < rest.len()
            && ["_TCP", "_UDP", "_SCTP"]
                .iter()
                .any(|known| protocol.starts_with(known))
    });
    port || name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.ends_with("_PORT")
}

/// A section within a layer, by key.
fn child<'a>(dict: &'a mut Dict, name: &str) -> Option<&'a mut Dict> {
    match dict.get_mut(name)? {
        Value::Dict(_, child) => Some(child),
        _ => None,
    }
}
