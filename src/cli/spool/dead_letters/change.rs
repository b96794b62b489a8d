//! `recall-relay spool dead-letters retry` and `drop`.

mod request;

use std::collections::BTreeSet;
use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;

use anyhow::{Context as _, anyhow, bail};
use clap::error::ErrorKind;

use super::batches::batches;
use super::print;
use super::selection::Selection;
use crate::cli::{examples, output};
use crate::config::Config;
use crate::control::{DeadLetterKey, Progress};
use crate::spool::{Inspector, KeptDeadLetter};
use crate::telemetry;

/// Publishes the selected dead letters again.
pub(super) fn retry(selection: &Selection, config: &Config) -> anyhow::Result<ExitCode> {
    let mut keys = BTreeSet::new();
    let inspector = Inspector::open(&config.spool)?;
    selection.for_each_page(&inspector, |page| {
        keys.extend(page.iter().map(key));
        Ok(())
    })?;
    let configured = config.sink_names();
    if let Some(key) = keys.iter().find(|key| !configured.contains(&&*key.sink)) {
        bail!(
            "{sink} is not configured, so its dead letters cannot be published; configure it, select those of another \
             sink with --sink, or delete them with `recall-relay spool dead-letters drop --all --sink {sink}`",
            sink = key.sink
        );
    }
    let progress = in_batches(&keys, "published", |keys| request::retry(config, keys))?;
    if progress.done > 0 {
        telemetry::say(&format!("{} dead letters were published", progress.done));
    }
    if progress.refused > 0 {
        bail!(
            "{} events were refused again and stay dead letters; to see why, run \
             `recall-relay spool dead-letters list`",
            progress.refused
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints the selected dead letters and deletes them, after a question unless `yes` is set.
pub(super) fn drop(selection: &Selection, yes: bool, config: &Config) -> anyhow::Result<ExitCode> {
    let can_ask = io::stdin().is_terminal() && io::stderr().is_terminal();
    if !yes && !can_ask {
        let problem = "nobody can be asked, because standard input or standard error is not a terminal; \
                       to delete the dead letters without a question, add --yes";
        let error = examples::command().error(ErrorKind::MissingRequiredArgument, problem);
        return Err(error.into());
    }
    let mut keys = BTreeSet::new();
    let mut out = output::stdout();
    let inspector = Inspector::open(&config.spool)?;
    selection.for_each_page(&inspector, |page| {
        keys.extend(page.iter().map(key));
        // Even a closed standard output is a failure here: nothing is deleted.
        let printed = print::print_table(&mut out, page);
        printed.map_err(|error| anyhow!("nothing was deleted: {error}"))
    })?;
    if !keys.is_empty() && !yes && !confirmed(keys.len())? {
        bail!("nothing was deleted");
    }
    let progress = in_batches(&keys, "deleted", |keys| request::drop(config, keys))?;
    if progress.done > 0 {
        telemetry::say(&format!("{} dead letters were deleted", progress.done));
    }
    Ok(ExitCode::SUCCESS)
}

fn key(dead_letter: &KeptDeadLetter) -> DeadLetterKey {
    DeadLetterKey {
        sink: dead_letter.sink.clone(),
        seq: dead_letter.seq.0,
    }
}

/// Asks on the terminal.
fn confirmed(count: usize) -> anyhow::Result<bool> {
    let mut terminal = io::stderr();
    write!(
        terminal,
        "Delete these {count} dead letters? No subscriber will get their events. [y/N] "
    )?;
    terminal.flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(is_yes(&answer))
}

fn is_yes(answer: &str) -> bool {
    matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

/// Sends batch after batch, and adds up what became of them. `done` says what has happened to those that were handled.
fn in_batches(
    keys: &BTreeSet<DeadLetterKey>,
    done: &str,
    mut send: impl FnMut(Vec<DeadLetterKey>) -> anyhow::Result<Progress>,
) -> anyhow::Result<Progress> {
    if keys.is_empty() {
        telemetry::say("the spool keeps no such dead letter");
    }
    let mut sum = Progress {
        total: keys.len() as u64,
        ..Progress::default()
    };
    for batch in batches(keys) {
        let progress = send(batch)
            .with_context(|| format!("{} of {} dead letters were {done}", sum.done, sum.total))?;
        sum.done += progress.done;
        sum.refused += progress.refused;
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_yes_is_yes() {
        for (answer, expected) in [
            ("y\n", true),
            ("Yes\r\n", true),
            ("", false),
            ("\n", false),
            ("n\n", false),
            ("yeah\n", false),
        ] {
            assert_eq!(is_yes(answer), expected, "{answer:?}");
        }
    }

    #[test]
    fn batches_are_added_up_and_an_error_says_how_far_they_came() {
        let keys: BTreeSet<_> = (1..=600)
            .map(|seq| DeadLetterKey {
                sink: "kafka".to_owned(),
                seq,
            })
            .collect();
        let sum = in_batches(&keys, "published", |batch| {
            Ok(Progress {
                done: batch.len() as u64 - 1,
                refused: 1,
                ..Progress::default()
            })
        })
        .unwrap();
        assert_eq!((sum.done, sum.refused, sum.total), (598, 2, 600));

        let error = in_batches(&keys, "published", |batch| match batch.len() {
            500 => Ok(Progress {
                done: 500,
                ..Progress::default()
            }),
            _ => bail!("the relay has stopped"),
        });
        let error = telemetry::chain(error.unwrap_err().as_ref());
        assert_eq!(
            error,
            "500 of 600 dead letters were published: the relay has stopped"
        );
    }
}
