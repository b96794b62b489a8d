//! librdkafka's properties: their names, those that the relay sets, and those that are secret.

use std::collections::BTreeMap;

use rdkafka::error::KafkaError;

use crate::setting::SettingError;

/// The properties that the promises depend on; operators cannot set them.
pub(super) const PROMISE: [(&str, &str); 7] = [
    ("enable.idempotence", "true"),
    ("acks", "all"),
    ("message.timeout.ms", "0"),
    ("enable.gapless.guarantee", "true"),
    ("partitioner", "murmur2_random"),
    ("queuing.strategy", "fifo"),
    // Needed to detect that a producer has lost every broker; see `reports`.
    ("statistics.interval.ms", "5000"),
];

/// Aliases of those, and other properties that would break the promises.
const REFUSED: [&str; 7] = [
    "request.required.acks",
    "delivery.timeout.ms",
    "retries",
    "message.send.max.retries",
    "delivery.report.only.error",
    "transactional.id",
    "transaction.timeout.ms",
];

/// Properties that have their own setting.
const ELSEWHERE: [&str; 2] = ["bootstrap.servers", "metadata.broker.list"];

/// Properties whose values are not shown (but for the user's name in the text of a missing right), and that may be read
/// from a file: those that librdkafka 2.12 calls sensitive, with all aliases. The paths among them are not included
/// (`ssl.key.location`, `sasl.oauthbearer.assertion.private.key.file`), because an operator looking for a missing file
/// must see them.
pub const SECRETS: [&str; 11] = [
    "sasl.oauthbearer.assertion.private.key.passphrase",
    "sasl.oauthbearer.assertion.private.key.pem",
    "sasl.oauthbearer.client.credentials.client.secret",
    "sasl.oauthbearer.client.secret",
    "sasl.oauthbearer.config",
    "sasl.password",
    "sasl.username",
    "ssl.ca.pem",
    "ssl.key.password",
    "ssl.key.pem",
    "ssl.keystore.password",
];

/// Whether the value of a property is the path of a file with certificates or keys.
pub(super) fn is_file(name: &str) -> bool {
    name.ends_with(".location") || name == "sasl.oauthbearer.assertion.private.key.file"
}

/// Names that contain an underscore, which does not stand for a dot.
const WITH_UNDERSCORE: [&str; 5] = [
    "log_level",
    "enabled_events",
    "ssl_key",
    "ssl_certificate",
    "ssl_ca",
];

/// Common names, used to suggest the nearest one for an unknown name.
const COMMON: [&str; 61] = [
    "api.version.request",
    "batch.num.messages",
    "batch.size",
    "broker.address.family",
    "broker.address.ttl",
    "client.dns.lookup",
    "client.id",
    "client.rack",
    "compression.codec",
    "compression.level",
    "compression.type",
    "connections.max.idle.ms",
    "debug",
    "enable.random.seed",
    "enable.sasl.oauthbearer.unsecure.jwt",
    "enable.ssl.certificate.verification",
    "https.ca.location",
    "https.ca.pem",
    "internal.termination.signal",
    "linger.ms",
    "log.connection.close",
    "log.queue",
    "max.in.flight",
    "max.in.flight.requests.per.connection",
    "message.copy.max.bytes",
    "message.max.bytes",
    "metadata.max.age.ms",
    "queue.buffering.max.kbytes",
    "queue.buffering.max.messages",
    "queue.buffering.max.ms",
    "receive.message.max.bytes",
    "reconnect.backoff.max.ms",
    "reconnect.backoff.ms",
    "request.timeout.ms",
    "retry.backoff.max.ms",
    "retry.backoff.ms",
    "sasl.kerberos.keytab",
    "sasl.kerberos.principal",
    "sasl.kerberos.service.name",
    "sasl.mechanism",
    "sasl.mechanisms",
    "sasl.oauthbearer.client.id",
    "sasl.oauthbearer.extensions",
    "sasl.oauthbearer.method",
    "sasl.oauthbearer.scope",
    "sasl.oauthbearer.token.endpoint.url",
    "sasl.password",
    "sasl.username",
    "security.protocol",
    "socket.connection.setup.timeout.ms",
    "socket.keepalive.enable",
    "socket.nagle.disable",
    "socket.timeout.ms",
    "ssl.ca.location",
    "ssl.ca.pem",
    "ssl.certificate.location",
    "ssl.certificate.pem",
    "ssl.endpoint.identification.algorithm",
    "ssl.key.location",
    "ssl.key.password",
    "ssl.key.pem",
];

