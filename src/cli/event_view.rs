//! An event as people read it.

use serde_json::value::RawValue;

use crate::event::{Event, PublishedData, PublishedMessage};

/// The parts of an event's body that people look for. What the body does not contain is empty.
#[derive(Debug)]
pub(super) struct EventView(PublishedData);

impl EventView {
    /// Reads the body; all is empty if it is not an event.
    pub(super) fn of(event: &Event) -> Self {
        Self(PublishedData::of(&event.body))
    }

    /// The conversation in one line.
    pub(super) fn conversation(&self) -> String {
        let conversation = &self.0.conversation;
        let ids = [
            &conversation.group_id,
            &conversation.topic_id,
            &conversation.official_account,
        ];
        match (&conversation.from_account, &conversation.to_account) {
            (Some(from), Some(to)) => format!("{from} -> {to}"),
            _ => ids
                .map(Option::as_deref)
                .into_iter()
                .flatten()
                .collect::<Vec<_>>()
                .join(" / "),
        }
    }

    /// The user who recalled the messages; empty if unknown.
    pub(super) fn operator(&self) -> &str {
        self.0.operator_id.as_deref().unwrap_or_default()
    }

    /// The messages by their number or key. For a rejected callback: the reason.
    pub(super) fn messages(&self) -> String {
        if let Some(reason) = &self.0.reason {
            return reason.clone();
        }
        let name = |message: &PublishedMessage| message.name().unwrap_or_default();
        let names = self.0.messages.iter().map(name);
        names.collect::<Vec<_>>().join(", ")
    }

    /// When the callback was received.
    pub(super) fn received_at(&self) -> Option<&str> {
        self.0.received_at.as_deref()
    }

    /// Why the callback was rejected.
    pub(super) fn detail(&self) -> Option<&str> {
        self.0.detail.as_deref()
    }

    /// Whether the event recalls this message, named by its number, id or key.
    pub(super) fn recalls(&self, message: &str) -> bool {
        self.0.messages.iter().any(|recalled| {
            recalled.name().as_deref() == Some(message) || recalled.id.as_deref() == Some(message)
        })
    }
}

/// The body as a part of a line of JSON; `None` if it is not JSON.
pub(super) fn raw_body(event: &Event) -> Option<&RawValue> {
    serde_json::from_slice(&event.body).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(data: &str) -> EventView {
        let mut event = crate::event::tests::event(1, String::new());
        event.body = format!(r#"{{"data":{data}}}"#).into();
        EventView::of(&event)
    }

    #[test]
    fn a_conversation_is_one_line() {
        for (conversation, line) in [
            (r#"{"kind":"group","group_id":"g"}"#, "g"),
            (r#"{"kind":"group","group_id":"g","topic_id":"t"}"#, "g / t"),
            (
                r#"{"kind":"c2c","from_account":"a","to_account":"b"}"#,
                "a -> b",
            ),
            (r#"{"kind":"official_account","official_account":"o"}"#, "o"),
        ] {
            let view = view(&format!(r#"{{"conversation":{conversation}}}"#));
            assert_eq!(view.conversation(), line);
        }
    }

    #[test]
    fn a_message_is_named_by_number_id_or_key() {
        let group = view(r#"{"messages":[{"seq":130,"id":"x-1"},{"seq":131}]}"#);
        assert_eq!(group.messages(), "130, 131");
        for (message, is_recalled) in [("130", true), ("131", true), ("x-1", true), ("13", false)] {
            assert_eq!(group.recalls(message), is_recalled, "{message}");
        }
        let keyed = view(r#"{"messages":[{"key":"1_2_3","seq":1,"random":2}]}"#);
        assert_eq!(keyed.messages(), "1_2_3");
        assert!(keyed.recalls("1_2_3"));
        assert!(!keyed.recalls("1"), "a part of a key names no message");
    }

    #[test]
    fn a_rejected_callback_shows_its_reason() {
        let rejected =
            view(r#"{"reason":"json","detail":"line 1","received_at":"2022-12-09T08:26:54.201Z"}"#);
        assert_eq!(rejected.messages(), "json");
        assert_eq!(rejected.detail(), Some("line 1"));
        assert_eq!(rejected.received_at(), Some("2022-12-09T08:26:54.201Z"));
    }
}
