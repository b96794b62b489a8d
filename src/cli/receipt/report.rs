//! What became of one event, for people and as JSON.

use std::fmt::Write as _;
use std::io::{self, Write};

use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::lookup::LocatedEvent;
use crate::cli::event_view::{self, EventView};
use crate::cli::output::{ATTENTION, FINE, label, styled};
use crate::cli::sinks::{SinkPosition, SinkPositions};
use crate::event::{Event, Seq, UnixMillis};
use crate::sink::stdout;
use crate::telemetry::escape;

/// What became of one event. Its JSON is documented in docs/reference/cli-json.md.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct Receipt<'a> {
    seq: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<Uuid>,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    stored_at: Option<UnixMillis>,
    #[serde(rename = "event", skip_serializing_if = "Option::is_none")]
    body: Option<&'a RawValue>,
    sinks: Vec<SinkReceipt>,
    /// Whether no broker has it; none without a broker.
    #[serde(skip_serializing_if = "Option::is_none")]
    at_risk: Option<bool>,
    #[serde(skip)]
    event: Option<&'a Event>,
}

/// What became of the event at one sink.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct SinkReceipt {
    pub(in crate::cli) sink: String,
    #[serde(flatten)]
    pub(in crate::cli) state: EventState,
}

/// Whether a sink has an event.
#[derive(Debug, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub(in crate::cli) enum EventState {
    /// Not yet confirmed.
    Waiting {
        /// How many unconfirmed events are before it.
        waiting_before: u64,
        sink_state: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        since: Option<String>,
    },
    /// The broker has confirmed it.
    Confirmed {
        #[serde(skip_serializing_if = "Option::is_none")]
        kafka: Option<KafkaPlace>,
        #[serde(skip_serializing_if = "Option::is_none")]
        lookup_error: Option<String>,
    },
    /// The spool keeps it as dead letter.
    DeadLetter {
        reason: String,
        detail: String,
        at: UnixMillis,
    },
}

/// Where Kafka has the event.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct KafkaPlace {
    pub(in crate::cli) topic: String,
    pub(in crate::cli) partition: i32,
    pub(in crate::cli) offset: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::cli) timestamp: Option<UnixMillis>,
}

impl<'a> Receipt<'a> {
    pub(in crate::cli) fn new(
        seq: Seq,
        located: &'a LocatedEvent,
        positions: &SinkPositions,
    ) -> Self {
        let event = located.event.as_ref();
        let sinks = positions.sinks.iter();
        let sinks: Vec<_> = sinks
            .map(|sink| SinkReceipt::new(seq, located, sink, positions))
            .collect();
        let mut brokers = (sinks.iter())
            .filter(|sink| sink.sink != stdout::NAME)
            .peekable();
        let is_confirmed = |sink: &SinkReceipt| matches!(sink.state, EventState::Confirmed { .. });
        Self {
            at_risk: (brokers.peek().is_some()).then(|| !brokers.any(is_confirmed)),
            seq: seq.0,
            id: located.id,
            state: match (located.is_kept, event) {
                (true, Some(_)) => "kept",
                (true, None) => "damaged",
                (false, _) => "purged",
            },
            stored_at: located.appended_at,
            body: event.and_then(event_view::raw_body),
            sinks,
            event,
        }
    }

    /// Looks up where the sinks have the event.
    pub(in crate::cli) fn look_up(
        &mut self,
        mut look_up: impl FnMut(&Event, UnixMillis, &mut SinkReceipt),
    ) {
        // A purged event is looked up from its own time on: it was appended later.
        if let Some(event) = self.event {
            let appended_at = self.stored_at.unwrap_or(event.time);
            self.sinks
                .iter_mut()
                .for_each(|sink| look_up(event, appended_at, sink));
        }
    }

