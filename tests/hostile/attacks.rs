//! The attacks, in the order of the table.

use std::fmt::Write as _;
use std::time::Duration;

use recall_relay::vendor::CallbackKind;

use super::attack::{Attack, Listener, OPENS_PER_SECOND, Shape, Then};
use super::connect::Tls;
use super::rig::{APP, encode, recall, recall_query};
use super::smuggling;

/// More than `http.max_connections`.
const CONNECTIONS: usize = 1100;

/// For attacks that send much on each connection, or shake hands.
const COSTLY_OPENS_PER_SECOND: u32 = 500;

const SECOND: Duration = Duration::from_secs(1);

/// All attacks.
pub fn all(tls: &Tls) -> Vec<Attack> {
    vec![
        silent("silent", Listener::Plain),
        slow_heads("slow_heads", Listener::Plain),
        slow_bodies(),
        expect_continue(),
        refused_then_silent(),
        unread_answers(),
        unfinished_bodies("unfinished_bodies", Listener::Plain),
        connects(),
        garbage(tls),
        large_heads(),
        unfinished_heads("unfinished_heads", Listener::Plain),
        smuggling::attack(),
        tls_hellos(tls),
        silent("silent_over_tls", Listener::Tls),
        slow_heads("slow_heads_over_tls", Listener::Tls),
        unfinished_heads("unfinished_heads_over_tls", Listener::Tls),
        unfinished_bodies("unfinished_bodies_over_tls", Listener::Tls),
    ]
}

/// An attack on the listener without TLS.
fn attack(name: &'static str, shapes: Vec<Shape>) -> Attack {
    Attack {
        name,
        listener: Listener::Plain,
        connections: CONNECTIONS,
        opens_per_second: OPENS_PER_SECOND,
        shapes,
        signed: Vec::new(),
    }
}

/// The same attack on this listener; with TLS, each connection shakes hands first.
fn on(listener: Listener, mut attack: Attack) -> Attack {
    if listener == Listener::Tls {
        attack.listener = Listener::Tls;
        attack.opens_per_second = COSTLY_OPENS_PER_SECOND;
        for shape in &mut attack.shapes {
            shape.encrypted = true;
        }
    }
    attack
}

fn silent(name: &'static str, listener: Listener) -> Attack {
    let silent = Shape::new("", Then::Wait);
    on(listener, attack(name, vec![silent]))
}

fn slow_heads(name: &'static str, listener: Listener) -> Attack {
    let head = format!("POST /?{} HTTP/1.1\r\nHost: relay\r\n", recall_query());
    let line = Then::Repeat("X-Slow: 1\r\n".into(), SECOND);
    on(listener, attack(name, vec![Shape::new(head, line)]))
}

fn slow_bodies() -> Attack {
    let byte = Then::Repeat(" ".into(), SECOND);
    let shape = |query: &str, length| Shape::new(head(query, length, ""), byte.clone());
    let lengths = [4000, 200 << 10];
    let shapes = lengths.map(|length| [shape(&recall_query(), length), shape("", length)]);
    attack("slow_bodies", shapes.concat())
}

fn expect_continue() -> Attack {
    let shape = |query: &str, length| {
        Shape::new(head(query, length, "Expect: 100-continue\r\n"), Then::Wait)
    };
    attack(
        "expect_continue",
        vec![
            shape(&recall_query(), 4000),
            shape("", 4000),
            shape(&other_query(), 200 << 10),
        ],
    )
}

fn refused_then_silent() -> Attack {
    let request = unsigned_recall();
    // Shortly before http.idle_timeout.
    let again = Then::Repeat(request.clone().into(), Duration::from_secs(70));
    attack("refused_then_silent", vec![Shape::new(request, again)])
}

fn unread_answers() -> Attack {
    let one = unsigned_recall();
    let again = Then::RepeatUnread(one.clone().into(), SECOND);
    Attack {
        opens_per_second: COSTLY_OPENS_PER_SECOND,
        ..attack("unread_answers", vec![Shape::new(one.repeat(200), again)])
    }
}

