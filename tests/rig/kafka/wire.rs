//! Requests to a Kafka broker that the rig's client library does not support: create and delete ACLs, and unregister
//! the broker.
//!
//! Kafka's own tools are not downloaded, so this module encodes the requests itself (version 1 of `CreateAcls` and
//! `DeleteAcls`, version 0 of `UnregisterBroker`).

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use super::USER;

const CREATE_ACLS: i16 = 30;
const DELETE_ACLS: i16 = 31;
const UNREGISTER_BROKER: i16 = 64;

/// Ends the header and the body of a request whose version is flexible.
pub(super) const NO_TAGGED_FIELDS: u8 = 0;

const DENY: u8 = 2;
const ALLOW: u8 = 3;

/// The resource of an ACL.
#[derive(Debug, Clone, Copy)]
pub enum Resource<'a> {
    Topic(&'a str),
    /// All groups whose names have this prefix.
    Groups(&'a str),
    /// All transactional ids that have this prefix.
    TransactionalIds(&'a str),
}

#[derive(Debug, Clone, Copy)]
pub enum Operation {
    Read,
    Write,
    Describe,
}

impl<'a> Resource<'a> {
    /// Its type, its name, and the pattern type of the name: literal or prefixed.
    const fn parts(self) -> (u8, &'a str, u8) {
        const LITERAL: u8 = 3;
        const PREFIXED: u8 = 4;
        match self {
            Self::Topic(name) => (2, name, LITERAL),
            Self::Groups(name) => (3, name, PREFIXED),
            Self::TransactionalIds(name) => (5, name, PREFIXED),
        }
    }
}

impl Operation {
    const fn code(self) -> u8 {
        match self {
            Self::Read => 3,
            Self::Write => 4,
            Self::Describe => 8,
        }
    }
}

/// Denies writing to a topic, or removes that ACL.
pub(super) fn allow_writing(port: u16, topic: &str, allowed: bool) {
    let request = if allowed { DELETE_ACLS } else { CREATE_ACLS };
    change_right(
        port,
        request,
        Resource::Topic(topic),
        Operation::Write,
        DENY,
    );
}

/// Adds an ACL that allows an operation, or removes it.
pub(super) fn permit(port: u16, resource: Resource<'_>, operation: Operation, allowed: bool) {
    let request = if allowed { CREATE_ACLS } else { DELETE_ACLS };
    change_right(port, request, resource, operation, ALLOW);
}

fn change_right(
    port: u16,
    request: i16,
    resource: Resource<'_>,
    operation: Operation,
    permission: u8,
) {
    let (kind, name, pattern) = resource.parts();
    let mut body = 1_i32.to_be_bytes().to_vec();
    body.push(kind);
    string(&mut body, name);
    body.push(pattern);
    string(&mut body, &format!("User:{USER}"));
    string(&mut body, "*");
    body.extend([operation.code(), permission]);
    let answer = ask(port, request, 1, &body);
    // Both answers: correlation id, throttle time, number of results, then the results, each with its error code.
    assert_no_error(&answer, 12);
}

/// Unregisters the only broker: metadata lists no brokers until it registers again, which it does when it starts.
///
/// `port` is the controller's, because older versions accept this request on no other one.
pub(super) fn unregister(port: u16, node_id: i32) {
    let mut body = vec![NO_TAGGED_FIELDS];
    body.extend(node_id.to_be_bytes());
    body.push(NO_TAGGED_FIELDS);
    let answer = ask(port, UNREGISTER_BROKER, 0, &body);
    // Correlation id, tagged fields, throttle time, error code.
    assert_no_error(&answer, 9);
}

/// Checks the error code, two bytes of the answer from `at` on.
pub(super) fn assert_no_error(answer: &[u8], at: usize) {
    let error = answer.get(at..at + 2);
    assert_eq!(error, Some(&[0, 0][..]), "the broker answered {answer:?}");
}

pub(super) fn ask(port: u16, request: i16, version: i16, body: &[u8]) -> Vec<u8> {
    let mut message = request.to_be_bytes().to_vec();
    message.extend(version.to_be_bytes());
    message.extend(7_i32.to_be_bytes());
    string(&mut message, "rig");
    message.extend(body);
    let length = i32::try_from(message.len()).expect("message is too long");
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("cannot connect");
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .expect("cannot set the timeout");
    stream
        .write_all(&[&length.to_be_bytes()[..], &message].concat())
        .expect("cannot send the request");
    let mut length = [0; 4];
    stream.read_exact(&mut length).expect("no answer");
    let mut answer = vec![0; u32::from_be_bytes(length).min(1 << 20) as usize];
    stream.read_exact(&mut answer).expect("incomplete answer");
    answer
}

fn string(into: &mut Vec<u8>, text: &str) {
    into.extend(i16::try_from(text.len()).expect("too long").to_be_bytes());
    into.extend(text.as_bytes());
}
