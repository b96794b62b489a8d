//! A broker with a single node: starts, stops, kills and freezes it.
//!
//! This is the only file that knows how brokers run: as processes on this machine or as containers. Both run the
//! scripts of `tests/brokers/` on a folder, and both end with the test process, however it ends:
//! `tests/brokers/watchdog` watches a pipe from it.

use std::{
    env, fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{self, Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::net::TcpSocket;

/// How long a broker may take to start or to stop, on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(120);

/// The environment variable with a broker's folder, set for all its processes. The scripts read it, and the watchdog
/// finds the processes by it.
const FOLDER: &str = "RECALL_TEST_BROKER";

pub(super) struct Node {
    service: Service,
    folder: PathBuf,
    home: Home,
    watchdog: Child,
}

/// The services, with their names in `compose.yml`.
#[derive(Clone, Copy)]
pub(super) enum Service {
    Kafka,
    RabbitMq,
}

enum Home {
    /// The leader of its own process group.
    Process(Option<Child>),
    /// A compose project named after the folder.
    Container,
}

impl Node {
    /// Creates the broker's folder. Does not start the broker.
    ///
    /// # Panics
    ///
    /// If the tests were not started by `tests/run`.
    pub(super) fn new(service: Service) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);

        let home = match setting("RECALL_TEST_BROKERS").as_str() {
            "native" => Home::Process(None),
            "docker" => Home::Container,
            other => panic!("RECALL_TEST_BROKERS is {other:?}, not native or docker"),
        };
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = PathBuf::from(setting("RECALL_TEST_RUN")).join(format!(
            "recall-{}-{}-{number}",
            service.name(),
            process::id()
        ));
        fs::create_dir(&folder).expect("cannot create the broker's folder");
        let watchdog = Command::new(script("watchdog"))
            .arg(&folder)
            .stdin(Stdio::piped())
            .process_group(0)
            .spawn()
            .expect("cannot start tests/brokers/watchdog");
        Self {
            service,
            folder,
            home,
            watchdog,
        }
    }

    /// Writes a file into the broker's folder.
    pub(super) fn write(&self, name: &str, content: &str) {
        fs::write(self.folder.join(name), content).expect("cannot write a broker's file");
    }

    /// The path of a file or folder of the broker.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Starts the broker on the data in its folder, and waits until `ready` returns true.
    pub(super) fn launch(&mut self, mut ready: impl FnMut() -> bool) {
        assert!(
            !self.is_running(),
            "{} is already running",
            self.service.name()
        );
        if let Home::Process(child) = &mut self.home {
            let (script, arguments) = self.service.start();
            let started = Command::new(script)
                .args(arguments)
                .env(FOLDER, &self.folder)
                .process_group(0)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn();
            *child = Some(started.expect("cannot start the broker"));
        } else {
            self.compose(&["up", "--detach", self.service.name()]);
        }
        let up = poll(TIMEOUT, || {
            assert!(
                self.is_running(),
                "{} ended instead of starting:\n{}",
                self.service.name(),
                self.log()
            );
            ready()
        });
        assert!(
            up,
            "{} is not up after {TIMEOUT:?}:\n{}",
            self.service.name(),
            self.log()
        );
    }

    /// Stops the broker with SIGTERM, even if it is frozen.
    pub(super) fn stop(&mut self) {
        if let Home::Process(_) = self.home {
            self.signal(Signal::SIGTERM);
            self.signal(Signal::SIGCONT);
            let stopped = poll(TIMEOUT, || !self.is_running());
            assert!(
                stopped,
                "{} did not stop:\n{}",
                self.service.name(),
                self.log()
            );
        } else {
            self.compose(&["stop", self.service.name()]);
        }
    }

    pub(super) fn kill(&mut self) {
        if let Home::Process(child) = &self.home {
            if child.is_some() {
                self.signal(Signal::SIGKILL);
            }
        } else {
            self.compose(&["kill", self.service.name()]);
        }
        let killed = poll(TIMEOUT, || !self.is_running());
        assert!(
            killed,
            "{} is still running after SIGKILL",
            self.service.name()
        );
    }

    /// Kills the broker and deletes its data.
    pub(super) fn lose(&mut self) {
        self.kill();
        fs::remove_dir_all(self.path("data")).expect("cannot delete the broker's data");
    }

    /// Pauses the broker: connections stay open, but it does not answer.
    pub(super) fn freeze(&self) {
        if let Home::Process(_) = self.home {
            self.signal(Signal::SIGSTOP);
        } else {
            self.compose(&["pause", self.service.name()]);
        }
    }

    pub(super) fn thaw(&self) {
        if let Home::Process(_) = self.home {
            self.signal(Signal::SIGCONT);
        } else {
            self.compose(&["unpause", self.service.name()]);
        }
    }

    /// Runs a script of `tests/brokers/` beside the broker; returns its output.
    pub(super) fn run_script(&self, name: &str, arguments: &[&str]) -> String {
        if let Home::Process(_) = self.home {
            let mut command = Command::new(script(name));
            output(command.args(arguments).env(FOLDER, &self.folder))
        } else {
            let inside = format!("/brokers/{name}");
            let words = ["exec", "-T", self.service.name(), "sh", &inside];
            self.compose(&[&words, arguments].concat())
        }
    }

    /// Whether the broker is running; reaps its process if it is not.
    pub(super) fn is_running(&mut self) -> bool {
        match &mut self.home {
            Home::Process(None) => false,
            Home::Process(Some(child)) => {
                let ended = child.try_wait().expect("cannot wait for it").is_some();
                if ended {
                    self.home = Home::Process(None);
                }
                !ended
            }
            Home::Container => {
                let running = ["ps", "--quiet", "--status", "running", "--status", "paused"];
                !self.compose(&running).is_empty()
            }
        }
    }

    fn signal(&self, signal: Signal) {
        let Home::Process(Some(child)) = &self.home else {
            panic!("{} is not running", self.service.name());
        };
        let group = Pid::from_raw(i32::try_from(child.id()).expect("invalid process id"));
        killpg(group, signal).expect("cannot signal the broker");
    }

    fn compose(&self, words: &[&str]) -> String {
        let project = self.folder.file_name().expect("the folder has no name");
        let mut command = Command::new("docker");
        command
            .arg("compose")
            .arg("--file")
            .arg(script("compose.yml"));
        command.arg("--project-name").arg(project).args(words);
        output(command.env(FOLDER, &self.folder))
    }

    /// The end of the broker's log.
    fn log(&self) -> String {
        let bytes = fs::read(self.folder.join("log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        drop(self.watchdog.stdin.take());
        let _ = self.watchdog.wait();
        if let Home::Process(Some(child)) = &mut self.home {
            let _ = child.wait();
        }
    }
}

impl Service {
    fn name(self) -> &'static str {
        match self {
            Self::Kafka => "kafka",
            Self::RabbitMq => "rabbitmq",
        }
    }

    /// The script that starts the broker, the same as in `compose.yml`.
    fn start(self) -> (PathBuf, &'static [&'static str]) {
        match self {
            Self::Kafka => (script("kafka/start"), &[]),
            Self::RabbitMq => (script("rabbitmq/node"), &["start"]),
        }
    }
}

