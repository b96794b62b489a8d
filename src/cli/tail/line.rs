//! What `tail` prints for each item of the subscription.

use std::io::{self, IsTerminal as _, Write};

use anstyle::Style;
use tokio::sync::mpsc;

use super::super::output::{stdout, styled};
use super::tell;
use crate::event::{EventFilter, Kind, PublishedData, PublishedEvent, PublishedMessage};
use crate::sink::SubscriptionItem;
use crate::telemetry::escape;

/// How many recalled messages a line for people names.
const NAMED_MESSAGES: usize = 10;

const TIME: Style = Style::new().dimmed();
const CONVERSATION: Style = Style::new().bold();

/// Prints selected events.
pub(super) struct Lines {
    filter: EventFilter,
    json: bool,
}

impl Lines {
    pub(super) const fn new(filter: EventFilter, json: bool) -> Self {
        Self { filter, json }
    }

    /// Prints items until there are no more. Blocks.
    pub(super) fn print(&self, mut received: mpsc::Receiver<SubscriptionItem>) -> io::Result<()> {
        let mut out = stdout();
        let on_terminal = io::stdout().is_terminal();
        while let Some(item) = received.blocking_recv() {
            match item {
                SubscriptionItem::Subscribed(what) => {
                    tell(&format!("listening to {what}; press Ctrl-C to end"))?;
                }
                SubscriptionItem::Notice(text) => tell(&text)?,
                SubscriptionItem::Message { place, event } => {
                    let parsed =
                        event.and_then(|bytes| Ok((PublishedEvent::parse(&bytes)?, bytes)));
                    match parsed {
                        Ok((event, _)) if !self.selects(&event) => {}
                        Ok((_, bytes)) if self.json => print_json(&mut out, bytes, on_terminal)?,
                        Ok((event, _)) => writeln!(out, "{}", line(&event))?,
                        Err(problem) => tell(&format!("{place}: {problem}"))?,
                    }
                }
            }
        }
        Ok(())
    }

    fn selects(&self, event: &PublishedEvent) -> bool {
        let subject = event.subject.as_deref();
        self.filter
            .selects(event.kind, &event.partition_key, subject)
    }
}

/// Prints an event's own bytes as one line. Only on a terminal, what could control it is escaped; in JSON, the escapes
/// mean the same.
fn print_json(out: &mut impl Write, mut bytes: Vec<u8>, on_terminal: bool) -> io::Result<()> {
    // Another producer may have formatted the event. In a JSON string, a line break is always escaped.
    for byte in &mut bytes {
        if matches!(byte, b'\n' | b'\r') {
            *byte = b' ';
        }
    }
    if on_terminal {
        bytes = escape(&String::from_utf8_lossy(&bytes)).into_bytes();
    }
    bytes.push(b'\n');
    out.write_all(&bytes)
}

/// An event for people: its time, application, conversation, messages and operator. Text from outside is escaped.
fn line(event: &PublishedEvent) -> String {
    let PublishedData {
        conversation: ids,
        operator_id,
        messages,
        ..
    } = &event.data;
    let id = |id: &Option<String>| id.as_deref().map_or_else(|| "?".to_owned(), escape);
    let kind = event.kind.name();
    let conversation = match event.kind {
        Kind::Group => {
            let topic = ids.topic_id.as_deref();
            let topic = topic.map_or_else(String::new, |id| format!(" topic {}", escape(id)));
            format!("{kind} {}{topic}", id(&ids.group_id))
        }
        Kind::C2c => format!(
            "{kind} {} to {}",
            id(&ids.from_account),
            id(&ids.to_account)
        ),
        Kind::OfficialAccount => format!("{kind} {}", id(&ids.official_account)),
        Kind::Rejected => kind.to_owned(),
    };
    let (app, _) = event.partition_key.split_once(':').unwrap_or_default();
    let operator = operator_id.as_deref();
    let operator = operator.map_or_else(String::new, |id| format!("  by {}", escape(id)));
    format!(
        "{}  {}  {}  {}{operator}",
        styled(TIME, &escape(&event.time)),
        escape(app),
        styled(CONVERSATION, &conversation),
        describe(messages),
    )
}

