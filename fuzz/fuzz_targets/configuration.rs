//! Any file and any variables as the configuration: lines `NAME=value` up to a line `---`, then TOML.
//!
//! No error and no listing shows a secret, here any that holds the digits of [`SECRET`]; and what is
//! listed can be set again by the environment alone, with the same result.
#![no_main]

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::{fs, process};

use libfuzzer_sys::{Corpus, fuzz_target};
use recall_relay::config::Loaded;
use recall_relay::setting::Secret;
use toml::{Table, Value};

/// Digits, so that they can stand in text and in numbers.
const SECRET: &str = "73019";

static FILE: LazyLock<PathBuf> = LazyLock::new(|| {
    let name = format!("recall-fuzz-{}.toml", process::id());
    std::env::temp_dir().join(name)
});

fuzz_target!(|input: &str| -> Corpus {
    let (variables, file) = match input.split_once("---\n") {
        Some((variables, file)) => (variables, Some(file)),
        None => (input, None),
    };
    let variables: Vec<(&str, &str)> = variables
        .lines()
        .filter_map(|line| line.split_once('='))
        .collect();
    // A setting may name a file to read: not one that never ends.
    if ["/dev", "/proc"].iter().any(|path| input.contains(path)) {
        return Corpus::Reject;
    }
    let path = file.map(|text| {
        fs::write(&*FILE, text).expect("a temporary file can be written");
        FILE.as_path()
    });

    let loaded = Loaded::load(path, environment(&variables));
    let holds_secret = variables
        .iter()
        .all(|variable| is_secret_or_harmless(*variable))
        && file.is_none_or(only_secrets_hold_it);
    match loaded {
        Err(error) => {
            let told = format!("{error} {error:?}");
            assert!(!holds_secret || !told.contains(SECRET), "{told}");
        }
        Ok(loaded) => {
            let told = format!("{:?} {:?}", loaded.listing(), loaded.config.auth);
            assert!(!holds_secret || !told.contains(SECRET), "{told}");
            check_listing(&loaded);
        }
    }
    Corpus::Keep
});

fn environment(variables: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    variables
        .iter()
        .map(|(name, value)| (name.into(), value.into()))
        .collect()
}

/// Whether a variable may hold the secret and must then not be shown, or does not hold it.
fn is_secret_or_harmless((name, value): (&str, &str)) -> bool {
    !name.contains(SECRET)
        && (!value.contains(SECRET)
            || matches!(name, "RECALL_AUTH__TOKENS" | "RECALL_RABBITMQ__URI"))
}

/// Whether the secret is nowhere in a file but in values that are never to be shown. Of a file that
/// cannot be read at all no value is.
fn only_secrets_hold_it(text: &str) -> bool {
    let Ok(mut table) = text.parse::<Table>() else {
        return keys_without_it(text);
    };
    for (section, key) in [("auth", "tokens"), ("rabbitmq", "uri")] {
        if let Some(Value::Table(section)) = table.get_mut(section) {
            // A key is no secret, also where it stands below one.
            let holds = section.get(key).is_some_and(key_holds_it);
            if !holds {
                section.remove(key);
            }
        }
    }
    !Value::Table(table).to_string().contains(SECRET)
}

fn key_holds_it(value: &Value) -> bool {
    match value {
        Value::Table(table) => table
            .iter()
            .any(|(key, value)| key.contains(SECRET) || key_holds_it(value)),
        Value::Array(list) => list.iter().any(key_holds_it),
        _ => false,
    }
}

/// Of text that is no TOML: the secret stands behind a `=`, where no key is.
fn keys_without_it(text: &str) -> bool {
    text.lines().all(|line| {
        line.split('=')
            .next()
            .is_none_or(|key| !key.contains(SECRET))
            && line.matches('=').count() <= 1
            && !line.contains('{')
    })
}

/// Sets what is listed by environment alone.
fn check_listing(loaded: &Loaded) {
    let tokens: Vec<&str> = loaded
        .config
        .auth
        .tokens
        .iter()
        .map(Secret::expose)
        .collect();
    assert!(!tokens.contains(&""), "anyone can sign with an empty token");
    if tokens.iter().any(|token| token.contains(',')) {
        // Only an array can hold it: the environment's commas separate.
        return;
    }
    let listing = loaded.listing();
    let variables = listing
        .iter()
        // The one setting that has neither a default nor an empty form.
        .filter(|(key, value, _)| key != "log.format" || !value.is_empty())
        .map(|(key, value, _)| {
            let value = match key.as_str() {
                "auth.tokens" => tokens.join(","),
                "rabbitmq.uri" => loaded
                    .config
                    .rabbitmq
                    .as_ref()
                    .map(|rabbitmq| rabbitmq.uri.expose().to_owned())
                    .unwrap_or_default(),
                _ => value.clone(),
            };
            let name = format!("RECALL_{}", key.to_uppercase().replace('.', "__"));
            (name.into(), value.into())
        })
        .collect::<Vec<(OsString, OsString)>>();
    let again = Loaded::load(None, variables)
        .unwrap_or_else(|error| panic!("what is listed is no setting: {error} in {listing:?}"));
    let values = |listing: &[(String, String, _)]| -> Vec<(String, String)> {
        listing
            .iter()
            .map(|(key, value, _)| (key.clone(), value.trim().to_owned()))
            .collect()
    };
    assert_eq!(values(&again.listing()), values(&listing));
}
