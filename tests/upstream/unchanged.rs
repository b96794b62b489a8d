//! What the backend and the vendor get.

use super::*;

/// The header lines that every request to the backend has here.
fn expected_headers(backend: &Backend, length: usize) -> Vec<(String, String)> {
    let own = [
        ("host", backend.address().to_string()),
        ("content-length", length.to_string()),
        ("content-type", "application/json; charset=utf-8".to_owned()),
        ("cookie", "a=1".to_owned()),
        ("cookie", "b=2".to_owned()),
        ("user-agent", "vendor/1".to_owned()),
        (
            "x-forwarded-for",
            "198.51.100.1, 198.51.100.2, 127.0.0.1".to_owned(),
        ),
        ("x-forwarded-host", "im.example".to_owned()),
    ];
    let mut own: Vec<_> = own.map(|(name, value)| (name.to_owned(), value)).into();
    own.sort();
    own
}

#[test]
fn a_callback_reaches_the_backend_unchanged() {
    let backend = Backend::start();
    let own = format!("{}/callback?key=a%20b&flag", url("http", &backend));
    let relay = Setup::new().set("RECALL_UPSTREAM__URL", &own).start();
    let query = "b=%2F+c&&CallbackCommand=Group.CallbackBeforeSendMsg&a={x}&empty=&?y~'|";
    let binary: Vec<u8> = (0..=255).cycle().take(70_000).collect();
    let json = other_body(1).into_bytes();
    for (chunked, body) in [
        (false, &json),
        (false, &binary),
        (false, &Vec::new()),
        (true, &json),
        (true, &binary),
        (true, &Vec::new()),
    ] {
        let mut bytes = format!(
            "POST /?{query} HTTP/1.1\r\nHost: im.example\r\nContent-Type: application/json; charset=utf-8\r\n\
             cookie: a=1\r\nCookie: b=2\r\nUSER-AGENT: vendor/1\r\nX-Forwarded-For: 198.51.100.1\r\n\
             X-Forwarded-For: 198.51.100.2\r\nX-Forwarded-Host: forged\r\nConnection: keep-alive, X-Named\r\n\
             X-Named: 1\r\nKeep-Alive: timeout=5\r\nTE: trailers\r\nUpgrade: h2c\r\nProxy-Connection: x\r\n"
        )
        .into_bytes();
        if chunked {
            bytes.extend(b"Transfer-Encoding: chunked\r\nTrailer: X-Trailer\r\n\r\n");
            for chunk in body.chunks(30_000) {
                bytes.extend(format!("{:x}\r\n", chunk.len()).as_bytes());
                bytes.extend(chunk);
                bytes.extend(b"\r\n");
            }
            bytes.extend(b"0\r\nX-Trailer: 1\r\n\r\n");
        } else {
            bytes.extend(format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes());
            bytes.extend(body);
        }
        let answer = send(relay.callbacks, &bytes);
        assert_eq!(answer.status, 200, "{}", answer.text());
        let mut received = backend.last();
        assert_eq!(received.method, "POST");
        let target = format!("/im/callback?key=a%20b&flag&{query}");
        assert_eq!(received.target, target);
        received.headers.sort();
        assert_eq!(received.headers, expected_headers(&backend, body.len()));
        assert!(received.body == *body, "{chunked}, {} bytes", body.len());
    }
    assert_eq!(backend.count(), 6);
    assert_eq!(handed_on(&relay, "answered"), 6);
    until_nothing_is_buffered(&relay);
    assert_eq!(relay.stop().len(), 0);
}

#[test]
fn a_trusted_proxy_names_the_host_and_the_source() {
    let backend = Backend::start();
    let relay = setup(&backend)
        .set("RECALL_AUTH__TRUSTED_PROXIES", "127.0.0.1")
        .set("RECALL_AUTH__ALLOWED_SOURCES", "203.0.113.7")
        .start();
    let head = format!(
        "POST /?{} HTTP/1.1\r\nHost: inner\r\nX-Forwarded-For: 203.0.113.7\r\nX-Forwarded-Host: outer\r\n\
         Content-Length: 2\r\n\r\n{{}}",
        other_query()
    );
    assert_eq!(send(relay.callbacks, head.as_bytes()).status, 200);
    let received = backend.last();
    assert_eq!(
        received.header("x-forwarded-for"),
        ["203.0.113.7, 127.0.0.1"]
    );
    assert_eq!(received.header("x-forwarded-host"), ["outer"]);
}

