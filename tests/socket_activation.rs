//! A relay with a socket that systemd holds (`deploy/recall-relay.socket`): restarts refuse no callback.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod rig;

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rig::{
    Broker, Connection, Recall, Relay, Setup, assert_kept, on_both_brokers, recall, recall_query,
    until,
};

/// How long the vendor waits for an answer.
const VENDOR_WAITS: Duration = Duration::from_secs(2);

/// How long a stop may take.
const RESTART: Duration = Duration::from_secs(1);

/// A client that reuses a connection that has been idle this long sends again if that was closed meanwhile, as any HTTP
/// client does.
const IDLE: Duration = Duration::from_millis(250);

/// The socket that systemd holds.
fn socket() -> (TcpListener, SocketAddr) {
    let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

/// Stops a relay with SIGTERM, and asserts that it ends cleanly within `limit`.
#[track_caller]
fn stop_within(limit: Duration, mut relay: Relay) {
    let began = Instant::now();
    relay.signal(Signal::SIGTERM);
    let status = relay.wait();
    let took = began.elapsed();
    let log = relay.log_after_exit();
    assert!(
        status.success() && took < limit,
        "{status} after {took:?}\n{log}"
    );
}

/// Clients that send recalls until they are stopped, each with its own conversation; half of them keep their
/// connections. Every recall must be answered OK while the vendor waits.
struct Clients {
    stopped: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Vec<Recall>>>,
}

impl Clients {
    fn start(to: SocketAddr) -> Self {
        let (stopped, answered) = (Arc::default(), Arc::default());
        let threads = (0..6).map(|number| {
            let (stopped, answered) = (Arc::clone(&stopped), Arc::clone(&answered));
            let group = format!("g{number}");
            thread::spawn(move || send_until(&stopped, &answered, to, &group, number % 2 == 0))
        });
        let threads = threads.collect();
        Self {
            stopped,
            answered,
            threads,
        }
    }

    /// Waits until `more` further recalls have been answered.
    #[track_caller]
    fn until_answered(&self, more: u64) {
        let goal = self.answered.load(Ordering::Relaxed) + more;
        until("answers", || {
            let has_failed = self.threads.iter().any(JoinHandle::is_finished);
            assert!(!has_failed, "a client has failed");
            (self.answered.load(Ordering::Relaxed) >= goal).then_some(())
        });
    }

    /// Stops; returns every recall.
    fn stop(self) -> Vec<Recall> {
        self.stopped.store(true, Ordering::Relaxed);
        let threads = self.threads.into_iter();
        threads.flat_map(|thread| thread.join().unwrap()).collect()
    }
}

fn send_until(
    stopped: &AtomicBool,
    answered: &AtomicU64,
    to: SocketAddr,
    group: &str,
    keeps: bool,
) -> Vec<Recall> {
    let mut sent = Vec::new();
    let mut kept: Option<(Connection, Instant)> = None;
    for number in 1..=100_000 {
        if stopped.load(Ordering::Relaxed) {
            break;
        }
        let began = Instant::now();
        let open = || Connection::open(to);
        let post = |connection: &mut Connection| connection.post_recall(&recall(group, number));
        let (mut connection, idle) = match kept.take() {
            Some((connection, since)) => (connection, since.elapsed()),
            None => (open().unwrap(), Duration::ZERO),
        };
        let answer = post(&mut connection).or_else(|error| {
            assert!(idle >= IDLE, "{group} {number}: {error}, after {idle:?}");
            connection = open()?;
            post(&mut connection)
        });
        let answer = answer.unwrap();
        let took = began.elapsed();
        assert!(answer.is_ok(), "{group} {number}: {answer:?}");
        assert!(
            took < VENDOR_WAITS,
            "{group} {number}: answered after {took:?}"
        );
        if keeps && answer.header("connection") != Some("close") {
            kept = Some((connection, Instant::now()));
        }
        sent.push(Recall::new(group, number));
        answered.fetch_add(1, Ordering::Relaxed);
        thread::park_timeout(Duration::from_millis(50));
    }
    sent
}

on_both_brokers! {
    restarts_refuse_no_callback,
}

fn restarts_refuse_no_callback(broker: &mut impl Broker) {
    let (socket, address) = socket();
    let sink = broker.sink();
    let setup = broker.settings(Setup::new(), "activated");
    let setup = setup.with_socket(socket, &["callbacks"]);
    let mut relay = setup.start();
    assert_eq!(relay.callbacks, address);
    relay.until_sink(sink, "up");
    let clients = Clients::start(address);
    let restart = |relay: Relay, state: &str| {
        clients.until_answered(100);
        stop_within(RESTART, relay);
        let relay = setup.start();
        clients.until_answered(100);
        relay.until_sink(sink, state);
        relay
    };
    for _ in 0..3 {
        relay = restart(relay, "up");
    }
    // It does not answer, but its connections stay open.
    broker.freeze();
    relay.until_sink(sink, "down");
    relay = restart(relay, "down");
    broker.thaw();
    broker.kill();
    relay.until_sink(sink, "down");
    relay = restart(relay, "down");
    let answered = clients.stop();
    broker.resume();
    relay.until_drained(sink);
    assert_kept(&answered, &broker.recalls("activated", answered.len()));
    relay.stop();
}

/// They wait in the socket for the next start.
#[test]
fn callbacks_wait_while_no_relay_runs() {
    let (socket, address) = socket();
    let setup = Setup::new().with_socket(socket, &["recall-relay.socket"]);
    let relay = setup.start();
    assert!(relay.recall("g", 0).is_ok());
    relay.kill();
    let mut waiting: Vec<Connection> = (1..=20)
        .map(|number| {
            let mut connection = Connection::open(address).unwrap();
            let target = format!("/?{}", recall_query());
            let request = rig::encode("POST", &target, recall("g", number).as_bytes());
            connection.send(&request).unwrap();
            connection
        })
        .collect();
    let relay = setup.start();
    for connection in &mut waiting {
        assert!(connection.answer().unwrap().is_ok());
    }
    relay.until_drained("stdout");
    relay.kill();
    assert_eq!(rig::read_spool(&setup).len(), 21);
}

/// It has been accepted, so the next process will not see it.
#[test]
fn a_stop_answers_whoever_has_connected_and_closes_idle_connections() {
    let (socket, address) = socket();
    let setup = Setup::new().with_socket(socket, &[""]);
    let relay = setup.start();
    let mut idle = Connection::open(address).unwrap();
    assert!(idle.post_recall(&recall("idle", 1)).unwrap().is_ok());
    let mut kept = Connection::open(address).unwrap();
    assert!(kept.post_recall(&recall("kept", 1)).unwrap().is_ok());
    let mut connected = Connection::open(address).unwrap();
    until("all to be accepted", || {
        (relay.metric("recall_http_connections") == "3").then_some(())
    });
    relay.signal(Signal::SIGTERM);
    until("the stop to begin", || relay.log_entry("stopping"));
    for (name, connection) in [("connected", &mut connected), ("kept", &mut kept)] {
        let answer = connection.post_recall(&recall(name, 2)).unwrap();
        assert!(answer.is_ok(), "{name}: {answer:?}");
        assert_eq!(answer.header("connection"), Some("close"), "{name}");
    }
    // The next process would accept it.
    let mut late = Connection::open(address).unwrap();
    late.send(b"POST / HTTP/1.1\r\n").unwrap();
    assert!(idle.answer().is_err(), "an idle connection is closed");
    assert_eq!(relay.wait_for_clean_exit().len(), 4);
    drop(late);
}

/// A client that is slow to send does not delay the next start.
#[test]
fn a_stop_waits_a_second_for_slow_requests() {
    let (socket, address) = socket();
    let setup = Setup::new().with_socket(socket, &["callbacks"]);
    let relay = setup.start();
    let mut slow = Connection::open(address).unwrap();
    slow.send(b"POST / HTTP/1.1\r\n").unwrap();
    until("it to be accepted", || {
        (relay.metric("recall_http_connections") == "1").then_some(())
    });
    stop_within(Duration::from_secs(3), relay);
}

#[test]
fn a_passed_socket_takes_the_place_of_the_setting() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    for (name, key) in [("callbacks", "http.listen"), ("admin", "admin.listen")] {
        let (socket, address) = socket();
        // The port is in use, so it could not be bound.
        let variable = format!(
            "RECALL_{}__LISTEN",
            key.split_once('.').unwrap().0.to_uppercase()
        );
        let setup = Setup::new().set(&variable, &taken);
        let setup = setup.with_socket(socket, &[name]);
        let relay = setup.start();
        let found = if name == "admin" {
            relay.admin
        } else {
            relay.callbacks
        };
        assert_eq!(found, address);
        assert!(relay.recall("g", 1).is_ok());
        let listen = || {
            let status: serde_json::Value =
                serde_json::from_slice(&relay.admin("/status").body).unwrap();
            let settings = status["settings"].as_array().unwrap();
            settings
                .iter()
                .find(|setting| setting["setting"] == key)
                .unwrap()
                .clone()
        };
        let shown = listen();
        assert_eq!(shown["value"], address.to_string());
        assert_eq!(shown["source"], "systemd");
        relay.signal(Signal::SIGHUP);
        until("the reload", || relay.log_entry("reloaded"));
        assert_eq!(listen(), shown);
        assert_eq!(relay.log_entry("restart_needed"), None);
        relay.stop();
    }
}

