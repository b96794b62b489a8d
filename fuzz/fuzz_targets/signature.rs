//! Checks the signature of any query with any tokens. The first line of the input has the tokens, separated by commas,
//! the second the query.
//!
//! A query is accepted if and only if it was signed with one of the tokens within the allowed skew. With one bit of the
//! signature changed, it is refused.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use recall_relay::callback::{Query, SignatureError, Token, Tokens, check_signature};
use recall_relay::event::UnixMillis;
use recall_relay::setting::Secret;
use sha2::{Digest, Sha256};

const SKEW: u64 = 60;
const NOW: u64 = 1_700_000_000;

fuzz_target!(|input: &str| {
    let (tokens, raw) = input.split_once('\n').unwrap_or(("", input));
    let tokens: Vec<&str> = tokens
        .split(',')
        .filter(|token| !token.is_empty())
        .collect();
    let query = Query::parse(raw);
    let verdict = check(&tokens, raw, NOW);
    if tokens.is_empty() {
        assert_eq!(verdict, Ok(()));
        return;
    }
    let (Some(sign), Some(time)) = (&query.sign, &query.request_time) else {
        assert_eq!(verdict, Err(SignatureError::Missing));
        return;
    };
    let matches = tokens
        .iter()
        .any(|token| signature(token, time).eq_ignore_ascii_case(sign));
    let signed_at = time.parse::<u64>().ok();
    let is_recent = signed_at.is_some_and(|time| time.abs_diff(NOW) <= SKEW);
    let expected = match (matches, is_recent) {
        (false, _) => Err(SignatureError::Mismatch),
        (true, false) => Err(SignatureError::Stale),
        (true, true) => Ok(()),
    };
    assert_eq!(verdict, expected);

    // A correct signature with each token is accepted, however the time is written.
    for token in &tokens {
        let sign = signature(token, time);
        let Some(signed_at) = signed_at.filter(|time| (SKEW + 1..4_000_000_000).contains(time))
        else {
            continue;
        };
        let time = escaped(time);
        let signed = format!("Sign={sign}&RequestTime={time}");
        assert_eq!(check(&tokens, &signed, signed_at), Ok(()));
        assert_eq!(check(&tokens, &signed, signed_at + SKEW), Ok(()));
        for outside in [signed_at + SKEW + 1, signed_at - SKEW - 1] {
            assert_eq!(check(&tokens, &signed, outside), Err(SignatureError::Stale));
        }
        let flipped = format!("Sign={}&RequestTime={time}", flip(&sign, raw.len()));
        assert_eq!(
            check(&tokens, &flipped, signed_at),
            Err(SignatureError::Mismatch)
        );
    }
});

fn check(tokens: &[&str], raw: &str, now: u64) -> Result<(), SignatureError> {
    let tokens = tokens.iter().map(|token| Token {
        application: None,
        secret: Secret::from((*token).to_owned()),
    });
    check_signature(
        &Tokens(tokens.collect()),
        None,
        Duration::from_secs(SKEW),
        &Query::parse(raw),
        UnixMillis::new(now * 1000).expect("the time is out of range"),
    )
    .map(drop)
}

fn signature(token: &str, time: &str) -> String {
    hex::encode(Sha256::digest(format!("{token}{time}")))
}

fn escaped(text: &str) -> String {
    form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

/// Inverts one bit.
fn flip(sign: &str, which: usize) -> String {
    let mut bytes = hex::decode(sign).expect("the signature is not hexadecimal");
    bytes[which % 32] ^= 1 << (which / 32 % 8);
    hex::encode(bytes)
}
