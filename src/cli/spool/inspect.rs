//! `recall-relay spool status`, `list` and `show`: look into the spool without changing it.

mod list;
mod show;
mod status;

pub(super) use list::{ListArgs, list};
pub(super) use show::{ShowArgs, show};
pub(super) use status::{StatusArgs, status};
