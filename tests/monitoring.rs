//! The alerts of `deploy/prometheus` and the dashboard of `deploy/grafana`, with a real Prometheus.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod rig;

use std::collections::BTreeSet;
use std::fs;
use std::time::UNIX_EPOCH;

use rcgen::ExtendedKeyUsagePurpose;
use recall_relay::vendor::CallbackKind;
use rig::{APP, Authority, Backend, HttpsClient, Prometheus, Setup, until};
use rustls::version::TLS13;
use serde_json::Value;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn read(path: &str) -> String {
    fs::read_to_string(format!("{ROOT}/{path}")).unwrap()
}

/// A relay that exports every metric: some exist only with tokens, a broker, a backend or TLS.
fn setup(authority: &Authority) -> Setup {
    let (cert, key) = authority.sign("relay", ExtendedKeyUsagePurpose::ServerAuth);
    Setup::new()
        .set("RECALL_AUTH__TOKENS", "a")
        .set("RECALL_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:9")
        .set("RECALL_ANSWER_AFTER", "broker")
        .set("RECALL_UPSTREAM__URL", "http://127.0.0.1:9")
        .set("RECALL_HTTP__TLS__CERT", cert.to_str().unwrap())
        .set("RECALL_HTTP__TLS__KEY", key.to_str().unwrap())
}

/// Runs `promtool` in the folder of the rules, and asserts that it has no complaint.
#[track_caller]
fn assert_promtool(arguments: &[&str]) {
    let output = Prometheus::program("promtool")
        .args(arguments)
        .current_dir(format!("{ROOT}/deploy/prometheus"))
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success(), "{said}");
    assert!(!said.contains("WARN"), "{said}");
}

#[test]
fn the_rules_and_their_tests_pass() {
    assert_promtool(&["check", "config", "prometheus.yml"]);
    assert_promtool(&["check", "rules", "recall-relay.rules.yml"]);
    assert_promtool(&["test", "rules", "recall-relay.rules.test.yml"]);
}

/// The alerts as Prometheus has read them, after it has evaluated each with what it has scraped.
fn alerts(prometheus: &Prometheus) -> Vec<Value> {
    until("Prometheus to evaluate the alerts", || {
        let answer = prometheus.get("/api/v1/rules?type=alert");
        let rules = answer["data"]["groups"][0]["rules"].as_array()?.clone();
        let evaluated = rules.iter().all(|rule| rule["health"] != "unknown");
        // The first one is on a relay that was never scraped.
        (evaluated && rules[0]["state"] == "inactive").then_some(rules)
    })
}

#[test]
fn every_alert_is_tested_evaluated_and_leads_to_the_runbook() {
    let authority = Authority::new();
    let setup = setup(&authority);
    let relay = setup.start();
    relay.until_sink("kafka", "down");
    // The skew of the clocks is known after a signed callback.
    let now = UNIX_EPOCH.elapsed().unwrap().as_secs();
    let target = format!("/?{}", CallbackKind::Other.query(APP, Some(("a", now))));
    let client = HttpsClient::new(&TLS13, &authority.ca(), None);
    let mut connection = client.connect(relay.callbacks).unwrap();
    connection.request("POST", &target, b"{}").unwrap();
    let prometheus = Prometheus::start(&setup, &[&relay]);
    until("a scrape", || {
        prometheus.series().has("recall_spool_events").then_some(())
    });
    let (alerts, exported) = (alerts(&prometheus), prometheus.series());
    drop(prometheus);
    relay.kill();

    let (tests, runbook) = (
        read("deploy/prometheus/recall-relay.rules.test.yml"),
        read("docs/how-to/runbook.md"),
    );
    let headings: Vec<String> = runbook
        .lines()
        .filter_map(|line| line.strip_prefix("## "))
        .map(anchor)
        .collect();
    assert!(alerts.len() > 30, "{}", alerts.len());
    for alert in &alerts {
        let name = alert["name"].as_str().unwrap();
        assert_eq!(alert["health"], "ok", "{alert}");
        // A healthy relay raises no alert. This one has had no recalls, and its broker is down.
        if !["RecallRelayNoRecalls", "RecallRelaySinkDown"].contains(&name) {
            assert_eq!(alert["state"], "inactive", "{alert}");
        }
        assert!(
            exported.assert_exports(alert["query"].as_str().unwrap()) > 0,
            "{name}"
        );
        assert_is_tested(&tests, name);

        let severity = alert["labels"]["severity"].as_str().unwrap();
        assert!(["critical", "warning"].contains(&severity), "{alert}");
        let annotations = &alert["annotations"];
        for text in ["summary", "description"] {
            assert!(!annotations[text].as_str().unwrap().is_empty(), "{alert}");
        }
        let url = annotations["runbook_url"].as_str().unwrap();
        let section = url.strip_prefix("docs/how-to/runbook.md#").unwrap();
        assert!(
            headings.contains(&section.to_owned()),
            "{name}: the runbook has no section {section}"
        );
    }
}