fn unfinished_bodies(name: &'static str, listener: Listener) -> Attack {
    let length = 256 << 10;
    let shape = |query: &str| {
        let mut request = head(query, length, "");
        request.resize(request.len() + length - 1, b' ');
        Shape::new(request, Then::Wait)
    };
    let shapes = vec![shape(&recall_query()), shape(""), shape(&other_query())];
    let attack = Attack {
        opens_per_second: COSTLY_OPENS_PER_SECOND,
        ..attack(name, shapes)
    };
    on(listener, attack)
}

fn connects() -> Attack {
    Attack {
        connections: 2000,
        opens_per_second: 5000,
        // 2,000 that are each open for 0.4 s are 5,000 in a second.
        ..attack(
            "connects",
            vec![Shape::new("", Then::Close(Duration::from_millis(390)))],
        )
    }
}

fn garbage(tls: &Tls) -> Attack {
    let mut random = fastrand::Rng::with_seed(1);
    let noise: Vec<u8> = (0..512).map(|_| random.u8(..)).collect();
    let shapes = [
        noise,
        tls.client_hello(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec(),
        vec![0; 4 << 10],
        b"x".repeat(30 << 10),
        [b"POST /".as_slice(), &b"x".repeat(100 << 10)].concat(),
        b"\r\n".repeat(1000),
    ];
    let shapes = shapes.map(|bytes| Shape::new(bytes, Then::Wait));
    attack("garbage", shapes.to_vec())
}

fn large_heads() -> Attack {
    let first = format!("POST /?{} HTTP/1.1\r\nHost: relay\r\n", recall_query());
    let one = |bytes| format!("{first}X-Large: {}\r\n", "x".repeat(bytes));
    let many = |count, bytes| {
        (0..count).fold(first.clone(), |mut head, number| {
            let _ = write!(head, "X-{number}: {}\r\n", "x".repeat(bytes));
            head
        })
    };
    // The limits are 32 KiB and 100 headers.
    let heads = [
        one(31 << 10),
        one(35 << 10),
        many(95, 300),
        many(95, 10),
        many(3000, 10),
    ];
    let complete = heads
        .iter()
        .map(|head| Shape::new(format!("{head}Content-Length: 0\r\n\r\n"), Then::Wait));
    let incomplete = heads
        .iter()
        .map(|head| Shape::new(head.clone(), Then::Wait));
    let shapes = complete.chain(incomplete).collect();
    Attack {
        // Of unoptimised code, each takes 2 ms of processor time.
        opens_per_second: 200,
        ..attack("large_heads", shapes)
    }
}

/// The most memory that a client gets before it is judged: a head almost as large as allowed, on every connection.
fn unfinished_heads(name: &'static str, listener: Listener) -> Attack {
    let mut head = format!("POST /?{} HTTP/1.1\r\nX-Large: ", recall_query()).into_bytes();
    head.resize(31 << 10, b'x');
    let attack = Attack {
        opens_per_second: COSTLY_OPENS_PER_SECOND,
        ..attack(name, vec![Shape::new(head, Then::Wait)])
    };
    on(listener, attack)
}

fn tls_hellos(tls: &Tls) -> Attack {
    Attack {
        listener: Listener::Tls,
        ..attack(
            "tls_hellos",
            vec![Shape::new(tls.client_hello(), Then::Wait)],
        )
    }
}

/// The head of a POST, with these headers besides.
fn head(query: &str, length: usize, headers: &str) -> Vec<u8> {
    format!("POST /?{query} HTTP/1.1\r\nHost: relay\r\nContent-Length: {length}\r\n{headers}\r\n")
        .into()
}

fn unsigned_recall() -> Vec<u8> {
    let target = format!("/?{}", recall_query());
    encode("POST", &target, recall("unsigned", 1).as_bytes())
}

/// The query of a command that is not a recall.
fn other_query() -> String {
    CallbackKind::Other.query(APP, None)
}
