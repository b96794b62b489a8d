//! Parses a broker's URI strictly: refuses what the client library would misread.

use std::fmt;
use std::str::FromStr;

use lapin::uri::{AMQPScheme, AMQPUri, SASLMechanism};

use crate::setting::Secret;

/// The form, for errors: none of them quotes any part, because a password may be in any part by mistake.
const FORM: &str = "must be of the form amqp://user:password@host:5672/vhost";

/// A broker and the credentials for it. It is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct BrokerUri(AMQPUri);

impl BrokerUri {
    /// The parsed URI.
    #[must_use]
    pub const fn parts(&self) -> &AMQPUri {
        &self.0
    }

    /// The host and the port.
    #[must_use]
    pub fn host_and_port(&self) -> (&str, u16) {
        let authority = &self.0.authority;
        (&authority.host, authority.port)
    }

    /// Whether it begins with `amqps://`.
    #[must_use]
    pub fn uses_tls(&self) -> bool {
        self.0.scheme == AMQPScheme::AMQPS
    }

    /// The same broker, with another user's credentials.
    #[must_use]
    pub(super) fn with_credentials(mut self, user: &str, password: &Secret) -> Self {
        let credentials = &mut self.0.authority.userinfo;
        user.clone_into(&mut credentials.username);
        password.expose().clone_into(&mut credentials.password);
        // The mechanism may be one that has no password.
        self.0.query.auth_mechanism = None;
        self
    }
}

impl FromStr for BrokerUri {
    type Err = &'static str;

    /// The parser alone would take a `/`, `?` or `#` in a password for the end of the host: the beginning of the
    /// password would become the port, and the user's name a host that is looked up and logged. It also puts localhost
    /// and guest in place of what is missing.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(FORM);
        };
        if !scheme.eq_ignore_ascii_case("amqp") && !scheme.eq_ignore_ascii_case("amqps") {
            return Err("must begin with amqp:// or amqps://");
        }
        let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        if path.contains(['@', '#']) {
            return Err(
                "has a `/`, `?` or `#` in its user or password; percent-encode them: `%2F`, `%3F`, `%23` (and `@` as \
                 `%40` in the vhost)",
            );
        }
        let (user, host) = authority
            .rsplit_once('@')
            .map_or((None, authority), |(user, host)| (Some(user), host));
        if host.starts_with('[') {
            // The client library would use localhost instead.
            return Err(
                "has an IPv6 address, which the client library cannot use; use a host name",
            );
        }
        let uri: AMQPUri = text.parse().map_err(|_| FORM)?;
        if host.is_empty() || host.starts_with(':') || uri.authority.port == 0 {
            return Err(FORM);
        }
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        if path == "/" {
            return Err(
                "ends with `/` but names no vhost; write `/%2f` for the default vhost, or remove the `/`",
            );
        }
        let known = [
            "auth_mechanism",
            "channel_max",
            "connection_timeout",
            "frame_max",
            "heartbeat",
        ];
        if !form_urlencoded::parse(query.as_bytes()).all(|(name, _)| known.contains(&&*name)) {
            return Err(
                "has a parameter after `?` that the client library would ignore; remove it",
            );
        }
        let has_credentials = |user: &str| {
            let parts = user.split_once(':');
            parts.is_some_and(|(name, password)| !name.is_empty() && !password.is_empty())
        };
        if !user.is_none_or(has_credentials)
            && uri.query.auth_mechanism != Some(SASLMechanism::External)
        {
            return Err("has a user without a password, or a password without a user");
        }
        Ok(Self(uri))
    }
}

impl fmt::Debug for BrokerUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[hidden]")
    }
}

impl fmt::Display for BrokerUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[hidden]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setting::List;

    #[test]
    fn uris_are_separated_by_commas_or_lines() {
        for text in [
            "amqp://a:b@one:1/%2f, amqps://two",
            "amqp://one\r\namqps://two\n",
        ] {
            let uris: List<BrokerUri> = text.parse().unwrap();
            let hosts: Vec<&str> = uris
                .iter()
                .map(|uri| uri.parts().authority.host.as_str())
                .collect();
            assert_eq!(hosts, ["one", "two"]);
        }
    }

    #[test]
    fn a_uri_is_read_as_meant() {
        for (text, user, password, host, port, vhost) in [
            ("amqp://h", "guest", "guest", "h", 5672, "/"),
            ("amqps://u:p@h/%2f", "u", "p", "h", 5671, "/"),
            ("AMQP://u:p@h:1/v", "u", "p", "h", 1, "v"),
            ("amqp://u:a%23%2F%3F%40b@h//", "u", "a#/?@b", "h", 5672, "/"),
            ("amqp://u:a@b:c@h", "u", "a@b:c", "h", 5672, "/"),
            ("amqp://u:p@h?heartbeat=5", "u", "p", "h", 5672, "/"),
            (
                "amqps://u@h?auth_mechanism=external",
                "u",
                "guest",
                "h",
                5671,
                "/",
            ),
        ] {
            let uri: BrokerUri = text.parse().unwrap();
            let AMQPUri {
                authority,
                vhost: found,
                ..
            } = uri.parts();
            assert_eq!(
                (
                    authority.userinfo.username.as_str(),
                    authority.userinfo.password.as_str()
                ),
                (user, password)
            );
            assert_eq!(
                (authority.host.as_str(), authority.port, found.as_str()),
                (host, port, vhost)
            );
            assert_eq!(format!("{uri} {uri:?}"), "[hidden] [hidden]");
        }
    }

    #[test]
    fn other_credentials_replace_those_of_the_uri() {
        for text in [
            "amqp://a:b@h:1/v?heartbeat=5",
            "amqp://a@h:1/v?auth_mechanism=external&heartbeat=5",
        ] {
            let uri: BrokerUri = text.parse().unwrap();
            let uri = uri.with_credentials("u", &Secret::from("p/#".to_owned()));
            let same: BrokerUri = "amqp://u:p%2F%23@h:1/v?heartbeat=5".parse().unwrap();
            assert_eq!(uri.parts(), same.parts());
        }
    }

    #[test]
    fn what_would_be_misread_is_refused_and_not_shown() {
        for text in [
            "hunter2",
            "hunter2@h",
            "amqp:hunter2",
            "amqp:/hunter2",
            "http://u:hunter2@h",
            "amqp://u:12#hunter2@h",
            "amqp://u:12/hunter2@h",
            "amqp://u:12?hunter2@h",
            "amqp://u:hunter2#@h",
            "amqp://h/v#hunter2",
            "amqp://u:hunter2@",
            "amqp://u:hunter2@/v",
            "amqp://u:hunter2@:5672",
            "amqp://",
            "amqp:///v",
            "amqp://h:0",
            "amqp://h:65536",
            "amqp://h:hunter2",
            "amqp://u:hunter2@[::1]:5672",
            "amqp://hunter2@h",
            "amqp://:hunter2@h",
            "amqp://u:@h",
            "amqp://u:hunter2@h/",
            "amqp://u:hunter2@h/v?verify=verify_none",
            "amqp://u:hunter2@h/v?heartbeat=hunter2",
            "amqp://u:hunter2@h x",
            "\"amqp://u:hunter2@h",
        ] {
            let error = text.parse::<BrokerUri>().expect_err(text);
            assert!(!error.contains("hunter2"), "{error}");
        }
        let error = "amqp://ok,hunter2@h"
            .parse::<List<BrokerUri>>()
            .unwrap_err();
        assert_eq!(error, format!("{FORM} (value 2 of 2)"));
    }
}
