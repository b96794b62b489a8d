//! The options that select events by conversation and kind.

use crate::event::{EventFilter, Kind};

/// The kind of an event, as an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
enum KindName {
    Group,
    C2c,
    OfficialAccount,
    Rejected,
}

/// Selects events by their conversation.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Conversation")]
pub(super) struct ConversationArgs {
    /// Application (`SdkAppid`)
    #[arg(long, value_name = "ID")]
    app: Option<u64>,

    /// Group (`GroupId`), with all its topics
    #[arg(long, value_name = "ID", conflicts_with_all = ["from", "to", "account"])]
    group: Option<String>,

    /// Topic of the group (`TopicId`)
    #[arg(long, value_name = "ID", requires = "group")]
    topic: Option<String>,

    /// Sender of a one-to-one message
    #[arg(long, value_name = "ACCOUNT", conflicts_with = "account")]
    from: Option<String>,

    /// Receiver of a one-to-one message
    #[arg(long, value_name = "ACCOUNT", conflicts_with = "account")]
    to: Option<String>,

    /// Official account
    #[arg(long, value_name = "ACCOUNT")]
    account: Option<String>,
}

/// Selects events by their kind.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct KindArgs {
    /// Kind of event
    #[arg(long, value_enum, value_name = "KIND", help_heading = "Conversation")]
    kind: Option<KindName>,
}

impl ConversationArgs {
    /// The filter of these options.
    pub(super) fn filter(self) -> EventFilter {
        EventFilter {
            app: self.app,
            kind: None,
            group: self.group,
            topic: self.topic,
            from: self.from,
            to: self.to,
            account: self.account,
        }
    }

    /// Whether a conversation is named, and not only an application.
    pub(super) const fn names_conversation(&self) -> bool {
        self.group.is_some() || self.from.is_some() || self.to.is_some() || self.account.is_some()
    }
}

impl KindArgs {
    /// The kind, if one is selected.
    pub(super) fn kind(&self) -> Option<Kind> {
        self.kind.map(|kind| match kind {
            KindName::Group => Kind::Group,
            KindName::C2c => Kind::C2c,
            KindName::OfficialAccount => Kind::OfficialAccount,
            KindName::Rejected => Kind::Rejected,
        })
    }
}
