//! What counts as the same callback, whatever a proxy between the vendor and the relay does to the request.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod rig;

use rig::{Answer, Connection, Relay, Setup};

const GROUP: &str = "SdkAppid=1400000001&CallbackCommand=Group.CallbackAfterRecallMsg&contenttype=json&ClientIP=127.0.0.1&OptPlatform=RESTAPI";
const C2C: &str =
    "SdkAppid=1400000001&CallbackCommand=C2C.CallbackAfterMsgWithDraw&contenttype=json";

/// Without a `MsgId`, so that `EventTime` belongs to the identity, too.
const GROUP_BODY: &str = r#"{"CallbackCommand":"Group.CallbackAfterRecallMsg","EventTime":1670574414120,"GroupId":"@TGS#2J4SZ/é","MsgSeqList":[{"MsgSeq":130},{"MsgId":"m-2","MsgSeq":131}],"Operator_Account":"admin","Type":"Public"}"#;
const C2C_BODY: &str = r#"{"CallbackCommand":"C2C.CallbackAfterMsgWithDraw","EventTime":1670574414120,"From_Account":"jared","MsgKey":"48374_2837546_1557481126","To_Account":"Jonh"}"#;

fn send(relay: &Relay, request: &[u8]) -> Answer {
    let mut connection = Connection::open(relay.callbacks).unwrap();
    connection.send(request).unwrap();
    connection.answer().unwrap()
}

