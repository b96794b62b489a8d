//! The options of the matrix (form, load and seed), from environment variables.

use std::env;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// How long each scenario runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// All scenarios take a few minutes, with each fault a few times.
    Short,
    /// For the results that the documents quote.
    Long,
}

#[derive(Debug, Clone, Copy)]
pub struct Options {
    pub form: Form,
    pub conversations: u32,
    /// Callbacks per second, over all conversations.
    pub rate: u32,
    pub seed: u64,
}

impl Options {
    pub fn read() -> Self {
        let form = match variable::<String>("RECALL_TEST_MATRIX").as_deref() {
            None | Some("short") => Form::Short,
            Some("long") => Form::Long,
            Some(other) => panic!("RECALL_TEST_MATRIX is {other:?}, not short or long"),
        };
        Self {
            form,
            conversations: variable("RECALL_TEST_CONVERSATIONS").unwrap_or(64),
            rate: variable("RECALL_TEST_RATE").unwrap_or(400),
            seed: variable("RECALL_TEST_SEED").unwrap_or_else(|| fastrand::u64(..1_000_000)),
        }
    }
}

/// The folder for the tables.
pub fn output_folder() -> PathBuf {
    variable("RECALL_TEST_MATRIX_OUTPUT").unwrap_or_else(|| {
        let scratch = Path::new(env!("CARGO_TARGET_TMPDIR"));
        scratch.parent().expect("no target folder").join("matrix")
    })
}

fn variable<T: FromStr>(name: &str) -> Option<T> {
    let text = env::var_os(name)?.into_string().ok()?;
    let value = text.parse();
    Some(value.unwrap_or_else(|_| panic!("{name} is not valid: {text:?}")))
}
