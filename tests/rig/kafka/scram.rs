//! Changes a user's SCRAM password, which the rig's client library does not support: version 0 of
//! `AlterUserScramCredentials`.

use sha2::{Digest as _, Sha256};

use super::wire;

const ALTER_USER_SCRAM_CREDENTIALS: i16 = 51;

/// The fewest that Kafka accepts.
const ITERATIONS: u32 = 4096;

const SHA_256: u8 = 1;

/// Sets the user's password for SCRAM-SHA-256.
pub(super) fn set_password(port: u16, user: &str, password: &str) {
    let salt = b"salt of the rig";
    let mut body = vec![wire::NO_TAGGED_FIELDS];
    // No deletions, one change.
    body.extend([1, 2]);
    compact(&mut body, user.as_bytes());
    body.push(SHA_256);
    body.extend(ITERATIONS.to_be_bytes());
    compact(&mut body, salt);
    compact(&mut body, &salted(password, salt));
    body.extend([wire::NO_TAGGED_FIELDS; 2]);
    let answer = wire::ask(port, ALTER_USER_SCRAM_CREDENTIALS, 0, &body);
    // Correlation id, tagged fields, throttle time, number of results, the user's name; then the error code.
    wire::assert_no_error(&answer, 4 + 1 + 4 + 1 + 1 + user.len());
}

/// Bytes of at most 126, as flexible versions encode them.
fn compact(into: &mut Vec<u8>, bytes: &[u8]) {
    into.push(u8::try_from(bytes.len() + 1).expect("too long"));
    into.extend(bytes);
}

/// PBKDF2 with one block (RFC 8018, section 5.2).
fn salted(password: &str, salt: &[u8]) -> [u8; 32] {
    let mut block = hmac(password, &[salt, &1_u32.to_be_bytes()].concat());
    let mut salted = block;
    for _ in 1..ITERATIONS {
        block = hmac(password, &block);
        for (byte, other) in salted.iter_mut().zip(block) {
            *byte ^= other;
        }
    }
    salted
}

/// HMAC-SHA-256 (RFC 2104) with a key of at most 64 bytes.
fn hmac(key: &str, message: &[u8]) -> [u8; 32] {
    let pad = |with: u8| {
        let mut pad = [with; 64];
        for (byte, key) in pad.iter_mut().zip(key.bytes()) {
            *byte ^= key;
        }
        pad
    };
    let inner = Sha256::new()
        .chain_update(pad(0x36))
        .chain_update(message)
        .finalize();
    Sha256::new()
        .chain_update(pad(0x5c))
        .chain_update(inner)
        .finalize()
        .into()
}
