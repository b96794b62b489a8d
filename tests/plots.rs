//! The plots of docs/explanation/performance.md are drawn from the `performance.json` in their folder. If you change
//! that file or the code of the plots, run `benches/run --plot docs/explanation/performance/performance.json`.
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;

#[path = "../benches/performance/plot.rs"]
mod plot;

#[test]
fn are_drawn_from_the_figures() {
    let folder = Path::new("docs/explanation/performance");
    let report = fs::read(folder.join("performance.json")).expect("cannot read performance.json");
    let report = serde_json::from_slice(&report).expect("performance.json is not JSON");
    let drawn = plot::draw(&report);
    let files = fs::read_dir(folder).expect("cannot list the plots").count();
    assert_eq!(files, drawn.len() + 1, "wrong number of plots");
    for (file, svg) in drawn {
        let committed = fs::read_to_string(folder.join(file)).expect("cannot read a plot");
        assert!(
            committed == svg,
            "{file} is not drawn from performance.json"
        );
    }
}
