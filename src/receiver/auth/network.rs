//! The networks that callbacks may come from, and those of proxies.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

use crate::setting::List;

/// A network, or a single address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network(IpNet);

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let network = text
            .parse::<IpNet>()
            .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
            .map_err(|_| {
                format!("`{text}` is neither a network such as 10.0.0.0/8 nor an address")
            })?;
        // A source is compared in its IPv4 form if it has one.
        let network = match network.addr() {
            IpAddr::V6(address) if network.prefix_len() >= 96 => address
                .to_ipv4_mapped()
                .and_then(|address| IpNet::new(address.into(), network.prefix_len() - 96).ok())
                .unwrap_or(network),
            _ => network,
        };
        if network.addr().is_unspecified() && network.prefix_len() == network.max_prefix_len() {
            return Err(format!(
                "`{text}` is not a client's address; write {text}/0 for every address"
            ));
        }
        Ok(Self(network.trunc()))
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Whether a network contains an address, in one of its forms: `::/0` contains IPv4 addresses, too.
pub(super) fn contains(networks: &List<Network>, address: IpAddr) -> bool {
    let mapped = match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().into(),
        IpAddr::V6(_) => address,
    };
    networks
        .iter()
        .any(|network| network.0.contains(&address) || network.0.contains(&mapped))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_of_ipv6_may_contain_ipv4_addresses() {
        let contains = |network: &str, address: &str| {
            contains(&network.parse().unwrap(), address.parse().unwrap())
        };
        for network in ["::/0", "::ffff:0:0/95", "::ffff:192.0.2.0/120"] {
            assert!(contains(network, "192.0.2.1"), "{network}");
        }
        for network in ["2000::/3", "::/96", "::ffff:192.0.3.0/120"] {
            assert!(!contains(network, "192.0.2.1"), "{network}");
        }
        assert!(!contains("0.0.0.0/0", "2001:db8::1"));
    }

    #[test]
    fn a_network_that_matches_nobody_is_read_as_meant_or_refused() {
        for (text, expected) in [
            ("203.0.113.7/24", "203.0.113.0/24"),
            ("::ffff:203.0.113.7", "203.0.113.7/32"),
            ("::ffff:203.0.113.0/120", "203.0.113.0/24"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("::/0", "::/0"),
            ("2001:db8::1", "2001:db8::1/128"),
        ] {
            assert_eq!(text.parse::<Network>().unwrap().to_string(), expected);
        }
        for text in [
            "0.0.0.0",
            "::",
            "::ffff:0.0.0.0",
            "10.0.0.0/33",
            "10.0.0.0/",
            "10.0.0.0/255.0.0.0",
            "10.0.0.1:80",
            "010.0.0.1",
            "fe80::1%eth0",
            "vendor.example",
            "https://10.0.0.1/",
            "١٠.0.0.1",
        ] {
            text.parse::<Network>().unwrap_err();
        }
    }
}
