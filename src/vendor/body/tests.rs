use super::*;

const AT: u64 = 1_670_574_414_123;
const SENDER: u64 = 144_115_213_000_000_000;

fn format(version: PayloadVersion) -> BodyFormat {
    BodyFormat {
        version,
        ..BodyFormat::default()
    }
}

fn group(format: &BodyFormat, group_id: &str, seqs: std::ops::Range<u64>) -> String {
    format.group(group_id, seqs, |seq| msg_id(SENDER, seq, AT), AT)
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
        assert_eq!(group(&format(version), "@TGS#send-0", 130..131), expected);
    }
}

#[test]
fn a_community_has_topics_since_v2_and_the_chinese_documents_write_a_number() {
    let mut format = format(PayloadVersion::V2);
    format.group_type = "Community".to_owned();
    format.event_time = EventTimeForm::Number;
    assert_eq!(
        group(&format, "@TGS#_send-0", 132..134),
        r#"{"CallbackCommand":"Group.CallbackAfterRecallMsg","EventTime":1670574414123,"GroupId":"@TGS#_send-0","MsgSeqList":[{"MsgSeq":132},{"MsgSeq":133}],"Operator_Account":"admin","TopicId":"@TGS#_send-0@TOPIC#_send","Type":"Community"}"#
    );
    format.version = PayloadVersion::V1;
    assert!(!group(&format, "@TGS#_send-0", 132..134).contains("TopicId"));
}

#[test]
fn c2c_recalls_have_unread_msg_num_first_and_event_time_later() {
    let body = |version| format(version).c2c("sender-0", "receiver-0", 130, AT);
    assert_eq!(
        body(PayloadVersion::V1),
        r#"{"CallbackCommand":"C2C.CallbackAfterMsgWithDraw","From_Account":"sender-0","MsgKey":"130_1479265250_1670574414","To_Account":"receiver-0","UnreadMsgNum":7}"#
    );
    for version in [PayloadVersion::V2, PayloadVersion::V3] {
        assert_eq!(
            body(version),
            r#"{"CallbackCommand":"C2C.CallbackAfterMsgWithDraw","EventTime":"1670574414123","From_Account":"sender-0","MsgKey":"130_1479265250_1670574414","To_Account":"receiver-0"}"#
        );
    }
}

#[test]
fn official_account_recalls_list_message_keys() {
    let mut format = format(PayloadVersion::V3);
    format.event_time = EventTimeForm::Number;
    assert_eq!(
        format.official_account("#TOA#_0", 130..132, AT),
        r##"{"CallbackCommand":"OfficialAccount.CallbackAfterMsgWithDraw","EventTime":1670574414123,"Official_Account":"#TOA#_0","WithdrawMsgList":[{"MsgKey":"130_1479265250_1670574414"},{"MsgKey":"131_4133701011_1670574414"}]}"##
    );
}
