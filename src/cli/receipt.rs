//! `recall-relay where`: what became of an event.

pub(super) mod lookup;
pub(super) mod report;

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::bail;
use clap::error::ErrorKind;
use uuid::Uuid;

use self::lookup::{Located, Wanted};
use self::report::{Receipt, SinkReceipt};
use super::bad_usage;
use super::filter::ConversationArgs;
use super::output;
use super::sinks::SinkPositions;
use crate::config::Config;
use crate::event::{Event, UnixMillis};
use crate::spool::{Inspector, SpoolOverview};
use crate::telemetry;

/// How long to search the topic for one event.
#[cfg(feature = "kafka")]
const LOOKUP_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

/// Tell what became of an event: when it was received and stored, and whether each sink has confirmed it
///
/// Names the event by its id, or by a message that it recalls. Reads the spool without changing it, beside a running
/// relay or without one. Kafka is asked for partition and offset. The exit code is 0 if the event was found, and 1 if
/// it is not kept.
#[derive(Debug, clap::Args)]
pub(super) struct WhereArgs {
    /// Id of the event
    #[arg(
        value_name = "ID",
        required_unless_present = "message",
        conflicts_with_all = ["message", "app", "group", "topic", "from", "to", "account"]
    )]
    id: Option<Uuid>,

    /// Print one line of JSON for each event
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    conversation: ConversationArgs,

    /// Message of the conversation: in a group its `MsgSeq` or `MsgId`, else its `MsgKey`
    #[arg(long, value_name = "SEQ|KEY", help_heading = "Conversation")]
    message: Option<String>,
}

impl WhereArgs {
    fn wanted(self) -> Result<Wanted, clap::Error> {
        match (self.id, self.message) {
            (Some(id), _) => Ok(Wanted::Id(id)),
            (None, Some(message)) if self.conversation.names_conversation() => {
                Ok(Wanted::Message(self.conversation.filter(), message))
            }
            _ => Err(bad_usage::<Self>(
                "recall-relay where",
                ErrorKind::MissingRequiredArgument,
                "--message needs the message's conversation: --group, --from and --to, or --account",
            )),
        }
    }
}

pub(super) fn run(args: WhereArgs, config: &Config) -> anyhow::Result<ExitCode> {
    let json = args.json;
    let wanted = args.wanted()?;
    let inspector = Inspector::open(&config.spool)?;
    let located = Located::find(&inspector, &wanted)?;
    let positions = SinkPositions::read(&inspector, config)?;
    if located.damaged > 0 {
        telemetry::say(&format!(
            "recall-relay: {} damaged events in the spool were not searched; check the disk",
            located.damaged
        ));
    }
    if located.events.is_empty() {
        bail!("{}", not_kept(&positions.overview));
    }
    let mut out = output::stdout();
    for (index, (seq, event)) in located.events.iter().rev().enumerate() {
        let mut receipt = Receipt::new(*seq, event, &positions);
        receipt.look_up(|event, appended_at, sink| look_up(config, event, appended_at, sink));
        if json {
            output::print_json(&mut out, &receipt)?;
        } else {
            if index > 0 {
                writeln!(out)?;
            }
            receipt.print(&mut out, false)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Why an event was not found.
pub(super) fn not_kept(overview: &SpoolOverview) -> String {
    match overview.oldest_appended_at {
        Some(oldest) => format!("not kept; events are kept since {oldest}"),
        None => "not kept; the spool has no events".to_owned(),
    }
}

/// Looks up where a broker that has confirmed the event has it. A failure is part of the receipt.
#[cfg(feature = "kafka")]
fn look_up(config: &Config, event: &Event, appended_at: UnixMillis, sink: &mut SinkReceipt) {
    use self::report::{EventState, KafkaPlace};
    use crate::sink::kafka;
    let (
        Some(config),
        EventState::Confirmed {
            kafka: place,
            lookup_error,
        },
    ) = (&config.kafka, &mut sink.state)
    else {
        return;
    };
    if sink.sink != kafka::NAME {
        return;
    }
    let key = &event.conversation;
    match kafka::find(config, event.id, key, appended_at, LOOKUP_TIMEOUT) {
        Ok(Some(found)) => {
            *place = Some(KafkaPlace {
                topic: found.topic,
                partition: found.partition,
                offset: found.offset,
                timestamp: found.time,
            });
        }
        Ok(None) => {
            *lookup_error = Some(format!("topic {} does not have it any more", config.topic));
        }
        Err(error) => {
            let reason = telemetry::chain(error.as_ref());
            *lookup_error = Some(format!("its offset could not be looked up: {reason}"));
        }
    }
}

/// No broker of this build can be asked.
#[cfg(not(feature = "kafka"))]
fn look_up(_: &Config, _: &Event, _: UnixMillis, _: &mut SinkReceipt) {}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Where {
        #[command(flatten)]
        args: WhereArgs,
    }

    /// What the arguments name; `None` if they are refused.
    fn wanted(arguments: &[&str]) -> Option<Wanted> {
        let arguments = ["where"].iter().chain(arguments);
        Where::try_parse_from(arguments).ok()?.args.wanted().ok()
    }

    #[test]
    fn an_event_is_named_by_its_id_or_by_a_message() {
        let id = "e623ed2b-c5ef-5b1b-a59b-1584672e69fa";
        assert!(matches!(wanted(&[id]), Some(Wanted::Id(_))));
        for message in [
            &["--group", "g", "--message", "130"][..],
            &[
                "--group",
                "g",
                "--topic",
                "t",
                "--message",
                "130",
                "--app",
                "7",
            ],
            &["--from", "a", "--to", "b", "--message", "1_2_3"],
            &["--account", "o", "--message", "1_2_3", "--json"],
        ] {
            let wanted = wanted(message);
            assert!(matches!(wanted, Some(Wanted::Message(..))), "{message:?}");
        }
    }

    #[test]
    fn incomplete_or_contradictory_names_are_bad_usage() {
        let id = "e623ed2b-c5ef-5b1b-a59b-1584672e69fa";
        for wrong in [
            &[][..],
            &["130"],
            &["--group", "g"],
            &["--message", "130"],
            &["--app", "7", "--message", "130"],
            &["--topic", "t", "--message", "130"],
            &["--group", "g", "--account", "o", "--message", "130"],
            &[id, "--message", "130"],
            &[id, "--group", "g"],
        ] {
            assert!(wanted(wrong).is_none(), "{wrong:?}");
        }
    }
}
