//! recall-relay.
pub mod callback;
pub mod event;
pub mod setting;
pub mod spool;
