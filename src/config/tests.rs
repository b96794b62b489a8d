#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod spellings;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use tempfile::TempDir;

use super::*;

const APP: (&str, &str) = ("RECALL_SDK_APP_IDS", "1400000001");

/// Files that are not read.
const HTTP_TLS: [(&str, &str); 2] = [
    ("RECALL_HTTP__TLS__CERT", "cert.pem"),
    ("RECALL_HTTP__TLS__KEY", "key.pem"),
];

fn load(file: Option<&str>, environment: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("relay.toml");
    if let Some(text) = file {
        fs::write(&path, text).unwrap();
    }
    let variables = environment
        .iter()
        .map(|(name, value)| (name.into(), value.into()));
    Loaded::load(file.map(|_| path.as_path()), variables)
}

fn problem(environment: &[(&str, &str)]) -> String {
    let all: Vec<_> = [APP].iter().chain(environment).copied().collect();
    load(None, &all).unwrap_err().to_string()
}

#[test]
fn only_sdk_app_ids_is_required() {
    let loaded = load(None, &[APP]).unwrap();
    assert_eq!(loaded.config.sdk_app_ids.0, [1_400_000_001]);
    assert_eq!(loaded.config.http.listen.port(), 8080);
    assert!(loaded.config.kafka.is_none() && loaded.config.rabbitmq.is_none());
    let error = load(None, &[]).unwrap_err().to_string();
    assert!(error.contains("sdk_app_ids: is missing"), "{error}");
}

#[test]
fn every_setting_can_be_set_by_environment_alone() {
    for (key, default) in keys::known() {
        let value = match key.as_str() {
            "rabbitmq.uri" => "amqp://localhost",
            "kafka.bootstrap_servers" => "localhost:9092",
            "sdk_app_ids" => "1",
            "log.format" => "json",
            "auth.tokens" => "token",
            "auth.allowed_sources" | "auth.trusted_proxies" => "10.0.0.0/8",
            "http.tls.client_ca" | "rabbitmq.tls.ca" | "upstream.tls.ca" => "ca.pem",
            "upstream.url" => "http://localhost",
            _ => default,
        };
        let name = format!("RECALL_{}", key.to_uppercase().replace('.', "__"));
        let mut variables = vec![APP, (&name, value)];
        for (section, needs) in [
            (
                "kafka.",
                ("RECALL_KAFKA__BOOTSTRAP_SERVERS", "localhost:9092"),
            ),
            ("rabbitmq.", ("RECALL_RABBITMQ__URI", "amqps://localhost")),
            ("upstream.", ("RECALL_UPSTREAM__URL", "https://localhost")),
        ] {
            if key.starts_with(section) && name != needs.0 {
                variables.push(needs);
            }
        }
        if key == "http.tls.client_ca" {
            variables.extend(HTTP_TLS);
        }
        if key == "sdk_app_ids" {
            variables.remove(0);
        }
        // One cannot be set without the other.
        if key.ends_with("tls.cert") || key.ends_with("tls.key") {
            continue;
        }
        let loaded = load(None, &variables).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(loaded.source(key), Source::Environment(name));
    }
}

#[test]
fn environment_overrides_file_and_file_overrides_defaults() {
    let file = "sdk_app_ids = [1, 2]\n[http]\npath = \"/file\"\nmax_connections = 7\n";
    let loaded = load(Some(file), &[("RECALL_HTTP__PATH", "/environment")]).unwrap();
    assert_eq!(loaded.config.sdk_app_ids.0, [1, 2]);
    assert_eq!(loaded.config.http.path, "/environment");
    assert_eq!(loaded.config.http.max_connections, 7);
    assert_eq!(
        loaded.source("http.path"),
        Source::Environment("RECALL_HTTP__PATH".to_owned())
    );
    assert!(matches!(
        loaded.source("http.max_connections"),
        Source::File(_)
    ));
    assert_eq!(loaded.source("http.listen"), Source::Default);
}

#[test]
fn environment_values_stay_text() {
    let tokens = ("RECALL_AUTH__TOKENS", "00712, {x=1},true");
    let loaded = load(None, &[APP, tokens]).unwrap();
    let tokens: Vec<_> = loaded
        .config
        .auth
        .tokens
        .iter()
        .map(|token| token.secret.expose())
        .collect();
    assert_eq!(tokens, ["00712", "{x=1}", "true"]);
}