/// Names the recalled messages, or the first of many.
fn describe(messages: &[PublishedMessage]) -> String {
    let name = |message: &PublishedMessage| {
        let name = message.name();
        name.map_or_else(|| "?".to_owned(), |name| escape(&name))
    };
    let named: Vec<String> = messages.iter().take(NAMED_MESSAGES).map(name).collect();
    let noun = if messages.len() == 1 {
        "message"
    } else {
        "messages"
    };
    let more = match messages.len() - named.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("{noun} {}{more}", named.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn without_styles(line: &str) -> String {
        let plain = anstream::adapter::strip_str(line);
        plain.to_string()
    }

    fn of(json: &serde_json::Value) -> String {
        let event = PublishedEvent::parse(json.to_string().as_bytes()).unwrap();
        without_styles(&line(&event))
    }

    fn event(kind: Kind, key: &str, data: &serde_json::Value) -> serde_json::Value {
        serde_json::json!({
            "type": kind.event_type(), "time": "2022-12-09T08:26:54.123Z", "partitionkey": key, "data": data,
        })
    }

    #[test]
    fn a_line_has_time_kind_conversation_messages_and_operator() {
        let data = serde_json::json!({
            "conversation": {"kind": "group", "group_id": "g", "topic_id": "t"},
            "operator_id": "admin", "messages": [{"seq": 1, "id": "x"}, {"seq": 2}],
        });
        assert_eq!(
            of(&event(Kind::Group, "7:t", &data)),
            "2022-12-09T08:26:54.123Z  7  group g topic t  messages 1, 2  by admin"
        );
        let data = serde_json::json!({
            "conversation": {"kind": "c2c", "from_account": "a", "to_account": "b"},
            "messages": [{"key": "1_2_3", "seq": 1}],
        });
        assert_eq!(
            of(&event(Kind::C2c, "7:a:b", &data)),
            "2022-12-09T08:26:54.123Z  7  c2c a to b  message 1_2_3"
        );
        let messages: Vec<_> = (1..=12)
            .map(|seq| serde_json::json!({"seq": seq}))
            .collect();
        let data =
            serde_json::json!({"conversation": {"official_account": "o"}, "messages": messages});
        assert_eq!(
            of(&event(Kind::OfficialAccount, "7:o", &data)),
            "2022-12-09T08:26:54.123Z  7  official_account o  messages 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 2 more"
        );
    }

    #[test]
    fn text_from_outside_cannot_control_the_terminal() {
        let hostile = "a\u{1b}]0;t\u{7}\n\u{9b}2J\u{202e}";
        let data = serde_json::json!({
            "conversation": {"group_id": hostile, "topic_id": hostile}, "operator_id": hostile,
            "messages": [{"key": hostile}],
        });
        let json = event(Kind::Group, &format!("{hostile}:x"), &data);
        let line = of(&json);
        assert_eq!(escape(&line), line);
        assert_eq!(line.matches("\\u001b").count(), 5, "{line}");

        let mut out = Vec::new();
        print_json(&mut out, json.to_string().into_bytes(), true).unwrap();
        let printed = String::from_utf8(out).unwrap();
        let printed = printed.strip_suffix('\n').unwrap();
        assert_eq!(escape(printed), printed);
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(printed).unwrap(),
            json
        );
    }

    #[test]
    fn an_event_is_one_line_of_its_own_bytes() {
        let mut out = Vec::new();
        print_json(&mut out, b"{\n \"a\": \"\\n\xc2\x9b\"\r\n}".to_vec(), false).unwrap();
        assert_eq!(out, b"{  \"a\": \"\\n\xc2\x9b\"  }\n");
    }
}
