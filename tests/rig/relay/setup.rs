//! How a relay is started.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use nix::pty::openpty;
use tempfile::TempDir;

use super::super::{Faults, until};
use super::lines::Lines;
use super::{APP, Relay};

/// A folder for a spool, and the settings of the relays that are started on it.
#[derive(Clone)]
pub struct Setup {
    folder: Arc<TempDir>,
    environment: Vec<(String, String)>,
    open_files: Option<u64>,
    passed: Option<Passed>,
}

/// A socket that is passed to the relay under one or more names.
#[derive(Clone)]
struct Passed {
    socket: Arc<OwnedFd>,
    names: Vec<String>,
}

impl Setup {
    /// Only the settings that isolate a test.
    pub fn new() -> Self {
        Self::on(TempDir::new().unwrap())
    }

    /// Like [`Self::new`], in this folder.
    pub fn on(folder: TempDir) -> Self {
        let folder = Arc::new(folder);
        let spool = folder.path().join("data/spool.db");
        Self {
            folder,
            environment: Vec::new(),
            open_files: None,
            passed: None,
        }
        .set("RECALL_SDK_APP_IDS", &APP.to_string())
        .set("RECALL_HTTP__LISTEN", "127.0.0.1:0")
        .set("RECALL_ADMIN__LISTEN", "127.0.0.1:0")
        .set("RECALL_SPOOL__PATH", spool.to_str().unwrap())
        .set("RECALL_SPOOL__RESERVE", "0")
        .set("RECALL_LOG__FORMAT", "json")
    }

    pub fn set(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The same setup, without a setting.
    pub fn without(mut self, name: &str) -> Self {
        self.environment.retain(|(known, _)| known != name);
        self
    }

    /// The same setup, with one more setting.
    pub fn with(&self, name: &str, value: &str) -> Self {
        self.clone().set(name, value)
    }

    /// The same setup, on a disk with these faults.
    pub fn with_faults(&self, faults: &Faults) -> Self {
        let mut setup = self.clone();
        for (name, value) in faults.environment(self.folder.path()) {
            setup = setup.set(name, &value);
        }
        setup
    }

    /// The same setup, with this hard limit of open files.
    pub fn with_open_files(&self, limit: u64) -> Self {
        Self {
            open_files: Some(limit),
            ..self.clone()
        }
    }

    /// The same setup, with a socket that is passed as systemd does it, once under each of these names.
    pub fn with_socket(&self, socket: impl Into<OwnedFd>, names: &[&str]) -> Self {
        let passed = Passed {
            socket: Arc::new(socket.into()),
            names: names.iter().map(ToString::to_string).collect(),
        };
        Self {
            passed: Some(passed),
            ..self.clone()
        }
    }

    /// The folder for everything that the relays write.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn spool(&self) -> PathBuf {
        self.folder.path().join("data/spool.db")
    }

    /// The program with these arguments, and with only the settings in its environment.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = match self.open_files {
            _ if self.passed.is_some() => Command::new("sh"),
            Some(limit) => {
                let mut limited = Command::new("prlimit");
                limited
                    .arg(format!("--nofile={limit}:{limit}"))
                    .arg(program());
                limited
            }
            None => Command::new(program()),
        };
        command
            .current_dir(self.folder.path())
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null());
        if let Some(passed) = &self.passed {
            passed.add_to(&mut command);
        }
        command.args(arguments);
        command
    }

    /// Runs a command; returns its exit code, stdout and stderr.
    pub fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        let output = self.command(arguments).output().unwrap();
        (
            output.status.code().unwrap_or(-1),
            String::from_utf8(output.stdout).unwrap(),
            String::from_utf8(output.stderr).unwrap(),
        )
    }

    /// Starts the relay and waits until it is ready, or reports why it is not.
    pub fn start(&self) -> Relay {
        let mut relay = self.launch();
        let ready = until("the relay to be ready", || {
            if let Some(status) = relay.child.try_wait().unwrap() {
                panic!("the relay ended: {status}\n{}", relay.log.all().join("\n"));
            }
            relay
                .log_entry("ready")
                .or_else(|| relay.log_entry("not_ready"))
        });
        let address = |name: &str| ready[name].as_str().unwrap().parse().unwrap();
        (relay.callbacks, relay.admin) = (address("callbacks"), address("admin"));
        relay
    }

    /// Starts the relay without waiting until it is ready: its addresses are not known yet.
    pub fn launch(&self) -> Relay {
        let (log, stderr) = io::pipe().unwrap();
        self.launch_with_log(log, stderr)
    }

    /// Like [`Self::launch`]; the log is written to a terminal.
    pub fn launch_on_terminal(&self) -> Relay {
        let terminal = openpty(None, None).unwrap();
        self.launch_with_log(File::from(terminal.master), terminal.slave)
    }

    /// `log` reads what is written to `stderr`.
    fn launch_with_log(&self, log: impl Read + Send + 'static, stderr: impl Into<Stdio>) -> Relay {
        let mut command = self.command(&[]);
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .unwrap();
        // Close our copy of its stderr: otherwise the end of its log would not be seen.
        drop(command);
        let (stdout, lines) = (Lines::default(), Lines::default());
        stdout.collect_from(child.stdout.take().unwrap());
        lines.collect_from(log);
        Relay {
            _folder: Arc::clone(&self.folder),
            child,
            stdout,
            log: lines,
            callbacks: SocketAddr::from(([127, 0, 0, 1], 0)),
            admin: SocketAddr::from(([127, 0, 0, 1], 0)),
        }
    }
}

impl Passed {
    /// Lets a shell, whose process becomes the relay's, move the socket from standard input to where systemd puts it.
    fn add_to(&self, shell: &mut Command) {
        let count = self.names.len();
        let copies: Vec<_> = (3..3 + count).map(|fd| format!("{fd}<&0")).collect();
        let copies = copies.join(" ");
        let script = format!(
            "exec {copies}; LISTEN_PID=$$ LISTEN_FDS={count} exec \"$0\" \"$@\" < /dev/null"
        );
        let socket = self.socket.try_clone().unwrap();
        shell.arg("-c").arg(script).arg(program()).stdin(socket);
        shell.env("LISTEN_FDNAMES", self.names.join(":"));
    }
}

/// The program under test: `RECALL_TEST_RELAY`, otherwise the one that was built with the tests.
fn program() -> OsString {
    std::env::var_os("RECALL_TEST_RELAY")
        .unwrap_or_else(|| env!("CARGO_BIN_EXE_recall-relay").into())
}