#[test]
fn unknown_key_error_suggests_nearest_and_names_source() {
    assert_eq!(
        problem(&[("RECALL_HTTP__LISTN", "x")]),
        "bad configuration\n  http.listn (from RECALL_HTTP__LISTN): is not a setting; \
         did you mean http.listen (RECALL_HTTP__LISTEN)?"
    );
    let error = load(Some("sdk_app_ids = 1\n[kafak]\ntopic = \"t\"\n"), &[]).unwrap_err();
    assert!(
        error.to_string().contains("did you mean kafka.topic"),
        "{error}"
    );
}

#[test]
fn an_empty_section_is_not_ignored() {
    let refused = |section: &str| {
        let file = format!("sdk_app_ids = 1\n[{section}]\n");
        load(Some(&file), &[]).unwrap_err().to_string()
    };
    // A user who uncomments a broker's section wants that broker, not standard output.
    for (section, missing) in [
        ("kafka", "kafka.bootstrap_servers: is missing"),
        ("kafka.properties", "kafka.bootstrap_servers: is missing"),
        ("rabbitmq", "rabbitmq.uri: is missing"),
    ] {
        let error = refused(section);
        assert!(error.contains(missing), "[{section}] {error}");
    }
    for (section, nearest) in [
        ("kafak", "kafka"),
        ("rabbitmq.tsl", "rabbitmq.tls"),
        ("auth.token", "auth"),
    ] {
        let error = refused(section);
        let expected = format!("is not a section; did you mean [{nearest}]?");
        assert!(error.contains(&expected), "[{section}] {error}");
        assert!(error.contains("relay.toml"), "[{section}] {error}");
    }
    assert!(refused("auth.tokens").contains("auth.tokens (from"));

    // Empty sections that turn nothing on are accepted, and so is one whose settings are in the environment.
    let file = "sdk_app_ids = 1\n[http]\n[auth]\n[spool]\n[kafka]\n";
    let servers = ("RECALL_KAFKA__BOOTSTRAP_SERVERS", "h:1");
    let loaded = load(Some(file), &[servers]).unwrap();
    assert_eq!(loaded.config.kafka.unwrap().bootstrap_servers, "h:1");
}

#[test]
fn invalid_value_error_names_key_and_source() {
    let error = problem(&[("RECALL_HTTP__READ_TIMEOUT", "0s")]);
    assert!(
        error.contains("http.read_timeout (from RECALL_HTTP__READ_TIMEOUT)"),
        "{error}"
    );
    assert!(error.contains("longer than zero"), "{error}");
    let error = problem(&[("RECALL_HTTP__MAX_CONNECTIONS", "many")]);
    assert!(error.contains("http.max_connections (from"), "{error}");
    for path in ["callback", "/callback?from=im", "/#"] {
        let error = problem(&[("RECALL_HTTP__PATH", path)]);
        assert!(error.contains("must be a path only"), "{path}: {error}");
    }
    for path in ["file:x.db", "file:///x.db?mode=ro"] {
        let error = problem(&[("RECALL_SPOOL__PATH", path)]);
        let expected =
            "spool.path (from RECALL_SPOOL__PATH): must be a path, not a URI: leave out the scheme";
        assert!(error.contains(expected), "{path}: {error}");
    }
    assert!(load(None, &[APP, ("RECALL_SPOOL__PATH", "./file:x.db")]).is_ok());
    for (variable, value, expected) in [
        (
            "RECALL_HTTP__PROXY_PROTOCOL",
            "true",
            "http.proxy_protocol (from RECALL_HTTP__PROXY_PROTOCOL): needs auth.trusted_proxies",
        ),
        (
            "RECALL_ANSWER_AFTER",
            "broker",
            "answer_after (from RECALL_ANSWER_AFTER): needs a broker",
        ),
        (
            "RECALL_HTTP__MAX_UNAUTHENTICATED_BYTES",
            "4095",
            "http.max_unauthenticated_bytes (from RECALL_HTTP__MAX_UNAUTHENTICATED_BYTES): must be at least 4KiB",
        ),
    ] {
        let error = problem(&[(variable, value)]);
        assert!(error.contains(expected), "{error}");
    }
    let least = ("RECALL_HTTP__MAX_UNAUTHENTICATED_BYTES", "4KiB");
    assert!(load(None, &[APP, least]).is_ok());
    let error = problem(&[("RECALL_LOG__FILTER", "")]);
    assert!(error.contains("log.filter (from"), "{error}");
    assert!(error.contains("is empty"), "{error}");
}

