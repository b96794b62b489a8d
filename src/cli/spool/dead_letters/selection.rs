//! Which dead letters a command is about.

use std::collections::BTreeSet;

use anyhow::bail;
use clap::{ArgGroup, Args};

use super::SinkArg;
use crate::cli::id_or_seq::IdOrSeq;
use crate::spool::{DeadLetterQuery, Inspector, KeptDeadLetter};

/// Selects dead letters by their events, or all.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("which").required(true).args(["events", "all"]))]
pub(super) struct Selection {
    /// Ids of events, or their numbers
    #[arg(value_name = "ID|SEQ")]
    events: Vec<IdOrSeq>,

    /// Select all dead letters
    #[arg(long)]
    all: bool,

    #[command(flatten)]
    sink: SinkArg,
}

impl Selection {
    /// Hands each page of selected dead letters to `handle`, ordered by sink and number. No transaction is open
    /// meanwhile.
    ///
    /// Fails after the last page if an event was named that is no dead letter.
    pub(super) fn for_each_page(
        &self,
        inspector: &Inspector,
        mut handle: impl FnMut(&[KeptDeadLetter]) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let query = DeadLetterQuery {
            sink: self.sink.sink.clone(),
            ..DeadLetterQuery::default()
        };
        let mut missing: BTreeSet<_> = self.events.iter().copied().collect();
        for page in inspector.dead_letters(query) {
            let mut page = page?;
            page.retain(|dead_letter| self.all || self.names(dead_letter));
            for dead_letter in &page {
                missing.remove(&IdOrSeq::Id(dead_letter.event.id));
                missing.remove(&IdOrSeq::Seq(dead_letter.seq));
            }
            if !page.is_empty() {
                handle(&page)?;
            }
        }
        if !missing.is_empty() {
            let missing: Vec<_> = missing.iter().map(IdOrSeq::to_string).collect();
            bail!(
                "{}",
                not_kept(&missing.join(", "), self.sink.sink.as_deref())
            );
        }
        Ok(())
    }

    fn names(&self, dead_letter: &KeptDeadLetter) -> bool {
        let events = &self.events;
        events.contains(&IdOrSeq::Id(dead_letter.event.id))
            || events.contains(&IdOrSeq::Seq(dead_letter.seq))
    }
}

/// The error for events that are no dead letters.
pub(super) fn not_kept(events: &str, sink: Option<&str>) -> String {
    let of = sink.map(|sink| format!(" of {sink}")).unwrap_or_default();
    format!(
        "the spool keeps no dead letter{of} with the event {events}; to list those that it keeps, run \
         `recall-relay spool dead-letters list`"
    )
}
