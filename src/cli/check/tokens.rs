//! The shape of the tokens. No token is ever shown: a line names its position in `auth.tokens`.
//!
//! An empty token, and one that is bound to a foreign application, are errors of the configuration.

use std::sync::Arc;

use super::report::Area;
use crate::callback::Token;
use crate::config::Loaded;

/// The tokens of the console are longer.
const SHORTEST: usize = 8;

pub(super) async fn check(loaded: Arc<Loaded>, area: Area) {
    let auth = &loaded.config.auth;
    if auth.tokens.is_empty() {
        let text = "none is set: signatures are not checked, and anyone who reaches the listener can send recalls";
        let action = "set auth.tokens to the console's token";
        return area.warning("auth.tokens", text, action).await;
    }
    let mut fine = 0;
    for (place, token) in (1..).zip(auth.tokens.iter()) {
        let subject = format!("token {place}");
        match oddity(token) {
            Some(oddity) => {
                let action = "compare auth.tokens with the console's token";
                area.warning(&subject, oddity, action).await;
            }
            None => fine += 1,
        }
    }
    if fine == auth.tokens.len() {
        let text =
            format!("{fine} set; only a signed callback shows whether they are the console's");
        area.ok("auth.tokens", text).await;
    }
}

/// What is odd about a token; mistakes when it was copied look like this.
fn oddity(token: &Token) -> Option<&'static str> {
    let text = token.secret.expose();
    let is_quote = |char: char| matches!(char, '"' | '\'' | '`' | '“' | '”');
    if text.starts_with(is_quote) || text.ends_with(is_quote) {
        Some("begins or ends with a quote")
    } else if text.contains(char::is_whitespace) {
        Some("contains white space")
    } else if text.chars().count() < SHORTEST {
        Some("has fewer than 8 characters")
    } else {
        None
    }
}
