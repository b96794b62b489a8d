//! Selects events by application, kind and conversation, without reading their bodies.

use super::Kind;
use super::recalled::escape;

/// Which events to select; a field that is not set selects all. `group` and `topic` select events of groups, `from` and
/// `to` one-to-one events, `account` those of official accounts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EventFilter {
    /// The application.
    pub app: Option<u64>,
    /// The kind.
    pub kind: Option<Kind>,
    /// The vendor's `GroupId`.
    pub group: Option<String>,
    /// The vendor's `TopicId`.
    pub topic: Option<String>,
    /// The sender of a one-to-one message.
    pub from: Option<String>,
    /// The receiver of a one-to-one message.
    pub to: Option<String>,
    /// The official account.
    pub account: Option<String>,
}

impl EventFilter {
    /// Whether an event with these attributes is selected: its kind, its `partitionkey` and its `subject`.
    #[must_use]
    pub fn selects(&self, kind: Kind, partition_key: &str, subject: Option<&str>) -> bool {
        let (app, conversation) = partition_key.split_once(':').unwrap_or((partition_key, ""));
        let subject = subject.unwrap_or_default();
        let (from, to) = subject.split_once(':').unwrap_or_default();
        let is = |wanted: &Option<String>, of: Kind, value: &str| {
            wanted
                .as_deref()
                .is_none_or(|wanted| kind == of && wanted == value)
        };
        let is_account = |wanted: &Option<String>, value: &str| {
            let wanted = wanted.as_deref().map(escape);
            wanted.is_none_or(|wanted| kind == Kind::C2c && wanted == value)
        };
        self.kind.is_none_or(|wanted| wanted == kind)
            && self.app.is_none_or(|wanted| app.parse() == Ok(wanted))
            && is(&self.group, Kind::Group, subject)
            // An event of a topic has the topic's id in its key; any other event of a group has the group's.
            && is(&self.topic, Kind::Group, conversation)
            && is_account(&self.from, from)
            && is_account(&self.to, to)
            && is(&self.account, Kind::OfficialAccount, subject)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group() -> EventFilter {
        EventFilter {
            group: Some("g".to_owned()),
            ..EventFilter::default()
        }
    }

    #[test]
    fn an_empty_filter_selects_everything() {
        let all = EventFilter::default();
        assert!(all.selects(Kind::Group, "7:g", Some("g")));
        assert!(all.selects(Kind::C2c, "7:a:b", Some("a:b")));
        assert!(all.selects(Kind::Rejected, "7", None));
    }

    #[test]
    fn a_group_is_selected_with_its_topics_or_by_one_topic() {
        assert!(group().selects(Kind::Group, "7:g", Some("g")));
        assert!(group().selects(Kind::Group, "7:t", Some("g")));
        assert!(!group().selects(Kind::Group, "7:other", Some("other")));
        assert!(!group().selects(Kind::OfficialAccount, "7:g", Some("g")));
        assert!(!group().selects(Kind::Rejected, "7", None));
        let topic = EventFilter {
            topic: Some("t".to_owned()),
            ..group()
        };
        assert!(topic.selects(Kind::Group, "7:t", Some("g")));
        assert!(!topic.selects(Kind::Group, "7:g", Some("g")));
        assert!(!topic.selects(Kind::Group, "7:t", Some("other")));
    }

    #[test]
    fn accounts_are_compared_as_the_vendor_wrote_them() {
        let filter = |from: Option<&str>, to: Option<&str>| EventFilter {
            from: from.map(Into::into),
            to: to.map(Into::into),
            ..EventFilter::default()
        };
        let (key, subject) = ("7:a%3Ab:c%25", Some("a%3Ab:c%25"));
        assert!(filter(Some("a:b"), Some("c%")).selects(Kind::C2c, key, subject));
        assert!(filter(Some("a:b"), None).selects(Kind::C2c, key, subject));
        assert!(filter(None, Some("c%")).selects(Kind::C2c, key, subject));
        assert!(!filter(Some("a"), None).selects(Kind::C2c, key, subject));
        assert!(!filter(Some("c%"), Some("a:b")).selects(Kind::C2c, key, subject));
        assert!(!filter(Some("a:b"), None).selects(Kind::Group, "7:g", Some("a%3Ab:c%25")));
    }

    #[test]
    fn application_kind_and_account_must_be_equal() {
        let filter = EventFilter {
            app: Some(7),
            kind: Some(Kind::OfficialAccount),
            account: Some("o".to_owned()),
            ..EventFilter::default()
        };
        assert!(filter.selects(Kind::OfficialAccount, "7:o", Some("o")));
        assert!(!filter.selects(Kind::OfficialAccount, "70:o", Some("o")));
        assert!(!filter.selects(Kind::OfficialAccount, "7:p", Some("p")));
        assert!(!filter.selects(Kind::Group, "7:o", Some("o")));
    }
}