    /// Prints it for people, with the body if that is wanted.
    pub(in crate::cli) fn print(&self, out: &mut impl Write, with_body: bool) -> io::Result<()> {
        if let Some(id) = self.id {
            label(out, "id", &id.to_string())?;
        }
        label(out, "number", &self.seq.to_string())?;
        if let Some(event) = self.event {
            print_event(out, event)?;
        }
        match self.state {
            "purged" => label(
                out,
                "stored",
                "purged: every sink had confirmed or refused it",
            )?,
            "damaged" => label(out, "stored", "damaged: it cannot be read; check the disk")?,
            _ => {}
        }
        if let Some(time) = self.stored_at {
            label(out, "stored", &time.to_string())?;
        }
        writeln!(out)?;
        for sink in &self.sinks {
            let (state, detail) = sink.state.words();
            let end = if detail.is_empty() { "" } else { ": " };
            let detail = escape(&detail);
            writeln!(out, "{:<13} {state}{end}{detail}", escape(&sink.sink))?;
        }
        if self.at_risk == Some(true) {
            writeln!(
                out,
                "\nNo broker has it: it would be lost with this machine."
            )?;
        }
        if with_body && let Some(event) = self.event {
            let body: Value = serde_json::from_slice(&event.body).unwrap_or_default();
            writeln!(out)?;
            // Line by line: a line feed within a text is escaped in JSON.
            for line in serde_json::to_string_pretty(&body)
                .unwrap_or_default()
                .lines()
            {
                writeln!(out, "{}", escape(line))?;
            }
        }
        Ok(())
    }
}

fn print_event(out: &mut impl Write, event: &Event) -> io::Result<()> {
    let view = EventView::of(event);
    label(out, "kind", event.kind.name())?;
    label(out, "application", event.sdk_app_id())?;
    for (name, value) in [
        ("conversation", view.conversation().as_str()),
        (
            if view.detail().is_some() {
                "reason"
            } else {
                "messages"
            },
            &view.messages(),
        ),
        ("detail", view.detail().unwrap_or_default()),
        ("operator", view.operator()),
        ("received", view.received_at().unwrap_or_default()),
    ] {
        if !value.is_empty() {
            label(out, name, value)?;
        }
    }
    Ok(())
}

impl SinkReceipt {
    fn new(
        seq: Seq,
        located: &LocatedEvent,
        sink: &SinkPosition,
        positions: &SinkPositions,
    ) -> Self {
        let mut dead_letters = located.dead_letters.iter();
        let state = if let Some(dead_letter) =
            dead_letters.find(|dead_letter| dead_letter.sink == sink.name)
        {
            EventState::DeadLetter {
                reason: dead_letter.reason.clone(),
                detail: dead_letter.detail.clone(),
                at: dead_letter.at,
            }
        } else if seq <= sink.confirmed || !located.is_kept {
            EventState::Confirmed {
                kafka: None,
                lookup_error: None,
            }
        } else {
            let before = Seq(seq.0 - 1);
            EventState::Waiting {
                waiting_before: positions.overview.kept_within(sink.confirmed, before),
                sink_state: sink.state().to_owned(),
                reason: match &sink.status {
                    Some(status) => status.reason.clone(),
                    None if sink.is_configured => Some("no relay answers on this spool".to_owned()),
                    None => Some("the sink is not configured".to_owned()),
                },
                since: sink.since().map(Into::into),
            }
        };
        Self {
            sink: sink.name.clone(),
            state,
        }
    }
}

impl EventState {
    /// The state in one word, in its colour, and its detail.
    fn words(&self) -> (String, String) {
        match self {
            Self::Waiting {
                waiting_before,
                sink_state,
                reason,
                since,
            } => {
                let mut detail = match waiting_before {
                    0 => "it is the next one".to_owned(),
                    1 => "1 event is before it".to_owned(),
                    before => format!("{before} events are before it"),
                };
                // Writing to a string cannot fail.
                let _ = match (reason, since) {
                    (Some(reason), Some(since)) => {
                        write!(detail, "; the sink is {sink_state} since {since}: {reason}")
                    }
                    (Some(reason), None) => write!(detail, "; {reason}"),
                    (None, _) => write!(detail, "; the sink is {sink_state}"),
                };
                (styled(ATTENTION, "waiting"), detail)
            }
            Self::Confirmed {
                kafka: Some(place), ..
            } => {
                let KafkaPlace {
                    topic,
                    partition,
                    offset,
                    timestamp,
                } = place;
                let time = timestamp
                    .map(|time| format!(", {time}"))
                    .unwrap_or_default();
                (
                    styled(FINE, "confirmed"),
                    format!("topic {topic}, partition {partition}, offset {offset}{time}"),
                )
            }
            Self::Confirmed { lookup_error, .. } => (
                styled(FINE, "confirmed"),
                lookup_error.clone().unwrap_or_default(),
            ),
            Self::DeadLetter { reason, detail, at } => (
                styled(ATTENTION, "dead letter"),
                format!(
                    "{reason} at {at}: {detail}; `recall-relay spool dead-letters` can publish it again"
                ),
            ),
        }
    }
}
