//! Each alert has an incident in which it fires.

use std::collections::BTreeSet;
use std::fs;

/// What the page says in a section with an incident about the alerts that fire.
const ALERT: &str = "\n**Alert:** ";

fn read(path: &str) -> String {
    fs::read_to_string(format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// The alerts that a section says fire.
#[track_caller]
fn named(section: &str) -> impl Iterator<Item = &str> {
    let (_, after) = section
        .split_once(ALERT)
        .unwrap_or_else(|| panic!("which alerts fire? {section}"));
    let paragraph = after.split("\n\n").next().unwrap();
    let words = paragraph.split(|c: char| !c.is_alphanumeric());
    words.filter(|word| word.starts_with("RecallRelay"))
}

#[test]
fn every_alert_fires_in_an_incident() {
    let (rules, page) = (
        read("deploy/prometheus/recall-relay.rules.yml"),
        read("docs/how-to/incidents.md"),
    );
    let rules: BTreeSet<&str> = rules
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("- alert: "))
        .collect();
    assert!(rules.len() > 30, "{rules:?}");
    let sections = page.split("\n## ").skip(1);
    let fire: BTreeSet<&str> = sections.flat_map(named).collect();
    assert_eq!(fire, rules);
}
