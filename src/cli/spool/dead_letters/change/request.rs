//! Requests about dead letters, of one sink each and in the order of their events.

use anyhow::bail;

use crate::cli::spool::resending;
use crate::config::Config;
use crate::control::client::{self, Reached};
use crate::control::{ControlCommand, DeadLetterKey, Progress, Reply};
use crate::event::Seq;

/// Publishes dead letters again.
pub(super) fn retry(config: &Config, keys: Vec<DeadLetterKey>) -> anyhow::Result<Progress> {
    let Some(sink) = keys.first().map(|key| key.sink.clone()) else {
        return Ok(Progress::default());
    };
    let seqs = keys.into_iter().map(|key| key.seq).collect();
    let relay = resending::connect(&config.spool)?;
    resending::execute(relay, &ControlCommand::Retry { sink, seqs })
}

/// Deletes dead letters.
pub(super) fn drop(config: &Config, keys: Vec<DeadLetterKey>) -> anyhow::Result<Progress> {
    match client::reach(&config.spool)? {
        Reached::Running(relay) => {
            let command = ControlCommand::Drop { dead_letters: keys };
            match relay.execute(&command, |_| ())? {
                Reply::Done(progress) => Ok(progress),
                _ => bail!(resending::OTHER_ANSWER),
            }
        }
        Reached::Stopped(mut offline) => {
            let total = keys.len() as u64;
            let keys: Vec<_> = keys
                .into_iter()
                .map(|key| (key.sink, Seq(key.seq)))
                .collect();
            let done = offline.remove_dead_letters(&keys)?;
            let skipped = total.saturating_sub(done);
            Ok(Progress {
                done,
                total,
                skipped,
                ..Progress::default()
            })
        }
    }
}
