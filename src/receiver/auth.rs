//! Authentication: decides which recalls may become events, and from where callbacks may be handed on to the backend.

mod network;

use std::net::{IpAddr, SocketAddr};

use hyper::HeaderMap;
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::listener::Trust;
use crate::callback::{self, Query, Token, Tokens, check_signature};
use crate::event::UnixMillis;
use crate::setting::{List, ServerTls, Timeout};
pub use network::Network;
use network::contains;

/// Settings of authentication.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The console's tokens; any of them may sign, `1400000001=token` for that application only. If there is none,
    /// signatures are not checked.
    pub tokens: List<Token>,
    /// How far `RequestTime` may differ from the current time.
    pub max_skew: Timeout,
    /// Networks that recalls, and callbacks for the backend, may come from, in CIDR notation. If there is none, any
    /// source is allowed.
    pub allowed_sources: List<Network>,
    /// Networks of proxies whose `X-Forwarded-For` and `X-Forwarded-Host` are trusted, in CIDR notation.
    pub trusted_proxies: List<Network>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            tokens: List::default(),
            max_skew: Timeout::from_secs(60),
            allowed_sources: List::default(),
            trusted_proxies: List::default(),
        }
    }
}

impl Config {
    /// Checks that each bound token is of one of these applications, and that each application has one if any has.
    ///
    /// # Errors
    /// Says what is wrong, without a token. Does not show numbers that are not in `sdk_app_ids` either: they may be
    /// part of a token.
    pub fn check(&self, sdk_app_ids: &[u64]) -> Result<(), String> {
        let mut bound = Vec::new();
        for (place, token) in (1..).zip(self.tokens.iter()) {
            let Some(application) = token.application else {
                continue;
            };
            if !sdk_app_ids.contains(&application) {
                return Err(format!(
                    "token {place} is bound to an application that is not in sdk_app_ids; correct its number"
                ));
            }
            bound.push(application);
        }
        match sdk_app_ids.iter().find(|app| !bound.contains(app)) {
            Some(without) if !bound.is_empty() => Err(format!(
                "has a token that is bound to an application, but none for {without}; add {without}=TOKEN"
            )),
            _ => Ok(()),
        }
    }

    /// Warns if signatures are not checked, and what follows from that. `tls` is the listener's.
    pub fn warn_if_unchecked(&self, tls: &ServerTls) {
        if !self.tokens.is_empty() {
            return;
        }
        let checked: Vec<&str> = [
            ("auth.allowed_sources", !self.allowed_sources.is_empty()),
            ("http.tls.client_ca", tls.client_ca.is_some()),
        ]
        .into_iter()
        .filter_map(|(setting, is_set)| is_set.then_some(setting))
        .collect();
        if checked.is_empty() {
            warn!(
                code = "signatures_unchecked",
                "nobody is authenticated, because none of auth.tokens, auth.allowed_sources and http.tls.client_ca is \
                 set: anyone who reaches the listener can send recalls, and hostile clients can keep the vendor's \
                 callbacks out; set auth.tokens to the console's token"
            );
        } else {
            let checked = checked.join(" and ");
            warn!(
                code = "signatures_unchecked",
                checked,
                "signatures are not checked because auth.tokens is not set: any client that passes the other checks \
                 can send recalls; set auth.tokens to the console's token"
            );
        }
    }
}

/// Why a recall was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// `auth.allowed_sources` does not contain its source.
    #[error("source address is not in auth.allowed_sources")]
    Source,
    /// `SdkAppid` is missing.
    #[error("SdkAppid is missing")]
    NoApplication,
    /// `SdkAppid` is another application's.
    #[error("SdkAppid is not in sdk_app_ids")]
    ForeignApplication,
    /// The signature is not valid.
    #[error("{0}")]
    Signature(callback::SignatureError),
}

impl AuthError {
    /// What an operator can do if the vendor's recalls are refused with it.
    pub(super) const fn advice(self) -> &'static str {
        match self {
            Self::Source => {
                "add the vendor's addresses to auth.allowed_sources, and the proxy's in front to auth.trusted_proxies"
            }
            Self::NoApplication => "have the proxy in front pass the query on unchanged",
            Self::ForeignApplication => {
                "add the application to sdk_app_ids, or correct the console's callback URL"
            }
            Self::Signature(callback::SignatureError::Missing) => {
                "switch authentication on in the console, and have the proxy in front pass the query on unchanged"
            }
            Self::Signature(callback::SignatureError::Mismatch) => {
                "set auth.tokens to the token that the console has for this application"
            }
            Self::Signature(callback::SignatureError::Stale) => {
                "set the clock, or raise auth.max_skew"
            }
        }
    }
}

