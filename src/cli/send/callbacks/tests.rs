use std::collections::HashSet;

use super::*;

fn callbacks(kind: &'static [CallbackKind], version: PayloadVersion) -> Callbacks {
    Callbacks {
        kinds: kind,
        version,
        event_time: EventTimeForm::String,
        group_type: "Public".to_owned(),
        conversations: 1,
        messages: 1,
        first_seq: 130,
        clock: Clock::Repeatable,
    }
}

fn body(callbacks: &Callbacks, number: u64) -> String {
    let callback = callbacks.make(number).unwrap();
    String::from_utf8(callback.body.to_vec()).unwrap()
}

#[test]
fn group_recalls_follow_each_version_of_the_documents() {
    for (version, expected) in [
        (
            PayloadVersion::V1,
            r#"{"CallbackCommand":"Group.CallbackAfterRecallMsg","GroupId":"@TGS#send-0","MsgSeqList":[{"MsgSeq":130}],"Operator_Account":"admin","Type":"Public"}"#,
        ),
        (
            PayloadVersion::V2,
            r#"{"CallbackCommand":"Group.CallbackAfterRecallMsg","EventTime":"1670574414123","GroupId":"@TGS#send-0","MsgSeqList":[{"MsgSeq":130}],"Operator_Account":"admin","Type":"Public"}"#,
        ),
        (
            PayloadVersion::V3,
            r#"{"CallbackCommand":"Group.CallbackAfterRecallMsg","EventTime":"1670574414123","GroupId":"@TGS#send-0","MsgSeqList":[{"MsgId":"144115213000000000-1670574414-1479265250","MsgSeq":130}],"Operator_Account":"admin","Type":"Public"}"#,
        ),
    ] {
        assert_eq!(
            body(&callbacks(&[CallbackKind::Group], version), 0),
            expected
        );
    }
}

#[test]
fn a_community_has_topics_since_v2_and_the_chinese_documents_write_a_number() {
    let mut callbacks = callbacks(&[CallbackKind::Group], PayloadVersion::V2);
    callbacks.group_type = "Community".to_owned();
    callbacks.event_time = EventTimeForm::Number;
    callbacks.messages = 2;
    assert_eq!(
        body(&callbacks, 1),
        r#"{"CallbackCommand":"Group.CallbackAfterRecallMsg","EventTime":1670574414124,"GroupId":"@TGS#_send-0","MsgSeqList":[{"MsgSeq":132},{"MsgSeq":133}],"Operator_Account":"admin","TopicId":"@TGS#_send-0@TOPIC#_send","Type":"Community"}"#
    );
    callbacks.version = PayloadVersion::V1;
    assert!(!body(&callbacks, 1).contains("TopicId"));
}

#[test]
fn c2c_recalls_have_unread_msg_num_first_and_event_time_later() {
    assert_eq!(
        body(&callbacks(&[CallbackKind::C2c], PayloadVersion::V1), 0),
        r#"{"CallbackCommand":"C2C.CallbackAfterMsgWithDraw","From_Account":"sender-0","MsgKey":"130_1479265250_1670574414","To_Account":"receiver-0","UnreadMsgNum":7}"#
    );
    for version in [PayloadVersion::V2, PayloadVersion::V3] {
        assert_eq!(
            body(&callbacks(&[CallbackKind::C2c], version), 0),
            r#"{"CallbackCommand":"C2C.CallbackAfterMsgWithDraw","EventTime":"1670574414123","From_Account":"sender-0","MsgKey":"130_1479265250_1670574414","To_Account":"receiver-0"}"#
        );
    }
}

#[test]
fn official_account_recalls_list_message_keys() {
    let mut callbacks = callbacks(&[CallbackKind::OfficialAccount], PayloadVersion::V3);
    callbacks.event_time = EventTimeForm::Number;
    callbacks.messages = 2;
    assert_eq!(
        body(&callbacks, 0),
        r##"{"CallbackCommand":"OfficialAccount.CallbackAfterMsgWithDraw","EventTime":1670574414123,"Official_Account":"#TOA#_0","WithdrawMsgList":[{"MsgKey":"130_1479265250_1670574414"},{"MsgKey":"131_4133701011_1670574414"}]}"##
    );
}

#[test]
fn a_probe_is_empty_and_another_command_names_itself() {
    let kinds = &[CallbackKind::Probe, CallbackKind::Other];
    let callbacks = callbacks(kinds, PayloadVersion::V3);
    assert_eq!(body(&callbacks, 0), "");
    let other: serde_json::Value = serde_json::from_str(&body(&callbacks, 1)).unwrap();
    assert_eq!(other["CallbackCommand"], "Group.CallbackBeforeSendMsg");
}

#[test]
fn all_recalls_take_turns() {
    let kinds = &[
        CallbackKind::Group,
        CallbackKind::C2c,
        CallbackKind::OfficialAccount,
    ];
    let callbacks = callbacks(kinds, PayloadVersion::V3);
    let sent: Vec<_> = (0..4)
        .map(|number| callbacks.make(number).unwrap().kind)
        .collect();
    assert_eq!(
        sent,
        [
            CallbackKind::Group,
            CallbackKind::C2c,
            CallbackKind::OfficialAccount,
            CallbackKind::Group
        ]
    );
}

#[test]
fn the_seq_of_a_conversation_grows_without_gaps() {
    let mut callbacks = callbacks(&[CallbackKind::Group], PayloadVersion::V3);
    callbacks.conversations = 3;
    callbacks.messages = 4;
    let mut next = [130; 3];
    for number in 0..100 {
        let sent: serde_json::Value = serde_json::from_str(&body(&callbacks, number)).unwrap();
        let group = sent["GroupId"].as_str().unwrap();
        let conversation: usize = group.strip_prefix("@TGS#send-").unwrap().parse().unwrap();
        for message in sent["MsgSeqList"].as_array().unwrap() {
            assert_eq!(message["MsgSeq"], next[conversation], "{sent}");
            next[conversation] += 1;
        }
    }
}

#[test]
fn no_two_callbacks_are_alike_and_a_repeated_run_is() {
    let make = |number| {
        let kinds = &[
            CallbackKind::Group,
            CallbackKind::C2c,
            CallbackKind::OfficialAccount,
        ];
        let mut callbacks = callbacks(kinds, PayloadVersion::V1);
        callbacks.conversations = 7;
        body(&callbacks, number)
    };
    let first: Vec<_> = (0..5000).map(make).collect();
    let second: Vec<_> = (0..5000).map(make).collect();
    assert_eq!(first, second);
    assert_eq!(first.iter().collect::<HashSet<_>>().len(), 5000);
}
