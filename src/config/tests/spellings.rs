//! Every setting in every spelling and from every source is read as it must be meant, or refused. It never comes to
//! nothing in silence, and no error shows a secret.

use std::ffi::OsString;

use super::*;

/// A part of every secret here.
const MARKER: &str = "hunter2";

/// Each setting with a value that is not its default, and what it refuses.
const TABLE: [(&str, &str, &[&str]); 61] = [
    (
        "sdk_app_ids",
        "1400000002",
        &[
            "0",
            "-1",
            "1,0",
            "0x10",
            "1_0",
            "1e3",
            "\u{661}",
            "99999999999999999999",
        ],
    ),
    ("answer_after", "broker", &["Broker", "both", "kafka"]),
    (
        "answer_deadline",
        "1500ms",
        &["0s", "1501ms", "500", "-1s", "never"],
    ),
    (
        "drain_timeout",
        "9s",
        &["0s", "9", "-9s", "9 parsecs", "1001y", "\u{669}s"],
    ),
    (
        "http.listen",
        "127.0.0.1:18080",
        &[
            "localhost:80",
            ":8080",
            "8080",
            "127.0.0.1",
            "[::1:80",
            "0.0.0.0:65536",
        ],
    ),
    (
        "http.path",
        "/im/callback",
        &[
            "callback", "/a b", "/a?b", "/a#b", "/a%2", "/a/../b", "/{id}",
        ],
    ),
    (
        "http.max_body_bytes",
        "128KiB",
        &["0", "-1", "many", "1e3", "0x10", "99999999999EiB"],
    ),
    ("http.max_buffered_bytes", "65MiB", &["1KiB", "-1", "all"]),
    (
        "http.max_unauthenticated_bytes",
        "2MiB",
        &["1KiB", "-1", "none"],
    ),
    (
        "http.max_connections",
        "1000",
        &[
            "0",
            "-1",
            "1.5",
            "1e3",
            "0x10",
            "1_000",
            "4294967296",
            "\u{661}",
        ],
    ),
    (
        "http.max_connections_per_source",
        "100",
        &["-1", "1.5", "4294967296", "none"],
    ),
    ("http.read_timeout", "11s", &["0s", "11", "never"]),
    ("http.idle_timeout", "76s", &["0s", "76", "never"]),
    ("http.proxy_protocol", "true", &["yes", "1", "TRUE", "v2"]),
    ("http.stop_delay", "1s", &["1", "-1s", "never"]),
    (
        "auth.tokens",
        "token-hunter2",
        &[
            "1400000001=",
            "99999999999999999999=hunter2",
            "7=hunter2",
            ",",
        ],
    ),
    ("auth.max_skew", "61s", &["0s", "61", "any"]),
    (
        "auth.allowed_sources",
        "10.0.0.0/8",
        &[
            "10.0.0.0/33",
            "0.0.0.0",
            "10.0.0.1:80",
            "vendor.example",
            "*",
            ",",
        ],
    ),
    (
        "auth.trusted_proxies",
        "10.0.0.0/8",
        &[
            "10.0.0.0/33",
            "::",
            "proxy.example",
            "10.0.0.0/255.0.0.0",
            " , ",
        ],
    ),
    (
        "admin.listen",
        "127.0.0.1:18081",
        &["localhost:8081", "0.0.0.0:8080", "8081"],
    ),
    (
        "spool.path",
        "spool/a.db",
        &[
            "file:x.db",
            "sqlite:x.db",
            "~/spool.db",
            "data/",
            "/",
            ".",
            "..",
            "\"a.db",
            "a.db\"",
        ],
    ),
    ("spool.max_bytes", "2GiB", &["0", "-1", "all"]),
    ("spool.reserve", "65MiB", &["-1", "10%"]),
    ("spool.retention", "25h", &["25", "-1h", "forever"]),
    ("spool.recent_ids", "1000", &["-1", "100000001", "1e3"]),
    ("spool.max_waiting", "1000", &["0", "-1", "1000001"]),
    ("spool.max_dead_letter_bytes", "65MiB", &["-1", "all"]),
    (
        "kafka.bootstrap_servers",
        "kafka.example:9092",
        &[
            "PLAINTEXT://h:9092",
            "h:0",
            "h:65536",
            ":1",
            "h i:1",
            "u:p@h:1",
        ],
    ),
    (
        "kafka.topic",
        "recalls",
        &[".", "a/b", "a b", "im.message.recalled.dead-letter"],
    ),
    (
        "kafka.dead_letter_topic",
        "dead-letters",
        &["..", "a/b", "im.message.recalled"],
    ),
    (
        "kafka.create_topics",
        "false",
        &["no", "0", "FALSE", "False"],
    ),
    ("kafka.partitions", "7", &["0", "-1", "1.5", "1000001"]),
    ("kafka.replication_factor", "3", &["0", "-2", "32768"]),
    (
        "kafka.content_mode",
        "binary",
        &["Binary", "batched", "true"],
    ),
    ("kafka.window", "1000", &["0", "-1", "1000001"]),
    ("kafka.exactly_once", "true", &["yes", "1", "TRUE"]),
    (
        "kafka.properties.sasl.password",
        "hunter2",
        &["hunter2\nhunter2"],
    ),
    ("kafka.properties.linger.ms", "7", &["-1", "soon", "7\n8"]),
    (
        "rabbitmq.uri",
        "amqps://u:hunter2@h:5671",
        &[
            "amqp://u:12#hunter2@h",
            "http://u:hunter2@h",
            "amqp://u:hunter2@",
            "amqp://hunter2@h",
            "amqp://h,hunter2",
        ],
    ),
    (
        "upstream.url",
        "https://127.0.0.1:9001/im?k=v",
        &[
            "backend",
            "backend:9000",
            "/im",
            "ftp://h/",
            "http://",
            "http://u:p@h/",
            "http://h/#x",
            "http://h:0/",
        ],
    ),
    ("upstream.timeout", "1s", &["0s", "1", "2s", "-1s"]),
    ("upstream.on_failure", "ok", &["OK", "drop"]),
    (
        "upstream.max_in_flight",
        "100",
        &["0", "-1", "1e3", "100001"],
    ),
    ("upstream.copy_recalls", "true", &["yes", "1"]),
    (
        "http.tls.cert",
        "tls/cert.pem",
        &["file:cert.pem", "~/cert.pem", "tls/"],
    ),
    (
        "http.tls.key",
        "tls/key.pem",
        &["file:key.pem", "~/key.pem", "tls/"],
    ),
    (
        "http.tls.client_ca",
        "tls/ca.pem",
        &["file:ca.pem", "~/ca.pem", "tls/", "\"ca.pem"],
    ),
    (
        "upstream.tls.ca",
        "tls/ca.pem",
        &["file:ca.pem", "~/ca.pem", "tls/", "\"ca.pem"],
    ),
    (
        "upstream.tls.cert",
        "tls/cert.pem",
        &["file:cert.pem", "~/cert.pem", "tls/"],
    ),
    (
        "upstream.tls.key",
        "tls/key.pem",
        &["file:key.pem", "~/key.pem", "tls/"],
    ),
    (
        "rabbitmq.tls.ca",
        "tls/ca.pem",
        &["file:ca.pem", "~/ca.pem", "tls/", "\"ca.pem"],
    ),
    (
        "rabbitmq.tls.cert",
        "tls/cert.pem",
        &["file:cert.pem", "~/cert.pem", "tls/"],
    ),
    (
        "rabbitmq.tls.key",
        "tls/key.pem",
        &["file:key.pem", "~/key.pem", "tls/"],
    ),
    ("rabbitmq.exchange", "recalls", &["\"recalls"]),
    (
        "rabbitmq.queue",
        "recalls",
        &["im.message.recalled.dead-letter", "recalls\""],
    ),
    (
        "rabbitmq.dead_letter_queue",
        "dead-letters",
        &["im.message.recalled"],
    ),
    ("rabbitmq.declare", "false", &["no", "0", "False"]),
    ("rabbitmq.queue_type", "classic", &["Classic", "lazy"]),
    ("rabbitmq.window", "1000", &["0", "-1", "1000001"]),
    ("rabbitmq.confirm_timeout", "31s", &["0s", "31", "never"]),
    (
        "rabbitmq.unroutable",
        "dead-letter",
        &["drop", "dead_letter"],
    ),
];