/// Decides which recalls may become events.
#[derive(Debug)]
pub struct Auth {
    sdk_app_ids: Vec<u64>,
    tokens: Tokens,
    config: Config,
}

impl Auth {
    /// Accepts recalls of these applications.
    #[must_use]
    pub fn new(sdk_app_ids: &[u64], config: Config) -> Self {
        Self {
            sdk_app_ids: sdk_app_ids.to_vec(),
            tokens: Tokens(config.tokens.0.clone()),
            config,
        }
    }

    /// How many tokens there are.
    pub(super) fn tokens(&self) -> u32 {
        u32::try_from(self.tokens.0.len()).unwrap_or(u32::MAX)
    }

    /// The application of a recall.
    pub(super) fn application(&self, query: &Query<'_>) -> Result<u64, AuthError> {
        let sdk_app_id = query.sdk_app_id.as_deref().filter(|id| !id.is_empty());
        let sdk_app_id = sdk_app_id.ok_or(AuthError::NoApplication)?;
        let mut own = self.sdk_app_ids.iter();
        own.find(|own| sdk_app_id.parse() == Ok(**own))
            .copied()
            .ok_or(AuthError::ForeignApplication)
    }

    /// Checks the signature. Returns the position of the token that signed; none if signatures are not checked.
    pub(super) fn check_signature(
        &self,
        query: &Query<'_>,
        now: UnixMillis,
    ) -> Result<Option<u32>, callback::SignatureError> {
        let application = query.sdk_app_id.as_deref().and_then(|id| id.parse().ok());
        let max_skew = *self.config.max_skew;
        check_signature(&self.tokens, application, max_skew, query, now)
    }

    /// Checks the source address.
    pub(super) fn check_source(
        &self,
        headers: &HeaderMap,
        peer: SocketAddr,
    ) -> Result<(), AuthError> {
        if self.config.allowed_sources.is_empty() {
            return Ok(());
        }
        let source = self
            .source(headers, peer.ip().to_canonical())
            .ok_or(AuthError::Source)?;
        if contains(&self.config.allowed_sources, source) {
            Ok(())
        } else {
            Err(AuthError::Source)
        }
    }

    /// Whether this is a proxy whose headers about the client are trusted.
    pub(super) fn is_trusted_proxy(&self, peer: IpAddr) -> bool {
        contains(&self.config.trusted_proxies, peer.to_canonical())
    }

    /// How much the address of a peer is trusted.
    pub(super) fn trust(&self, peer: IpAddr) -> Trust {
        if self.is_trusted_proxy(peer) {
            Trust::Proxy
        } else if contains(&self.config.allowed_sources, peer.to_canonical()) {
            Trust::Source
        } else {
            Trust::None
        }
    }

    /// The source address: the nearest hop that is not a trusted proxy. None if a trusted proxy forwards something that
    /// is not an address.
    fn source(&self, headers: &HeaderMap, peer: IpAddr) -> Option<IpAddr> {
        let mut source = peer;
        let forwarded = headers
            .get_all("x-forwarded-for")
            .iter()
            .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
            .collect::<Vec<_>>();
        for hop in forwarded.into_iter().rev() {
            if !contains(&self.config.trusted_proxies, source) {
                break;
            }
            let hop = std::str::from_utf8(hop).ok()?;
            source = address(hop.trim())?.to_canonical();
        }
        Some(source)
    }
}

