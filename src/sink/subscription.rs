//! What a subscription to a broker reports.

/// An item of a subscription, in the order in which it happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SubscriptionItem {
    /// From now on, every event that is published is reported. The text says what is subscribed to.
    Subscribed(String),
    /// A message arrived.
    Message {
        /// Its place at the broker, for people.
        place: String,
        /// The bytes of the event that it contains, in structured mode, or why it contains none.
        event: Result<Vec<u8>, String>,
    },
    /// The state of the connection has changed.
    Notice(String),
}

/// Why another user's credentials cannot be used with the configured connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CredentialsError(pub &'static str);