/// The settings of the log, whose errors are of their own.
const LOG: [(&str, &str, &[&str]); 2] = [
    ("log.format", "text", &["TEXT", "xml"]),
    (
        "log.filter",
        "debug",
        &[
            "inof",
            "recall-relay=debug",
            "lapin=",
            "=debug",
            "a=b=c",
            "[span]=debug",
            ",",
        ],
    ),
];

fn rows() -> impl Iterator<Item = (&'static str, &'static str, &'static [&'static str])> {
    TABLE.into_iter().chain(LOG)
}

fn variable(key: &str) -> String {
    let name = match key.strip_prefix(keys::PROPERTIES) {
        Some(property) => format!("kafka__properties__{}", property.replace('.', "_")),
        None => key.replace('.', "__"),
    };
    format!("RECALL_{}", name.to_uppercase())
}

/// Where a value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    Environment,
    Toml,
    SecretFile,
}

/// Loads one setting from `from`; what it needs beside it is in the environment. Returns also its source.
fn load_one(key: &str, value: &str, from: From) -> (Result<Loaded, ConfigError>, String) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("relay.toml");
    let beside = [
        ("sdk_app_ids", "1400000001"),
        ("auth.trusted_proxies", "10.0.0.1"),
        ("kafka.bootstrap_servers", "h:1"),
        ("kafka.properties.security.protocol", "SASL_SSL"),
        ("kafka.properties.sasl.mechanism", "PLAIN"),
        ("kafka.properties.sasl.username", "u"),
        ("kafka.properties.sasl.password", "p"),
        ("rabbitmq.uri", "amqps://h"),
        ("http.tls.cert", "cert.pem"),
        ("http.tls.key", "key.pem"),
        ("rabbitmq.tls.cert", "cert.pem"),
        ("rabbitmq.tls.key", "key.pem"),
        ("upstream.url", "https://h"),
        ("upstream.tls.cert", "cert.pem"),
        ("upstream.tls.key", "key.pem"),
    ];
    let mut environment: Vec<(OsString, OsString)> = beside
        .iter()
        .filter(|(other, _)| *other != key)
        .map(|(other, value)| (variable(other).into(), value.into()))
        .collect();
    let mut name = variable(key);
    match from {
        From::Environment => environment.push((name.clone().into(), value.into())),
        From::Toml => {
            let text = toml::Value::String(value.to_owned());
            fs::write(&path, format!("{key} = {text}\n")).unwrap();
            name = path.display().to_string();
        }
        From::SecretFile => {
            name += "_FILE";
            let secret = folder.path().join("secret");
            fs::write(&secret, value).unwrap();
            environment.push((name.clone().into(), secret.into()));
        }
    }
    let file = (from == From::Toml).then_some(path.as_path());
    (Loaded::load(file, environment), name)
}

