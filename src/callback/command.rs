//! The commands: the three recalls, and the names of the others for metrics.

/// A command that reports recalled messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Recall {
    /// In a group or a topic of a community.
    Group,
    /// In a one-to-one conversation.
    C2c,
    /// In the broadcast of an official account.
    OfficialAccount,
}

impl Recall {
    /// The recall that a `CallbackCommand` names.
    #[must_use]
    pub fn named(command: &str) -> Option<Self> {
        [Self::Group, Self::C2c, Self::OfficialAccount]
            .into_iter()
            .find(|recall| recall.command() == command)
    }

    /// The vendor's `CallbackCommand`.
    #[must_use]
    pub const fn command(self) -> &'static str {
        match self {
            Self::Group => "Group.CallbackAfterRecallMsg",
            Self::C2c => "C2C.CallbackAfterMsgWithDraw",
            Self::OfficialAccount => "OfficialAccount.CallbackAfterMsgWithDraw",
        }
    }
}

/// The metric label of a command that the vendor does not document.
pub const OTHER_COMMAND: &str = "other";

/// The metric label of a callback that names no command.
pub const NO_COMMAND: &str = "none";

/// The command's own name if the vendor documents it, else [`OTHER_COMMAND`]: anyone on the internet can send a
/// command, and that must not create an unbounded number of time series.
#[must_use]
pub fn known_command(command: Option<&str>) -> &'static str {
    let Some(command) = command else {
        return NO_COMMAND;
    };
    COMMANDS
        .iter()
        .find(|known| **known == command)
        .copied()
        .unwrap_or(OTHER_COMMAND)
}

/// Everything that [`known_command`] returns.
pub fn known_commands() -> impl Iterator<Item = &'static str> {
    COMMANDS.iter().copied().chain([OTHER_COMMAND, NO_COMMAND])
}

/// The vendor's published commands.
const COMMANDS: &[&str] = &[
    "Group.CallbackAfterRecallMsg",
    "C2C.CallbackAfterMsgWithDraw",
    "OfficialAccount.CallbackAfterMsgWithDraw",
    "Alert.RequestOverLimit",
    "Bot.OnC2CMessage",
    "Bot.OnGroupMessage",
    "C2C.CallbackAfterMsgReport",
    "C2C.CallbackAfterSendMsg",
    "C2C.CallbackBeforeSendMsg",
    "Follow.CallbackAfterFollowAdd",
    "Follow.CallbackAfterFollowDelete",
    "Group.CallbackAfterAttrChanged",
    "Group.CallbackAfterCreateGroup",
    "Group.CallbackAfterCreateTopic",
    "Group.CallbackAfterGroupCounterChanged",
    "Group.CallbackAfterGroupDestroyed",
    "Group.CallbackAfterGroupFull",
    "Group.CallbackAfterGroupInfoChanged",
    "Group.CallbackAfterGroupMemberInfoChanged",
    "Group.CallbackAfterJoinApproval",
    "Group.CallbackAfterMemberExit",
    "Group.CallbackAfterNewMemberJoin",
    "Group.CallbackAfterSendMsg",
    "Group.CallbackAfterTopicDestroyed",
    "Group.CallbackAfterTopicInfoChanged",
    "Group.CallbackBeforeApplyJoinGroup",
    "Group.CallbackBeforeCreateGroup",
    "Group.CallbackBeforeCreateTopic",
    "Group.CallbackBeforeInviteJoinGroup",
    "Group.CallbackBeforeSendMsg",
    "Group.CallbackOnMemberStateChange",
    "Group.CallbackOnRequestJoin",
    "Group.CallbackSendMsgException",
    "OfficialAccount.CallbackAfterCreate",
    "OfficialAccount.CallbackAfterDestroyed",
    "OfficialAccount.CallbackAfterInfoChanged",
    "OfficialAccount.CallbackAfterSendMsg",
    "OfficialAccount.CallbackBeforeSendMsg",
    "Profile.CallbackPortraitSet",
    "Push.AllMemberPush",
    "Push.OfflinePush",
    "Sns.CallbackBlackListAdd",
    "Sns.CallbackBlackListDelete",
    "Sns.CallbackFriendAdd",
    "Sns.CallbackFriendDelete",
    "Sns.CallbackPrevFriendAdd",
    "Sns.CallbackPrevFriendResponse",
    "State.StateChange",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recalls_match_only_their_exact_names() {
        for recall in [Recall::Group, Recall::C2c, Recall::OfficialAccount] {
            assert_eq!(Recall::named(recall.command()), Some(recall));
            assert_eq!(known_command(Some(recall.command())), recall.command());
        }
        assert_eq!(Recall::named("C2C.CallbackAfterMsgWithdraw"), None);
    }

    #[test]
    fn unknown_commands_share_one_label() {
        assert_eq!(
            known_command(Some("State.StateChange")),
            "State.StateChange"
        );
        assert_eq!(known_command(Some("x'; DROP TABLE")), OTHER_COMMAND);
        assert_eq!(known_command(None), NO_COMMAND);
    }
}
