//! Compares an incident with what docs/how-to/incidents.md shows of it, or writes it there.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Mutex;

use serde_json::{Map, Value, json};

use super::rig::{Browser, Relay, Setup, until};

/// The longest line of a block.
const WIDTH: usize = 110;

/// Fields of a log line that say nothing about the incident.
const LEFT_OUT: [&str; 5] = ["code", "level", "message", "target", "timestamp"];

/// Fields that come first, because they say most.
const FIRST: [&str; 3] = ["sink", "reason", "error"];

/// Whether and when there are such lines depends on what a client library reports first.
const VARYING: [&str; 2] = ["client_error", "sink_still_down"];

/// Members of `/readyz` that are shown if they are not empty.
const SHOWN: [&str; 5] = [
    "ready",
    "reason",
    "sinks",
    "upstream",
    "recalls_not_accepted_last_minute",
];

/// What an operator sees while the incident lasts.
pub struct Seen {
    /// The body of `/readyz`.
    readiness: Value,
    /// The first lines of the status page; empty if nothing is written.
    page: String,
}

impl Seen {
    pub fn of(relay: &Relay) -> Self {
        Self::with_figures(relay, "")
    }

    /// Also the figures of a card of the page, which has this id.
    pub fn with_figures(relay: &Relay, card: &str) -> Self {
        Self {
            readiness: relay.readiness(),
            page: if is_writing() {
                page_lines(relay, card)
            } else {
                String::new()
            },
        }
    }
}

fn page_lines(relay: &Relay, card: &str) -> String {
    let browser = Browser::start();
    browser.open(&format!("http://{}/", relay.admin));
    let headline = until("the page", || {
        Some(browser.text("#headline")).filter(|text| !text.is_empty())
    });
    let (detail, others) = (browser.text("#detail"), browser.text("#others"));
    let texts = [headline, detail, others];
    let figures = browser.run(&format!(
        "return [...document.querySelectorAll('[id=\"{card}\"] figcaption')]
            .map(({{ innerText }}) => innerText.replace(/\\s+/g, ' '))"
    ));
    let figures = figures.as_array().unwrap().iter();
    let lines = texts.iter().flat_map(|text| text.lines()).map(|line| {
        // On the page, the mark is apart from its sentence.
        match line.strip_prefix(['✓', '!', '✕']) {
            Some(sentence) => format!("{} {sentence}", &line[..line.len() - sentence.len()]),
            None => line.to_owned(),
        }
    });
    let figures = figures.map(|text| text.as_str().unwrap().to_owned());
    lines.chain(figures).collect::<Vec<_>>().join("\n")
}

fn is_writing() -> bool {
    std::env::var_os("RECALL_TEST_REGENERATE").is_some()
}

