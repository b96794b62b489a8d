//! Starts a real `HAProxy`.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Starts `HAProxy` with this configuration, which is written into `folder`.
pub fn start_haproxy(folder: &Path, config: &str, stdout: Stdio) -> Child {
    let path = folder.join("haproxy.cfg");
    fs::write(&path, config).unwrap();
    let process = Command::new("haproxy")
        .args(["-q", "-f"])
        .arg(path)
        .stdin(Stdio::null())
        .stdout(stdout)
        .spawn();
    process.expect("haproxy is missing: run tests/run, which installs it")
}
