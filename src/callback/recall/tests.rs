use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::{Class, classify};
use super::*;

const APP: u64 = 1_400_000_001;

fn parse(query: &str, body: &[u8]) -> Result<ParsedRecall, ParseError> {
    let query = Query::parse(query);
    match classify(&query, body) {
        Class::Recall { recall, body } => parse_recall(
            APP,
            recall,
            &query,
            &body,
            UnixMillis::new(1_670_574_414_201).unwrap(),
        ),
        class => panic!("not a recall: {class:?}"),
    }
}

fn parsed(body: &str) -> (Value, Vec<IgnoredField>) {
    let query = "ClientIP=127.0.0.1&OptPlatform=RESTAPI";
    let parsed = parse(query, body.as_bytes()).unwrap();
    let event = serde_json::from_slice(&parsed.event.body).unwrap();
    (event, parsed.ignored_fields)
}

fn parse_error(body: &str) -> String {
    let error = parse("", body.as_bytes()).unwrap_err();
    format!("{}: {error}", error.reason())
}

fn group(fields: &str) -> String {
    format!(r#"{{"CallbackCommand":"Group.CallbackAfterRecallMsg",{fields}}}"#)
}

#[test]
fn parses_the_first_version_of_a_group_recall() {
    let (event, ignored_fields) = parsed(
        r#"{"CallbackCommand":"Group.CallbackAfterRecallMsg","Operator_Account":"admin","Type":"Public","GroupId":"1213456","MsgSeqList":[{"MsgSeq":130}]}"#,
    );
    assert_eq!(event["id"], "283a5b40-927f-5ff4-a7dc-2ca63c4f555c");
    assert_eq!(
        event["data"]["conversation"],
        json!({"kind":"group","group_id":"1213456","group_type":"Public"})
    );
    assert_eq!(event["data"]["messages"], json!([{"seq":130}]));
    assert_eq!(event["time"], event["data"]["received_at"]);
    assert_eq!(
        ignored_fields,
        [
            IgnoredField::Missing("MsgId"),
            IgnoredField::Missing("EventTime")
        ]
    );
}

#[test]
fn parses_the_latest_group_recall_and_numbers_as_text() {
    let body = r#"{"CallbackCommand":"Group.CallbackAfterRecallMsg","Operator_Account":"admin","Type":"Community","GroupId":"1213456","MsgSeqList":[{"MsgSeq":130,"MsgId":"144115213033478435-1739361321-2512805311"}],"TopicId":"@TGS#_@TGS#cQVLVHIM62CJ@TOPIC#_TestTopic","EventTime":"1670574414123"}"#;
    let (event, ignored_fields) = parsed(body);
    assert_eq!(event["id"], "e623ed2b-c5ef-5b1b-a59b-1584672e69fa");
    assert_eq!(event["data"]["recalled_at"], "2022-12-09T08:26:54.123Z");
    assert_eq!(
        event["data"]["client"],
        json!({"ip":"127.0.0.1","platform":"RESTAPI"})
    );
    assert_eq!(ignored_fields, []);

    let (as_number, _) = parsed(&body.replace(r#""1670574414123""#, "1670574414123"));
    assert_eq!(as_number, event);
    let (seq_as_text, _) = parsed(&body.replace(r#""MsgSeq":130"#, r#""MsgSeq":"130""#));
    assert_eq!(seq_as_text, event);
}

#[test]
fn the_last_value_of_a_repeated_field_counts() {
    let (event, _) = parsed(&group(
        r#""GroupId":7,"MsgSeqList":[{"MsgSeq":2,"MsgSeq":1}],"Group\u0049d":"g""#,
    ));
    assert_eq!(event["subject"], "g");
    assert_eq!(event["data"]["messages"], json!([{"seq":1}]));

    let overridden =
        group(r#""GroupId":"g","MsgSeqList":[{"MsgSeq":1}],"CallbackCommand":"State.StateChange""#);
    let class = classify(&Query::parse(""), overridden.as_bytes());
    assert!(matches!(class, Class::Other { .. }), "{class:?}");
}

#[test]
fn a_number_may_have_any_form_that_equals_an_integer() {
    let plain = parsed(&group(
        r#""GroupId":"g","MsgSeqList":[{"MsgSeq":130}],"EventTime":1670574414123"#,
    ));
    for (seq, time) in [
        ("130.0", "1670574414123.0"),
        ("1.3e2", "1.670574414123E+12"),
        (r#""130""#, r#""1670574414123""#),
    ] {
        let fields =
            format!(r#""GroupId":"g","MsgSeqList":[{{"MsgSeq":{seq}}}],"EventTime":{time}"#);
        assert_eq!(parsed(&group(&fields)), plain, "{fields}");
    }
}

/// RFC 8259 allows these values; not every parser does.
#[test]
fn an_odd_value_costs_only_its_own_field() {
    let deep = format!("{}1{}", "[".repeat(50_000), "]".repeat(50_000));
    let identity = r#""GroupId":"g","MsgSeqList":[{"MsgSeq":1}]"#;
    let (plain, _) = parsed(&group(&format!(
        r#"{identity},"Type":"Public","EventTime":1"#
    )));
    for odd in [
        "1e400",
        "-1E+999999999999999999999",
        r#""\ud800""#,
        r#""\udc00\ud800""#,
        &deep,
    ] {
        let with = |name: &str| {
            parsed(&group(&format!(
                r#"{identity},"Type":"Public",{name}:{odd}"#
            )))
        };
        let (event, ignored_fields) = with(r#""EventTime""#);
        assert!(
            ignored_fields.contains(&IgnoredField::Unusable("EventTime")),
            "{odd}"
        );
        assert_eq!(event["data"]["conversation"], plain["data"]["conversation"]);
        assert!(event["data"].get("recalled_at").is_none());
        let (_, ignored_fields) = with(r#""Type""#);
        assert!(
            ignored_fields.contains(&IgnoredField::Unusable("Type")),
            "{odd}"
        );
        for unknown in [r#""New""#, r#""\ud800""#] {
            let (event, _) = with(&format!(r#""EventTime":1,{unknown}"#));
            assert_eq!(event, plain, "{odd}");
        }
        let in_list =
            format!(r#""GroupId":"g","MsgSeqList":[{{"MsgSeq":1,"MsgId":{odd},"New":{odd}}}]"#);
        assert_eq!(
            parsed(&group(&in_list)).0["data"]["messages"],
            json!([{"seq":1}])
        );
    }
    // In the identity it costs the event.
    assert_eq!(
        parse_error(&group(r#""GroupId":"\ud800","MsgSeqList":[{"MsgSeq":1}]"#)),
        "conversation: GroupId is not Unicode text: it has a lone surrogate"
    );
    assert_eq!(
        parse_error(&group(r#""GroupId":"g","MsgSeqList":[{"MsgSeq":1e400}]"#)),
        "messages: MsgSeqList[0].MsgSeq is not an unsigned 64-bit number"
    );
}

#[test]
fn only_json_in_utf_8_is_parsed() {
    let query = "CallbackCommand=Group.CallbackAfterRecallMsg";
    let valid = group(r#""GroupId":"g","MsgSeqList":[{"MsgSeq":1}],"New":"?""#);
    parse(query, valid.as_bytes()).unwrap();
    let position = valid.find('?').unwrap();
    let mut not_utf_8 = valid.clone().into_bytes();
    not_utf_8[position] = 0xff;
    let utf_16: Vec<u8> = valid.encode_utf16().flat_map(u16::to_le_bytes).collect();
    for body in [
        not_utf_8,
        utf_16,
        format!("\u{feff}{valid}").into_bytes(),
        format!("{valid},").into_bytes(),
        valid.replace('?', "\n").into_bytes(),
        valid.replace(r#""?""#, "NaN").into_bytes(),
        valid.replace(r#""?""#, "01").into_bytes(),
        valid.replace(r#""?""#, "+1").into_bytes(),
        valid.replace(r#""?""#, "1.").into_bytes(),
        valid.replace(r#""?""#, "'x'").into_bytes(),
        valid.replace(r#""?""#, r#""\x""#).into_bytes(),
        valid.replace(r#""?""#, r#""\u12g4""#).into_bytes(),
        valid.replace(r#""?""#, "[1,]").into_bytes(),
        valid.replace(r#""?""#, "1 // comment").into_bytes(),
    ] {
        let error = parse(query, &body).unwrap_err();
        assert_eq!(
            error.reason(),
            "not_json",
            "{}",
            String::from_utf8_lossy(&body)
        );
    }
}

#[test]
fn an_empty_topic_id_means_no_topic() {
    let with = parsed(&group(
        r#""GroupId":"g","MsgSeqList":[{"MsgSeq":1}],"TopicId":"""#,
    ));
    let without = parsed(&group(r#""GroupId":"g","MsgSeqList":[{"MsgSeq":1}]"#));
    assert_eq!(with, without);
}

#[test]
fn parses_both_versions_of_a_c2c_recall() {
    let body = r#"{"CallbackCommand":"C2C.CallbackAfterMsgWithDraw","From_Account":"jared","To_Account":"Jonh","MsgKey":"48374_2837546_1557481126","UnreadMsgNum":7}"#;
    let (event, _) = parsed(body);
    assert_eq!(event["id"], "4e907382-d3ee-5669-aa1b-045dfbf4084a");
    assert_eq!(event["subject"], "jared:Jonh");
    let (event, ignored_fields) =
        parsed(&body.replace(r#""UnreadMsgNum":7"#, r#""EventTime":1670574414123"#));
    assert_eq!(event["id"], "4e907382-d3ee-5669-aa1b-045dfbf4084a");
    assert_eq!(event["time"], "2022-12-09T08:26:54.123Z");
    assert_eq!(ignored_fields, []);
}

#[test]
fn parses_an_official_account_recall() {
    let (event, ignored_fields) = parsed(
        r##"{"CallbackCommand":"OfficialAccount.CallbackAfterMsgWithDraw","Official_Account":"#TOA#_123","WithdrawMsgList":[{"MsgKey":"71_1_1698741698"},{"MsgKey":"odd"}],"EventTime":1670574414123}"##,
    );
    assert_eq!(
        event["type"],
        "com.tencent.im.official_account.message.recalled"
    );
    assert_eq!(event["partitionkey"], "1400000001:#TOA#_123");
    assert_eq!(
        event["data"]["messages"],
        json!([{"key":"71_1_1698741698","seq":71,"random":1,"sent_at":"2023-10-31T08:41:38.000Z"},{"key":"odd"}])
    );
    assert_eq!(ignored_fields, []);
}

#[test]
fn invalid_optional_fields_are_ignored_and_reported() {
    let (event, ignored_fields) = parsed(&group(
        r#""GroupId":"g","MsgSeqList":[{"MsgSeq":1,"MsgId":7},{"MsgSeq":2,"MsgId":""}],"Type":null,"Operator_Account":[],"EventTime":"soon""#,
    ));
    assert_eq!(event["data"]["messages"], json!([{"seq":1},{"seq":2}]));
    assert!(event["data"].get("operator_id").is_none());
    assert!(event["data"].get("recalled_at").is_none());
    assert_eq!(
        ignored_fields,
        ["MsgId", "Operator_Account", "Type", "EventTime"].map(IgnoredField::Unusable)
    );
}

#[test]
fn invalid_client_fields_are_ignored_and_reported() {
    let body = group(r#""GroupId":"g","MsgSeqList":[{"MsgSeq":1}]"#);
    let parsed = parse("ClientIP=nowhere&OptPlatform=", body.as_bytes()).unwrap();
    let event: Value = serde_json::from_slice(&parsed.event.body).unwrap();
    assert!(event["data"].get("client").is_none());
    assert!(
        parsed
            .ignored_fields
            .contains(&IgnoredField::Unusable("ClientIP"))
    );
    assert!(
        parsed
            .ignored_fields
            .contains(&IgnoredField::Unusable("OptPlatform"))
    );
}

#[test]
fn errors_name_the_field_and_the_problem() {
    let cases = [
        (
            r#""MsgSeqList":[{"MsgSeq":1}]"#,
            "conversation: GroupId is missing",
        ),
        (
            r#""GroupId":"","MsgSeqList":[{"MsgSeq":1}]"#,
            "conversation: GroupId is empty",
        ),
        (
            r#""GroupId":1,"MsgSeqList":[{"MsgSeq":1}]"#,
            "conversation: GroupId is not a string",
        ),
        (
            r#""GroupId":"g","TopicId":1"#,
            "conversation: TopicId is not a string",
        ),
        (r#""GroupId":"g""#, "messages: MsgSeqList is missing"),
        (
            r#""GroupId":"g","MsgSeqList":[]"#,
            "messages: MsgSeqList is empty",
        ),
        (
            r#""GroupId":"g","MsgSeqList":{}"#,
            "messages: MsgSeqList is not an array",
        ),
        (
            r#""GroupId":"g","MsgSeqList":[{"MsgSeq":1},{}]"#,
            "messages: MsgSeqList[1].MsgSeq is missing",
        ),
        (
            r#""GroupId":"g","MsgSeqList":[{"MsgSeq":-1}]"#,
            "messages: MsgSeqList[0].MsgSeq is not an unsigned 64-bit number",
        ),
        (
            r#""GroupId":"g","MsgSeqList":[{"MsgSeq":"+1"}]"#,
            "messages: MsgSeqList[0].MsgSeq is not an unsigned 64-bit number",
        ),
    ];
    for (fields, expected) in cases {
        assert_eq!(parse_error(&group(fields)), expected, "{fields}");
    }
    assert_eq!(
        parse_error(
            r#"{"CallbackCommand":"C2C.CallbackAfterMsgWithDraw","From_Account":"a","To_Account":"b","MsgKey":""}"#
        ),
        "messages: MsgKey is empty"
    );
    assert_eq!(
        parse_error(
            r#"{"CallbackCommand":"OfficialAccount.CallbackAfterMsgWithDraw","Official_Account":"a","WithdrawMsgList":[{"MsgKey":1}]}"#
        ),
        "messages: WithdrawMsgList[0].MsgKey is not a string"
    );
}

#[test]
fn query_and_body_must_name_the_same_command() {
    let body = br#"{"CallbackCommand":"State.StateChange","GroupId":"g"}"#;
    let error = parse("CallbackCommand=Group.CallbackAfterRecallMsg", body).unwrap_err();
    assert_eq!(
        error.to_string(),
        "query names Group.CallbackAfterRecallMsg but body names State.StateChange"
    );
}

#[test]
fn the_largest_sequence_number_is_kept_exactly() {
    let (event, _) = parsed(&group(&format!(
        r#""GroupId":"g","MsgSeqList":[{{"MsgSeq":{}}}]"#,
        u64::MAX
    )));
    assert_eq!(event["data"]["messages"][0]["seq"], u64::MAX);
}

proptest! {
    #[test]
    fn parses_any_bytes_without_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
        let query = Query::parse("CallbackCommand=Group.CallbackAfterRecallMsg");
        if let Class::Recall { recall, body } = classify(&query, &body) {
            let _ = parse_recall(APP, recall, &query, &body, UnixMillis::now());
        }
    }

    #[test]
    fn any_identity_is_kept_and_determines_the_id(
        group in "[ -~]{1,48}", topic in "[ -~]{0,20}", seqs in prop::collection::vec(any::<u64>(), 1..10),
    ) {
        let list: Vec<Value> = seqs.iter().map(|seq| json!({"MsgSeq": seq})).collect();
        let body = json!({
            "CallbackCommand": "Group.CallbackAfterRecallMsg",
            "GroupId": group, "TopicId": topic, "MsgSeqList": list, "Type": "Public",
        });
        let bytes = serde_json::to_vec(&body).unwrap();
        let one = parse("ClientIP=::1", &bytes).unwrap();
        let other = parse("", &bytes).unwrap();
        prop_assert_eq!(one.event.id, other.event.id);
        let event: Value = serde_json::from_slice(&one.event.body).unwrap();
        prop_assert_eq!(&event["data"]["conversation"]["group_id"], &json!(group));
        prop_assert_eq!(event["data"]["messages"].as_array().unwrap().len(), seqs.len());
    }
}
