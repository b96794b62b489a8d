//! Finds the events that a receipt is about, wherever the spool has them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use anyhow::bail;
use uuid::Uuid;

use crate::cli::event_view::EventView;
use crate::cli::search::search_all;
use crate::event::{Event, EventFilter, Seq, UnixMillis};
use crate::spool::{DeadLetterQuery, EventQuery, FoundEvent, Inspector, KeptDeadLetter};

/// Which events to find.
#[derive(Debug, Clone)]
pub(in crate::cli) enum Wanted {
    /// Those with this id.
    Id(Uuid),
    /// The one with this number.
    Seq(Seq),
    /// Those that recall this message of a conversation.
    Message(EventFilter, String),
}

/// An event, and what the spool still has of it.
#[derive(Debug, Default)]
pub(in crate::cli) struct LocatedEvent {
    /// `None` if its row is damaged.
    pub(in crate::cli) id: Option<Uuid>,
    /// `None` if it is damaged, or if only its id is left.
    pub(in crate::cli) event: Option<Event>,
    /// When it was appended, if it is kept.
    pub(in crate::cli) appended_at: Option<UnixMillis>,
    /// Whether it is among the events: not purged.
    pub(in crate::cli) is_kept: bool,
    /// The spool's dead letters of it, one for each sink.
    pub(in crate::cli) dead_letters: Vec<KeptDeadLetter>,
}

/// What was found.
#[derive(Debug, Default)]
pub(in crate::cli) struct Located {
    pub(in crate::cli) events: BTreeMap<Seq, LocatedEvent>,
    /// How many damaged rows may have been wanted, too.
    pub(in crate::cli) damaged: u64,
    apps: BTreeSet<String>,
}

impl Located {
    /// Searches the events, then the dead letters, then the ids of purged events: what is purged meanwhile is found in
    /// a later place.
    ///
    /// # Errors
    /// Fails if the spool cannot be read, or has a conversation for several applications.
    pub(in crate::cli) fn find(inspector: &Inspector, wanted: &Wanted) -> anyhow::Result<Self> {
        let mut located = Self::default();
        let search = inspector.search(wanted.query())?;
        search_all(search, |found, _| {
            located.add_event(wanted, found);
            Ok(ControlFlow::Continue(()))
        })?;
        for page in inspector.dead_letters(wanted.dead_letter_query()) {
            for dead_letter in page? {
                located.add_dead_letter(wanted, dead_letter);
            }
        }
        if let Wanted::Id(id) = wanted
            && located.events.is_empty()
            && let Some(seq) = inspector.purged(*id)?
        {
            let purged = LocatedEvent {
                id: Some(*id),
                ..LocatedEvent::default()
            };
            located.events.insert(seq, purged);
        }
        if located.apps.len() > 1 {
            let apps: Vec<_> = located.apps.into_iter().collect();
            bail!(
                "the spool has this conversation for the applications {}; choose one with --app",
                apps.join(", ")
            );
        }
        Ok(located)
    }

    fn add_event(&mut self, wanted: &Wanted, FoundEvent { seq, stored }: FoundEvent) {
        let Some((appended_at, event)) = stored else {
            if let Wanted::Seq(_) = wanted {
                let damaged = LocatedEvent {
                    is_kept: true,
                    ..LocatedEvent::default()
                };
                self.events.insert(seq, damaged);
            } else {
                self.damaged += 1;
            }
            return;
        };
        if self.is_wanted(wanted, &event) {
            let located = LocatedEvent {
                id: Some(event.id),
                event: Some(event),
                appended_at: Some(appended_at),
                is_kept: true,
                dead_letters: Vec::new(),
            };
            self.events.insert(seq, located);
        }
    }

    fn add_dead_letter(&mut self, wanted: &Wanted, dead_letter: KeptDeadLetter) {
        let event = &dead_letter.event;
        if self.is_wanted(wanted, event) {
            let located = self.events.entry(dead_letter.seq).or_default();
            located.id.get_or_insert(event.id);
            located.event.get_or_insert_with(|| event.clone());
            located.dead_letters.push(dead_letter);
        }
    }

    /// The search has compared everything but the message.
    fn is_wanted(&mut self, wanted: &Wanted, event: &Event) -> bool {
        let Wanted::Message(_, message) = wanted else {
            return true;
        };
        self.apps.insert(event.sdk_app_id().to_owned());
        EventView::of(event).recalls(message)
    }
}

impl Wanted {
    fn query(&self) -> EventQuery {
        match self {
            Self::Id(id) => EventQuery {
                id: Some(*id),
                ..EventQuery::default()
            },
            Self::Seq(seq) => EventQuery {
                first: Some(*seq),
                last: Some(*seq),
                ..EventQuery::default()
            },
            Self::Message(filter, _) => EventQuery {
                filter: filter.clone(),
                ..EventQuery::default()
            },
        }
    }

    fn dead_letter_query(&self) -> DeadLetterQuery {
        match self {
            Self::Id(id) => DeadLetterQuery {
                id: Some(*id),
                ..DeadLetterQuery::default()
            },
            Self::Seq(seq) => DeadLetterQuery {
                seq: Some(*seq),
                ..DeadLetterQuery::default()
            },
            Self::Message(filter, _) => DeadLetterQuery {
                filter: filter.clone(),
                ..DeadLetterQuery::default()
            },
        }
    }
}