#[test]
fn sockets_of_another_process_are_ignored() {
    let relay = Setup::new()
        .set("LISTEN_FDS", "1")
        .set("LISTEN_PID", "1")
        .start();
    assert!(relay.recall("g", 1).is_ok());
    relay.stop();
}

#[test]
fn a_wrong_socket_is_an_error_that_says_what_to_change() {
    let folder = tempfile::TempDir::new().unwrap();
    let (tcp, address) = socket();
    let connection = TcpStream::connect(address).unwrap();
    let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let unix = UnixListener::bind(folder.path().join("socket")).unwrap();
    let file = File::open("/dev/null").unwrap();
    let tcp = OwnedFd::from(tcp);
    for (socket, names, advice) in [
        (udp.into(), &["callbacks"][..], "set ListenStream="),
        (unix.into(), &["callbacks"], "set ListenStream="),
        (file.into(), &["callbacks"], "set ListenStream="),
        (connection.into(), &["callbacks"], "do not set Accept=yes"),
        (
            tcp.try_clone().unwrap(),
            &["http"],
            "`http`: in its unit, set FileDescriptorName=",
        ),
        (
            tcp.try_clone().unwrap(),
            &["a.socket", "a.socket"],
            "two sockets for callbacks: keep one ListenStream=",
        ),
        (
            tcp.try_clone().unwrap(),
            &["", "callbacks"],
            "two sockets for callbacks",
        ),
        (
            tcp,
            &["admin", "admin"],
            "two sockets for health and metrics",
        ),
    ] {
        let (code, _, stderr) = Setup::new().with_socket(socket, names).run(&[]);
        assert_eq!(code, 78, "{names:?}: {stderr}");
        let entry: serde_json::Value = serde_json::from_str(stderr.trim()).unwrap();
        assert_eq!(entry["code"], "start_failed", "{stderr}");
        assert!(
            entry["reason"].as_str().unwrap().contains(advice),
            "{stderr}"
        );
    }
}

/// Without a warning. `systemd-analyze` also warns if the program is missing, so it gets another path.
#[test]
fn systemd_accepts_the_units() {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy");
    let folder = tempfile::TempDir::new().unwrap();
    let drop_in = "recall-relay.service.d/socket.conf";
    fs::create_dir(folder.path().join("recall-relay.service.d")).unwrap();
    for file in ["recall-relay.socket", "recall-relay.service", drop_in] {
        let unit = fs::read_to_string(deploy.join(file)).unwrap();
        let unit = unit.replace("/usr/local/bin/recall-relay", "/bin/true");
        fs::write(folder.path().join(file), unit).unwrap();
    }
    let verify = |unit: &str| {
        let verified = Command::new("systemd-analyze")
            .args(["verify", "--man=no"])
            .arg(folder.path().join(unit))
            .output()
            .unwrap();
        String::from_utf8(verified.stderr).unwrap()
    };
    assert_eq!(verify("recall-relay.socket"), "");
    assert_eq!(verify("recall-relay.service"), "");
    // It has read the drop-in.
    fs::write(folder.path().join(drop_in), "[Unit]\nWrong=1\n").unwrap();
    let warning = verify("recall-relay.service");
    assert!(warning.contains("Wrong"), "{warning}");
}
