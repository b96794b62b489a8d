//! Loads any variables and any file as the configuration. The input has lines `NAME=value` up to a line `---`, then
//! TOML.
//!
//! If only secret settings contain [`SECRET`], no error and no listing shows it. What is listed can be set by
//! environment variables alone, with the same result.
#![no_main]

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::{fs, process};

use libfuzzer_sys::{Corpus, fuzz_target};
use recall_relay::config::Loaded;
use recall_relay::setting::Secret;
use toml::{Table, Value};

/// Digits, so that it can be in strings and in numbers.
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
    // A setting may name a file to read: reject files that never end.
    if ["/dev", "/proc"].iter().any(|path| input.contains(path)) {
        return Corpus::Reject;
    }
    let path = file.map(|text| {
        fs::write(&*FILE, text).expect("cannot write the temporary file");
        FILE.as_path()
    });

    let loaded = Loaded::load(path, environment(&variables));
    let input_hides_secret = variables.iter().all(|variable| hides_secret(*variable))
        && file.is_none_or(file_hides_secret);
    match loaded {
        Err(error) => {
            let shown = format!("{error} {error:?}");
            assert!(!input_hides_secret || !shown.contains(SECRET), "{shown}");
        }
        Ok(loaded) => {
            let shown = format!("{:?} {:?}", loaded.listing(), loaded.config.auth);
            assert!(!input_hides_secret || !shown.contains(SECRET), "{shown}");
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

/// Whether a variable does not contain the secret, or is one whose value must not be shown.
fn hides_secret((name, value): (&str, &str)) -> bool {
    !name.contains(SECRET)
        && (!value.contains(SECRET)
            || matches!(name, "RECALL_AUTH__TOKENS" | "RECALL_RABBITMQ__URI"))
}

/// Whether a file contains the secret only in values that must not be shown. If the file is not TOML, no value may be
/// shown.
fn file_hides_secret(text: &str) -> bool {
    let Ok(mut table) = text.parse::<Table>() else {
        return keys_hide_secret(text);
    };
    for (section, key) in [("auth", "tokens"), ("rabbitmq", "uri")] {
        if let Some(Value::Table(section)) = table.get_mut(section) {
            // A key is never a secret, not even below a secret value.
            let in_key = section.get(key).is_some_and(key_contains_secret);
            if !in_key {
                section.remove(key);
            }
        }
    }
    !Value::Table(table).to_string().contains(SECRET)
}

fn key_contains_secret(value: &Value) -> bool {
    match value {
        Value::Table(table) => table
            .iter()
            .any(|(key, value)| key.contains(SECRET) || key_contains_secret(value)),
        Value::Array(list) => list.iter().any(key_contains_secret),
        _ => false,
    }
}

/// Whether text that is not TOML contains the secret only after a `=`, and so not in a key.
fn keys_hide_secret(text: &str) -> bool {
    text.lines().all(|line| {
        line.split('=')
            .next()
            .is_none_or(|key| !key.contains(SECRET))
            && line.matches('=').count() <= 1
            && !line.contains('{')
    })
}

/// Checks that the listing, set by environment variables alone, gives the same configuration.
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
        // Only an array in a file can contain such a token: in a variable, a comma separates tokens.
        return;
    }
    let listing = loaded.listing();
    let variables = listing
        .iter()
        // If these are not set, they are listed as empty, but an empty variable is invalid.
        .filter(|(key, value, _)| {
            !value.is_empty()
                || !["log.format", "auth.tokens", "auth.allowed_sources"].contains(&key.as_str())
        })
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
    let reloaded = Loaded::load(None, variables).unwrap_or_else(|error| {
        panic!("the listing is not a valid configuration: {error} in {listing:?}")
    });
    let values = |listing: &[(String, String, _)]| -> Vec<(String, String)> {
        listing
            .iter()
            .map(|(key, value, _)| (key.clone(), value.trim().to_owned()))
            .collect()
    };
    assert_eq!(values(&reloaded.listing()), values(&listing));
}