fn sources(key: &str) -> &'static [From] {
    if keys::is_secret(key) {
        &[From::Environment, From::Toml, From::SecretFile]
    } else {
        &[From::Environment, From::Toml]
    }
}

/// All that is in force, secrets included.
fn in_force(config: &Config) -> String {
    let tokens: Vec<_> = config
        .auth
        .tokens
        .iter()
        .map(|token| token.secret.expose())
        .collect();
    let uris = config
        .rabbitmq
        .iter()
        .flat_map(|rabbitmq| rabbitmq.uri.iter());
    let uris: Vec<_> = uris.map(|uri| uri.parts().to_string()).collect();
    format!("{config:?} {tokens:?} {uris:?}")
}

fn assert_refused(key: &str, value: &str, from: From) {
    let (loaded, source) = load_one(key, value, from);
    let Err(error) = loaded else {
        panic!("{key} = {value:?} from {from:?} is not refused");
    };
    let text = error.to_string();
    // Of two settings that contradict each other, one is named in the text.
    let named = text.contains(&format!("{key} (from {source}): "))
        || text.contains(&format!(": must differ from {key}"));
    assert!(named, "{key} = {value:?} from {from:?}: {text}");
    assert!(
        !format!("{text} {error:?}").contains(MARKER),
        "{key} from {from:?}: {text}"
    );
    assert!(
        !text.replace("\n  ", "").contains(char::is_control),
        "{key} = {value:?}: {text:?}"
    );
    assert!(text.len() < 2000, "{key}: {} bytes", text.len());
}

