//! A real Prometheus with the configuration of `deploy/prometheus`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use super::vendor::Connection;
use super::{Relay, Setup, TIMEOUT, free_port, until};

const CONFIGURATION: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/deploy/prometheus/prometheus.yml"
);

/// A Prometheus that scrapes relays, and evaluates the alerts, every second. Dropping it kills it.
pub struct Prometheus {
    process: Child,
    address: SocketAddr,
}

impl Prometheus {
    /// Starts it with the configuration that is shipped; only the targets, the intervals and the path of the rules differ.
    pub fn start(setup: &Setup, relays: &[&Relay]) -> Self {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let rules = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/deploy/prometheus/recall-relay.rules.yml"
        );
        let targets: Vec<_> = relays.iter().map(|relay| relay.admin.to_string()).collect();
        let mut configuration = fs::read_to_string(CONFIGURATION).unwrap();
        for (shipped, tested) in [
            ("_interval: 15s", "_interval: 1s"),
            ("- recall-relay.rules.yml", &format!("- '{rules}'")),
            ("127.0.0.1:8081", &targets.join(r#"", ""#)),
        ] {
            assert!(
                configuration.contains(shipped),
                "{shipped}: {configuration}"
            );
            configuration = configuration.replace(shipped, tested);
        }
        let (config, data) = (
            setup.folder().join("prometheus.yml"),
            setup.folder().join("prometheus"),
        );
        fs::write(&config, configuration).unwrap();
        let process = Self::program("prometheus")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", data.display()))
            .arg(format!("--web.listen-address={address}"))
            .arg("--log.level=warn")
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let mut prometheus = Self { process, address };
        until("Prometheus to be ready", || {
            assert_eq!(prometheus.process.try_wait().unwrap(), None, "it has ended");
            let mut connection = Connection::open(address).ok()?;
            let answer = connection.request("GET", "/-/ready", b"").ok()?;
            (answer.status == 200).then_some(())
        });
        prometheus
    }

    /// A program of the package `prometheus`.
    ///
    /// # Panics
    /// If it is missing.
    pub fn program(name: &str) -> Command {
        let installed = Command::new(name)
            .arg("--version")
            .output()
            .is_ok_and(|output| output.status.success());
        assert!(
            installed,
            "{name} is missing: run tests/run, which installs it"
        );
        Command::new(name)
    }

    pub fn get(&self, target: &str) -> Value {
        // HTTP/1.0: over 1.1, long answers are chunked.
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        write!(stream, "GET {target} HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        serde_json::from_str(body).unwrap()
    }

    /// The series that an expression has now.
    ///
    /// # Panics
    /// If Prometheus does not accept the expression.
    #[track_caller]
    pub fn query(&self, expression: &str) -> Vec<Value> {
        let encoded: String = form_urlencoded::byte_serialize(expression.as_bytes()).collect();
        let answer = self.get(&format!("/api/v1/query?query={encoded}"));
        assert_eq!(answer["status"], "success", "{expression}: {answer}");
        answer["data"]["result"].as_array().unwrap().clone()
    }

    /// Every metric that Prometheus has, with each label and its values.
    pub fn series(&self) -> ExportedSeries {
        let answer = self.get("/api/v1/series?match%5B%5D=%7Bjob%3D~%22.%2B%22%7D");
        let mut exported = BTreeMap::<String, BTreeSet<(String, String)>>::new();
        for series in answer["data"].as_array().unwrap() {
            let mut labels: BTreeMap<String, String> =
                serde_json::from_value(series.clone()).unwrap();
            let name = labels.remove("__name__").unwrap();
            exported.entry(name).or_default().extend(labels);
        }
        ExportedSeries(exported)
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Metrics with their labels.
pub struct ExportedSeries(BTreeMap<String, BTreeSet<(String, String)>>);

impl ExportedSeries {
    pub fn has(&self, metric: &str) -> bool {
        self.0.contains_key(metric)
    }

    /// Asserts that each metric in a PromQL expression exists, and each value of a label that it selects. Returns how many
    /// metrics the expression names.
    #[track_caller]
    pub fn assert_exports(&self, expression: &str) -> usize {
        let mut rest = expression;
        let mut found = 0;
        while let Some(begin) = rest.find(|char: char| char.is_ascii_lowercase()) {
            rest = &rest[begin..];
            let end = rest
                .find(|char: char| char != '_' && !char.is_ascii_alphanumeric())
                .unwrap_or(rest.len());
            let (name, after) = rest.split_at(end);
            rest = after;
            if name != "up" && !name.starts_with("recall_") && !name.starts_with("process_") {
                continue; // a function, an operator or a label
            }
            assert!(self.has(name), "{expression}: there is no metric {name}");
            found += 1;
            if let Some(matchers) = after.strip_prefix('{') {
                let (matchers, after) = matchers.split_once('}').unwrap();
                rest = after;
                self.assert_matches(name, matchers, expression);
            }
        }
        found
    }

    /// `matchers` is what stands in the braces after the name of a metric.
    #[track_caller]
    fn assert_matches(&self, name: &str, matchers: &str, expression: &str) {
        for matcher in matchers.split("\",") {
            let (selector, values) = matcher.trim_end_matches('"').split_once('"').unwrap();
            let label = selector.trim().trim_end_matches(['=', '!', '~']);
            for value in values.split('|') {
                let pair = (label.to_owned(), value.to_owned());
                assert!(
                    self.0[name].contains(&pair),
                    "{expression}: {name} has no {label}={value:?}, only {:?}",
                    self.0[name]
                );
            }
        }
    }
}