#[test]
fn secrets_are_never_shown() {
    let folder = TempDir::new().unwrap();
    let token = folder.path().join("token");
    fs::write(&token, " hunter2\n").unwrap();
    let loaded = load(
        None,
        &[
            APP,
            ("RECALL_AUTH__TOKENS_FILE", token.to_str().unwrap()),
            ("RECALL_RABBITMQ__URI", "amqp://user:hunter2@host"),
            ("RECALL_KAFKA__BOOTSTRAP_SERVERS", "host:9092"),
            ("RECALL_KAFKA__PROPERTIES__SECURITY_PROTOCOL", "SASL_SSL"),
            ("RECALL_KAFKA__PROPERTIES__SASL_MECHANISM", "PLAIN"),
            ("RECALL_KAFKA__PROPERTIES__SASL_USERNAME", "u"),
            (
                "RECALL_KAFKA__PROPERTIES__SASL_PASSWORD_FILE",
                token.to_str().unwrap(),
            ),
        ],
    )
    .unwrap();
    assert_eq!(loaded.config.auth.tokens[0].secret.expose(), "hunter2");
    let kafka = loaded.config.kafka.as_ref().unwrap();
    assert_eq!(kafka.properties["sasl.password"], "hunter2");
    let listing = format!("{:?}", loaded.listing());
    assert!(!listing.contains("hunter2"), "{listing}");
    assert!(
        listing.contains(r#"("kafka.properties.sasl.password", "[hidden]""#),
        "{listing}"
    );

    let error = load(
        Some("auth.tokens = { a = \"hunter2\" }\nsdk_app_ids = 1"),
        &[],
    )
    .unwrap_err();
    assert!(!error.to_string().contains("hunter2"), "{error}");
    // Some properties have two names; a build without OIDC rejects them before they can be listed.
    for property in [
        "sasl.oauthbearer.client.secret",
        "sasl.oauthbearer.client.credentials.client.secret",
        "sasl.oauthbearer.assertion.private.key.pem",
    ] {
        assert!(keys::is_secret(&format!("{}{property}", keys::PROPERTIES)));
    }

    // An element of an array has its own key.
    let error = load(Some("sdk_app_ids = 1\nauth.tokens = [712.5]"), &[]).unwrap_err();
    assert!(
        error.to_string().contains("auth.tokens.0 (from "),
        "{error}"
    );
    assert!(!error.to_string().contains("712"), "{error}");
    let error = load(Some("sdk_app_ids = 1\nauth.tokens = [hunter2"), &[]).unwrap_err();
    assert!(error.to_string().contains("line 2"), "{error}");
    assert!(!error.to_string().contains("hunter2"), "{error}");
}

/// A protection that is named and empty is an error in every source and spelling; it never fails open.
#[test]
fn an_empty_protection_is_refused() {
    let folder = TempDir::new().unwrap();
    let empty = folder.path().join("empty");
    fs::write(&empty, " \n").unwrap();
    let token_in_file =
        "sdk_app_ids = 1\nauth.tokens = \"token\"\nauth.allowed_sources = \"10.0.0.0/8\"\n";
    for (variable, key) in [
        ("RECALL_AUTH__TOKENS", "auth.tokens"),
        ("RECALL_AUTH__ALLOWED_SOURCES", "auth.allowed_sources"),
    ] {
        for value in ["", " ", ",", " , ,", "\t", "\n", "\r\n"] {
            for file in [None, Some(token_in_file)] {
                let error = load(file, &[APP, (variable, value)])
                    .unwrap_err()
                    .to_string();
                assert!(
                    error.contains(&format!("{key} (from {variable}): is empty")),
                    "{error}"
                );
            }
        }
        for value in ["\"\"", "\" \"", "\",\"", "[]"] {
            let file = format!("sdk_app_ids = 1\n{key} = {value}\n");
            let error = load(Some(&file), &[]).unwrap_err().to_string();
            assert!(error.contains("is empty; set it"), "{value}: {error}");
        }
        for value in ["[\"\"]", "[\" \"]"] {
            let file = format!("sdk_app_ids = 1\n{key} = {value}\n");
            let error = load(Some(&file), &[]).unwrap_err().to_string();
            assert!(error.contains("value 1 is empty"), "{value}: {error}");
        }
    }
    // A variable that was not set, as in `RECALL_AUTH__TOKENS=1400000001=$TOKEN`.
    for value in ["1400000001=", "1400000001= ", "a,1400000001="] {
        let error = problem(&[("RECALL_AUTH__TOKENS", value)]);
        assert!(error.contains("has nothing after the number"), "{error}");
    }
    let error = problem(&[("RECALL_AUTH__TOKENS_FILE", empty.to_str().unwrap())]);
    assert!(
        error.contains("auth.tokens (from RECALL_AUTH__TOKENS_FILE): is empty"),
        "{error}"
    );
}

#[test]
fn bound_tokens_need_known_applications() {
    let check = |apps: &str, tokens: &str| {
        load(
            None,
            &[
                ("RECALL_SDK_APP_IDS", apps),
                ("RECALL_AUTH__TOKENS", tokens),
            ],
        )
    };
    for (apps, tokens) in [
        ("1,2", "plain"),
        ("1,2", "1=a,2=b"),
        ("1,2", "1=a,2=b,1=c,plain"),
        ("1", "x=1,=y"),
    ] {
        check(apps, tokens).unwrap();
    }
    for (apps, tokens, text) in [
        ("1,2", "1=hunter2", "add 2=TOKEN"),
        ("1", "1=a,73=hunter2", "token 2 is bound to an application"),
    ] {
        let error = check(apps, tokens).unwrap_err().to_string();
        assert!(
            error.contains("auth.tokens (from RECALL_AUTH__TOKENS)"),
            "{error}"
        );
        assert!(error.contains(text), "{error}");
        assert!(
            !error.contains("hunter2") && !error.contains("73"),
            "{error}"
        );
    }
}

#[test]
fn a_secret_that_is_set_twice_is_refused() {
    let folder = TempDir::new().unwrap();
    let token = folder.path().join("token");
    fs::write(&token, "b").unwrap();
    let error = problem(&[
        ("RECALL_AUTH__TOKENS", "a"),
        ("RECALL_AUTH__TOKENS_FILE", token.to_str().unwrap()),
    ]);
    assert!(error.contains("set twice"), "{error}");
}

#[test]
fn spellings_of_a_kafka_property_are_merged() {
    let file = "sdk_app_ids = 1\n[kafka]\nbootstrap_servers = \"h:1\"\n[kafka.properties]\n\
                \"linger.ms\" = 7\nclient.id = \"r\"\nsocket.keepalive.enable = false\n";
    let linger = ("RECALL_KAFKA__PROPERTIES__LINGER_MS", "9");
    let loaded = load(Some(file), &[linger]).unwrap();
    let properties = loaded.config.kafka.unwrap().properties;
    let expected = [
        ("client.id", "r"),
        ("linger.ms", "9"),
        ("socket.keepalive.enable", "false"),
    ];
    assert_eq!(
        properties,
        expected.map(|(k, v)| (k.to_owned(), v.to_owned())).into()
    );
}

#[test]
fn kubernetes_service_variables_are_ignored_but_typos_are_not() {
    let injected = [
        ("RECALL_RELAY_SERVICE_HOST", "10.0.0.1"),
        ("RECALL_SERVICE_PORT_HTTP", "80"),
        ("RECALL_RELAY_PORT", "tcp://10.0.0.1:80"),
        ("RECALL_RELAY_PORT_8080_TCP_ADDR", "10.0.0.1"),
        ("RECALL_CONFIG", "x"),
    ];
    let all: Vec<_> = [APP].iter().chain(&injected).copied().collect();
    assert!(load(None, &all).is_ok());
    assert!(problem(&[("RECALL_HTTP__PORT", "1")]).contains("http.port"));
    assert!(problem(&[("RECALL_RETENTION", "1")]).contains("did you mean spool.retention"));
}

#[test]
fn example_file_lists_every_setting_with_its_default() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/config/recall-relay.toml");
    let text = fs::read_to_string(example).unwrap();
    let loaded = Loaded::load(Some(Path::new(example)), []).unwrap();
    assert_eq!(loaded.config.sdk_app_ids.0, [1_400_000_001]);

    // The file has every setting, commented out, with its default.
    let uncommented: String = text
        .lines()
        .map(|line| {
            line.strip_prefix("#")
                .filter(|rest| !rest.starts_with(' '))
                .unwrap_or(line)
        })
        .fold(String::new(), |all, line| all + line + "\n");
    let loaded = load(Some(&uncommented), &[]).unwrap();
    let listing: BTreeMap<_, _> = loaded
        .listing()
        .into_iter()
        .map(|(key, value, source)| (key, (value, source)))
        .collect();
    let examples = [
        "sdk_app_ids",
        "kafka.bootstrap_servers",
        "rabbitmq.uri",
        "auth.tokens",
        "log.format",
        "auth.allowed_sources",
        "auth.trusted_proxies",
        "rabbitmq.tls.ca",
        "rabbitmq.tls.cert",
        "rabbitmq.tls.key",
        "http.tls.cert",
        "http.tls.key",
        "http.tls.client_ca",
        "upstream.url",
        "upstream.tls.ca",
        "upstream.tls.cert",
        "upstream.tls.key",
    ];
    for (key, default) in keys::known() {
        let (value, source) = listing
            .get(key)
            .unwrap_or_else(|| panic!("{key} is not in the example"));
        assert!(
            matches!(source, Source::File(_)),
            "{key} is not in the example"
        );
        if !examples.contains(&key.as_str()) {
            assert_eq!(value, default, "{key}");
        }
    }
}

