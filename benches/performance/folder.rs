//! Where the bench works: a folder on the disk that is measured. It is gone at the end; what a run that was killed
//! has left is removed by the next one.

use std::fs;
use std::path::Path;
use std::process;

use tempfile::TempDir;

const PREFIX: &str = "recall-bench-";

/// A folder of this process, in this one.
pub fn make(within: &Path) -> TempDir {
    for entry in fs::read_dir(within).expect("RECALL_BENCH_FOLDER").flatten() {
        let name = entry.file_name();
        let of = name
            .to_str()
            .and_then(|it| it.strip_prefix(PREFIX)?.split_once('.'));
        if of.is_some_and(|(process, _)| !Path::new("/proc").join(process).exists()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    let prefix = format!("{PREFIX}{}.", process::id());
    TempDir::with_prefix_in(prefix, within).expect("a folder on the disk that is measured")
}