#[test]
fn the_table_has_every_setting() {
    for (key, _) in keys::known() {
        assert!(rows().any(|(row, _, _)| row == key), "{key} has no row");
    }
}

#[test]
fn what_surrounds_a_value_makes_no_difference() {
    let default = in_force(
        &load_one("sdk_app_ids", "1400000001", From::Environment)
            .0
            .unwrap()
            .config,
    );
    for (key, value, _) in rows() {
        for from in sources(key) {
            let read = |spelling: &str| {
                let (loaded, _) = load_one(key, spelling, *from);
                let loaded = loaded
                    .unwrap_or_else(|error| panic!("{key} = {spelling:?} from {from:?}: {error}"));
                in_force(&loaded.config)
            };
            let plain = read(value);
            assert_ne!(plain, default, "{key}: the value must not be the default");
            for spelling in [
                format!(" {value}\t"),
                format!("{value}\n"),
                format!("{value}\r\n"),
                format!("\u{a0}{value}\u{3000}"),
                format!("\u{feff}{value}"),
                format!("\"{value}\""),
                format!("'{value}'"),
                format!("\u{feff}\" {value} \"\r\n\r\n"),
            ] {
                assert_eq!(read(&spelling), plain, "{key} = {spelling:?} from {from:?}");
            }
        }
    }
}

#[test]
fn what_cannot_be_meant_is_refused_with_key_and_source() {
    let long = "\u{e9}".repeat(100_000);
    for (key, value, wrong) in rows() {
        for from in sources(key) {
            for wrong in wrong {
                assert_refused(key, wrong, *from);
            }
            for empty in ["", " ", "\r\n", "\u{feff}", "\"\"", "' '"] {
                if key == "rabbitmq.queue" {
                    let config = load_one(key, empty, *from).0.unwrap().config;
                    assert_eq!(config.rabbitmq.unwrap().queue.to_string(), "");
                } else {
                    assert_refused(key, empty, *from);
                }
            }
            for control in ["\0", "\u{7}", "\u{1b}[31m", "\u{85}x", "\t"] {
                assert_refused(key, &format!("{value}{control}{value}"), *from);
            }
            // Only a token or a property may be anything else.
            if key.starts_with("auth.tokens") || key.ends_with("sasl.password") {
                continue;
            }
            if key != "rabbitmq.uri" {
                assert_refused(key, &format!("{value}\r\n{value}"), *from);
            }
            if key != "upstream.url" {
                assert_refused(key, "https://relay.example/x", *from);
            }
            let may_be_foreign = [
                "spool.path",
                "http.tls.cert",
                "http.tls.key",
                "http.tls.client_ca",
                "rabbitmq.tls.ca",
                "rabbitmq.tls.cert",
                "rabbitmq.tls.key",
                "upstream.tls.ca",
                "upstream.tls.cert",
                "upstream.tls.key",
            ];
            if !may_be_foreign.contains(&key) {
                assert_refused(key, &long, *from);
            }
        }
    }
}

#[test]
fn lines_of_a_secret_separate_as_commas_do() {
    for from in sources("auth.tokens") {
        for text in [
            "a\nb\n",
            "a\r\n\r\nb\r\n",
            "\u{feff}\"a\"\n'b'\n",
            "\"a\",\"b\"",
            "'a,b'",
        ] {
            let config = load_one("auth.tokens", text, *from).0.unwrap().config;
            let tokens: Vec<_> = config
                .auth
                .tokens
                .iter()
                .map(|token| token.secret.expose())
                .collect();
            assert_eq!(tokens, ["a", "b"], "{text:?} from {from:?}");
        }
        let config = load_one("rabbitmq.uri", "amqps://one\namqp://two\n", *from)
            .0
            .unwrap()
            .config;
        assert_eq!(config.rabbitmq.unwrap().uri.len(), 2);
        if *from == From::Toml {
            let array = "sdk_app_ids = 1\nauth.tokens = [\"a\", \"hunter2\\nb\"]";
            let error = load(Some(array), &[]).unwrap_err().to_string();
            assert!(
                error.contains("value 2 has a line break") && !error.contains(MARKER),
                "{error}"
            );
        }
        // Quotes of the other kind keep quotes.
        let config = load_one("auth.tokens", "'\"a\"'", *from).0.unwrap().config;
        assert_eq!(config.auth.tokens[0].secret.expose(), "\"a\"");
    }
}

