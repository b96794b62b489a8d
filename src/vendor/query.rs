//! The query of a callback, and its signature.

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

use super::command::OtherCommand;

/// What a callback reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallbackKind {
    /// Group messages were recalled.
    Group,
    /// A message between two users was recalled.
    C2c,
    /// Messages of an official account were recalled.
    OfficialAccount,
    /// Nothing: the console's "verify" button, which sends no body, application or signature.
    Probe,
    /// Something else: a group message is about to be sent.
    Other,
    /// This command.
    Named(OtherCommand),
}

impl CallbackKind {
    /// The vendor's `CallbackCommand`.
    #[must_use]
    pub const fn command(self) -> &'static str {
        match self {
            Self::Group | Self::Probe => "Group.CallbackAfterRecallMsg",
            Self::C2c => "C2C.CallbackAfterMsgWithDraw",
            Self::OfficialAccount => "OfficialAccount.CallbackAfterMsgWithDraw",
            Self::Other => "Group.CallbackBeforeSendMsg",
            Self::Named(command) => command.name(),
        }
    }

    /// Whether it reports that messages were recalled.
    #[must_use]
    pub const fn is_recall(self) -> bool {
        matches!(self, Self::Group | Self::C2c | Self::OfficialAccount)
    }

    /// The parameters of the URL, signed with a token at a time (Unix seconds) if there is a `signature`. A probe has
    /// no application and no signature.
    #[must_use]
    pub fn query(self, sdk_app_id: u64, signature: Option<(&str, u64)>) -> String {
        let mut query = format!("CallbackCommand={}&contenttype=json", self.command());
        if self == Self::Probe {
            return query;
        }
        query = format!("SdkAppid={sdk_app_id}&{query}");
        if !matches!(self, Self::Named(command) if !command.is_of_a_user()) {
            query.push_str("&ClientIP=127.0.0.1&OptPlatform=RESTAPI");
        }
        if let Some((token, now)) = signature {
            let sign = sign(token, &now.to_string());
            let _ = write!(query, "&Sign={sign}&RequestTime={now}");
        }
        query
    }
}

/// The signature: SHA-256 of the token followed by the time, in hexadecimal digits.
#[must_use]
pub fn sign(token: &str, request_time: &str) -> String {
    hex::encode(Sha256::digest(format!("{token}{request_time}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_as_the_vendor_does() {
        assert_eq!(
            sign("xxxxyyyy", "1669872112"),
            "17773bc39a671d7b9aa835458704d2a6db81360a5940292b587d6d760d484061"
        );
        assert_eq!(
            CallbackKind::C2c.query(1_400_000_001, Some(("test-token", 1_700_000_000))),
            "SdkAppid=1400000001&CallbackCommand=C2C.CallbackAfterMsgWithDraw&contenttype=json\
             &ClientIP=127.0.0.1&OptPlatform=RESTAPI\
             &Sign=fdedb59e60a8d79ebb349080c302a68a79ac6602cc5dbed2a4a94b9ced465f23\
             &RequestTime=1700000000"
        );
    }

    #[test]
    fn an_alert_has_no_user() {
        let alert = OtherCommand::named("Alert.RequestOverLimit").unwrap();
        assert_eq!(
            CallbackKind::Named(alert).query(7, None),
            "SdkAppid=7&CallbackCommand=Alert.RequestOverLimit&contenttype=json"
        );
    }

    #[test]
    fn a_probe_is_anonymous() {
        assert_eq!(
            CallbackKind::Probe.query(1_400_000_001, Some(("test-token", 1_700_000_000))),
            "CallbackCommand=Group.CallbackAfterRecallMsg&contenttype=json"
        );
    }
}
