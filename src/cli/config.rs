//! `recall-relay config`: prints the settings in effect and the source of each value.

use super::output::{self, Columns};
use crate::config::Loaded;

pub(super) fn run(loaded: &Loaded) -> anyhow::Result<()> {
    // A start needs it, too.
    loaded.server_certificate()?;
    // A long value, such as a list, does not make other lines longer if it is the last column.
    let mut columns = Columns::new(&["SETTING", "SOURCE", "VALUE"]);
    for (key, value, source) in loaded.listing() {
        columns.row([key, source.to_string(), value]);
    }
    Ok(columns.print(&mut output::stdout())?)
}
