//! Numbers the callbacks: which messages of which conversation each one recalls.
//!
//! No two callbacks recall the same message, and within a conversation `MsgSeq` increases by one from message to
//! message. So a subscriber can check for gaps, duplicates and order.

use jiff::Timestamp;

use super::order::{Order, Place};
use crate::vendor::{BodyFormat, CallbackKind, msg_id};

/// The time of the first callback of a repeatable run: 2022-12-09T08:26:54.123Z.
const REPEATABLE_START_MS: u64 = 1_670_574_414_123;

/// The source of `EventTime`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    /// The current time.
    Now,
    /// A fixed start plus one millisecond per callback: the same in every run.
    Repeatable,
}

/// Creates the callback of each number.
#[derive(Debug)]
pub struct Callbacks {
    /// The kinds to send, in turn.
    pub kinds: Vec<CallbackKind>,
    /// How the bodies are written.
    pub format: BodyFormat,
    /// Conversations of each kind.
    pub conversations: u64,
    /// Recalled messages per callback; a C2C callback always has one.
    pub messages: u64,
    /// The first `MsgSeq` of every conversation.
    pub first_seq: u64,
    /// Source of `EventTime`.
    pub clock: Clock,
}

/// One callback, before it is signed.
#[derive(Debug)]
pub struct Callback {
    /// What it reports.
    pub kind: CallbackKind,
    /// The request body.
    pub body: String,
}

impl Callbacks {
    /// How the callbacks are assigned to commands and conversations.
    pub fn order(&self) -> Order {
        Order {
            commands: self.kinds.len() as u64,
            conversations: self.conversations,
        }
    }

    /// Creates callback `number`.
    ///
    /// # Errors
    /// Fails if the system's clock is before 1970.
    pub fn make(&self, number: u64) -> anyhow::Result<Callback> {
        let Place {
            command,
            conversation,
            turn,
        } = self.order().place(number);
        let kind = self.kinds[usize::try_from(command)?];
        let at_ms = match self.clock {
            Clock::Now => u64::try_from(Timestamp::now().as_millisecond())?,
            Clock::Repeatable => REPEATABLE_START_MS + number,
        };
        let messages = match kind {
            CallbackKind::Group | CallbackKind::OfficialAccount => self.messages,
            _ => 1,
        };
        let first = self.first_seq + turn * messages;
        let seqs = first..first + messages;
        let format = &self.format;
        let group_id = format.group_id(conversation);
        let body = match kind {
            CallbackKind::Group => {
                let sender = 144_115_213_000_000_000 + conversation;
                format.group(&group_id, seqs, |seq| msg_id(sender, seq, at_ms), at_ms)
            }
            CallbackKind::C2c => {
                let user = |role| format!("{role}-{conversation}");
                format.c2c(&user("sender"), &user("receiver"), first, at_ms)
            }
            CallbackKind::OfficialAccount => {
                format.official_account(&format!("#TOA#_{conversation}"), seqs, at_ms)
            }
            CallbackKind::Probe => String::new(),
            CallbackKind::Other => format.other(&group_id, first),
            CallbackKind::Named(command) => command.body(format, conversation, first, at_ms),
        };
        Ok(Callback { kind, body })
    }
}

#[cfg(test)]
mod tests;
