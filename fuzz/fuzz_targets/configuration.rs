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
    let tokens = loaded.config.auth.tokens.iter().map(|token| {
        let secret = token.secret.expose();
        assert!(!secret.is_empty(), "anyone can sign with an empty token");
        match token.application {
            Some(application) => format!("{application}={secret}"),
            None => secret.to_owned(),
        }
    });
    let tokens: Vec<String> = tokens.collect();
    if tokens.iter().any(|token| token.contains([',', '"', '\''])) {
        // In a variable, a comma separates tokens, and each may be in quotes: only an array can contain such a token.
        return;
    }
    let listing = loaded.listing();
    let variables = listing
        .iter()
        // A setting that is not set is listed as empty, but an empty variable is invalid.
        .filter(|(key, value, _)| !value.is_empty() || key == "rabbitmq.queue")
        .map(|(key, value, _)| {
            let value = match key.as_str() {
                "auth.tokens" => tokens.join(","),
                "rabbitmq.uri" => {
                    let rabbitmq = loaded.config.rabbitmq.iter();
                    let uris = rabbitmq.flat_map(|rabbitmq| rabbitmq.uri.iter());
                    let uris: Vec<String> = uris.map(|uri| uri.parts().to_string()).collect();
                    uris.join("\n")
                }
                _ => quoted(value),
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

/// The value in quotes, so that it keeps its own.
fn quoted(value: &str) -> String {
    match ['"', '\''].iter().find(|quote| !value.contains(**quote)) {
        Some(quote) => format!("{quote}{value}{quote}"),
        None => value.to_owned(),
    }
}