#[test]
fn the_answer_comes_back_unchanged() {
    let backend = Backend::start();
    let relay = setup(&backend).start();
    for code in [0, 1, 2, 10_100, 10_200] {
        let body = format!(r#"{{"ActionStatus":"FAIL","ErrorInfo":"no","ErrorCode":{code}}}"#);
        backend.reply(Reply::json(&body));
        let answer = other(&relay);
        assert_eq!((answer.status, answer.text()), (200, body.as_str()));
        assert_eq!(answer.header("content-type"), Some("application/json"));
    }
    let binary: Vec<u8> = (0..=255).cycle().take(5000).collect();
    let headers = "Content-Type: text/x-own\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nServer: own\r\n\
                   Date: Thu, 01 Jan 1970 00:00:00 GMT\r\nRetry-After: 7\r\nX-Empty: \r\n\
                   Connection: X-Named\r\nX-Named: 1\r\nKeep-Alive: timeout=9\r\n";
    for status in [200, 201, 400, 401, 404, 500, 503] {
        for body in [&b""[..], b"text", &binary] {
            backend.reply(Reply::new(status, headers, body));
            let answer = other(&relay);
            let length = body.len().to_string();
            let mut got = answer.headers;
            got.sort();
            let expected = [
                ("content-length", length.as_str()),
                ("content-type", "text/x-own"),
                ("date", "Thu, 01 Jan 1970 00:00:00 GMT"),
                ("retry-after", "7"),
                ("server", "own"),
                ("set-cookie", "a=1"),
                ("set-cookie", "b=2"),
                ("x-empty", ""),
            ];
            let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
            assert_eq!(got, expected, "{status}");
            assert_eq!(answer.status, status);
            assert!(answer.body == body, "{status}, {} bytes", body.len());
        }
    }
    // Without a body; preceded by another answer; of unknown length.
    for (bytes, status, body) in [
        ("HTTP/1.1 204 No Content\r\n\r\n", 204, ""),
        ("HTTP/1.1 304 Not Modified\r\n\r\n", 304, ""),
        (
            "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx",
            200,
            "x",
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\nX: 1\r\n\r\n",
            200,
            "abc",
        ),
        ("HTTP/1.0 200 OK\r\n\r\nuntil the end", 200, "until the end"),
    ] {
        backend.reply(Reply::raw(bytes).then_close());
        let answer = other(&relay);
        assert_eq!((answer.status, answer.text()), (status, body), "{bytes}");
        assert_eq!(answer.header("transfer-encoding"), None);
        assert_eq!(answer.header("connection"), None);
        backend.until_unconnected();
    }
    assert_eq!(handed_on(&relay, "answered"), 5 + 21 + 5);
    assert_eq!(relay.metric("recall_upstream_up"), "1");
    until_nothing_is_buffered(&relay);
}

#[test]
fn all_but_recalls_are_handed_on() {
    let backend = Backend::start();
    backend.reply(Reply::json(BACKENDS_ANSWER));
    let relay = setup(&backend).start();
    let recalls = [
        CallbackKind::Group,
        CallbackKind::C2c,
        CallbackKind::OfficialAccount,
    ];
    let mut expected = Vec::new();
    for (query, body) in [
        (CallbackKind::Probe.query(APP, None), ""),
        (CallbackKind::Probe.query(APP, None), "{}"),
        (String::new(), ""),
        (String::new(), "not json"),
        (String::new(), r#"{"CallbackCommand":"State.StateChange"}"#),
        ("SdkAppid=9&CallbackCommand=Own.Command".to_owned(), "[]"),
        ("CallbackCommand=C2C.CallbackBeforeSendMsg".to_owned(), "{}"),
    ] {
        let answer = relay.post(&query, body);
        assert_eq!(answer.text(), BACKENDS_ANSWER, "{query} {body}");
        let question_mark = if query.is_empty() { "" } else { "?" };
        expected.push((format!("/im{question_mark}{query}"), body.to_owned()));
    }
    let format = BodyFormat::default();
    let bodies = [
        recall("g", 1),
        format.c2c("a", "b", 1, 1_670_574_414_123),
        format.official_account("o", [1], 1_670_574_414_123),
    ];
    for (kind, body) in recalls.into_iter().zip(&bodies) {
        let answer = relay.post(&kind.query(APP, None), body);
        assert!(answer.is_ok(), "{answer:?}");
    }
    // A recall whose command stands only in its body.
    let answer = relay.post(&format!("SdkAppid={APP}"), recall("g", 2));
    assert!(answer.is_ok(), "{answer:?}");
    let pair = |received: Received| (received.target, String::from_utf8(received.body).unwrap());
    let received: Vec<_> = backend.received().into_iter().map(pair).collect();
    assert_eq!(received, expected);
    assert_eq!(relay.stop().len(), 4);
}