/// An incident that has begun.
pub struct Incident {
    name: &'static str,
    /// How many lines the log had before.
    before: usize,
    /// What is written in place of ports and paths of this run.
    names: Vec<(String, &'static str)>,
    /// What else an operator looks at, and what it shows.
    looks: Vec<(&'static str, String)>,
}

/// What the page shows as the log if it has no line.
const NO_LINE: &str = "(no line)";

impl Incident {
    /// Lines of the log from here on belong to the incident; those of the start do not.
    pub fn begin(name: &'static str, relay: &Relay) -> Self {
        until("the sink to be up", || relay.log_entry("sink_up"));
        Self {
            name,
            before: relay.log().lines().count(),
            names: Vec::new(),
            looks: Vec::new(),
        }
    }

    /// An incident in which a relay starts: all lines belong to it.
    pub fn at_start(name: &'static str) -> Self {
        Self {
            name,
            before: 0,
            names: Vec::new(),
            looks: Vec::new(),
        }
    }

    /// Writes `name` in place of what this run has.
    pub fn called(mut self, found: &str, name: &'static str) -> Self {
        self.names.push((found.to_owned(), name));
        self
    }

    /// Something else that an operator looks at, such as the output of a command. It is compared except for digits.
    pub fn also_shows(mut self, source: &'static str, text: &str) -> Self {
        self.looks.push((source, text.trim_end().to_owned()));
        self
    }

    /// These metrics, all of their series.
    pub fn also_shows_metrics(self, relay: &Relay, names: &[&str]) -> Self {
        let answer = relay.admin("/metrics");
        let is_shown = |line: &&str| names.iter().any(|name| line.starts_with(name));
        let mut lines: Vec<_> = answer.text().lines().filter(is_shown).collect();
        // The series of a metric have no order.
        lines.sort_unstable();
        assert!(lines.len() >= names.len(), "{names:?}: {lines:?}");
        self.also_shows("`/metrics`", &lines.join("\n"))
    }

    /// Compares the log with the page, or writes it and what was seen there.
    #[track_caller]
    pub fn compare_with_page(mut self, setup: &Setup, log: &str, seen: Option<&Seen>) {
        let folder = setup.folder().to_str().unwrap().to_owned();
        self.names.push((folder, "/var/lib/recall-relay"));
        let mut entries: Vec<String> = Vec::new();
        for line in log.lines().skip(self.before) {
            let entry = self.entry(line);
            // Entries that differ in numbers only add nothing.
            let is_new = |known: &String| without_digits(known) != without_digits(&entry);
            if entries.iter().all(is_new) {
                entries.push(entry);
            }
        }
        if entries.is_empty() {
            entries.push(NO_LINE.to_owned());
        }
        let shown = format!("```text\n{}\n```\n", entries.join("\n"));
        let told = seen.map(|seen| self.seen(seen)).unwrap_or_default();
        let looks: Vec<_> = self.looks.iter().map(|look| self.look(look)).collect();
        let all = shown + &told + &looks.concat();
        compare_or_write(self.name, &entries, seen, &looks, &all);
    }

    /// A line of the log as people read it: level, code, message, then the fields.
    fn entry(&self, line: &str) -> String {
        let Ok(Value::Object(entry)) = serde_json::from_str(line) else {
            return self.rename(line);
        };
        let text = |name: &str| entry[name].as_str().unwrap_or_default().to_owned();
        let mut told = format!("{} {}: {}", text("level"), text("code"), text("message"));
        let first = FIRST
            .iter()
            .copied()
            .filter(|name| entry.contains_key(*name));
        let others = entry.keys().map(String::as_str);
        let others = others.filter(|name| !FIRST.contains(name) && !LEFT_OUT.contains(name));
        for name in first.chain(others) {
            let value = match &entry[name] {
                Value::String(text) if text.contains(' ') => format!("{text:?}"),
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            told.extend([" ", name, "=", &value]);
        }
        wrap(&self.rename(&told))
    }

    fn seen(&self, seen: &Seen) -> String {
        let page: Vec<_> = seen
            .page
            .lines()
            .map(|line| wrap(&self.rename(line)))
            .collect();
        let page = page.join("\n");
        let readiness = self.readiness(&seen.readiness);
        format!("{readiness}\nThe status page:\n\n```text\n{page}\n```\n")
    }

    fn look(&self, (source, text): &(&str, String)) -> String {
        let lines: Vec<_> = text.lines().map(|line| wrap(&self.rename(line))).collect();
        format!("\n{source}:\n\n```text\n{}\n```\n", lines.join("\n"))
    }

    fn readiness(&self, body: &Value) -> String {
        let is_shown = |name: &str, value: &Value| {
            SHOWN.contains(&name) && value.as_object().is_none_or(|object| !object.is_empty())
        };
        let body: Map<String, Value> = body
            .as_object()
            .unwrap()
            .iter()
            .filter(|(name, value)| is_shown(name, value))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        let body = serde_json::to_string_pretty(&body).unwrap();
        format!("\n```json\n{}\n```\n", self.rename(&body))
    }

    fn rename(&self, text: &str) -> String {
        let renamed = |text: String, (found, name): &(String, &str)| text.replace(found, name);
        self.names.iter().fold(text.to_owned(), renamed)
    }
}

/// Breaks a line between words; what follows is indented.
fn wrap(line: &str) -> String {
    let mut wrapped = String::new();
    let mut width = 0;
    for word in line.split(' ') {
        if width > 0 && width + 1 + word.chars().count() > WIDTH {
            wrapped += "\n     ";
            width = 5;
        } else if width > 0 {
            wrapped.push(' ');
            width += 1;
        }
        wrapped += word;
        width += word.chars().count();
    }
    wrapped
}

/// Level, code and message of an entry, without numbers and line breaks: the fields differ from run to run.
fn essence(entry: &str) -> String {
    let words: Vec<_> = entry.split_whitespace().collect();
    let told = words.iter().take_while(|word| !is_field(word));
    let told: Vec<_> = told.map(|word| without_digits(word)).collect();
    told.join(" ")
}

fn without_digits(text: &str) -> String {
    text.replace(|c: char| c.is_ascii_digit(), "")
}

/// `name=value`
fn is_field(word: &str) -> bool {
    word.split_once('=').is_some_and(|(name, _)| {
        !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '_')
    })
}

/// The essence of each entry of a block.
fn essences<'a>(entries: impl IntoIterator<Item = &'a str>) -> BTreeSet<String> {
    let varies = |essence: &String| VARYING.iter().any(|code| essence.contains(code));
    let essences = entries.into_iter().map(essence);
    essences.filter(|essence| !varies(essence)).collect()
}

/// Whether the relay is ready, and the state of each sink.
fn states(readiness: &Value) -> Value {
    let sinks = readiness["sinks"].as_object().unwrap();
    let states = sinks
        .iter()
        .map(|(name, sink)| (name.clone(), sink["state"].clone()));
    json!({"ready": readiness["ready"], "sinks": states.collect::<Map<_, _>>()})
}

#[track_caller]
fn compare_or_write(
    name: &str,
    entries: &[String],
    seen: Option<&Seen>,
    looks: &[String],
    shown: &str,
) {
    static PAGE: Mutex<()> = Mutex::new(());

    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/how-to/incidents.md");
    let guard = PAGE.lock();
    let page = fs::read_to_string(&path).unwrap();
    let begin = format!("<!-- incident: {name} -->\n");
    let (before, rest) = page
        .split_once(&begin)
        .unwrap_or_else(|| panic!("the page has no {begin}\n{shown}"));
    let (told, after) = rest.split_once("<!-- end -->").unwrap();
    if is_writing() {
        let page = format!("{before}{begin}\n{shown}\n<!-- end -->{after}");
        fs::write(&path, page).unwrap();
        drop(guard);
        return;
    }
    drop(guard);
    let block = |language: &str| {
        let (_, rest) = told.split_once(&format!("```{language}\n")).unwrap();
        rest.split_once("\n```").unwrap().0
    };
    if let Some(seen) = seen {
        let told: Value = serde_json::from_str(block("json")).unwrap();
        assert_eq!(states(&told), states(&seen.readiness), "{name}");
    }
    for look in looks {
        let is_shown = without_digits(told).contains(&without_digits(look));
        assert!(is_shown, "{name}: the page has not\n{look}\nbut\n{told}");
    }
    assert_eq!(
        essences(block("text").replace("\n     ", " ").lines()),
        essences(entries.iter().map(String::as_str)),
        "docs/how-to/incidents.md does not show what happened in {name}; RECALL_TEST_REGENERATE=1 writes:\n{shown}"
    );
}