#[test]
fn settings_page_includes_example_and_all_file_variables() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/reference/settings.md")).unwrap();
    assert!(page.contains("{{#include ../../config/recall-relay.toml}}"));
    let secrets = keys::known().iter().filter(|(key, _)| keys::is_secret(key));
    for (key, _) in secrets {
        let name = format!("RECALL_{}_FILE", key.to_uppercase().replace('.', "__"));
        assert!(page.contains(&name), "docs/reference/settings.md: {name}");
    }
}

/// Another value of a setting than its default.
fn other_value(key: &str, default: &str) -> String {
    let fixed = match key {
        "sdk_app_ids" => "7",
        "auth.tokens" => "another",
        "auth.allowed_sources" | "auth.trusted_proxies" => "192.0.2.0/24",
        "upstream.url" => "https://another/",
        "upstream.on_failure" => "ok",
        "answer_after" => "broker",
        "answer_deadline" | "upstream.timeout" => "1s",
        "rabbitmq.uri" => "amqps://another",
        "http.tls.client_ca" | "rabbitmq.tls.ca" | "upstream.tls.ca" => "/another",
        "rabbitmq.queue_type" => "classic",
        "kafka.content_mode" => "binary",
        "rabbitmq.unroutable" => "dead-letter",
        "kafka.bootstrap_servers" => "another:9092",
        "log.format" => "text",
        "log.filter" => "debug",
        _ => "",
    };
    let suffixed = |suffix: &str| {
        let number: u64 = default.strip_suffix(suffix)?.parse().ok()?;
        Some(format!("{}{suffix}", number + 1))
    };
    match default {
        _ if !fixed.is_empty() => fixed.to_owned(),
        "true" => "false".to_owned(),
        "false" => "true".to_owned(),
        "-1" => "3".to_owned(),
        _ if default.contains(".0.1:") || default.contains(".0.0:") => "127.0.0.1:7".to_owned(),
        _ => ["", "s", "ms", "h", "m", "KiB", "MiB", "GiB"]
            .into_iter()
            .find_map(suffixed)
            .unwrap_or_else(|| format!("{default}x")),
    }
}

