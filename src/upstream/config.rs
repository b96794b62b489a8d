//! Settings of the upstream.

use std::fmt;
use std::str::FromStr;

use hyper::Uri;
use hyper::http::uri::{Authority, Scheme};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::callback::VENDOR_TIMEOUT;
use crate::setting::{self, ClientTls, SettingError, Timeout};

/// Settings of the upstream: the backend that answers all commands but the recalls.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The backend's URL; required in this section. The vendor's query follows its own.
    pub url: Option<BackendUrl>,
    /// How long an exchange may take, from the end of the callback's body to the end of the answer.
    pub timeout: Timeout,
    /// What to answer if the backend does not.
    pub on_failure: OnFailure,
    /// Maximum number of exchanges at the same time. Callbacks without a valid signature, and copies of recalls, may
    /// each take a quarter of them.
    #[serde(deserialize_with = "setting::number::<_, _, 1, 100_000>")]
    pub max_in_flight: usize,
    /// Whether the backend gets a copy of each new recall, too.
    #[serde(deserialize_with = "setting::text")]
    pub copy_recalls: bool,
    /// Certificates.
    pub tls: ClientTls,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            url: None,
            timeout: Timeout::from_millis(1500),
            on_failure: OnFailure::Error,
            max_in_flight: 256,
            copy_recalls: false,
            tls: ClientTls::default(),
        }
    }
}

/// What to answer if the backend does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailure {
    /// 502 or 504, so that the vendor's own policy for a failed callback decides.
    Error,
    /// OK/0, which allows what the callback asks for.
    Ok,
}

impl Config {
    /// Checks the settings without reading files.
    ///
    /// # Errors
    /// Returns which setting is wrong, and why.
    pub fn check(&self) -> Result<(), SettingError> {
        let Some(url) = &self.url else {
            let problem = "is missing; set it to the URL of the backend, such as http://backend:8080/callback";
            return Err(SettingError::new("upstream.url", problem));
        };
        // Otherwise the vendor would be gone before an exchange counts as a failure.
        if *self.timeout >= VENDOR_TIMEOUT {
            let problem = "must be shorter than the 2 s that the vendor waits";
            return Err(SettingError::new("upstream.timeout", problem));
        }
        let tls = self.tls.check_pair();
        tls.map_err(|error| error.within("upstream.tls"))?;
        if self.tls.is_set() && !url.is_https() {
            let problem = "is http, and files of upstream.tls are set, which have no effect; use https, or remove them";
            return Err(SettingError::new("upstream.url", problem));
        }
        Ok(())
    }
}

/// The URL of the backend: `http` or `https`, without user and fragment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendUrl {
    scheme: Scheme,
    authority: Authority,
    path: String,
    query: Option<String>,
}

impl BackendUrl {
    /// The URL for people, without its query: that may have a secret.
    pub(crate) fn without_query(&self) -> String {
        format!("{}://{}{}", self.scheme, self.authority, self.path)
    }

    pub(crate) fn is_https(&self) -> bool {
        self.scheme == Scheme::HTTPS
    }

    /// The host, without the brackets of an IPv6 address.
    pub(crate) fn host(&self) -> &str {
        self.authority.host().trim_matches(['[', ']'])
    }

    /// The port, or that of the scheme.
    pub(crate) fn port(&self) -> u16 {
        let of_scheme = if self.is_https() { 443 } else { 80 };
        self.authority.port_u16().unwrap_or(of_scheme)
    }

    /// This URL, followed by a callback's query. None if that is longer than a URL may be.
    pub(super) fn with_query(&self, query: &str) -> Option<Uri> {
        let queries = [self.query.as_deref().unwrap_or_default(), query];
        let queries: Vec<&str> = queries
            .into_iter()
            .filter(|query| !query.is_empty())
            .collect();
        let path_and_query = if queries.is_empty() {
            self.path.clone()
        } else {
            format!("{}?{}", self.path, queries.join("&"))
        };
        let uri = Uri::builder()
            .scheme(self.scheme.clone())
            .authority(self.authority.clone())
            .path_and_query(path_and_query);
        uri.build().ok()
    }
}

