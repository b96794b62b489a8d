//! The vendor's documented commands that are not recalls, with a body for each.

use serde_json::Value;

use super::body::{BodyFormat, random};

/// A documented command that is not a recall.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OtherCommand {
    name: &'static str,
    template: &'static str,
}

impl OtherCommand {
    /// All of them, ordered by name.
    pub fn all() -> impl Iterator<Item = Self> {
        TEMPLATES
            .iter()
            .map(|&(name, template)| Self { name, template })
    }

    /// The command with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::all().find(|command| command.name == name)
    }

    /// Its `CallbackCommand`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.name
    }

    /// Whether the vendor waits for the answer before it does something: `ErrorCode` 0 allows it.
    #[must_use]
    pub fn asks_permission(self) -> bool {
        self.name.contains(".CallbackBefore") || self.name.contains(".CallbackPrev")
    }

    /// Whether an end user caused it: the query then has the user's address and platform.
    pub(super) fn is_of_a_user(self) -> bool {
        !self.name.starts_with("Alert.") && !self.name.starts_with("Push.")
    }

    /// A body: compact, with sorted keys. Bodies with different `seq` differ, if they name a message at all.
    ///
    /// `conversation` is part of the names of the group and the users; `at_ms` is Unix milliseconds.
    #[must_use]
    pub fn body(self, format: &BodyFormat, conversation: u64, seq: u64, at_ms: u64) -> String {
        // `{key}` first: its value has placeholders. `{type}` last: its value is the user's.
        let group_type = Value::from(format.group_type.as_str()).to_string();
        self.template
            .replace("\"{text}\"", TEXT)
            .replace("{command}", self.name)
            .replace("{group}", &format.group_id(conversation))
            .replace("{from}", &format!("sender-{conversation}"))
            .replace("{to}", &format!("receiver-{conversation}"))
            .replace("{account}", &format!("#TOA#_{conversation}"))
            .replace("{key}", "{seq}_{random}_{seconds}")
            .replace("\"{ms}\"", &format.event_time(at_ms).to_string())
            .replace("\"{seq}\"", "{seq}")
            .replace("\"{random}\"", "{random}")
            .replace("\"{seconds}\"", "{seconds}")
            .replace("{seq}", &seq.to_string())
            .replace("{random}", &random(seq).to_string())
            .replace("{seconds}", &(at_ms / 1000).to_string())
            .replace("\"{type}\"", &group_type)
    }
}

/// The body of a text message.
const TEXT: &str = r#"[{"MsgContent":{"Text":"hello"},"MsgType":"TIMTextElem"}]"#;

