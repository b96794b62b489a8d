//! Requests whose end is ambiguous: where two parsers disagree, a second request can be hidden in the first one.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use super::attack::{Attack, Listener, OPENS_PER_SECOND, Shape, Then};
use super::honest::signed_query;
use super::rig::{Recall, Relay, TIMEOUT, published, recall, recall_query};

/// The group of the recalls that are hidden.
const SMUGGLED: &str = "smuggled";

/// The group of the recalls that carry them.
const CARRIER: &str = "carrier";

/// Fewer than in other attacks, and closed soon: connections with a signed request are not shed.
const CONNECTIONS: usize = 300;
const LASTING: Duration = Duration::from_millis(500);

/// Requests whose end is certain. What is hidden at their end is simply the next request.
const CERTAIN: [&str; 14] = [
    "POST /?{query} HTTP/1.1\r\nHost: relay\r\nContent-Length: {length}\r\n\r\n{own}",
    "POST http://other/?{query} HTTP/1.1\r\nHost: relay\r\nContent-Length: {length}\r\n\r\n{own}",
    "POST http://other:99999/?{query} HTTP/1.1\r\nHost: relay\r\nContent-Length: {length}\r\n\r\n{own}",
    "\nPOST /?{query} HTTP/1.1\r\nHost: relay\r\nContent-Length: {length}\r\n\r\n{own}",
    "POST /?{query} HTTP/1.1\r\nHost: relay\r\nHost: other\r\nContent-Length: {length}\r\n\r\n{own}",
    "POST /?{query} HTTP/1.1\r\nHost: relay\r\nConnection: Content-Length\r\nContent-Length: {length}\r\n\r\n{own}",
    "POST /?{query} HTTP/1.1\r\nHost: relay\r\nContent-Length: {length}\nX: 1\r\n\r\n{own}",
    "POST /?{query} HTTP/1.1\nHost: relay\nContent-Length: {length}\n\n{own}",
    "POST /?{query} HTTP/1.1\r\nHost: relay\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}",
    "POST /?{query} HTTP/1.1\r\nHost: relay\r\nTransfer-Encoding: identity, chunked\r\n\r\n{chunks}",
    "POST /?{query} HTTP/1.1\r\nHost: relay\r\nX: 1\nTransfer-Encoding: chunked\r\n\r\n{chunks}",
    "POST /?{query} HTTP/1.1\r\nHost: relay\r\nTransfer-Encoding: chunked\r\n\r\n{size} \r\n{own}\r\n0\r\n\r\n",
    "POST /?{query} HTTP/1.1\r\nHost: relay\r\nTransfer-Encoding: chunked\r\n\r\n{size}\r\n{own}\r\n000\r\n\r\n",
    "POST /?{query} HTTP/1.1\r\nHost: relay\r\nTransfer-Encoding: chunked\r\n\r\n{size}\r\n{own}\r\n0\r\nX: 1\r\n\r\n",
];

/// Headers of a request whose body is `{own}`; `{length}` is its length, `{all}` that of all that follows the head.
const LENGTHS: [&str; 15] = [
    "Content-Length: {all}\r\nTransfer-Encoding: chunked\r\n",
    "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
    "Content-Length: {length}\r\nContent-Length: {all}\r\n",
    "Content-Length: {all}\r\nContent-Length: {length}\r\n",
    "Content-Length: {length}, {all}\r\n",
    "Content-Length: +{length}\r\n",
    "Content-Length: -1\r\n",
    "Content-Length: 0x10\r\n",
    "Content-Length: 99999999999999999999\r\n",
    "Content-Length : {length}\r\n",
    "Content-Length:\r\n {length}\r\n",
    "Content-Length: {length}\rX: 1\r\n",
    "X: \0\r\nContent-Length: {length}\r\n",
    "Content\0-Length: {length}\r\n",
    "",
];

/// Headers of a request whose body is `{chunks}`.
const ENCODINGS: [&str; 9] = [
    "Content-Length: {all}\r\nTransfer-Encoding: chunked\r\n",
    "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
    "Transfer-Encoding: chunked, identity\r\n",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
    "Transfer-Encoding: xchunked\r\n",
    "Transfer-Encoding: \"chunked\"\r\n",
    "Transfer-Encoding:\r\n chunked\r\n",
    "Transfer-Encoding : chunked\r\n",
    "Transfer-Encoding:\x0bchunked\r\n",
];

/// Bodies in chunks; `{size}` is the size of `{own}` in hexadecimal digits.
const CHUNKS: [&str; 11] = [
    "0x{size}\r\n{own}\r\n0\r\n\r\n",
    "-{size}\r\n{own}\r\n0\r\n\r\n",
    "+{size}\r\n{own}\r\n0\r\n\r\n",
    " {size}\r\n{own}\r\n0\r\n\r\n",
    "{size}\n{own}\r\n0\r\n\r\n",
    "{size};a=\"\r\n\"\r\n{own}\r\n0\r\n\r\n",
    "{size};\n0\r\n{own}\r\n0\r\n\r\n",
    "ffffffffffffffff{size}\r\n{own}\r\n0\r\n\r\n",
    "{size}\r\n{own}\r\n0\n\n",
    "{size}\r\n{own}\r\n0\r\n\n",
    "{size}\r\n{own}\r\n0\r\nX: 1\n\n",
];