#[test]
fn a_reload_applies_or_names_every_setting() {
    let base = [
        APP,
        ("RECALL_AUTH__TRUSTED_PROXIES", "10.0.0.1"),
        ("RECALL_KAFKA__BOOTSTRAP_SERVERS", "localhost:9092"),
        ("RECALL_RABBITMQ__URI", "amqps://localhost"),
        ("RECALL_UPSTREAM__URL", "https://localhost/"),
        HTTP_TLS[0],
        HTTP_TLS[1],
    ];
    let running = load(None, &base).unwrap().config;
    assert!(running.differences(&running.reloaded(&running)).is_empty());
    let mut applied = Vec::new();
    for (key, default) in keys::known() {
        // One cannot be set without the other.
        if key.ends_with("tls.cert") || key.ends_with("tls.key") {
            continue;
        }
        let name = format!("RECALL_{}", key.to_uppercase().replace('.', "__"));
        let value = other_value(key, default);
        let mut variables = base.to_vec();
        variables.retain(|(known, _)| *known != name);
        variables.push((&name, &value));
        let new = load(None, &variables)
            .unwrap_or_else(|error| panic!("{error}"))
            .config;
        let in_effect = running.reloaded(&new);
        let named = in_effect.differences(&new);
        if named.is_empty() {
            applied.push(key.as_str());
        } else {
            assert_eq!(Vec::from_iter(named), [key.as_str()]);
            assert!(running.differences(&in_effect).is_empty(), "{key}");
        }
    }
    let reloadable = [
        "auth.allowed_sources",
        "auth.max_skew",
        "auth.tokens",
        "auth.trusted_proxies",
        "http.tls.client_ca",
        "kafka.bootstrap_servers",
        "log.filter",
        "rabbitmq.tls.ca",
        "rabbitmq.uri",
        "sdk_app_ids",
        "upstream.copy_recalls",
        "upstream.max_in_flight",
        "upstream.on_failure",
        "upstream.timeout",
        "upstream.tls.ca",
        "upstream.url",
    ];
    applied.sort_unstable();
    assert_eq!(applied, reloadable);
}

