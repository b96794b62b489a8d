//! A process under measurement, and what it has used.

use std::env;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::{SysconfVar, sysconf};
use serde_json::Value;

use super::cores::{Cores, Place};
use super::rig::{Connection, Setup, free_port, recall};
use super::wait::wait;

/// How long a server may take to start.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Between two questions to a relay: little against a round, and rare enough not to show in its CPU time.
pub const PAUSE: Duration = Duration::from_millis(20);

/// A running server; killed when dropped.
pub struct Server {
    child: Child,
    pub address: SocketAddr,
    admin: Option<SocketAddr>,
    began: Instant,
    log: PathBuf,
    /// Holds the folder.
    _setup: Setup,
}

/// What a process has used so far.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    /// User and system.
    pub cpu: Duration,
    /// Bytes that went to a disk.
    pub written: u64,
}

/// Where a sink stands.
#[derive(Debug, Clone, Copy)]
pub struct Position {
    pub cursor: u64,
    pub lag: u64,
    /// Events in the spool, also those that the sink has confirmed.
    pub kept: u64,
}

impl Server {
    /// The bare server, once it answers.
    pub fn bare(setup: Setup, cores: &Cores) -> Self {
        let mut command = Command::new(env::current_exe().expect("this program"));
        let address = free_address();
        command.arg("bare").arg(address.to_string());
        let mut server = Self::spawn(command, setup, (address, None), cores, Place::Server);
        server.until_answers();
        server
    }

    /// A relay, once it answers.
    pub fn relay(setup: Setup, cores: &Cores, place: Place) -> Self {
        let mut server = Self::launch(setup, cores, place);
        server.until_answers();
        server
    }

    /// A relay that was started just now.
    pub fn launch(setup: Setup, cores: &Cores, place: Place) -> Self {
        let (address, admin) = (free_address(), free_address());
        let setup = setup
            .set("RECALL_HTTP__LISTEN", &address.to_string())
            .set("RECALL_ADMIN__LISTEN", &admin.to_string());
        let command = setup.command(&[]);
        Self::spawn(command, setup, (address, Some(admin)), cores, place)
    }

    fn spawn(
        mut command: Command,
        setup: Setup,
        (address, admin): (SocketAddr, Option<SocketAddr>),
        cores: &Cores,
        place: Place,
    ) -> Self {
        let log = setup.folder().join("log");
        let file = File::create(&log).expect("the log");
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file);
        let began = Instant::now();
        let child = cores.on(place, || command.spawn()).expect("a server");
        Self {
            child,
            address,
            admin,
            began,
            log,
            _setup: setup,
        }
    }

    /// Waits until a callback is answered OK; returns how long that took from the start.
    pub fn until_answers(&mut self) -> Duration {
        let body = recall("first", 1);
        let answers = wait(TIMEOUT, Duration::from_millis(2), || {
            if let Some(status) = self.child.try_wait().expect("the server's process") {
                panic!("the server ended: {status}");
            }
            let answer = Connection::open(self.address).and_then(|mut it| it.post_recall(&body));
            answer.is_ok_and(|answer| answer.is_ok())
        });
        assert!(answers, "the server does not answer");
        self.began.elapsed()
    }

    pub fn usage(&self) -> Usage {
        let stat = self.proc("stat");
        // The name, in brackets, may have spaces.
        let (_, fields) = stat.rsplit_once(')').expect("/proc/PID/stat");
        let mut fields = fields.split_whitespace().skip(11);
        let mut ticks = || -> u64 { fields.next().expect("times").parse().expect("ticks") };
        let ticks = ticks() + ticks();
        let in_a_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
        Usage {
            cpu: Duration::from_secs_f64(ticks as f64 / in_a_second as f64),
            written: number(&self.proc("io"), "write_bytes:"),
        }
    }

    /// The largest resident set since it was forgotten, in bytes.
    pub fn peak_memory(&self) -> u64 {
        number(&self.proc("status"), "VmHWM:") * 1024
    }

    pub fn forget_peak_memory(&self) {
        fs::write(format!("/proc/{}/clear_refs", self.child.id()), "5").expect("a peak to forget");
    }

    /// Where a sink stands; none where there is no such sink, or nobody to ask.
    pub fn position(&self, sink: &str) -> Option<Position> {
        let mut connection = Connection::open(self.admin?).ok()?;
        let answer = connection.request("GET", "/readyz", b"").ok()?;
        let body: Value = serde_json::from_slice(&answer.body).ok()?;
        let sink = &body["sinks"][sink];
        Some(Position {
            cursor: sink["cursor"].as_u64()?,
            lag: sink["lag"].as_u64()?,
            kept: body["spool"]["events"].as_u64()?,
        })
    }

    /// Waits until a sink stands where it is wanted.
    pub fn until_sink(
        &self,
        sink: &str,
        limit: Duration,
        wanted: impl Fn(Position) -> bool,
    ) -> Position {
        let mut last = None;
        let there = wait(limit, PAUSE, || {
            last = self.position(sink);
            last.is_some_and(&wanted)
        });
        assert!(there, "{sink} stands at {last:?} after {limit:?}");
        last.expect("a position")
    }

    fn proc(&self, name: &str) -> String {
        let path = format!("/proc/{}/{name}", self.child.id());
        fs::read_to_string(path).expect("a server that runs")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if thread::panicking() {
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let last = &lines[lines.len().saturating_sub(20)..];
            eprintln!("--- log of the server\n{}", last.join("\n"));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_address() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()))
}

/// The number after a name in a file of lines.
fn number(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let line = line.unwrap_or_else(|| panic!("{name} in {text}")).trim();
    line.trim_end_matches(" kB").parse().expect("a number")
}