/// A request with these first line and header lines, and a `Content-Length` if there is a body.
fn with_length(head: &str, body: &str) -> Vec<u8> {
    format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

fn post(query: &str, body: &str) -> Vec<u8> {
    with_length(&format!("POST /?{query} HTTP/1.1\r\nHost: relay\r\n"), body)
}

#[test]
fn another_form_of_the_body_is_the_same_callback() {
    let relay = Setup::new().start();
    assert!(send(&relay, &post(GROUP, GROUP_BODY)).is_ok());
    let forms = [
        // Other order, white space.
        r#"{"Type":"Public","Operator_Account":"admin","MsgSeqList":[{"MsgSeq":130},{"MsgSeq":131,"MsgId":"m-2"}],"GroupId":"@TGS#2J4SZ/é","EventTime":1670574414120,"CallbackCommand":"Group.CallbackAfterRecallMsg"}"#.to_owned(),
        GROUP_BODY.replace(',', " ,\r\n\t").replace(':', " : ") + "\n",
        // Numbers and strings.
        GROUP_BODY.replace("1670574414120", r#""1670574414120""#),
        GROUP_BODY.replace("1670574414120", "1.67057441412E12"),
        GROUP_BODY.replace("1670574414120", "1670574414120.0"),
        GROUP_BODY.replace("130", r#""130""#).replace("131", "131.0"),
        GROUP_BODY.replace("130", "1.3e2").replace("131", r#""\u003131""#),
        // Escapes.
        GROUP_BODY.replace('é', r"\u00e9").replace("GroupId", r"\u0047roupId"),
        GROUP_BODY.replace('/', r"\/").replace('@', r"\u0040"),
        // Fields that are not part of the identity.
        GROUP_BODY.replace("Public", "Work").replace("admin", "somebody"),
        GROUP_BODY.replace(r#","Type":"Public""#, r#","Type":null,"New":{"GroupId":1e400}"#),
        GROUP_BODY.replace(r#""Type""#, r#""TopicId":"","Type""#),
        // A repeated field: the last one counts.
        GROUP_BODY.replace(r#"{"CallbackCommand""#, r#"{"GroupId":"other","EventTime":1,"CallbackCommand""#),
    ];
    for form in &forms {
        assert!(send(&relay, &post(GROUP, form)).is_ok(), "{form}");
    }
    assert_eq!(relay.outcome_count("accepted"), 1);
    assert_eq!(relay.outcome_count("repeated"), forms.len() as u64);
    assert_eq!(relay.stop().len(), 1);
}

#[test]
fn another_form_of_the_request_is_the_same_callback() {
    let relay = Setup::new().start();
    let chunked = |body: &str| {
        let (first, second) = body.split_at(50);
        format!(
            "{:x};a=b\r\n{first}\r\n{:X}\r\n{second}\r\n0\r\nX-Trailer: 1\r\n\r\n",
            first.len(),
            second.len()
        )
    };
    for (query, body) in [(GROUP, GROUP_BODY), (C2C, C2C_BODY)] {
        assert!(send(&relay, &post(query, body)).is_ok());
        let mut reversed: Vec<&str> = query.split('&').collect();
        reversed.reverse();
        let reversed = reversed.join("&");
        let escaped = query.replace('.', "%2E").replace("SdkAppid", "sdk%61ppid");
        let requests = [
            // The query.
            post(&reversed, body),
            post(&escaped, body),
            post(&format!("tenant=1&{query}&x=%&=&&"), body),
            post(
                &query.replace("127.0.0.1", "::1").replace("RESTAPI", "Web"),
                body,
            ),
            post(&format!("SdkAppid=7&{query}"), body),
            post("SdkAppid=1400000001", body),
            // The head.
            with_length(
                &format!(
                    "POST /?{query} HTTP/1.1\r\nhost:relay\r\ncontent-type:text/plain\r\nVia: 1.1 p\r\nX-Forwarded-For: ::1\r\n"
                ),
                body,
            ),
            with_length(
                &format!("POST http://im.example/?{query} HTTP/1.1\r\nHost: relay\r\n"),
                body,
            ),
            with_length(
                &format!("POST /?{query} HTTP/1.1\r\nHOST: relay\r\nCONNECTION: close\r\n"),
                body,
            ),
            with_length(&format!("POST /?{query} HTTP/1.0\r\n"), body),
            with_length(
                &format!("POST /?{query} HTTP/1.0\r\nHost: relay\r\nConnection: keep-alive\r\n"),
                body,
            ),
            // The body's frame.
            format!(
                "POST /?{query} HTTP/1.1\r\nHost: relay\r\ntransfer-encoding: Chunked\r\n\r\n{}",
                chunked(body)
            )
            .into_bytes(),
        ];
        for request in &requests {
            let answer = send(&relay, request);
            assert!(
                answer.is_ok(),
                "{answer:?} to {}",
                String::from_utf8_lossy(request)
            );
        }
    }
    assert_eq!(relay.stop().len(), 2);
}

/// What may look alike but says something else.
#[test]
fn another_identity_is_another_callback() {
    let relay = Setup::new()
        .set("RECALL_SDK_APP_IDS", "1400000001,7")
        .start();
    let group = |from: &str, to: &str| (GROUP, GROUP_BODY.replacen(from, to, 1));
    let c2c = |from: &str, to: &str| (C2C, C2C_BODY.replacen(from, to, 1));
    let other_application = GROUP.replace("1400000001", "7");
    let callbacks = [
        (GROUP, GROUP_BODY.to_owned()),
        (&*other_application, GROUP_BODY.to_owned()),
        group("130", "132"),
        group("m-2", "m-3"),
        group("1670574414120", "1670574414121"),
        group(r#""EventTime":1670574414120,"#, ""),
        group("@TGS", "@tgs"),
        group(r#""Type""#, r#""TopicId":"t","Type""#),
        group(
            r#"{"MsgSeq":130},{"MsgId":"m-2","MsgSeq":131}"#,
            r#"{"MsgId":"m-2","MsgSeq":131},{"MsgSeq":130}"#,
        ),
        group(r#"{"MsgSeq":130},"#, ""),
        (C2C, C2C_BODY.to_owned()),
        c2c(r#""jared""#, r#""Jared""#),
        c2c("48374_", "048374_"),
        (
            C2C,
            C2C_BODY
                .replace("jared", "x")
                .replace("Jonh", "jared")
                .replace("\"x\"", "\"Jonh\""),
        ),
    ];
    for (query, body) in &callbacks {
        assert!(send(&relay, &post(query, body)).is_ok(), "{query} {body}");
    }
    assert_eq!(relay.outcome_count("repeated"), 0);
    assert_eq!(relay.stop().len(), callbacks.len());
}