/// The anchor of a heading, as mdbook and GitHub make it.
fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase().replace(' ', "-");
    kept.chars()
        .filter(|char| char.is_alphanumeric() || ['-', '_'].contains(char))
        .collect()
}

/// Asserts that an alert has a test in which it fires, and one in which it is silent.
#[track_caller]
fn assert_is_tested(tests: &str, alert: &str) {
    for (case, expected) in [
        ("fires", "exp_alerts:\n          - exp_labels:"),
        ("stays silent", "exp_alerts: []\n"),
    ] {
        let begin = format!("  - name: {alert} {case}\n");
        let (_, test) = tests
            .split_once(&begin)
            .unwrap_or_else(|| panic!("there is no test in which {alert} {case}"));
        let test = test.split("  - name: ").next().unwrap();
        let of_alert = format!("alertname: {alert}\n        {expected}");
        assert!(test.contains(&of_alert), "{alert} {case}: {test}");
    }
}

#[test]
fn every_query_of_the_dashboard_has_data() {
    let authority = Authority::new();
    let encrypted = setup(&authority);
    let backend = Backend::start();
    let plain = Setup::new()
        .set(
            "RECALL_UPSTREAM__URL",
            &format!("http://{}", backend.address()),
        )
        .set("RECALL_UPSTREAM__COPY_RECALLS", "true");
    let relays = [encrypted.start(), plain.start()];
    let prometheus = Prometheus::start(&plain, &[&relays[0], &relays[1]]);
    let instances = relays.each_ref().map(|relay| relay.admin.to_string());
    until("a scrape of both", || {
        (prometheus.query("recall_spool_events").len() == 2).then_some(())
    });
    let exported = prometheus.series();

    let dashboard = read("deploy/grafana/recall-relay.json");
    let dashboard: Value = serde_json::from_str(&dashboard).unwrap();
    let queries = queries(&dashboard);
    assert!(queries.len() > 30, "{queries:?}");
    for (number, (panel, query)) in queries.iter().enumerate() {
        let query = query.replace("$__rate_interval", "30s");
        // This relay exports every metric.
        let of_first = query.replace("$instance", &instances[0]);
        assert!(exported.assert_exports(&of_first) > 0, "{panel}: {query}");
        let query = query.replace("$instance", &instances.join("|"));
        let number = u64::try_from(number).unwrap();
        let mut recalled = 0;
        until(&format!("data for {panel}: {query}"), || {
            // Rates need traffic between two scrapes.
            recalled += 1;
            relays[1].recalls("g", number * 10_000 + recalled..=number * 10_000 + recalled);
            relays[1].post(&CallbackKind::Other.query(APP, None), "{}");
            let series = prometheus.query(&query);
            let has_data = series.iter().any(|series| series["value"][1] != "NaN");
            has_data.then_some(())
        });
    }
    drop(prometheus);
    for relay in relays {
        relay.kill();
    }
}

/// Title and expression of each query. Asserts that each panel can be read without this file: it has a title, a
/// description and a unit, and the data source of the variable.
fn queries(dashboard: &Value) -> Vec<(String, String)> {
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let names: Vec<_> = variables.iter().map(|variable| &variable["name"]).collect();
    assert_eq!(names, ["datasource", "instance"]);
    let mut rows = Vec::new();
    let mut ids = BTreeSet::new();
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{panel}");
        let title = panel["title"].as_str().unwrap().to_owned();
        if panel["type"] == "row" {
            rows.push(title);
            continue;
        }
        assert!(
            !panel["description"].as_str().unwrap().is_empty(),
            "{panel}"
        );
        assert!(
            panel["fieldConfig"]["defaults"]["unit"].is_string(),
            "{panel}"
        );
        for target in panel["targets"].as_array().unwrap() {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{panel}");
            queries.push((title.clone(), target["expr"].as_str().unwrap().to_owned()));
        }
    }
    for annotation in dashboard["annotations"]["list"].as_array().unwrap() {
        if let Some(query) = annotation["expr"].as_str() {
            queries.push(("annotation".to_owned(), query.to_owned()));
        }
    }
    let expected = [
        "Callbacks",
        "Answers",
        "Spool",
        "Sinks",
        "Upstream",
        "Process",
    ];
    assert_eq!(rows, expected);
    queries
}