/// The error of an invalid property.
fn invalid(name: &str, problem: impl Into<String>) -> SettingError {
    SettingError::new(name, problem).within("kafka.properties")
}

/// The property's own name, from its spelling in an environment variable, where `_` stands for `.` unless the real name
/// contains it.
#[must_use]
pub fn normalize(name: &str) -> String {
    let name = name.to_ascii_lowercase();
    if WITH_UNDERSCORE.contains(&name.as_str()) {
        name
    } else {
        name.replace('_', ".")
    }
}

/// Refuses properties that would break the promises.
pub(super) fn check(properties: &BTreeMap<String, String>) -> Result<(), SettingError> {
    for name in properties.keys() {
        if name.starts_with("test.") {
            return Err(invalid(name, "is for librdkafka's own tests; remove it"));
        }
        if PROMISE.iter().any(|(promised, _)| promised == name) || REFUSED.contains(&name.as_str())
        {
            let problem = "would break the promise that no event is lost or reordered; remove it";
            return Err(invalid(name, problem));
        }
        if ELSEWHERE.contains(&name.as_str()) {
            return Err(invalid(
                name,
                "is set by kafka.bootstrap_servers; remove it",
            ));
        }
    }
    Ok(())
}

/// Refuses properties that `security.protocol` makes ineffective. librdkafka only logs that, and connects without TLS or
/// without a login.
pub(super) fn check_protocol(properties: &BTreeMap<String, String>) -> Result<(), SettingError> {
    let protocol = properties.get("security.protocol");
    let protocol = protocol.map_or("plaintext".to_owned(), |protocol| {
        protocol.to_ascii_lowercase()
    });
    let has_no_effect = |name: &&String| {
        (name.starts_with("ssl.") && !protocol.contains("ssl"))
            || (name.starts_with("sasl.") && !protocol.contains("sasl"))
    };
    properties.keys().find(has_no_effect).map_or(Ok(()), |name| {
        let problem = format!(
            "has no effect with the protocol {protocol}; set kafka.properties.security.protocol to SSL, SASL_SSL or \
             SASL_PLAINTEXT, as the cluster has it"
        );
        Err(invalid(name, problem))
    })
}

/// Explains why librdkafka refuses the configuration, without the value.
pub(super) fn explain(error: &KafkaError) -> SettingError {
    let KafkaError::ClientConfig(_, description, name, _) = error else {
        return SettingError::new("kafka", error.to_string());
    };
    let description = description.trim_end();
    if description.contains("No such configuration property") {
        let nearest = COMMON
            .iter()
            .max_by(|a, b| {
                let near = |known: &str| strsim::jaro_winkler(name, known);
                near(a).total_cmp(&near(b))
            })
            .copied()
            .unwrap_or_default();
        return invalid(
            name,
            format!("is not a property of librdkafka; did you mean kafka.properties.{nearest}?"),
        );
    }
    if name.is_empty() {
        return SettingError::new("kafka.properties", description);
    }
    // If a property was left out when librdkafka was built, the description says only that, and does not contain the
    // value.
    let left_out = description.contains("not supported in this build");
    if SECRETS.contains(&name.as_str()) && !left_out {
        return invalid(name, "has a value that librdkafka does not accept");
    }
    invalid(
        name,
        format!("is not accepted by librdkafka: {description}"),
    )
}

#[cfg(test)]
mod tests {
    use rdkafka::ClientConfig;

    use super::super::Config;
    use super::*;

    fn config(name: &str, value: &str) -> Config {
        Config {
            bootstrap_servers: "127.0.0.1:9092".to_owned(),
            properties: [(name.to_owned(), value.to_owned())].into(),
            ..Config::default()
        }
    }

    #[test]
    fn normalizes_environment_spellings_to_property_names() {
        assert_eq!(normalize("SASL_MECHANISM"), "sasl.mechanism");
        assert_eq!(normalize("log_level"), "log_level");
    }

    #[test]
    fn librdkafka_knows_every_listed_property() {
        for name in COMMON.iter().chain(&SECRETS) {
            // The value is valid for no property; the error shows whether the name is known.
            let native = ClientConfig::new()
                .set(*name, "\u{1}")
                .create_native_config();
            let known = !native.is_err_and(|error| {
                matches!(error, KafkaError::ClientConfig(_, text, _, _) if text.contains("No such"))
            });
            assert!(known, "{name}");
        }
    }

