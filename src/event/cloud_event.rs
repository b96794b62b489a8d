//! Serializes an event: CloudEvents 1.0, structured mode, JSON.

use std::fmt;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Serialize;
use uuid::Uuid;

use super::id::name_to_id;
use super::json::to_json;
use super::{Client, Conversation, Event, Kind, Recalled, RecalledMessage, Rejected, UnixMillis};

impl Recalled<'_> {
    /// Makes the event.
    #[must_use]
    pub fn event(&self) -> Event {
        let id = self.id();
        let subject = self.conversation.subject();
        let (kind, group_type, topic_id) = match self.conversation {
            Conversation::Group {
                group_type,
                topic_id,
                ..
            } => (Kind::Group, group_type, topic_id),
            Conversation::C2c { .. } => (Kind::C2c, None, None),
            Conversation::OfficialAccount { .. } => (Kind::OfficialAccount, None, None),
        };
        // A topic is a conversation of its own.
        let conversation = format!("{}:{}", self.sdk_app_id, topic_id.unwrap_or(&subject));
        let time = self.recalled_at.unwrap_or(self.received_at);
        let body = to_json(&CloudEvent {
            specversion: "1.0",
            id,
            source: format_args!("/tencent-im/{}", self.sdk_app_id),
            r#type: kind.event_type(),
            subject: Some(&subject),
            time,
            datacontenttype: "application/json",
            dataschema: "urn:recall-relay:schema:message-recalled:1",
            partitionkey: &conversation,
            data: RecalledData {
                sdk_app_id: self.sdk_app_id,
                conversation: self.conversation,
                operator_id: self.operator_id,
                messages: &self.messages,
                recalled_at: self.recalled_at,
                received_at: self.received_at,
                client: &self.client,
            },
        });
        Event {
            id,
            kind,
            conversation: conversation.into(),
            subject: Some(subject.into()),
            group_type: group_type.map(Into::into),
            time,
            body,
        }
    }
}

impl Rejected<'_> {
    /// Makes the event. It carries the body as text or as base64, whichever is shorter: text of control characters
    /// becomes six times as long in JSON, and would then not fit into a Kafka message.
    #[must_use]
    pub fn event(&self) -> Event {
        let text = std::str::from_utf8(self.body).ok();
        let base64 = BASE64_STANDARD.encode(self.body);
        let id = name_to_id(&(self.sdk_app_id, self.query, text.unwrap_or(&base64)));
        let text = text.filter(|text| to_json(text).len() <= base64.len() + QUOTES);
        let conversation = self.sdk_app_id.to_string();
        let kind = Kind::Rejected;
        let body = to_json(&CloudEvent {
            specversion: "1.0",
            id,
            source: format_args!("/tencent-im/{}", self.sdk_app_id),
            r#type: kind.event_type(),
            subject: None,
            time: self.received_at,
            datacontenttype: "application/json",
            dataschema: "urn:recall-relay:schema:callback-rejected:1",
            partitionkey: &conversation,
            data: RejectedData {
                sdk_app_id: self.sdk_app_id,
                reason: self.reason,
                detail: self.detail,
                command: self.command,
                query: self.query,
                body: text,
                body_base64: text.is_none().then_some(base64.as_str()),
                received_at: self.received_at,
            },
        });
        Event {
            id,
            kind,
            conversation: conversation.into(),
            subject: None,
            group_type: None,
            time: self.received_at,
            body,
        }
    }
}

/// The bytes that JSON adds around a string.
const QUOTES: usize = 2;

/// The attributes, in the order in which they are published.
#[derive(Serialize)]
struct CloudEvent<'a, D> {
    specversion: &'a str,
    id: Uuid,
    source: fmt::Arguments<'a>,
    r#type: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<&'a str>,
    time: UnixMillis,
    datacontenttype: &'a str,
    dataschema: &'a str,
    partitionkey: &'a str,
    data: D,
}

#[derive(Serialize)]
struct RecalledData<'a> {
    sdk_app_id: u64,
    conversation: Conversation<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    operator_id: Option<&'a str>,
    messages: &'a [RecalledMessage<'a>],
    #[serde(skip_serializing_if = "Option::is_none")]
    recalled_at: Option<UnixMillis>,
    received_at: UnixMillis,
    #[serde(skip_serializing_if = "Client::is_unknown")]
    client: &'a Client<'a>,
}

#[derive(Serialize)]
struct RejectedData<'a> {
    sdk_app_id: u64,
    reason: &'a str,
    detail: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    command: Option<&'a str>,
    query: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body_base64: Option<&'a str>,
    received_at: UnixMillis,
}