/// Parses an address as proxies write it: some add the port, some put IPv6 in brackets.
fn address(text: &str) -> Option<IpAddr> {
    let inside = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let alone = inside.unwrap_or(text).parse();
    alone
        .or_else(|_| text.parse().map(|socket: SocketAddr| socket.ip()))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::CapturedLog;

    fn networks(text: &str) -> List<Network> {
        List(
            text.split(',')
                .map(|network| network.parse().unwrap())
                .collect(),
        )
    }

    fn check_source_of(peer: &str, forwarded: &[&str]) -> Result<(), AuthError> {
        let auth = Auth::new(
            &[1],
            Config {
                allowed_sources: networks("203.0.113.0/24,2001:db8::1"),
                trusted_proxies: networks("10.0.0.0/8"),
                ..Config::default()
            },
        );
        let mut headers = HeaderMap::new();
        for value in forwarded {
            headers.append("x-forwarded-for", value.parse().unwrap());
        }
        auth.check_source(&headers, SocketAddr::new(peer.parse().unwrap(), 1))
    }

    #[test]
    fn checks_the_peer_address_unless_it_is_a_trusted_proxy() {
        assert_eq!(check_source_of("203.0.113.7", &[]), Ok(()));
        assert_eq!(check_source_of("2001:db8::1", &[]), Ok(()));
        assert_eq!(check_source_of("::ffff:203.0.113.7", &[]), Ok(()));
        assert_eq!(
            check_source_of("198.51.100.1", &["203.0.113.7"]),
            Err(AuthError::Source)
        );
        assert_eq!(check_source_of("10.0.0.1", &[]), Err(AuthError::Source));
    }

    #[test]
    fn only_trusted_proxies_determine_the_source_address() {
        assert_eq!(check_source_of("10.0.0.1", &["203.0.113.7"]), Ok(()));
        assert_eq!(
            check_source_of("10.0.0.1", &["203.0.113.7, 10.9.9.9"]),
            Ok(())
        );
        assert_eq!(
            check_source_of("10.0.0.1", &["203.0.113.7", "10.9.9.9"]),
            Ok(())
        );
        assert_eq!(
            check_source_of("10.0.0.1", &["203.0.113.7, 198.51.100.1"]),
            Err(AuthError::Source)
        );
        assert_eq!(
            check_source_of("10.0.0.1", &["203.0.113.7, nonsense"]),
            Err(AuthError::Source)
        );
    }

    #[test]
    fn forwarded_addresses_may_have_ports_and_brackets() {
        for source in [
            "203.0.113.7:51234",
            "2001:db8::1",
            "[2001:db8::1]",
            "[2001:db8::1]:443",
        ] {
            assert_eq!(check_source_of("10.0.0.1", &[source]), Ok(()), "{source}");
        }
        for source in ["203.0.113.7:", "[203.0.113.7", "203.0.113.7:x", "[]", ":1"] {
            let refused = check_source_of("10.0.0.1", &[source]);
            assert_eq!(refused, Err(AuthError::Source), "{source}");
        }
    }

    #[test]
    fn the_checks_that_remain_without_a_token_are_logged() {
        let line = |tokens: &str, sources: &str, client_ca: Option<&str>| {
            let config = Config {
                tokens: tokens.parse().unwrap_or_default(),
                allowed_sources: sources.parse().unwrap_or_default(),
                ..Config::default()
            };
            let tls = ServerTls {
                client_ca: client_ca.map(Into::into),
                ..ServerTls::default()
            };
            let mut lines = CapturedLog::default().lines(|| config.warn_if_unchecked(&tls));
            lines.pop().unwrap_or_default()
        };
        assert_eq!(line("token", "10.0.0.0/8", Some("ca.pem")), "");
        assert_eq!(line("", "", None), "signatures_unchecked");
        for (sources, client_ca, checked) in [
            ("10.0.0.0/8", None, "auth.allowed_sources"),
            ("", Some("ca.pem"), "http.tls.client_ca"),
            (
                "10.0.0.0/8",
                Some("ca.pem"),
                "auth.allowed_sources and http.tls.client_ca",
            ),
        ] {
            let expected = format!("signatures_unchecked checked={checked}");
            assert_eq!(line("", sources, client_ca), expected);
        }
    }

    #[test]
    fn refuses_recalls_of_other_applications() {
        let auth = Auth::new(&[7, 1_400_000_001], Config::default());
        let admit = |raw: &str| auth.application(&Query::parse(raw));
        assert_eq!(admit("SdkAppid=1400000001"), Ok(1_400_000_001));
        assert_eq!(admit("SdkAppid=7"), Ok(7));
        assert_eq!(admit("SdkAppid=8"), Err(AuthError::ForeignApplication));
        assert_eq!(admit("SdkAppid=seven"), Err(AuthError::ForeignApplication));
        assert_eq!(admit("SdkAppid="), Err(AuthError::NoApplication));
        assert_eq!(admit(""), Err(AuthError::NoApplication));
    }
}