/// A free port on the loopback interface, which a broker keeps across restarts.
///
/// It is below the kernel's ephemeral range: otherwise, while the broker is down, a client could get the broker's port
/// as its local port, and even connect to itself.
pub fn free_port() -> u16 {
    static COUNT: AtomicU32 = AtomicU32::new(0);

    loop {
        // Test processes that run at the same time start at different ports.
        let number = process::id() * 37 + COUNT.fetch_add(1, Ordering::Relaxed);
        let port = 20_000 + u16::try_from(number % 12_000).expect("less than 12,000");
        if is_free(port) {
            return port;
        }
    }
}

/// Whether nothing listens on a port of the loopback interface.
///
/// The socket is bound, but does not listen: a process that another thread starts at this moment has a copy of it until
/// it executes its program, and if that copy listened, nobody could bind the port meanwhile.
fn is_free(port: u16) -> bool {
    let socket = TcpSocket::new_v4().expect("cannot create a socket");
    socket.set_reuseaddr(true).expect("cannot set SO_REUSEADDR");
    socket.bind(([127, 0, 0, 1], port).into()).is_ok()
}

/// Polls a condition; returns whether it became true in time.
#[expect(
    clippy::disallowed_methods,
    reason = "a condition with a deadline, and nothing that would wake us"
)]
pub fn poll(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    loop {
        if condition() {
            return true;
        }
        if start.elapsed() > limit {
            return false;
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// Runs async work to completion on a new thread and blocks the caller meanwhile, so async tests may call it, too.
pub(super) fn block_on<T: Send>(work: impl AsyncFnOnce() -> T + Send) -> T {
    let run = || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.expect("cannot start a runtime").block_on(work())
    };
    thread::scope(|scope| scope.spawn(run).join())
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// A variable that `tests/run` sets.
///
/// # Panics
///
/// If it is not set.
pub(super) fn setting(name: &str) -> String {
    let Some(value) = env::var_os(name) else {
        panic!(
            "this test needs a real broker: run tests/run, which finds or fetches Kafka and RabbitMQ \
             and then runs cargo test with its arguments ({name} is not set)"
        );
    };
    value.into_string().expect("the setting is not UTF-8")
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/brokers")
        .join(name)
}

/// Runs a command that must succeed; returns its output.
fn output(command: &mut Command) -> String {
    let output = command
        .stdin(Stdio::null())
        .output()
        .expect("cannot run the command");
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