impl FromStr for BackendUrl {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORM: &str =
            "must be a URL such as http://backend:8080/callback or https://im.example/callback";
        if !text.is_ascii() {
            return Err("has a character that no URL has; percent-encode it");
        }
        if text.contains('#') {
            return Err("has a fragment (`#…`), which is never sent; remove it");
        }
        let uri: Uri = text.parse().map_err(|_| FORM)?;
        let parts = uri.into_parts();
        let (Some(scheme), Some(authority)) = (parts.scheme, parts.authority) else {
            return Err(FORM);
        };
        if scheme != Scheme::HTTP && scheme != Scheme::HTTPS {
            return Err(FORM);
        }
        if authority.as_str().contains('@') {
            return Err("has a user, which is not supported; remove it");
        }
        // `http` accepts any text as a port.
        let has_port = authority
            .as_str()
            .rsplit_once(']')
            .map_or(authority.as_str(), |(_, port)| port);
        if authority.host().is_empty()
            || (has_port.contains(':') && authority.port_u16().is_none_or(|port| port == 0))
        {
            return Err(FORM);
        }
        let target = parts.path_and_query;
        let path = target.as_ref().map_or("/", |target| target.path());
        Ok(Self {
            scheme,
            authority,
            path: path.to_owned(),
            query: target
                .as_ref()
                .and_then(|target| target.query())
                .map(str::to_owned),
        })
    }
}

impl fmt::Display for BackendUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.without_query())?;
        match &self.query {
            Some(query) => write!(f, "?{query}"),
            None => Ok(()),
        }
    }
}

impl<'de> Deserialize<'de> for BackendUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        setting::text(deserializer)
    }
}

impl Serialize for BackendUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // For people: the query may have a secret.
        let query = if self.query.is_some() {
            "?[hidden]"
        } else {
            ""
        };
        serializer.collect_str(&format_args!("{}{query}", self.without_query()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_callbacks_query_follows_the_urls() {
        for (url, query, expected) in [
            ("http://b", "", "http://b/"),
            ("http://b", "a=1", "http://b/?a=1"),
            (
                "https://b:8443/x/",
                "a=%2F&&b",
                "https://b:8443/x/?a=%2F&&b",
            ),
            ("http://[::1]:80/x?k=v", "a=1", "http://[::1]:80/x?k=v&a=1"),
            ("http://b/x?k=v", "", "http://b/x?k=v"),
            ("http://b/x?", "a", "http://b/x?a"),
        ] {
            let url: BackendUrl = url.parse().unwrap();
            assert_eq!(url.with_query(query).unwrap().to_string(), expected);
        }
        let url: BackendUrl = "http://b/".parse().unwrap();
        assert_eq!(url.with_query(&"a".repeat(1 << 16)), None);
    }

    #[test]
    fn what_is_no_backends_url_is_refused() {
        for text in [
            "",
            "b",
            "b:8080",
            "/x",
            "//b/x",
            "ftp://b",
            "http://",
            "http:///x",
            "http://user:secret@b",
            "http://b/#x",
            "http://b:x",
            "http://b:",
            "http://b:0",
            "http://b:99999",
            "http://a b/",
            "http://[::1",
            "http://b/\u{e9}",
        ] {
            text.parse::<BackendUrl>().unwrap_err();
        }
        for text in [
            "http://b/",
            "https://b:1/x?y=z",
            "http://[::1]/",
            "http://127.0.0.1:8080/",
        ] {
            assert_eq!(text.parse::<BackendUrl>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn certificates_need_https_and_a_key() {
        let check = |url: &str, cert: bool, key: bool| {
            let file = |set: bool| set.then(|| "file.pem".into());
            let tls = ClientTls {
                ca: None,
                cert: file(cert),
                key: file(key),
            };
            let config = Config {
                url: url.parse().ok(),
                tls,
                ..Config::default()
            };
            config.check().map_err(|error| error.key)
        };
        assert_eq!(check("", false, false), Err("upstream.url".to_owned()));
        assert_eq!(check("http://b", false, false), Ok(()));
        assert_eq!(
            check("http://b", true, true),
            Err("upstream.url".to_owned())
        );
        assert_eq!(check("https://b", true, true), Ok(()));
        assert_eq!(
            check("https://b", true, false),
            Err("upstream.tls.cert".to_owned())
        );
    }
}
