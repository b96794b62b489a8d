//! A measured server process, and its resource usage.

use std::env;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::{SysconfVar, sysconf};
use serde_json::Value;

use super::cores::{CoreSet, Cores};
use super::rig::{Connection, Setup, free_port, recall};
use super::wait::wait;

/// The timeout for a server to start.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The interval between two requests to a relay: short compared with a round, and long enough not to affect its CPU
/// time.
pub const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// A running server; killed when dropped.
pub struct Server {
    child: Child,
    pub address: SocketAddr,
    admin: Option<SocketAddr>,
    began: Instant,
    log: PathBuf,
    /// Keeps the folder alive.
    _setup: Setup,
}

/// The resources that a process has used so far.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    /// User and system time.
    pub cpu: Duration,
    /// Bytes written to a disk.
    pub written: u64,
}

/// A sink's position.
#[derive(Debug, Clone, Copy)]
pub struct Position {
    pub cursor: u64,
    pub lag: u64,
    /// Events in the spool, including those that the sink has confirmed.
    pub spool_events: u64,
}

impl Server {
    /// Starts the bare server and waits until it answers.
    pub fn bare(setup: Setup, cores: &Cores, core_set: CoreSet) -> Self {
        let mut command = Command::new(env::current_exe().expect("cannot find this program"));
        let address = free_address();
        command.arg("bare").arg(address.to_string());
        let mut server = Self::spawn(command, setup, (address, None), cores, core_set);
        server.wait_for_answer();
        server
    }

    /// Starts nginx as a plain reverse proxy of a backend, and waits until it answers.
    pub fn nginx(setup: Setup, backend: SocketAddr, cores: &Cores) -> Self {
        let address = free_address();
        let folder = setup.folder().to_owned();
        let configuration = format!(
            "daemon off; master_process off; worker_processes 1; pid nginx.pid; error_log stderr;
             events {{ worker_connections 1024; }}
             http {{
                 access_log off;
                 keepalive_requests 1000000000;
                 upstream backend {{ server {backend}; keepalive 256; keepalive_requests 1000000000; }}
                 server {{
                     listen {address};
                     location / {{
                         proxy_pass http://backend;
                         proxy_http_version 1.1;
                         proxy_set_header Connection '';
                         proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
                     }}
                 }}
             }}"
        );
        let file = folder.join("nginx.conf");
        fs::write(&file, configuration).expect("cannot write nginx.conf");
        let mut command = Command::new("nginx");
        command.arg("-p").arg(&folder).arg("-c").arg(&file);
        let mut server = Self::spawn(command, setup, (address, None), cores, CoreSet::Server);
        server.wait_for_answer();
        server
    }

    /// Starts a relay and waits until it answers.
    pub fn relay(setup: Setup, cores: &Cores, core_set: CoreSet) -> Self {
        let mut server = Self::launch(setup, cores, core_set);
        server.wait_for_answer();
        server
    }

    /// Starts a relay without waiting until it answers.
    pub fn launch(setup: Setup, cores: &Cores, core_set: CoreSet) -> Self {
        let (address, admin) = (free_address(), free_address());
        let setup = setup
            .set("RECALL_HTTP__LISTEN", &address.to_string())
            .set("RECALL_ADMIN__LISTEN", &admin.to_string());
        let command = setup.command(&[]);
        Self::spawn(command, setup, (address, Some(admin)), cores, core_set)
    }