#[test]
fn a_reload_takes_a_brokers_connection_as_a_whole_and_adds_no_sink() {
    let property = "RECALL_KAFKA__PROPERTIES__LINGER_MS";
    let config = |servers, linger, topic| {
        let variables = [
            APP,
            ("RECALL_KAFKA__BOOTSTRAP_SERVERS", servers),
            (property, linger),
            ("RECALL_KAFKA__TOPIC", topic),
        ];
        load(None, &variables).unwrap().config
    };
    let running = config("one:9092", "5", "old");
    let new = config("two:9093", "6", "new");
    let in_effect = running.reloaded(&new).kafka.unwrap();
    assert_eq!(in_effect.bootstrap_servers, "two:9093");
    assert_eq!(in_effect.properties["linger.ms"], "6");
    assert_eq!(in_effect.topic, "old");

    let without = load(None, &[APP]).unwrap().config;
    assert!(running.reloaded(&without).kafka.is_some());
    assert!(running.differences(&without).contains("kafka.topic"));
    assert!(without.reloaded(&running).kafka.is_none());
}

#[test]
fn the_admin_listener_is_read_whatever_else_is_wrong() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("relay.toml");
    fs::write(
        &path,
        "nonsense = 1\nauth.tokens_file = '/missing'\nadmin.listen = '127.0.0.1:7'",
    )
    .unwrap();
    let read = |variables: &[(&str, &str)]| {
        let variables = variables
            .iter()
            .map(|(name, value)| (name.into(), value.into()));
        Loaded::load_admin(Some(&path), variables).map(|admin| admin.listen.port())
    };
    assert_eq!(
        read(&[("RECALL_RABBITMQ__URI_FILE", "/missing"), ("RECALL_X", "")]),
        Ok(7)
    );
    assert_eq!(read(&[("RECALL_ADMIN__LISTEN", "127.0.0.1:8")]), Ok(8));
    let error = read(&[("RECALL_ADMIN__LISTEN", "here")]).unwrap_err();
    assert!(error.to_string().contains("admin.listen"), "{error}");
}

