//! What is known of a request from its head: who sent it, and what it may be.

use std::sync::Arc;

use jiff::SignedDuration;

use super::auth::{Auth, AuthError};
use crate::callback::{Query, Recall, SignatureError};
use crate::event::UnixMillis;
use crate::upstream::{Backend, ReceivedHeaders, Sender};

/// What later steps need of a request besides its body. Its headers are dropped before the body is read, unless they
/// are to be handed on: then the body's permit covers their memory, too.
pub(super) struct Head<'a> {
    pub(super) query: Query<'a>,
    /// Whether `auth.allowed_sources` allows the source address.
    pub(super) source: Result<(), AuthError>,
    /// The token that signed the request, if signatures are checked.
    pub(super) signed_by: Result<Option<u32>, SignatureError>,
    pub(super) auth: Arc<Auth>,
    pub(super) received_at: UnixMillis,
    pub(super) onward: Option<Onward>,
}

/// What a request to the backend needs.
pub(super) struct Onward {
    pub(super) backend: Arc<Backend>,
    pub(super) headers: ReceivedHeaders,
    /// The memory that the headers and the query take.
    pub(super) bytes: usize,
}

/// What the query names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NamedCommand {
    Recall(Recall),
    OtherCommand,
    Nothing,
}

impl Head<'_> {
    /// Whether the request passes every check that is configured. `http.tls.client_ca` is checked in the handshake.
    pub(super) const fn is_authenticated(&self) -> bool {
        self.source.is_ok() && self.signed_by.is_ok()
    }

    /// What the query names. The body counts, too, but it may not be worth reading.
    pub(super) fn named(&self) -> NamedCommand {
        match self.query.command() {
            None => NamedCommand::Nothing,
            Some(command) => {
                Recall::named(command).map_or(NamedCommand::OtherCommand, NamedCommand::Recall)
            }
        }
    }

    /// The sender, by the signature alone. The backend sees the signature, too, and decides as it does without the
    /// relay.
    pub(super) const fn sender(&self) -> Sender {
        if self.signed_by.is_ok() {
            Sender::Vendor
        } else {
            Sender::Unknown
        }
    }

    /// How far `RequestTime` is from the relay's clock, if a token has signed it. A stale one counts, too; so does one that
    /// somebody sends again.
    pub(super) fn clock_skew(&self) -> Option<SignedDuration> {
        let is_signed = matches!(self.signed_by, Ok(Some(_)) | Err(SignatureError::Stale));
        let request_time = self.query.request_time.as_deref().filter(|_| is_signed)?;
        let signed_at: i64 = request_time.parse().ok()?;
        let millis = signed_at.saturating_mul(1000);
        let skew = millis.saturating_sub(self.received_at.as_millis());
        Some(SignedDuration::from_millis(skew))
    }

    /// The application of a recall that may become an event.
    pub(super) fn admit(&self) -> Result<u64, AuthError> {
        self.source?;
        let sdk_app_id = self.auth.application(&self.query)?;
        self.signed_by.map_err(AuthError::Signature)?;
        Ok(sdk_app_id)
    }
}
