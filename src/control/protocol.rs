//! The lines of the control socket. docs/reference/control-socket.md describes them.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The version of the protocol. A relay refuses requests of another version, and says which it knows.
const VERSION: u64 = 1;

/// The longest request in bytes, with its line feed.
pub(super) const LONGEST_REQUEST: u64 = 64 << 10;

/// The longest reply in bytes.
pub(super) const LONGEST_REPLY: u64 = 1 << 20;

/// A line: the version, beside the fields of a command or a reply.
#[derive(Serialize, Deserialize)]
struct Line<T> {
    version: u64,
    #[serde(flatten)]
    content: T,
}

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum ControlCommand {
    /// Report the state of the sinks: one [`Reply::Status`].
    Status,
    /// Send the events that are kept from this number on again: [`Reply::Progress`] until [`Reply::Done`]. The replay
    /// ends with the connection.
    Replay {
        /// The sink.
        sink: String,
        /// The number of the first event.
        from_seq: u64,
    },
    /// Publish these dead letters again: as [`Self::Replay`].
    Retry {
        /// The sink.
        sink: String,
        /// The numbers of the dead letters' events, in order.
        seqs: Vec<u64>,
    },
    /// Delete these dead letters: one [`Reply::Done`].
    Drop {
        /// The dead letters.
        dead_letters: Vec<DeadLetterKey>,
    },
    /// Delete the cursor of a sink that is not configured: one [`Reply::Done`].
    Forget {
        /// The sink.
        sink: String,
    },
}

/// Names a dead letter that the spool keeps.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DeadLetterKey {
    /// The sink that could not publish it.
    pub sink: String,
    /// The event's number.
    pub seq: u64,
}

/// A line from the relay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// The answer to [`ControlCommand::Status`].
    Status(RelayStatus),
    /// How far a replay or a retry is.
    Progress(Progress),
    /// The command is completed.
    Done(Progress),
    /// The command failed, for this reason.
    Failed {
        /// The reason, for people.
        reason: String,
    },
}

/// How far a command is. Every number is of events.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Handled so far: confirmed by the broker, or deleted.
    pub done: u64,
    /// To be handled in all, as far as is known.
    pub total: u64,
    /// Not handled: they are no longer kept, or they are not confirmed yet and will be sent anyway.
    pub skipped: u64,
    /// Refused again; they stay dead letters.
    pub refused: u64,
    /// Every event up to this number is handled.
    pub seq: u64,
    /// Why nothing can be sent now, if that is so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sink_down: Option<String>,
}

/// The state of the running relay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayStatus {
    /// Why callbacks are refused, if they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refusing: Option<String>,
    /// The configured sinks.
    pub sinks: Vec<SinkStatus>,
}

/// The state of a sink.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SinkStatus {
    /// Its name.
    pub sink: String,
    /// `starting`, `up` or `down`.
    pub state: String,
    /// Why it is down.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Since when it has been down, in RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// It has confirmed every event up to this number.
    pub confirmed_seq: u64,
    /// The replay or retry that is under way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resending: Option<Progress>,
}

pub(super) fn encode_request(command: &ControlCommand) -> Vec<u8> {
    encode(command)
}

pub(super) fn encode_reply(reply: &Reply) -> Vec<u8> {
    encode(reply)
}

fn encode(content: impl Serialize) -> Vec<u8> {
    let version = VERSION;
    // Neither type has a map with keys that are not text, so this cannot fail.
    let mut line = serde_json::to_vec(&Line { version, content }).unwrap_or_default();
    line.push(b'\n');
    line
}

/// Parses a request.
///
/// # Errors
/// Returns what is wrong with it.
pub fn parse_request(line: &[u8]) -> Result<ControlCommand, String> {
    parse(line).map_err(|reason| format!("request {reason}"))
}

/// Parses a reply.
///
/// # Errors
/// Returns what is wrong with it.
pub fn parse_reply(line: &[u8]) -> Result<Reply, String> {
    parse(line).map_err(|reason| format!("reply {reason}"))
}