/// First lines.
const LINES: [&str; 7] = [
    "GET /?{query} HTTP/1.1\r\n",
    "POST  /?{query} HTTP/1.1\r\n",
    "POST /?{query}  HTTP/1.1\r\n",
    "POST /?{query} HTTP/1.0\r\n",
    "POST /?{query} HTTP/1.9\r\n",
    "POST /?{query}\r\n",
    " POST /?{query} HTTP/1.1\r\n",
];

/// All shapes, unsigned and signed; what is hidden is unsigned.
pub fn attack() -> Attack {
    let templates = [CERTAIN.map(str::to_owned).to_vec(), ambiguous()].concat();
    let (unsigned, signed) = (recall_query(), signed_query());
    let numbered = |first| (first..).zip(&templates);
    let shapes = numbered(1)
        .map(|(number, template)| fill(template, number, &unsigned, &unsigned))
        .chain(numbered(1001).map(|(number, template)| fill(template, number, &signed, &unsigned)))
        .map(|request| Shape::new(request, Then::Close(LASTING)));
    Attack {
        name: "smuggling",
        listener: Listener::Plain,
        connections: CONNECTIONS,
        opens_per_second: OPENS_PER_SECOND,
        shapes: shapes.collect(),
        signed: numbered(1001)
            .map(|(number, _)| Recall::new(CARRIER, number))
            .collect(),
    }
}

/// Asserts that nothing that is hidden after an ambiguous end is served, not even if it is signed; after a certain end
/// it is.
pub fn assert_not_served(relay: Relay) {
    let ambiguous = ambiguous();
    let count = CERTAIN.len() as u64;
    let templates = CERTAIN
        .iter()
        .copied()
        .chain(ambiguous.iter().map(String::as_str));
    let to = relay.callbacks;
    thread::scope(|scope| {
        for (number, template) in (1..).zip(templates) {
            // After a certain end the relay answers both and closes; after some others it waits for more.
            let wait = if number <= count { TIMEOUT } else { LASTING };
            scope.spawn(move || {
                let mut stream = TcpStream::connect(to).unwrap();
                stream.set_read_timeout(Some(wait)).unwrap();
                // If the relay has closed the connection already, nothing of the rest can be served.
                let _ = stream.write_all(&fill(template, number, &signed_query(), &signed_query()));
                let _ = stream.read_to_end(&mut Vec::new());
            });
        }
    });
    let served = published(&relay.stop());
    let mut served: Vec<_> = served
        .iter()
        .filter(|recall| recall.group == SMUGGLED)
        .collect();
    served.sort();
    let expected: Vec<_> = (1..=count)
        .map(|number| Recall::new(SMUGGLED, number))
        .collect();
    let expected: Vec<_> = expected.iter().collect();
    let unexpected = served.iter().filter(|recall| recall.number > count);
    let unexpected: Vec<_> = unexpected
        .map(|recall| &ambiguous[usize::try_from(recall.number - count - 1).unwrap()])
        .collect();
    assert_eq!(served, expected, "served after {unexpected:?}");
}

/// Requests whose end is ambiguous.
fn ambiguous() -> Vec<String> {
    let line = "POST /?{query} HTTP/1.1\r\n";
    let (length, chunked) = (
        "Content-Length: {length}\r\n",
        "Transfer-Encoding: chunked\r\n",
    );
    let request =
        |line: &str, headers: &str, body: &str| format!("{line}Host: relay\r\n{headers}\r\n{body}");
    let mut all = Vec::new();
    all.extend(LENGTHS.map(|headers| request(line, headers, "{own}")));
    all.extend(ENCODINGS.map(|headers| request(line, headers, "{chunks}")));
    all.extend(CHUNKS.map(|chunks| request(line, chunked, chunks)));
    all.extend(LINES.map(|line| request(line, length, "{own}")));
    all.extend(LINES.map(|line| request(line, chunked, "{chunks}")));
    all
}

/// The request for recall `number`, with another one hidden at its end.
fn fill(template: &str, number: u64, query: &str, hidden_query: &str) -> Vec<u8> {
    let own = recall(CARRIER, number);
    let hidden = recall(SMUGGLED, number);
    let hidden = format!(
        "POST /?{hidden_query} HTTP/1.1\r\nHost: relay\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{hidden}",
        hidden.len()
    );
    let request = template
        .replace("{chunks}", "{size}\r\n{own}\r\n0\r\n\r\n")
        .replace("{query}", query)
        .replace("{length}", &own.len().to_string())
        .replace("{size}", &format!("{:x}", own.len()))
        .replace("{own}", &own)
        + &hidden;
    let body = request.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    request.replace("{all}", &body.len().to_string()).into()
}
