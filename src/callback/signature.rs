//! The vendor's signature: `Sign = lowercase_hex(SHA-256(token || RequestTime))`.
//!
//! It is a plain concatenation, not an HMAC, and covers neither the body nor the rest of the query. So within the
//! allowed skew, a captured signature is valid for another body; only TLS and the source address check prevent that.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use sha2::{Digest, Sha256};
use subtle::{ConditionallySelectable as _, ConstantTimeEq as _};

use super::query::Query;
use crate::event::UnixMillis;
use crate::setting::{Secret, clean};

/// The tokens; each that is valid for a callback's application may sign it. If there is none at all, signatures are not
/// checked.
#[derive(Debug, Clone, Default)]
pub struct Tokens(pub Vec<Token>);

/// A token of the console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// The only application whose callbacks it may sign; none: all.
    pub application: Option<u64>,
    /// The token itself.
    pub secret: Secret,
}

impl FromStr for Token {
    type Err = &'static str;

    /// Reads `1400000001=token`, which is bound to that application. Anything else is a token for all applications.
    ///
    /// Fails if the number is too large or the token after it is empty: such text must not become a token that anybody
    /// can guess. The error does not quote the text.
    fn from_str(text: &str) -> Result<Self, &'static str> {
        let bound = text.split_once('=').filter(|(number, _)| {
            let number = number.trim();
            !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
        });
        let Some((number, token)) = bound else {
            return Ok(Self {
                application: None,
                secret: Secret::from(text.to_owned()),
            });
        };
        let application = number.trim().parse();
        let application =
            application.map_err(|_| "begins with a number that is too large for an SdkAppid")?;
        let token = clean(token);
        if token.is_empty() {
            return Err("has nothing after the number of its application");
        }
        Ok(Self {
            application: Some(application),
            secret: Secret::from(token.to_owned()),
        })
    }
}

/// Never shows the token.
impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.secret.fmt(f)
    }
}

impl Token {
    fn is_valid_for(&self, application: Option<u64>) -> bool {
        self.application.is_none_or(|own| Some(own) == application)
    }
}

/// Why a callback is not authentic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// No `Sign` or no `RequestTime`.
    #[error("Sign or RequestTime is missing")]
    Missing,
    /// `Sign` does not match any token.
    #[error("Sign matches no token of auth.tokens")]
    Mismatch,
    /// `RequestTime` is too far from now, or is not a time.
    #[error("RequestTime is not within auth.max_skew of the relay's clock")]
    Stale,
}

/// Checks the signature of an application's callback at the time `now`. `RequestTime` may differ from it by `max_skew`
/// in either direction. Returns the position of the token that signed it, counted from 1; none if signatures are not
/// checked.
///
/// # Errors
/// Returns why the signature is not accepted. The match is checked before the age, so that only a holder of a token can
/// learn the relay's clock.
pub fn check_signature(
    tokens: &Tokens,
    application: Option<u64>,
    max_skew: Duration,
    query: &Query<'_>,
    now: UnixMillis,
) -> Result<Option<u32>, SignatureError> {
    if tokens.0.is_empty() {
        return Ok(None);
    }
    let (Some(sign), Some(request_time)) = (&query.sign, &query.request_time) else {
        return Err(SignatureError::Missing);
    };
    let mut claimed = [0_u8; 32];
    hex::decode_to_slice(sign.as_bytes(), &mut claimed).map_err(|_| SignatureError::Mismatch)?;

    // Try every token, even after a match: the duration must not reveal which one matched.
    let valid = (1..)
        .zip(&tokens.0)
        .filter(|(_, token)| token.is_valid_for(application));
    let signed_by = valid.fold(0, |signed_by, (place, token)| {
        let expected = Sha256::new()
            .chain_update(token.secret.expose())
            .chain_update(request_time.as_bytes())
            .finalize();
        u32::conditional_select(&signed_by, &place, expected.as_slice().ct_eq(&claimed))
    });
    if signed_by == 0 {
        return Err(SignatureError::Mismatch);
    }

    let signed_at: u64 = request_time.parse().map_err(|_| SignatureError::Stale)?;
    let now = u64::try_from(now.as_millis()).unwrap_or_default();
    let age = Duration::from_millis(now.abs_diff(signed_at.saturating_mul(1000)));
    // `RequestTime` is in whole seconds, so the limit is exceeded only after one more second.
    if age >= max_skew + Duration::from_secs(1) {
        return Err(SignatureError::Stale);
    }
    Ok(Some(signed_by))
}

#[cfg(test)]
mod tests {
    use super::*;

    const VENDOR: &str = "17773bc39a671d7b9aa835458704d2a6db81360a5940292b587d6d760d484061";
    const OURS: &str = "fdedb59e60a8d79ebb349080c302a68a79ac6602cc5dbed2a4a94b9ced465f23";

