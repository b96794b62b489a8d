//! The query of a callback's URL.

use std::borrow::Cow;

/// The vendor's parameters.
///
/// Names are case-insensitive, because other products of the vendor spell them differently. The order does not matter,
/// unknown names are ignored, and the last value of a repeated name wins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query<'a> {
    raw: &'a str,
    /// `SdkAppid`: the application the callback is for.
    pub sdk_app_id: Option<Cow<'a, str>>,
    /// `CallbackCommand`; repeated in the body.
    pub command: Option<Cow<'a, str>>,
    /// `ClientIP`: the end user's address, not that of the peer.
    pub client_ip: Option<Cow<'a, str>>,
    /// `OptPlatform`.
    pub platform: Option<Cow<'a, str>>,
    /// `RequestTime`, as received: it is hashed before it is parsed as a number.
    pub request_time: Option<Cow<'a, str>>,
    /// `Sign`.
    pub sign: Option<Cow<'a, str>>,
}

impl<'a> Query<'a> {
    /// Parses a query. Never fails: bytes that are not UTF-8 are replaced.
    #[must_use]
    pub fn parse(raw: &'a str) -> Self {
        let mut query = Self {
            raw,
            ..Self::default()
        };
        for (name, value) in raw.split('&').map(decode) {
            let slot = match () {
                () if name.eq_ignore_ascii_case("SdkAppid") => &mut query.sdk_app_id,
                () if name.eq_ignore_ascii_case("CallbackCommand") => &mut query.command,
                () if name.eq_ignore_ascii_case("ClientIP") => &mut query.client_ip,
                () if name.eq_ignore_ascii_case("OptPlatform") => &mut query.platform,
                () if name.eq_ignore_ascii_case("RequestTime") => &mut query.request_time,
                () if name.eq_ignore_ascii_case("Sign") => &mut query.sign,
                () => continue,
            };
            *slot = Some(value);
        }
        query
    }

    /// The query as received.
    #[must_use]
    pub const fn raw(&self) -> &'a str {
        self.raw
    }

    /// The command, if it is present and not empty.
    #[must_use]
    pub fn command(&self) -> Option<&str> {
        self.command
            .as_deref()
            .filter(|command| !command.is_empty())
    }

    /// The query as received, without `Sign` and `RequestTime`. Until `auth.max_skew` has passed, they authenticate any
    /// callback; and they differ when the vendor sends the same callback again.
    #[must_use]
    pub fn without_signature(&self) -> String {
        let kept: Vec<&str> = self
            .raw
            .split('&')
            .filter(|pair| {
                let (name, _) = decode(pair);
                !name.eq_ignore_ascii_case("Sign") && !name.eq_ignore_ascii_case("RequestTime")
            })
            .collect();
        kept.join("&")
    }
}

/// Decodes the name and the value of a pair. Nearly always there is nothing to decode.
fn decode(pair: &str) -> (Cow<'_, str>, Cow<'_, str>) {
    if pair.bytes().any(|byte| matches!(byte, b'%' | b'+')) {
        let mut pairs = form_urlencoded::parse(pair.as_bytes());
        return pairs.next().unwrap_or_default();
    }
    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
    (name.into(), value.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_case_insensitive_and_the_last_value_wins() {
        let query = Query::parse(
            "own=1&SIGN=ab&sdkappid=1&SDKAppID=1400000001&callbackcommand=Group.CallbackAfterRecallMsg\
             &contenttype=JSON&ClientIp=127.0.0.1&optplatform=RESTAPI&requesttime=1669872112",
        );
        assert_eq!(query.sdk_app_id.as_deref(), Some("1400000001"));
        assert_eq!(query.command(), Some("Group.CallbackAfterRecallMsg"));
        assert_eq!(query.client_ip.as_deref(), Some("127.0.0.1"));
        assert_eq!(query.platform.as_deref(), Some("RESTAPI"));
        assert_eq!(query.request_time.as_deref(), Some("1669872112"));
        assert_eq!(query.sign.as_deref(), Some("ab"));
    }

    #[test]
    fn without_signature_removes_sign_and_request_time() {
        let query = Query::parse("a=%20b&Sign=ff&SdkAppid=7&%52equestTime=1&&x");
        assert_eq!(query.without_signature(), "a=%20b&SdkAppid=7&&x");
        assert_eq!(Query::parse("").without_signature(), "");
    }

    proptest! {
        #[test]
        fn decodes_pairs_like_form_urlencoded(raw in "([a=&%+é]|%[0-9a-f]{2}){0,20}") {
            let pairs: Vec<_> = raw.split('&').filter(|pair| !pair.is_empty()).map(decode).collect();
            let form: Vec<_> = form_urlencoded::parse(raw.as_bytes()).collect();
            prop_assert_eq!(pairs, form);
        }

        #[test]
        fn without_signature_removes_sign_from_any_query(raw in ".{0,200}") {
            let query = Query::parse(&raw);
            prop_assert!(Query::parse(&query.without_signature()).sign.is_none());
        }
    }
}
