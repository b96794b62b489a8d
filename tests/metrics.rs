//! `/metrics` as it is read: by Prometheus, by its linter, and by people in docs/reference/metrics.md.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod rig;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::PathBuf;

use rig::{Connection, Prometheus, Relay, Setup, recall_query, request, until};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference/metrics.md");

/// A relay with every metric: some exist only with a broker, tokens or a backend.
fn setup() -> Setup {
    Setup::new()
        .set("RECALL_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:9")
        .set("RECALL_ANSWER_AFTER", "broker")
        .set("RECALL_AUTH__TOKENS", "a,b")
        .set("RECALL_UPSTREAM__URL", "http://127.0.0.1:9")
}

#[test]
fn the_linter_of_prometheus_has_no_complaint() {
    let setup = setup();
    let relay = setup.start();
    assert_lints(&setup, &relay);
    relay.kill();

    let relay = setup
        .clone()
        .without("RECALL_KAFKA__BOOTSTRAP_SERVERS")
        .without("RECALL_ANSWER_AFTER")
        .without("RECALL_AUTH__TOKENS")
        .without("RECALL_UPSTREAM__URL")
        .start();
    relay.recalls("g", 1..=3);
    relay.post(&recall_query(), "{");
    request(relay.callbacks, "GET", "/nowhere", b"");
    relay.until_drained("stdout");
    assert_lints(&setup, &relay);
    relay.stop();
}

/// Asserts that `promtool` finds neither an error nor a bad name in what is served without `Accept`.
#[track_caller]
fn assert_lints(setup: &Setup, relay: &Relay) {
    let file = setup.folder().join("metrics");
    fs::write(&file, &relay.admin("/metrics").body).unwrap();
    let linted = Prometheus::program("promtool")
        .args(["check", "metrics"])
        .stdin(File::open(file).unwrap())
        .output()
        .unwrap();
    let complaints = String::from_utf8_lossy(&linted.stderr);
    assert!(linted.status.success(), "{complaints}");
    assert_eq!(complaints, "");
}

#[test]
fn prometheus_scrapes_open_metrics() {
    let setup = setup().without("RECALL_AUTH__TOKENS");
    let relay = setup.start();
    relay.recalls("g", 1..=3);
    let prometheus = Prometheus::start(&setup, &[&relay]);

    let accepted =
        r#"recall_callbacks_total{command="Group.CallbackAfterRecallMsg",outcome="accepted"}"#;
    let series = until("a scrape", || prometheus.query(accepted).into_iter().next());
    assert_eq!(series["value"][1], "3", "{series}");
    // Only OpenMetrics has units: Prometheus has negotiated it.
    let metadata = prometheus.get("/api/v1/targets/metadata?metric=recall_answer_seconds");
    let found = &metadata["data"][0];
    assert_eq!(found["type"], "histogram", "{metadata}");
    assert_eq!(found["unit"], "seconds", "{metadata}");
    drop(prometheus);
    relay.kill();
}

#[test]
fn the_documents_name_existing_metrics_only() {
    let relay = setup().start();
    let metrics = relay.admin("/metrics");
    relay.kill();
    let mut known: BTreeSet<&str> = names(metrics.text()).collect();
    // The crate, and the headers of a refused event.
    known.extend(["recall_relay", "recall_reason", "recall_detail"]);
    let docs = concat!(env!("CARGO_MANIFEST_DIR"), "/docs");
    let mut folders = vec![PathBuf::from(docs)];
    let mut found = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                for name in names(&fs::read_to_string(&path).unwrap()) {
                    assert!(known.contains(name), "{}: {name}", path.display());
                    found += 1;
                }
            }
        }
    }
    assert!(found > 50, "{found}");
}

/// The names of metrics in a text.
fn names(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(|char: char| char != '_' && !char.is_ascii_alphanumeric());
    words.filter(|word| word.starts_with("recall_") || word.starts_with("process_"))
}

/// The table of metrics in the reference is generated from what a relay serves.
#[test]
fn the_reference_is_generated_from_the_metrics() {
    let relay = setup().start();
    let table = reference_table(&open_metrics(&relay));
    relay.kill();
    let page = fs::read_to_string(PAGE).unwrap();
    let (before, rest) = page.split_once(" -->\n\n").unwrap();
    let (written, after) = rest.split_once("\n<!-- ").unwrap();
    if std::env::var_os("RECALL_TEST_REGENERATE").is_some() {
        let page = format!("{before} -->\n\n{table}\n<!-- {after}");
        fs::write(PAGE, page).unwrap();
    } else {
        assert!(
            written == table,
            "the table differs; the comment above it says how to generate it:\n{table}"
        );
    }
}

/// What the relay serves to Prometheus.
fn open_metrics(relay: &Relay) -> String {
    let mut connection = Connection::open(relay.admin).unwrap();
    let accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5";
    let request = format!("GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\n\r\n");
    connection.send(request.as_bytes()).unwrap();
    let answer = connection.answer().unwrap();
    assert_eq!(
        answer.header("content-type"),
        Some("application/openmetrics-text; version=1.0.0; charset=utf-8")
    );
    answer.text().to_owned()
}

/// A row for each metric, sorted by name: those of the relay, then those of the process.
fn reference_table(open_metrics: &str) -> String {
    let mut rows: Vec<_> = open_metrics.split("# HELP ").skip(1).map(row).collect();
    rows.sort_by_key(|row| (row.starts_with("| `process_"), row.clone()));
    let mut table =
        "| metric | type | unit | labels | meaning |\n|---|---|---|---|---|\n".to_owned();
    table.extend(rows);
    table
}

/// Name in PromQL, type, unit, labels and help of a metric, whose text begins with its name.
fn row(metric: &str) -> String {
    let (name, rest) = metric.split_once(' ').unwrap();
    let (help, rest) = rest
        .split_once(".\n")
        .unwrap_or_else(|| panic!("the help of {name} lacks a full stop"));
    let described = |what: &str| {
        let prefix = format!("# {what} {name} ");
        rest.lines()
            .find_map(|line| line.strip_prefix(prefix.as_str()))
    };
    let (kind, unit) = (
        described("TYPE").unwrap(),
        described("UNIT").unwrap_or_default(),
    );
    let suffix = match kind {
        "counter" => "_total",
        "info" => "_info",
        _ => "",
    };
    let mut labels = BTreeSet::new();
    for line in rest.lines().filter(|line| !line.starts_with('#')) {
        if let Some((_, set)) = line.split_once('{') {
            let pairs = set.split("\",");
            labels.extend(pairs.map(|pair| format!("`{}`", pair.split_once('=').unwrap().0)));
        }
    }
    let labels = Vec::from_iter(labels).join(", ");
    let mut row = String::new();
    let cells = [&format!("`{name}{suffix}`"), kind, unit, &labels, help];
    for cell in cells {
        write!(row, "| {cell}{}", if cell.is_empty() { "" } else { " " }).unwrap();
    }
    row + "|\n"
}
