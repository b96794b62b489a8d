//! The plots of docs/explanation/performance.md are those of the figures beside them. After a change of either:
//! `benches/run --plot docs/explanation/performance/performance.json`.
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;

#[path = "../benches/performance/plot.rs"]
mod plot;

#[test]
fn are_drawn_from_the_figures() {
    let folder = Path::new("docs/explanation/performance");
    let report = fs::read(folder.join("performance.json")).expect("the figures");
    let report = serde_json::from_slice(&report).expect("the figures in JSON");
    let drawn = plot::draw(&report);
    let files = fs::read_dir(folder).expect("the plots").count();
    assert_eq!(files, drawn.len() + 1, "the plots and the figures");
    for (file, svg) in drawn {
        let committed = fs::read_to_string(folder.join(file)).expect("a plot");
        assert!(committed == svg, "{file} is not drawn from these figures");
    }
}