/// Commands and their bodies, ordered by name. A placeholder in quotes is replaced with its quotes if its value is not a
/// text.
const TEMPLATES: &[(&str, &str)] = &[
    (
        "Alert.RequestOverLimit",
        r#"{"CallbackCommand":"{command}","Command":"batchsendmsg","Limit":200,"Request":510,"ServiceName":"openim"}"#,
    ),
    (
        "Bot.OnC2CMessage",
        r#"{"CallbackCommand":"{command}","CloudCustomData":"","EventTime":"{ms}","From_Account":"{from}","MsgBody":"{text}","MsgKey":"{key}","MsgRandom":"{random}","MsgSeq":"{seq}","MsgTime":"{seconds}","OnlineOnlyFlag":0,"To_Account":"{to}"}"#,
    ),
    (
        "Bot.OnGroupMessage",
        r#"{"AtRobots_Account":["@RBT#001"],"CallbackCommand":"{command}","CloudCustomData":"","EventTime":"{ms}","From_Account":"{from}","GroupId":"{group}","MsgBody":"{text}","MsgSeq":"{seq}","MsgTime":"{seconds}","Operator_Account":"{from}","Random":"{random}","Type":"{type}"}"#,
    ),
    (
        "C2C.CallbackAfterMsgReport",
        r#"{"CallbackCommand":"{command}","EventTime":"{ms}","LastReadTime":"{seconds}","Peer_Account":"{from}","Report_Account":"{to}","UnreadMsgNum":7}"#,
    ),
    (
        "C2C.CallbackAfterSendMsg",
        r#"{"CallbackCommand":"{command}","CloudCustomData":"","ErrorInfo":"send msg succeed","EventTime":"{ms}","From_Account":"{from}","MsgBody":"{text}","MsgKey":"{key}","MsgRandom":"{random}","MsgSeq":"{seq}","MsgTime":"{seconds}","OnlineOnlyFlag":0,"SendMsgResult":0,"To_Account":"{to}","UnreadMsgNum":7}"#,
    ),
    (
        "C2C.CallbackBeforeSendMsg",
        r#"{"CallbackCommand":"{command}","CloudCustomData":"","EventTime":"{ms}","From_Account":"{from}","MsgBody":"{text}","MsgKey":"{key}","MsgRandom":"{random}","MsgSeq":"{seq}","MsgTime":"{seconds}","OnlineOnlyFlag":0,"To_Account":"{to}"}"#,
    ),
    (
        "Follow.CallbackAfterFollowAdd",
        r#"{"CallbackCommand":"{command}","EventTime":"{ms}","FollowList":[{"To_Account":"{to}"}],"From_Account":"{from}"}"#,
    ),
    (
        "Follow.CallbackAfterFollowDelete",
        r#"{"CallbackCommand":"{command}","EventTime":"{ms}","FollowList":[{"To_Account":"{to}"}],"From_Account":"{from}"}"#,
    ),
    (
        "Group.CallbackAfterAttrChanged",
        r#"{"AttrList":[{"key":"color","value":"{seq}!"}],"CallbackCommand":"{command}","EventTime":"{ms}","GroupId":"{group}","Operator_Account":"{from}","Type":"{type}"}"#,
    ),
    (
        "Group.CallbackAfterCreateGroup",
        r#"{"CallbackCommand":"{command}","EventTime":"{ms}","GroupId":"{group}","MemberList":[{"Member_Account":"{to}"}],"Name":"group","Operator_Account":"{from}","Owner_Account":"{from}","Type":"{type}","UserDefinedDataList":[]}"#,
    ),
    (
        "Group.CallbackAfterCreateTopic",
        r#"{"CallbackCommand":"{command}","EventTime":"{ms}","GroupId":"{group}","Name":"topic","Operator_Account":"{from}","TopicId":"{group}@TOPIC#_send","Type":"Community"}"#,
    ),
    (
        "Group.CallbackAfterGroupCounterChanged",
        r#"{"CallbackCommand":"{command}","EventTime":"{ms}","GroupCounter":[{"Key":"likes","Value":"{seq}"}],"GroupId":"{group}","Operator_Account":"{from}","Type":"{type}"}"#,
    ),
    (
        "Group.CallbackAfterGroupDestroyed",
        r#"{"CallbackCommand":"{command}","EventTime":"{ms}","GroupId":"{group}","MemberList":[{"Member_Account":"{to}"}],"Name":"group","Owner_Account":"{from}","Type":"{type}"}"#,
    ),
    (
        "Group.CallbackAfterGroupFull",
        r#"{"CallbackCommand":"{command}","EventTime":"{ms}","GroupId":"{group}"}"#,
    ),
    (
        "Group.CallbackAfterGroupInfoChanged",
        r#"{"CallbackCommand":"{command}","EventTime":"{ms}","GroupId":"{group}","Name":"group","Operator_Account":"{from}","Type":"{type}"}"#,
    ),
    (
        "Group.CallbackAfterGroupMemberInfoChanged",
        r#"{"CallbackCommand":"{command}","EventTime":"{ms}","GroupId":"{group}","MemberList":[{"Member_Account":"{to}","NameCard":"card"}],"Operator_Account":"{from}","Type":"{type}"}"#,
    ),
    (
        "Group.CallbackAfterJoinApproval",
        r#"{"Applicant_Account":"{to}","Approval":"Agree","CallbackCommand":"{command}","EventTime":"{ms}","GroupId":"{group}","Operator_Account":"{from}","Type":"{type}"}"#,
    ),
    (
        "Group.CallbackAfterMemberExit",
        r#"{"CallbackCommand":"{command}","EventTime":"{ms}","ExitMemberList":[{"Member_Account":"{to}"}],"ExitType":"Quit","GroupId":"{group}","Operator_Account":"{to}","Type":"{type}"}"#,
    ),
    (
        "Group.CallbackAfterNewMemberJoin",
        r#"{"CallbackCommand":"{command}","EventTime":"{ms}","GroupId":"{group}","JoinType":"Apply","NewMemberList":[{"Member_Account":"{to}"}],"Operator_Account":"{to}","Type":"{type}"}"#,
    ),
    (
        "Group.CallbackAfterSendMsg",
        r#"{"CallbackCommand":"{command}","CloudCustomData":"","EventTime":"{ms}","From_Account":"{from}","GroupId":"{group}","MsgBody":"{text}","MsgId":"144115213000000000-{seconds}-{random}","MsgSeq":"{seq}","MsgTime":"{seconds}","OnlineOnlyFlag":0,"Operator_Account":"{from}","Random":"{random}","Type":"{type}"}"#,
    ),
    (
        "Group.CallbackAfterTopicDestroyed",
        r#"{"CallbackCommand":"{command}","EventTime":"{ms}","GroupId":"{group}","Operator_Account":"{from}","TopicList":[{"TopicId":"{group}@TOPIC#_send"}],"Type":"Community"}"#,
    ),
    (
        "Group.CallbackAfterTopicInfoChanged",
        r#"{"CallbackCommand":"{command}","EventTime":"{ms}","GroupId":"{group}","Name":"topic","Operator_Account":"{from}","TopicId":"{group}@TOPIC#_send","Type":"Community"}"#,
    ),
    (
        "Group.CallbackBeforeApplyJoinGroup",
        r#"{"CallbackCommand":"{command}","EventTime":"{ms}","GroupId":"{group}","Requestor_Account":"{to}","Type":"{type}"}"#,
    ),
    (
        "Group.CallbackBeforeCreateGroup",
        r#"{"CallbackCommand":"{command}","CreateGroupNum":7,"EventTime":"{ms}","MemberList":[{"Member_Account":"{to}"}],"Name":"group","Operator_Account":"{from}","Owner_Account":"{from}","Type":"{type}"}"#,
    ),
    (
        "Group.CallbackBeforeCreateTopic",
        r#"{"CallbackCommand":"{command}","EventTime":"{ms}","Name":"topic","Operator_Account":"{from}","Type":"Community"}"#,
    ),
    (
        "Group.CallbackBeforeInviteJoinGroup",
        r#"{"CallbackCommand":"{command}","DestinationMembers":[{"Member_Account":"{to}"}],"EventTime":"{ms}","GroupId":"{group}","Operator_Account":"{from}","Type":"{type}"}"#,
    ),
    (
        "Group.CallbackBeforeSendMsg",
        r#"{"CallbackCommand":"{command}","CloudCustomData":"","EventTime":"{ms}","From_Account":"{from}","GroupId":"{group}","MsgBody":"{text}","OnlineOnlyFlag":0,"Operator_Account":"{from}","Random":"{random}","Type":"{type}"}"#,
    ),
    (
        "Group.CallbackOnMemberStateChange",
        r#"{"CallbackCommand":"{command}","EventTime":"{ms}","EventType":"Offline","GroupId":"{group}","MemberList":[{"Member_Account":"{to}"}]}"#,
    ),
    (
        "Group.CallbackOnRequestJoin",
        r#"{"ApplyMsg":"hello","CallbackCommand":"{command}","EventTime":"{ms}","GroupId":"{group}","Requestor_Account":"{to}","Type":"{type}"}"#,
    ),
    (
        "Group.CallbackSendMsgException",
        r#"{"CallbackCommand":"{command}","CloudCustomData":"","ErrorInfo":"muted","EventTime":"{ms}","From_Account":"{from}","GroupId":"{group}","MsgBody":"{text}","Operator_Account":"{from}","Random":"{random}","SendMsgResult":10017,"Type":"{type}"}"#,
    ),
    (
        "OfficialAccount.CallbackAfterCreate",
        r#"{"CallbackCommand":"{command}","EventTime":"{ms}","Name":"account","Official_Account":"{account}","Owner_Account":"{from}"}"#,
    ),
    (
        "OfficialAccount.CallbackAfterDestroyed",
        r#"{"CallbackCommand":"{command}","EventTime":"{ms}","Name":"account","Official_Account":"{account}","Owner_Account":"{from}"}"#,
    ),
    (
        "OfficialAccount.CallbackAfterInfoChanged",
        r#"{"CallbackCommand":"{command}","EventTime":"{ms}","Name":"account","Official_Account":"{account}","Operator_Account":"{from}"}"#,
    ),
    (
        "OfficialAccount.CallbackAfterSendMsg",
        r#"{"CallbackCommand":"{command}","CloudCustomData":"","EventTime":"{ms}","MsgBody":"{text}","MsgKey":"{key}","Official_Account":"{account}","OnlineOnlyFlag":0}"#,
    ),
    (
        "OfficialAccount.CallbackBeforeSendMsg",
        r#"{"CallbackCommand":"{command}","CloudCustomData":"","EventTime":"{ms}","MsgBody":"{text}","Official_Account":"{account}","OnlineOnlyFlag":0}"#,
    ),
    (
        "Profile.CallbackPortraitSet",
        r#"{"CallbackCommand":"{command}","EventTime":"{ms}","From_Account":"{from}","Operator_Account":"{from}","ProfileItem":[{"Tag":"Tag_Profile_IM_Nick","Value":"name {seq}"}]}"#,
    ),
    (
        "Push.AllMemberPush",
        r#"{"Events":[{"CallbackCommand":"{command}","ErrCode":0,"ErrInfo":"OK","EventTime":"{seconds}","EventType":1,"PushPlatform":1,"PushStage":1,"TaskId":"task-{seq}","TaskTime":"{seconds}","To_Account":"{to}"}]}"#,
    ),
    (
        "Push.OfflinePush",
        r#"{"Events":[{"CallbackCommand":"{command}","ErrCode":0,"ErrInfo":"OK","EventTime":"{seconds}","EventType":1,"From_Account":"{from}","MsgKey":"{key}","MsgSeq":"{seq}","PushPlatform":1,"PushStage":1,"To_Account":"{to}"}]}"#,
    ),
    (
        "Sns.CallbackBlackListAdd",
        r#"{"CallbackCommand":"{command}","EventTime":"{ms}","PairList":[{"From_Account":"{from}","To_Account":"{to}"}]}"#,
    ),
    (
        "Sns.CallbackBlackListDelete",
        r#"{"CallbackCommand":"{command}","EventTime":"{ms}","PairList":[{"From_Account":"{from}","To_Account":"{to}"}]}"#,
    ),
    (
        "Sns.CallbackFriendAdd",
        r#"{"Admin_Account":"","CallbackCommand":"{command}","ClientCmd":"friend_add","EventTime":"{ms}","ForceFlag":0,"PairList":[{"From_Account":"{from}","Initiator_Account":"{from}","To_Account":"{to}"}]}"#,
    ),
    (
        "Sns.CallbackFriendDelete",
        r#"{"CallbackCommand":"{command}","EventTime":"{ms}","PairList":[{"From_Account":"{from}","To_Account":"{to}"}]}"#,
    ),
    (
        "Sns.CallbackPrevFriendAdd",
        r#"{"AddType":"Add_Type_Both","CallbackCommand":"{command}","EventTime":"{ms}","ForceAddFlags":0,"FriendItem":[{"AddSource":"AddSource_Type_Android","AddWording":"hello","To_Account":"{to}"}],"From_Account":"{from}","Requester_Account":"{from}"}"#,
    ),
    (
        "Sns.CallbackPrevFriendResponse",
        r#"{"CallbackCommand":"{command}","EventTime":"{ms}","From_Account":"{to}","Requester_Account":"{to}","ResponseFriendItem":[{"ResponseAction":"Response_Action_AgreeAndAdd","To_Account":"{from}"}]}"#,
    ),
    (
        "State.StateChange",
        r#"{"CallbackCommand":"{command}","EventTime":"{ms}","Info":{"Action":"Login","Reason":"Register","To_Account":"{from}"}}"#,
    ),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::callback::known_commands;
    use crate::vendor::{CallbackKind, EventTimeForm};

    const AT: u64 = 1_670_574_414_123;

    #[test]
    fn every_documented_command_is_here_or_a_recall() {
        let recalls = [
            CallbackKind::Group,
            CallbackKind::C2c,
            CallbackKind::OfficialAccount,
        ];
        let mut here: BTreeSet<_> = OtherCommand::all().map(OtherCommand::name).collect();
        assert_eq!(here.len(), TEMPLATES.len());
        here.extend(recalls.map(CallbackKind::command));
        here.extend(["none", "other"]);
        assert_eq!(here, known_commands().collect());
    }

    #[test]
    fn bodies_are_compact_json_with_sorted_keys_and_name_their_command() {
        for event_time in [EventTimeForm::String, EventTimeForm::Number] {
            let format = BodyFormat {
                event_time,
                group_type: "odd \" type".to_owned(),
                ..BodyFormat::default()
            };
            for command in OtherCommand::all() {
                let body = command.body(&format, 3, 7, AT);
                let value: Value = serde_json::from_str(&body).unwrap();
                // The maps of serde_json are sorted.
                assert_eq!(value.to_string(), body);
                let mut objects = body.split('{').skip(1);
                assert!(objects.all(|rest| rest.starts_with('"')), "{body}");
                // The results of pushes come as lists.
                let named = if command.name().starts_with("Push.") {
                    &value["Events"][0]
                } else {
                    &value
                };
                assert_eq!(named["CallbackCommand"], command.name());
            }
        }
    }

    #[test]
    fn a_message_is_described_as_the_vendor_does() {
        let format = BodyFormat::default();
        let body = |name| OtherCommand::named(name).unwrap().body(&format, 3, 7, AT);
        assert_eq!(
            body("C2C.CallbackBeforeSendMsg"),
            r#"{"CallbackCommand":"C2C.CallbackBeforeSendMsg","CloudCustomData":"","EventTime":"1670574414123","From_Account":"sender-3","MsgBody":[{"MsgContent":{"Text":"hello"},"MsgType":"TIMTextElem"}],"MsgKey":"7_1401181143_1670574414","MsgRandom":1401181143,"MsgSeq":7,"MsgTime":1670574414,"OnlineOnlyFlag":0,"To_Account":"receiver-3"}"#
        );
        assert_eq!(
            body("Group.CallbackBeforeSendMsg"),
            r#"{"CallbackCommand":"Group.CallbackBeforeSendMsg","CloudCustomData":"","EventTime":"1670574414123","From_Account":"sender-3","GroupId":"@TGS#send-3","MsgBody":[{"MsgContent":{"Text":"hello"},"MsgType":"TIMTextElem"}],"OnlineOnlyFlag":0,"Operator_Account":"sender-3","Random":1401181143,"Type":"Public"}"#
        );
    }

    #[test]
    fn before_callbacks_ask_permission() {
        let asking: Vec<_> = OtherCommand::all()
            .filter(|command| command.asks_permission())
            .map(OtherCommand::name)
            .collect();
        assert_eq!(
            asking,
            [
                "C2C.CallbackBeforeSendMsg",
                "Group.CallbackBeforeApplyJoinGroup",
                "Group.CallbackBeforeCreateGroup",
                "Group.CallbackBeforeCreateTopic",
                "Group.CallbackBeforeInviteJoinGroup",
                "Group.CallbackBeforeSendMsg",
                "OfficialAccount.CallbackBeforeSendMsg",
                "Sns.CallbackPrevFriendAdd",
                "Sns.CallbackPrevFriendResponse",
            ]
        );
    }
}