fn parse<T: for<'de> Deserialize<'de>>(line: &[u8]) -> Result<T, String> {
    if !line.ends_with(b"\n") {
        return Err("is longer than it may be, or incomplete: it has no line feed".to_owned());
    }
    let parsed = serde_json::from_slice::<Value>(line);
    let value = parsed.map_err(|error| format!("is not JSON: {error}"))?;
    match value.get("version").and_then(Value::as_u64) {
        Some(VERSION) => {}
        Some(other) => {
            return Err(format!(
                "has version {other} of the control protocol, but this program has {VERSION}; use the program of the \
                 running relay for commands, too"
            ));
        }
        None => return Err("has no `version`".to_owned()),
    }
    let line: Line<T> =
        serde_json::from_value(value).map_err(|error| format!("is not understood: {error}"))?;
    Ok(line.content)
}

/// The reason why the cursor of a configured sink is not deleted.
#[must_use]
pub fn configured(sink: &str) -> String {
    format!(
        "{sink} is configured: without its cursor it would publish every event again; remove it from the configuration \
         and restart the relay first"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(seq: u64) -> DeadLetterKey {
        DeadLetterKey {
            sink: "kafka".to_owned(),
            seq,
        }
    }

    /// The protocol is frozen: a command of one version speaks to a relay of another.
    #[test]
    fn requests_and_replies_have_this_form() {
        let sink = || "kafka".to_owned();
        let requests = [
            (
                ControlCommand::Status,
                r#"{"version":1,"command":"status"}"#,
            ),
            (
                ControlCommand::Replay {
                    sink: sink(),
                    from_seq: 7,
                },
                r#"{"version":1,"command":"replay","sink":"kafka","from_seq":7}"#,
            ),
            (
                ControlCommand::Retry {
                    sink: sink(),
                    seqs: vec![1, 2],
                },
                r#"{"version":1,"command":"retry","sink":"kafka","seqs":[1,2]}"#,
            ),
            (
                ControlCommand::Drop {
                    dead_letters: vec![key(1)],
                },
                r#"{"version":1,"command":"drop","dead_letters":[{"sink":"kafka","seq":1}]}"#,
            ),
            (
                ControlCommand::Forget { sink: sink() },
                r#"{"version":1,"command":"forget","sink":"kafka"}"#,
            ),
        ];
        for (command, line) in requests {
            let encoded = encode_request(&command);
            assert_eq!(str::from_utf8(&encoded).unwrap(), format!("{line}\n"));
            assert_eq!(parse_request(&encoded), Ok(command));
        }
        let progress = Progress {
            done: 1,
            total: 2,
            sink_down: Some("why".to_owned()),
            ..Progress::default()
        };
        let status = RelayStatus {
            refusing: None,
            sinks: vec![SinkStatus {
                sink: sink(),
                state: "up".to_owned(),
                reason: None,
                since: None,
                confirmed_seq: 3,
                resending: None,
            }],
        };
        let replies = [
            (
                Reply::Progress(progress),
                r#"{"version":1,"reply":"progress","done":1,"total":2,"skipped":0,"refused":0,"seq":0,"sink_down":"why"}"#,
            ),
            (
                Reply::Done(Progress::default()),
                r#"{"version":1,"reply":"done","done":0,"total":0,"skipped":0,"refused":0,"seq":0}"#,
            ),
            (
                Reply::Status(status),
                r#"{"version":1,"reply":"status","sinks":[{"sink":"kafka","state":"up","confirmed_seq":3}]}"#,
            ),
            (
                Reply::Failed {
                    reason: "why".to_owned(),
                },
                r#"{"version":1,"reply":"failed","reason":"why"}"#,
            ),
        ];
        for (reply, line) in replies {
            let encoded = encode_reply(&reply);
            assert_eq!(str::from_utf8(&encoded).unwrap(), format!("{line}\n"));
            assert_eq!(parse_reply(&encoded), Ok(reply));
        }
    }

    #[test]
    fn a_request_that_is_not_understood_says_why() {
        for (line, why) in [
            ("", "no line feed"),
            (r#"{"version":1,"command":"status"}"#, "no line feed"),
            ("\n", "not JSON"),
            ("{}\n", "no `version`"),
            ("{\"version\":2,\"command\":\"status\"}\n", "has version 2"),
            ("{\"version\":1,\"command\":\"erase\"}\n", "erase"),
            (
                "{\"version\":1,\"command\":\"replay\",\"sink\":\"kafka\"}\n",
                "from_seq",
            ),
            (
                "{\"version\":1,\"command\":\"forget\",\"sink\":7}\n",
                "not understood",
            ),
        ] {
            let refused = parse_request(line.as_bytes()).unwrap_err();
            assert!(refused.contains(why), "{line}: {refused}");
        }
    }
}
