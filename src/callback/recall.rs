//! Parses the body of a recall callback, in every version that the vendor has published, into an event.
//!
//! The identity of a recall (its conversation and its messages) must be parsed in full. Any other field that is missing
//! or unusable is left out of the event and reported in `ignored_fields`: subscribers must learn of a recall even if a
//! detail of it is invalid.

use std::borrow::Cow;
use std::net::IpAddr;

use super::classify::Body;
use super::command::Recall;
use super::json::{Object, Value};
use super::query::Query;
use crate::event::{Client, Conversation, Event, KeyParts, Recalled, RecalledMessage, UnixMillis};

/// A parsed recall.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParsedRecall {
    /// The event to publish.
    pub event: Event,
    /// Which fields the event lacks, and why.
    pub ignored_fields: Vec<IgnoredField>,
}

/// The fields that can be left out of an event.
pub const IGNORABLE_FIELDS: [&str; 6] = [
    "ClientIP",
    "EventTime",
    "MsgId",
    "Operator_Account",
    "OptPlatform",
    "Type",
];

/// A field that is left out of a recall's event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IgnoredField {
    /// The callback does not have it.
    Missing(&'static str),
    /// The callback has it, but its value is unusable.
    Unusable(&'static str),
}

/// Why the identity of a recall could not be parsed, and which field is the cause.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// The body is not JSON.
    #[error("body is not JSON: {0}")]
    NotJson(String),
    /// The body is JSON but not an object.
    #[error("body is not a JSON object")]
    NotAnObject,
    /// The query and the body name different commands.
    #[error("query names {query} but body names {body}")]
    Command {
        /// The command in the query.
        query: String,
        /// The command in the body.
        body: String,
    },
    /// A field that identifies the conversation is missing, empty or of the wrong type.
    #[error("{0} {1}")]
    Conversation(&'static str, &'static str),
    /// The list of messages, or one of them, is missing, empty or of the wrong type.
    #[error("{0} {1}")]
    Messages(String, &'static str),
}

impl ParseError {
    /// The error as one word, for metrics and for the dead letter's `reason`.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::NotJson(_) => "not_json",
            Self::NotAnObject => "not_an_object",
            Self::Command { .. } => "command",
            Self::Conversation(..) => "conversation",
            Self::Messages(..) => "messages",
        }
    }
}

/// How many characters of the received commands are shown in an answer and in the log.
const MAX_COMMAND_CHARS: usize = 100;

const MISSING: &str = "is missing";
const EMPTY: &str = "is empty";
const NOT_TEXT: &str = "is not a string";
const NOT_UNICODE: &str = "is not Unicode text: it has a lone surrogate";

/// Makes the event of a recall.
///
/// # Errors
/// Returns which field could not be parsed, and why. The caller must then store the whole callback.
pub fn parse_recall(
    sdk_app_id: u64,
    recall: Recall,
    query: &Query<'_>,
    body: &Body<'_>,
    received_at: UnixMillis,
) -> Result<ParsedRecall, ParseError> {
    let object = match body {
        Body::Object(object) => object,
        Body::NotAnObject => return Err(ParseError::NotAnObject),
        Body::NotJson(error) => return Err(ParseError::NotJson(error.clone())),
    };
    // The commands have different identity fields: do not guess which of the two is meant.
    if let (Some(in_query), Some(in_body)) = (query.command(), body.command())
        && in_query != in_body
    {
        return Err(ParseError::Command {
            query: in_query.chars().take(MAX_COMMAND_CHARS).collect(),
            body: in_body.chars().take(MAX_COMMAND_CHARS).collect(),
        });
    }

    // The messages borrow from it.
    let list;
    // Identity fields return an error. Details only add to `ignored_fields`.
    let mut fields = Fields {
        object,
        ignored_fields: Vec::new(),
    };
    let mut operator_id = None;
    let (conversation, messages) = match recall {
        Recall::Group => {
            let group_id = fields.identity("GroupId")?;
            let topic_id = fields.topic()?;
            list = fields.list("MsgSeqList")?;
            let messages = fields.group_messages(&list)?;
            operator_id = fields.detail("Operator_Account");
            let conversation = Conversation::Group {
                group_id,
                group_type: fields.detail("Type"),
                topic_id,
            };
            (conversation, messages)
        }
        Recall::C2c => {
            let conversation = Conversation::C2c {
                from_account: fields.identity("From_Account")?,
                to_account: fields.identity("To_Account")?,
            };
            let key = fields
                .object
                .get("MsgKey")
                .ok_or(ParseError::Messages("MsgKey".to_owned(), MISSING))?;
            (conversation, vec![message_by_key("MsgKey", key)?])
        }
        Recall::OfficialAccount => {
            let conversation = Conversation::OfficialAccount {
                official_account: fields.identity("Official_Account")?,
            };
            list = fields.list("WithdrawMsgList")?;
            (conversation, withdrawn_messages(&list)?)
        }
    };
    let recalled = Recalled {
        sdk_app_id,
        command: recall.command(),
        conversation,
        operator_id,
        messages,
        recalled_at: fields.event_time(),
        received_at,
        client: fields.client(query),
    };
    Ok(ParsedRecall {
        event: recalled.event(),
        ignored_fields: fields.ignored_fields,
    })
}

/// The body's fields, and those ignored so far.
struct Fields<'a> {
    object: &'a Object<'a>,
    ignored_fields: Vec<IgnoredField>,
}

