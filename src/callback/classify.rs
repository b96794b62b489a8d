//! Classifies a request, before its signature is checked.

use serde_json::value::RawValue;

use super::command::Recall;
use super::json::Object;
use super::query::Query;

/// The class of a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Class<'a> {
    /// It names a recall.
    Recall {
        /// The recall it names.
        recall: Recall,
        /// The body.
        body: Body<'a>,
    },
    /// It names a recall but carries no recall data: the console's "verify" button.
    Probe,
    /// Any other command, or none.
    Other {
        /// The command it names, if any.
        command: Option<String>,
    },
}

/// A body, parsed as far as possible.
#[derive(Debug, Clone, PartialEq)]
pub enum Body<'a> {
    /// A JSON object.
    Object(Object<'a>),
    /// JSON, but not an object.
    NotAnObject,
    /// Not JSON, or not UTF-8, with the parser's error.
    NotJson(String),
}

impl<'a> Body<'a> {
    fn parse(bytes: &'a [u8]) -> Self {
        let text = match str::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => return Self::NotJson(error.to_string()),
        };
        if let Some(object) = Object::parse(text) {
            return Self::Object(object);
        }
        match serde_json::from_str::<&RawValue>(text) {
            Ok(_) => Self::NotAnObject,
            Err(error) => Self::NotJson(error.to_string()),
        }
    }

    /// The body's `CallbackCommand`, if it is a non-empty string.
    pub(super) fn command(&self) -> Option<&str> {
        let Self::Object(object) = self else {
            return None;
        };
        object
            .get("CallbackCommand")?
            .as_text()
            .filter(|command| !command.is_empty())
    }

    /// Whether the body has any field that identifies recalled messages. True if the body is not a JSON object.
    fn has_recall_fields(&self) -> bool {
        match self {
            Self::Object(object) => IDENTITY_FIELDS
                .iter()
                .any(|field| object.get(field).is_some()),
            Self::NotAnObject | Self::NotJson(_) => true,
        }
    }
}

/// The fields of all recall commands that identify the recalled messages.
const IDENTITY_FIELDS: [&str; 8] = [
    "GroupId",
    "TopicId",
    "MsgSeqList",
    "From_Account",
    "To_Account",
    "MsgKey",
    "Official_Account",
    "WithdrawMsgList",
];

/// Classifies a request. The command is taken from the query, else from the body. If either names a recall, the request
/// is a recall.
///
/// Only the query of a probe names a recall. A body that names one is never classified as a probe: if the vendor ever
/// renamed all fields, recalls would be answered as probes and lost. As recalls, they become dead letters.
#[must_use]
pub fn classify<'a>(query: &Query<'_>, body: &'a [u8]) -> Class<'a> {
    let in_query = query.command().and_then(Recall::named);
    if body.trim_ascii().is_empty() {
        return match in_query {
            Some(_) => Class::Probe,
            None => Class::Other {
                command: query.command().map(str::to_owned),
            },
        };
    }
    let body = Body::parse(body);
    let in_body = body.command().and_then(Recall::named);
    match (in_query, in_body) {
        (Some(_), None) if body.command().is_none() && !body.has_recall_fields() => Class::Probe,
        (Some(recall), _) | (None, Some(recall)) => Class::Recall { recall, body },
        (None, None) => Class::Other {
            command: query.command().or(body.command()).map(str::to_owned),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IN_QUERY: &str = "CallbackCommand=Group.CallbackAfterRecallMsg";
    const IN_BODY: &str = r#"{"CallbackCommand":"Group.CallbackAfterRecallMsg"}"#;

    fn class<'a>(query: &str, body: &'a str) -> Class<'a> {
        classify(&Query::parse(query), body.as_bytes())
    }

    fn is_recall(query: &str, body: &str) -> bool {
        matches!(
            class(query, body),
            Class::Recall {
                recall: Recall::Group,
                ..
            }
        )
    }

    fn other(command: Option<&str>) -> Class<'static> {
        Class::Other {
            command: command.map(str::to_owned),
        }
    }

    #[test]
    fn query_or_body_can_name_a_recall() {
        assert!(is_recall(IN_QUERY, r#"{"GroupId":"g"}"#));
        assert!(is_recall("", IN_BODY));
        assert!(is_recall("CallbackCommand=State.StateChange", IN_BODY));
        assert!(is_recall(
            IN_QUERY,
            r#"{"CallbackCommand":"State.StateChange"}"#
        ));
    }

    #[test]
    fn a_named_recall_with_an_invalid_body_is_a_recall() {
        for body in ["{", "[]", "7", "\"x\"", "\u{0}"] {
            assert!(is_recall(IN_QUERY, body), "{body}");
        }
    }

    #[test]
    fn a_named_recall_without_recall_fields_is_a_probe() {
        for body in ["", " \r\n", "{}", r#"{"hello":1}"#] {
            assert_eq!(class(IN_QUERY, body), Class::Probe, "{body}");
        }
    }

    #[test]
    fn classifies_everything_else_as_other_command() {
        assert_eq!(class("", ""), other(None));
        assert_eq!(class("", "not json"), other(None));
        assert_eq!(class("CallbackCommand=", r#"{"Events":[]}"#), other(None));
        assert_eq!(
            class("CallbackCommand=State.StateChange", "x"),
            other(Some("State.StateChange"))
        );
        let alert = r#"{"CallbackCommand":"Alert.RequestOverLimit"}"#;
        assert_eq!(class("", alert), other(Some("Alert.RequestOverLimit")));
    }
}