#[test]
fn a_certificate_has_lines() {
    let key = "kafka.properties.ssl.ca.pem";
    let pem = rcgen::generate_simple_self_signed(["h".to_owned()])
        .unwrap()
        .cert
        .pem();
    for pem in [pem.clone(), pem.replace("\r\n", "\n"), format!("\"{pem}\"")] {
        let file = format!(
            "{key} = {}\nkafka.bootstrap_servers = \"h:1\"\n\
             kafka.properties.security.protocol = \"SSL\"\n",
            toml::Value::String(pem.clone())
        );
        let name = "RECALL_KAFKA__PROPERTIES__SSL_CA_PEM";
        let servers = ("RECALL_KAFKA__BOOTSTRAP_SERVERS", "h:1");
        let protocol = ("RECALL_KAFKA__PROPERTIES__SECURITY_PROTOCOL", "SSL");
        for loaded in [
            load(Some(&file), &[APP]),
            load(None, &[APP, servers, protocol, (name, &pem)]),
        ] {
            let properties = loaded.unwrap().config.kafka.unwrap().properties;
            assert_eq!(properties["ssl.ca.pem"], crate::setting::clean(&pem));
        }
    }
}

#[test]
fn a_secret_s_file_that_cannot_be_read_is_named_by_its_variable_alone() {
    let folder = TempDir::new().unwrap();
    let latin = folder.path().join("latin");
    fs::write(&latin, b"hunter2\xe9").unwrap();
    for key in [
        "auth.tokens",
        "rabbitmq.uri",
        "kafka.properties.sasl.password",
    ] {
        let name = variable(key) + "_FILE";
        // The secret itself in place of a path is not shown.
        for path in [
            "/hunter2/nowhere",
            "hunter2",
            folder.path().to_str().unwrap(),
            "/dev/zero",
            latin.to_str().unwrap(),
        ] {
            let error = problem(&[(&name, path)]);
            assert!(
                error.contains(&format!(
                    "{key}_file (from {name}): names a file that cannot be read"
                )),
                "{error}"
            );
            assert!(!error.contains(MARKER), "{error}");
        }
    }
}

#[test]
fn a_configuration_file_may_have_a_byte_order_mark_and_crlf_but_must_be_utf_8() {
    let loaded = load(
        Some("\u{feff}sdk_app_ids = 1\r\n[http]\r\npath = \"/x\"\r\n"),
        &[],
    )
    .unwrap();
    assert_eq!(loaded.config.http.path, "/x");

    let folder = TempDir::new().unwrap();
    let path = folder.path().join("latin.toml");
    fs::write(&path, b"sdk_app_ids = 1\nauth.tokens = \"hunter2\xe9\"\n").unwrap();
    let refused = |path: &str| {
        Loaded::load(Some(Path::new(path)), [])
            .unwrap_err()
            .to_string()
    };
    let error = refused(path.to_str().unwrap());
    assert!(
        error.contains("latin.toml): cannot be read: line 2 is not UTF-8"),
        "{error}"
    );
    assert!(!error.contains(MARKER), "{error}");
    for empty in ["", " ", "\"\""] {
        assert!(refused(empty).contains(
            "configuration file: has an empty name; set --config or RECALL_CONFIG to its path"
        ));
    }
    for path in ["/dev/zero", "/", "/nowhere"] {
        assert!(
            refused(path).contains(&format!("configuration file (from {path}): cannot be read"))
        );
    }
    let quoted = format!("\"{}\"\r\n", path.display());
    assert!(refused(&quoted).contains("line 2"));
}

#[test]
fn an_unknown_key_is_named_on_one_line_whatever_it_is() {
    let key = format!("http.{}\n\u{1b}[31m", "x".repeat(10_000));
    let error = load(None, &[APP, (&format!("RECALL_{key}"), "")])
        .unwrap_err()
        .to_string();
    assert!(error.contains("is not a setting"), "{error}");
    assert!(
        error.len() < 2000 && error.lines().count() == 2,
        "{error:?}"
    );
}