impl<'a> Fields<'a> {
    /// A non-empty string that identifies the conversation.
    fn identity(&self, name: &'static str) -> Result<&'a str, ParseError> {
        match self.object.get(name) {
            None => Err(ParseError::Conversation(name, MISSING)),
            Some(Value::Text(text)) if text.is_empty() => {
                Err(ParseError::Conversation(name, EMPTY))
            }
            Some(Value::Text(text)) => Ok(text),
            Some(Value::Other(json)) => Err(ParseError::Conversation(name, not_text(json))),
        }
    }

    /// The topic. None if the group has no topics; the vendor also writes that as `""`.
    fn topic(&self) -> Result<Option<&'a str>, ParseError> {
        match self.object.get("TopicId") {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(&**text).filter(|text| !text.is_empty())),
            Some(Value::Other(json)) => Err(ParseError::Conversation("TopicId", not_text(json))),
        }
    }

    fn list(&self, name: &'static str) -> Result<Vec<Object<'a>>, ParseError> {
        let Some(value) = self.object.get(name) else {
            return Err(ParseError::Messages(name.to_owned(), MISSING));
        };
        match value.as_objects() {
            Some(list) if list.is_empty() => Err(ParseError::Messages(name.to_owned(), EMPTY)),
            Some(list) => Ok(list),
            None => Err(ParseError::Messages(name.to_owned(), "is not an array")),
        }
    }

    fn group_messages(
        &mut self,
        list: &'a [Object<'a>],
    ) -> Result<Vec<RecalledMessage<'a>>, ParseError> {
        let mut messages = Vec::with_capacity(list.len());
        for (index, entry) in list.iter().enumerate() {
            let seq = entry.get("MsgSeq").ok_or_else(|| {
                ParseError::Messages(format!("MsgSeqList[{index}].MsgSeq"), MISSING)
            })?;
            let seq = seq.as_unsigned().ok_or_else(|| {
                let path = format!("MsgSeqList[{index}].MsgSeq");
                ParseError::Messages(path, "is not an unsigned 64-bit number")
            })?;
            let id = self.text(entry.get("MsgId"), "MsgId");
            messages.push(RecalledMessage::Group { seq, id });
        }
        Ok(messages)
    }

    /// A string that is not part of the identity.
    fn detail(&mut self, name: &'static str) -> Option<&'a str> {
        self.text(self.object.get(name), name)
    }

    fn text(&mut self, value: Option<&'a Value<'a>>, name: &'static str) -> Option<&'a str> {
        match value {
            None => self.ignore(IgnoredField::Missing(name)),
            Some(Value::Text(text)) if !text.is_empty() => Some(text),
            Some(_) => self.ignore(IgnoredField::Unusable(name)),
        }
    }

    /// `EventTime`: milliseconds, as a number or as a string of digits.
    fn event_time(&mut self) -> Option<UnixMillis> {
        match self.object.get("EventTime") {
            None => self.ignore(IgnoredField::Missing("EventTime")),
            Some(value) => match value.as_unsigned().and_then(UnixMillis::new) {
                None => self.ignore(IgnoredField::Unusable("EventTime")),
                time => time,
            },
        }
    }

    fn client<'q>(&mut self, query: &Query<'q>) -> Client<'q> {
        let ip = match &query.client_ip {
            None => self.ignore(IgnoredField::Missing("ClientIP")),
            Some(ip) if ip.parse::<IpAddr>().is_ok() => Some(Cow::clone(ip)),
            Some(_) => self.ignore(IgnoredField::Unusable("ClientIP")),
        };
        let platform = match &query.platform {
            None => self.ignore(IgnoredField::Missing("OptPlatform")),
            Some(platform) if platform.is_empty() => {
                self.ignore(IgnoredField::Unusable("OptPlatform"))
            }
            Some(platform) => Some(Cow::clone(platform)),
        };
        Client { ip, platform }
    }

    fn ignore<T>(&mut self, ignored: IgnoredField) -> Option<T> {
        if !self.ignored_fields.contains(&ignored) {
            self.ignored_fields.push(ignored);
        }
        None
    }
}

fn withdrawn_messages<'a>(list: &'a [Object<'_>]) -> Result<Vec<RecalledMessage<'a>>, ParseError> {
    let entries = list.iter().enumerate();
    entries
        .map(|(index, entry)| {
            let path = format!("WithdrawMsgList[{index}].MsgKey");
            match entry.get("MsgKey") {
                Some(key) => message_by_key(&path, key),
                None => Err(ParseError::Messages(path, MISSING)),
            }
        })
        .collect()
}

/// Why a value is not text.
fn not_text(json: &str) -> &'static str {
    if json.starts_with('"') {
        NOT_UNICODE
    } else {
        NOT_TEXT
    }
}

/// A message identified by its `MsgKey`, usually `<MsgSeq>_<MsgRandom>_<MsgTime seconds>`.
fn message_by_key<'a>(path: &str, value: &'a Value<'_>) -> Result<RecalledMessage<'a>, ParseError> {
    match value {
        Value::Text(key) if key.is_empty() => Err(ParseError::Messages(path.to_owned(), EMPTY)),
        Value::Text(key) => Ok(RecalledMessage::Keyed {
            key,
            parts: key_parts(key),
        }),
        Value::Other(json) => Err(ParseError::Messages(path.to_owned(), not_text(json))),
    }
}

fn key_parts(key: &str) -> Option<KeyParts> {
    let mut numbers = key.split('_').map(|part| {
        let digits = part.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| part.parse::<u64>().ok()).flatten()
    });
    let (seq, random, seconds) = (numbers.next()??, numbers.next()??, numbers.next()??);
    if numbers.next().is_some() {
        return None;
    }
    Some(KeyParts {
        seq,
        random,
        sent_at: UnixMillis::new(seconds.checked_mul(1000)?)?,
    })
}

#[cfg(test)]
mod tests;
