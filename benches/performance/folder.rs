//! The benchmark's temporary folder on the measured disk. It is removed at the end; leftovers of a killed run are
//! removed by the next run.

use std::fs;
use std::path::Path;
use std::process;

use tempfile::TempDir;

const PREFIX: &str = "recall-bench-";

/// Creates this process's folder in `within`, and removes the folders of processes that no longer run.
pub fn make(within: &Path) -> TempDir {
    for entry in fs::read_dir(within)
        .expect("cannot list RECALL_BENCH_FOLDER")
        .flatten()
    {
        let name = entry.file_name();
        let suffix = name
            .to_str()
            .and_then(|it| it.strip_prefix(PREFIX)?.split_once('.'));
        if suffix.is_some_and(|(process, _)| !Path::new("/proc").join(process).exists()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    let prefix = format!("{PREFIX}{}.", process::id());
    TempDir::with_prefix_in(prefix, within).expect("cannot create a folder on the measured disk")
}
