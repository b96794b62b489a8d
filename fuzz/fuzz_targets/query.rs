//! Parses any text as the query of a callback's URL.
//!
//! The result does not depend on the case or the order of the names. The query in a dead letter has everything except
//! `Sign` and `RequestTime`.
#![no_main]

use std::collections::HashSet;

use libfuzzer_sys::fuzz_target;
use recall_relay::callback::Query;

fuzz_target!(|raw: &str| {
    let query = Query::parse(raw);
    assert_eq!(
        query.command(),
        query.command.as_deref().filter(|text| !text.is_empty())
    );

    let swapped = with_names(raw, swap_case);
    assert_eq!(
        fields(&Query::parse(&swapped)),
        fields(&query),
        "of {swapped:?}"
    );

    let reversed = reversed(raw);
    assert_eq!(
        fields(&Query::parse(&reversed)),
        fields(&query),
        "of {reversed:?}"
    );

    let kept = query.without_signature();
    let kept_query = Query::parse(&kept);
    let mut expected = fields(&query);
    (expected[4], expected[5]) = (None, None);
    assert_eq!(fields(&kept_query), expected, "of {kept:?}");
    assert_eq!(kept_query.without_signature(), kept);
});

/// The parsed fields; the last two are the request's time and signature.
fn fields(query: &Query<'_>) -> [Option<String>; 6] {
    [
        &query.sdk_app_id,
        &query.command,
        &query.client_ip,
        &query.platform,
        &query.request_time,
        &query.sign,
    ]
    .map(|field| field.as_deref().map(str::to_owned))
}

/// The query with `change` applied to each name; values are unchanged.
fn with_names(raw: &str, change: impl Fn(&str) -> String) -> String {
    raw.split('&')
        .map(|pair| match pair.split_once('=') {
            Some((name, value)) => format!("{}={value}", change(name)),
            None => change(pair),
        })
        .collect::<Vec<_>>()
        .join("&")
}

/// This may also change an escape, because `%6a` is the same character as `%6A`.
fn swap_case(name: &str) -> String {
    name.chars()
        .map(|char| match char {
            'a'..='z' => char.to_ascii_uppercase(),
            _ => char.to_ascii_lowercase(),
        })
        .collect()
}

/// The effective pairs (the last one of each name), in reverse order.
fn reversed(raw: &str) -> String {
    let mut seen = HashSet::new();
    let name = |pair: &str| {
        form_urlencoded::parse(pair.as_bytes())
            .next()
            .map(|(name, _)| name.to_ascii_lowercase())
    };
    raw.rsplit('&')
        .filter(|pair| seen.insert(name(pair)))
        .collect::<Vec<_>>()
        .join("&")
}