    fn check(
        tokens: &[&str],
        sign: &str,
        request_time: &str,
        now: u64,
    ) -> Result<Option<u32>, SignatureError> {
        let tokens = Tokens(tokens.iter().map(|token| token.parse().unwrap()).collect());
        let raw = format!("Sign={sign}&RequestTime={request_time}");
        let now = UnixMillis::new(now * 1000).unwrap();
        let query = Query::parse(&raw);
        check_signature(&tokens, Some(7), Duration::from_secs(60), &query, now)
    }

    #[test]
    fn accepts_the_published_vectors_in_upper_and_lower_case() {
        assert_eq!(
            check(&["xxxxyyyy"], VENDOR, "1669872112", 1_669_872_112),
            Ok(Some(1))
        );
        assert_eq!(
            check(&["test-token"], OURS, "1700000000", 1_700_000_000),
            Ok(Some(1))
        );
        let upper = VENDOR.to_uppercase();
        assert_eq!(
            check(&["xxxxyyyy"], &upper, "1669872112", 1_669_872_112),
            Ok(Some(1))
        );
    }

    #[test]
    fn any_of_several_tokens_may_sign() {
        for (tokens, place) in [
            (["new", "xxxxyyyy"], 2),
            (["xxxxyyyy", "old"], 1),
            (["xxxxyyyy", "xxxxyyyy"], 2),
        ] {
            let signed_by = check(&tokens, VENDOR, "1669872112", 1_669_872_112);
            assert_eq!(signed_by, Ok(Some(place)), "{tokens:?}");
        }
    }

    #[test]
    fn a_bound_token_signs_for_its_application_only() {
        let now = 1_669_872_112;
        for (tokens, expected) in [
            (["7=xxxxyyyy", "old"], Ok(Some(1))),
            (["8=xxxxyyyy", "old"], Err(SignatureError::Mismatch)),
            (["8=xxxxyyyy", "7=xxxxyyyy"], Ok(Some(2))),
            (["8=other", "xxxxyyyy"], Ok(Some(2))),
            // Not bound: the whole text is the token.
            (["+7=xxxxyyyy", "a"], Err(SignatureError::Mismatch)),
        ] {
            assert_eq!(
                check(&tokens, VENDOR, "1669872112", now),
                expected,
                "{tokens:?}"
            );
        }
        for (text, application, token) in [
            ("1400000001=a=b", Some(1_400_000_001), "a=b"),
            (" 7 = a ", Some(7), "a"),
            ("7='a'", Some(7), "a"),
            ("=a", None, "=a"),
            ("x7=a", None, "x7=a"),
            ("plain", None, "plain"),
        ] {
            let parsed: Token = text.parse().unwrap();
            let found = (parsed.application, parsed.secret.expose());
            assert_eq!(found, (application, token));
        }
        for text in [
            "1400000001=",
            "1400000001= ",
            "1400000001=''",
            "99999999999999999999=a",
        ] {
            text.parse::<Token>().unwrap_err();
        }
    }

    #[test]
    fn refuses_a_wrong_signature() {
        let now = 1_669_872_112;
        assert_eq!(
            check(&["xxxyyyy"], VENDOR, "1669872112", now),
            Err(SignatureError::Mismatch)
        );
        assert_eq!(
            check(&["xxxxyyyy"], VENDOR, "1669872113", now),
            Err(SignatureError::Mismatch)
        );
        for sign in ["", "zz", &VENDOR[1..], &format!("{VENDOR}00")] {
            assert_eq!(
                check(&["xxxxyyyy"], sign, "1669872112", now),
                Err(SignatureError::Mismatch)
            );
        }
    }

    #[test]
    fn refuses_a_request_time_too_far_in_past_or_future() {
        let at = |now| check(&["xxxxyyyy"], VENDOR, "1669872112", now);
        assert_eq!(at(1_669_872_112 + 60), Ok(Some(1)));
        assert_eq!(at(1_669_872_112 - 60), Ok(Some(1)));
        assert_eq!(at(1_669_872_112 + 61), Err(SignatureError::Stale));
        assert_eq!(at(1_669_872_112 - 61), Err(SignatureError::Stale));
    }

    #[test]
    fn refuses_a_request_time_that_is_not_a_time() {
        let sign = hex::encode(Sha256::digest(b"tsoon"));
        assert_eq!(check(&["t"], &sign, "soon", 1), Err(SignatureError::Stale));
        let sign = hex::encode(Sha256::digest(format!("t{}", u64::MAX)));
        assert_eq!(
            check(&["t"], &sign, &u64::MAX.to_string(), 1),
            Err(SignatureError::Stale)
        );
    }

    #[test]
    fn without_tokens_signatures_are_not_checked() {
        assert_eq!(check(&[], "no", "no", 1), Ok(None));
    }

    #[test]
    fn refuses_a_callback_without_signature() {
        let tokens = Tokens(vec!["t".parse().unwrap()]);
        let now = UnixMillis::new(0).unwrap();
        let query = Query::parse("RequestTime=0");
        let answer = check_signature(&tokens, None, Duration::from_secs(60), &query, now);
        assert_eq!(answer, Err(SignatureError::Missing));
    }
}
