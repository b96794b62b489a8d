//! The one node of a broker, with the verbs of its operator and those of an accident.
//!
//! The only file that knows where brokers come from: processes of this machine, or containers. Both
//! run the scripts of `tests/brokers/` on a folder, and both are gone when the test process is, however
//! that ends: a leash holds a pipe from it (`tests/brokers/leash`).

use std::{
    env, fs,
    net::TcpListener,
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

/// How long a broker may take to come up or to stop, on a machine that is busy with other things.
const TIMEOUT: Duration = Duration::from_secs(120);

/// In the environment of all that belongs to a broker: its folder. The scripts read it, and the leash
/// finds processes by it.
const FOLDER: &str = "RECALL_TEST_BROKER";

pub(super) struct Node {
    service: Service,
    folder: PathBuf,
    home: Home,
    leash: Child,
}

/// As `compose.yml` calls them.
#[derive(Clone, Copy)]
pub(super) enum Service {
    Kafka,
    RabbitMq,
}

enum Home {
    /// Leader of a process group of its own.
    Process(Option<Child>),
    /// A compose project named after the folder.
    Container,
}

impl Node {
    /// Makes the broker's folder. Nothing runs yet.
    ///
    /// # Panics
    ///
    /// When the tests were not started by `tests/run`.
    pub(super) fn new(service: Service) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);

        let home = match setting("RECALL_TEST_BROKERS").as_str() {
            "native" => Home::Process(None),
            "docker" => Home::Container,
            other => panic!("RECALL_TEST_BROKERS is {other:?}: native or docker"),
        };
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = PathBuf::from(setting("RECALL_TEST_RUN")).join(format!(
            "recall-{}-{}-{number}",
            service.name(),
            process::id()
        ));
        fs::create_dir(&folder).expect("the broker's folder");
        let leash = Command::new(script("leash"))
            .arg(&folder)
            .stdin(Stdio::piped())
            .process_group(0)
            .spawn()
            .expect("tests/brokers/leash");
        Self {
            service,
            folder,
            home,
            leash,
        }
    }

    /// Writes a file into the broker's folder.
    pub(super) fn write(&self, name: &str, content: &str) {
        fs::write(self.folder.join(name), content).expect("a file of the broker");
    }

    /// A file or folder of the broker.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Starts it on what the folder has, and waits until `ready` says so.
    pub(super) fn launch(&mut self, mut ready: impl FnMut() -> bool) {
        assert!(!self.runs(), "{} runs already", self.service.name());
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
            *child = Some(started.expect("the broker's start script"));
        } else {
            self.compose(&["up", "--detach", self.service.name()]);
        }
        let up = poll(TIMEOUT, || {
            assert!(
                self.runs(),
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

    /// Stops it as an operator does. Frozen, it is thawed for it.
    pub(super) fn stop(&mut self) {
        if let Home::Process(_) = self.home {
            self.signal(Signal::SIGTERM);
            self.signal(Signal::SIGCONT);
            let stopped = poll(TIMEOUT, || !self.runs());
            assert!(
                stopped,
                "{} does not stop:\n{}",
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
        let killed = poll(TIMEOUT, || !self.runs());
        assert!(killed, "{} survives being killed", self.service.name());
    }

    /// Stops its clock: connections stay open, and nobody answers.
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

    /// Runs a script of `tests/brokers/` beside the broker; what it printed.
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

    /// Whether it runs; reaps it if it does not.
    pub(super) fn runs(&mut self) -> bool {
        match &mut self.home {
            Home::Process(None) => false,
            Home::Process(Some(child)) => {
                let ended = child.try_wait().expect("the broker's process").is_some();
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
            panic!("{} does not run", self.service.name());
        };
        let group = Pid::from_raw(i32::try_from(child.id()).expect("a process id"));
        killpg(group, signal).expect("a signal to the broker");
    }

    fn compose(&self, words: &[&str]) -> String {
        let project = self.folder.file_name().expect("a folder has a name");
        let mut command = Command::new("docker");
        command
            .arg("compose")
            .arg("--file")
            .arg(script("compose.yml"));
        command.arg("--project-name").arg(project).args(words);
        output(command.env(FOLDER, &self.folder))
    }

    /// The end of what the broker has logged.
    fn log(&self) -> String {
        let bytes = fs::read(self.folder.join("log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        drop(self.leash.stdin.take());
        let _ = self.leash.wait();
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

    /// The script that starts it, as `compose.yml` has it for the containers.
    fn start(self) -> (PathBuf, &'static [&'static str]) {
        match self {
            Self::Kafka => (script("kafka/start"), &[]),
            Self::RabbitMq => (script("rabbitmq/node"), &["start"]),
        }
    }
}

/// A free port of the loopback, for a broker to keep over its restarts.
///
/// Below those that the kernel gives out: while the broker is away, a client's own end could get its
/// port, or even reach itself there.
pub fn free_port() -> u16 {
    static COUNT: AtomicU32 = AtomicU32::new(0);

    loop {
        // Test processes that run at the same time begin at different places.
        let number = process::id() * 37 + COUNT.fetch_add(1, Ordering::Relaxed);
        let port = 20_000 + u16::try_from(number % 12_000).expect("less than 12,000");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Asks again and again; whether it became true in time.
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

/// Runs async work to its end, in sync tests and (blocking the caller) in async ones.
pub(super) fn block_on<T: Send>(work: impl AsyncFnOnce() -> T + Send) -> T {
    let run = || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.expect("a runtime").block_on(work())
    };
    thread::scope(|scope| scope.spawn(run).join())
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn setting(name: &str) -> String {
    let Some(value) = env::var_os(name) else {
        panic!(
            "this test speaks to a real broker: run tests/run, which finds or fetches Kafka and RabbitMQ \
             and then runs cargo test with its arguments ({name} is not set)"
        );
    };
    value.into_string().expect("a setting of tests/run is text")
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/brokers")
        .join(name)
}

/// What a command that must succeed has printed.
fn output(command: &mut Command) -> String {
    let output = command
        .stdin(Stdio::null())
        .output()
        .expect("a command of the rig");
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