    fn spawn(
        mut command: Command,
        setup: Setup,
        (address, admin): (SocketAddr, Option<SocketAddr>),
        cores: &Cores,
        core_set: CoreSet,
    ) -> Self {
        let log = setup.folder().join("log");
        let file = File::create(&log).expect("cannot create the log file");
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file);
        let began = Instant::now();
        let child = cores
            .run_on(core_set, || command.spawn())
            .expect("cannot start the server");
        Self {
            child,
            address,
            admin,
            began,
            log,
            _setup: setup,
        }
    }

    /// Waits until a callback is answered OK; returns the time since the start of the process.
    pub fn wait_for_answer(&mut self) -> Duration {
        let body = recall("first", 1);
        let answers = wait(TIMEOUT, Duration::from_millis(2), || {
            if let Some(status) = self
                .child
                .try_wait()
                .expect("cannot check the server's process")
            {
                panic!("the server exited: {status}");
            }
            let answer = Connection::open(self.address).and_then(|mut it| it.post_recall(&body));
            answer.is_ok_and(|answer| answer.is_ok())
        });
        assert!(answers, "the server did not answer within {TIMEOUT:?}");
        self.began.elapsed()
    }

    pub fn usage(&self) -> Usage {
        let stat = self.proc("stat");
        // The process name, in parentheses, may contain spaces.
        let (_, fields) = stat.rsplit_once(')').expect("/proc/PID/stat is malformed");
        let mut fields = fields.split_whitespace().skip(11);
        let mut next = || -> u64 {
            let ticks = fields.next().expect("/proc/PID/stat is too short");
            ticks.parse().expect("a time is not a number")
        };
        let ticks = next() + next();
        let ticks_per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
        Usage {
            cpu: Duration::from_secs_f64(ticks as f64 / ticks_per_second as f64),
            written: number(&self.proc("io"), "write_bytes:"),
        }
    }

    /// The peak resident set since the last reset, in bytes.
    pub fn peak_memory(&self) -> u64 {
        number(&self.proc("status"), "VmHWM:") * 1024
    }

    pub fn reset_peak_memory(&self) {
        fs::write(format!("/proc/{}/clear_refs", self.child.id()), "5")
            .expect("cannot reset the peak memory");
    }

    /// A sink's position; `None` if there is no such sink or the relay does not answer.
    pub fn position(&self, sink: &str) -> Option<Position> {
        let mut connection = Connection::open(self.admin?).ok()?;
        let answer = connection.request("GET", "/readyz", b"").ok()?;
        let body: Value = serde_json::from_slice(&answer.body).ok()?;
        let sink = &body["sinks"][sink];
        Some(Position {
            cursor: sink["cursor"].as_u64()?,
            lag: sink["lag"].as_u64()?,
            spool_events: body["spool"]["events"].as_u64()?,
        })
    }

    /// How many recalls were answered OK after this: `disk` or `broker`.
    pub fn answers_after(&self, after: &str) -> u64 {
        let mut connection = (self.admin)
            .and_then(|admin| Connection::open(admin).ok())
            .expect("cannot connect to the relay's admin listener");
        let answer = connection.request("GET", "/metrics", b"");
        let answer = answer.expect("the relay does not answer");
        let series = format!("recall_answers_total{{after=\"{after}\"}}");
        // A relay whose answers wait for no broker has no counter of them.
        let text = answer.text();
        if text.contains(&series) {
            number(text, &series)
        } else {
            0
        }
    }

    /// Waits until a sink's position satisfies `wanted`.
    pub fn wait_for_sink(
        &self,
        sink: &str,
        limit: Duration,
        wanted: impl Fn(Position) -> bool,
    ) -> Position {
        let mut last = None;
        let reached = wait(limit, POLL_INTERVAL, || {
            last = self.position(sink);
            last.is_some_and(&wanted)
        });
        assert!(reached, "{sink} is at {last:?} after {limit:?}");
        last.expect("the sink has no position")
    }

    /// Reads a file of the process in `/proc`.
    fn proc(&self, name: &str) -> String {
        let path = format!("/proc/{}/{name}", self.child.id());
        fs::read_to_string(path).expect("cannot read /proc of the server")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if thread::panicking() {
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(20)..];
            eprintln!("--- end of the server's log\n{}", tail.join("\n"));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_address() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()))
}

/// The number after `name` at the beginning of a line.
fn number(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let line = line.unwrap_or_else(|| panic!("no {name} in {text}")).trim();
    line.trim_end_matches(" kB")
        .parse()
        .expect("the value is not a number")
}