#[test]
fn a_certificate_that_is_missing_or_none_fails_a_reload_but_no_start() {
    let kafka = [
        ("RECALL_KAFKA__BOOTSTRAP_SERVERS", "localhost:9093"),
        ("RECALL_KAFKA__PROPERTIES__SECURITY_PROTOCOL", "SSL"),
        (
            "RECALL_KAFKA__PROPERTIES__SSL_CERTIFICATE_LOCATION",
            "/missing",
        ),
    ];
    let rabbitmq = [
        ("RECALL_RABBITMQ__URI", "amqps://localhost"),
        ("RECALL_RABBITMQ__TLS__CA", "/missing"),
    ];
    let upstream = [
        ("RECALL_UPSTREAM__URL", "https://localhost"),
        ("RECALL_UPSTREAM__TLS__CA", "/missing"),
    ];
    let folder = TempDir::new().unwrap();
    let garbled = folder.path().join("garbled.pem");
    let text = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    fs::write(&garbled, text).unwrap();
    let garbled = garbled.to_str().unwrap();
    let garbled_upstream = [
        ("RECALL_UPSTREAM__URL", "https://localhost"),
        ("RECALL_UPSTREAM__TLS__CA", garbled),
    ];
    let garbled_rabbitmq = [
        ("RECALL_RABBITMQ__URI", "amqps://localhost"),
        ("RECALL_RABBITMQ__TLS__CA", garbled),
    ];
    for settings in [
        &kafka[..],
        &rabbitmq,
        &upstream,
        &garbled_upstream,
        &garbled_rabbitmq,
    ] {
        let loaded = load(None, &[&[APP], settings].concat()).unwrap();
        let error = loaded.check_certificates().unwrap_err().to_string();
        assert!(
            ["/missing", "/garbled.pem", "ssl.certificate.location"]
                .iter()
                .any(|named| error.contains(named)),
            "{error}"
        );
    }
}

#[test]
fn the_listeners_certificate_is_checked_at_the_start() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["relay".to_owned()]).unwrap();
    let pem = params.self_signed(&key).unwrap().pem();
    let other_key = rcgen::KeyPair::generate().unwrap();
    let garbled = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    for (name, text) in [
        ("cert", pem.clone()),
        ("key", key.serialize_pem()),
        ("other_key", other_key.serialize_pem()),
        ("garbled", garbled.to_owned()),
        ("half", format!("{pem}{garbled}")),
        ("none", "text".to_owned()),
    ] {
        fs::write(path(name), text).unwrap();
    }
    let read = |settings: &[(&str, &str)]| {
        let mut variables = vec![APP];
        let settings: Vec<_> = settings
            .iter()
            .map(|(key, file)| (format!("RECALL_HTTP__TLS__{key}"), path(file)))
            .collect();
        variables.extend(settings.iter().map(|(key, file)| (&**key, &**file)));
        load(None, &variables)?.server_certificate()
    };
    assert!(read(&[]).unwrap().is_none());
    assert!(read(&[("CERT", "cert"), ("KEY", "key")]).unwrap().is_some());
    let with_ca = read(&[("CERT", "cert"), ("KEY", "key"), ("CLIENT_CA", "cert")]);
    assert!(with_ca.unwrap().is_some());
    for (settings, problem) in [
        (
            &[("CERT", "cert")][..],
            "cert (from RECALL_HTTP__TLS__CERT): must be set together with key",
        ),
        (
            &[("KEY", "key")],
            "key (from RECALL_HTTP__TLS__KEY): must be set together with cert",
        ),
        (
            &[("CLIENT_CA", "cert")],
            "client_ca (from RECALL_HTTP__TLS__CLIENT_CA): needs cert and key",
        ),
        (
            &[("CERT", "missing"), ("KEY", "key")],
            "/missing: cannot be read: No such file",
        ),
        (
            &[("CERT", "cert"), ("KEY", "missing")],
            "/missing: cannot be read: No such file",
        ),
        (
            &[("CERT", "none"), ("KEY", "key")],
            "/none: contains no certificate",
        ),
        (
            &[("CERT", "cert"), ("KEY", "cert")],
            "/cert: has no private key",
        ),
        (&[("CERT", "garbled"), ("KEY", "key")], "/garbled: "),
        (
            &[("CERT", "half"), ("KEY", "key")],
            "/half: certificate 2 cannot be parsed",
        ),
        (
            &[("CERT", "cert"), ("KEY", "other_key")],
            "/cert: does not belong to the key in ",
        ),
        (
            &[("CERT", "cert"), ("KEY", "key"), ("CLIENT_CA", "garbled")],
            "http.tls.client_ca (from RECALL_HTTP__TLS__CLIENT_CA): ",
        ),
    ] {
        let error = read(settings).unwrap_err().to_string();
        assert!(error.contains(problem), "{settings:?}: {error}");
        assert!(error.contains("http.tls."), "{error}");
    }
}
