//! `recall-relay config`: prints the settings in effect and the source of each value.

use std::io::{self, Write as _};

use crate::config::Loaded;

pub(super) fn run(loaded: &Loaded) -> anyhow::Result<()> {
    // A start needs it, too.
    loaded.server_certificate()?;
    let listing = loaded.listing();
    let width =
        |column: fn(&(String, String, _)) -> usize| listing.iter().map(column).max().unwrap_or(0);
    let keys = width(|(key, _, _)| key.len());
    let values = width(|(_, value, _)| value.len()).min(40);
    let mut out = io::stdout().lock();
    for (key, value, source) in &listing {
        writeln!(out, "{key:keys$} = {value:values$}  # {source}")?;
    }
    Ok(())
}