    /// The list of secrets was made by hand from `_RK_SENSITIVE` and the aliases in `rdkafka_conf.c`: repeat that for
    /// another version.
    #[test]
    fn the_secrets_list_is_for_this_librdkafka_and_documented() {
        let (_, version) = rdkafka::util::get_rdkafka_version();
        assert!(version.starts_with("2.12."), "{version}");
        let page = "docs/reference/broker-layout-and-rights.md";
        let page = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(page);
        let page = std::fs::read_to_string(page).unwrap();
        let begin = page.find("These can come from files (`…_FILE`)").unwrap();
        let (listed, _) = page[begin..].split_once("\n\n").unwrap();
        for name in SECRETS {
            assert!(listed.contains(&format!("`{name}`")), "{name}\n{listed}");
        }
    }

    #[test]
    fn refuses_properties_that_would_break_the_promises() {
        for name in [
            "acks",
            "retries",
            "transactional.id",
            "partitioner",
            "delivery.timeout.ms",
            "statistics.interval.ms",
        ] {
            let error = config(name, "1").check().unwrap_err();
            assert!(error.problem.contains("would break the promise"), "{error}");
        }
        assert!(config("linger.ms", "20").check().is_ok());
        assert!(config("max.in.flight", "1").check().is_ok());
    }

    #[test]
    fn unknown_property_error_suggests_the_nearest_name() {
        let error = config("sasl.mechanizm", "PLAIN").check().unwrap_err();
        assert_eq!(
            error.to_string(),
            "kafka.properties.sasl.mechanizm is not a property of librdkafka; \
             did you mean kafka.properties.sasl.mechanism?"
        );
    }

    #[test]
    fn properties_that_the_protocol_makes_ineffective_are_refused() {
        for (name, protocol, accepted) in [
            ("ssl.endpoint.identification.algorithm", "plaintext", false),
            ("ssl.endpoint.identification.algorithm", "SSL", true),
            ("sasl.mechanism", "PLAINTEXT", false),
            ("sasl.mechanism", "ssl", false),
        ] {
            let value = if name.starts_with("ssl") {
                "https"
            } else {
                "PLAIN"
            };
            let mut config = config(name, value);
            config
                .properties
                .insert("security.protocol".to_owned(), protocol.to_owned());
            let checked = config.check().map_err(|error| error.to_string());
            let refused = checked
                .as_ref()
                .is_err_and(|error| error.contains("has no effect"));
            assert_eq!(refused, !accepted, "{name} {protocol}: {checked:?}");
        }
        let error = config("sasl.mechanism", "PLAIN")
            .check()
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("no effect with the protocol plaintext"),
            "{error}"
        );
    }

    #[test]
    fn all_sasl_mechanisms_are_built_in() {
        for mechanism in ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] {
            let mut config = config("sasl.mechanism", mechanism);
            config
                .properties
                .insert("security.protocol".to_owned(), "SASL_SSL".to_owned());
            config
                .properties
                .insert("sasl.username".to_owned(), "u".to_owned());
            config
                .properties
                .insert("sasl.password".to_owned(), "p".to_owned());
            assert_eq!(config.check(), Ok(()), "{mechanism}");
        }
    }

    #[cfg(not(feature = "kafka-oidc"))]
    #[test]
    fn properties_not_built_in_are_reported_as_unsupported() {
        for name in ["sasl.oauthbearer.client.secret", "sasl.oauthbearer.scope"] {
            let error = config(name, "hush").check().unwrap_err().to_string();
            assert!(error.contains("not supported in this build"), "{error}");
            assert!(!error.contains("hush"), "{error}");
        }
    }

    #[cfg(feature = "kafka-oidc")]
    #[test]
    fn oidc_is_built_in_with_the_feature() {
        let mut oidc = config("sasl.oauthbearer.method", "oidc");
        for (name, value) in [
            ("security.protocol", "SASL_SSL"),
            ("sasl.mechanism", "OAUTHBEARER"),
            ("sasl.oauthbearer.client.id", "id"),
            ("sasl.oauthbearer.client.secret", "secret"),
            (
                "sasl.oauthbearer.token.endpoint.url",
                "https://localhost/token",
            ),
        ] {
            oidc.properties.insert(name.to_owned(), value.to_owned());
        }
        assert_eq!(oidc.check(), Ok(()));
    }
}
