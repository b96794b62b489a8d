//! Where a scenario is played: a relay, its brokers, the driver, and the verbs that break them.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::broker::{Broker, Position, Sink};
use super::driver::Driver;
use super::ledger::{Ledger, now};
use super::options::{Form, Options};
use super::rig::{Faults, Proxy, Relay, Setup, Way, free_port};
use super::table::Row;
use super::verdict::{Arrival, judge};

/// How long everything may take to reach the brokers once nothing is broken any more.
const DRAIN: Duration = Duration::from_secs(90);

/// How long a full or failing disk may take to show, and to be forgotten.
const READY: Duration = Duration::from_secs(60);

/// How long a queue may hide what its broker has confirmed, while we read.
const LATE: Duration = Duration::from_secs(20);

pub struct Stage<'a> {
    pub options: Options,
    pub rng: fastrand::Rng,
    /// Of the scenario; its topic, exchange and queue are called so.
    pub name: String,
    pub setup: Setup,
    brokers: &'a mut [Broker],
    seen: Vec<Seen>,
    relay: Option<Relay>,
    proxies: Vec<Proxy>,
    driver: Option<Driver>,
    folder: TempDir,
    rounds: u32,
    mended: Vec<Mended>,
    peak_memory: u64,
    complaints: Vec<String>,
}

/// What was read from one broker.
#[derive(Default)]
struct Seen {
    arrivals: Vec<Arrival>,
    /// At the broker in a transaction that had not ended when what was there went: not the relay's loss.
    gone: Vec<Arrival>,
    position: Position,
}

/// The end of a fault.
struct Mended {
    at: u64,
    caught_up: Option<Duration>,
}

impl<'a> Stage<'a> {
    pub fn new(name: &str, brokers: &'a mut [Broker], options: Options) -> Self {
        let callbacks = format!("127.0.0.1:{}", free_port());
        let mut setup = Setup::new().set("RECALL_HTTP__LISTEN", &callbacks);
        for broker in &*brokers {
            setup = broker.settings(setup, name);
        }
        Self {
            options,
            rng: fastrand::Rng::with_seed(options.seed),
            name: name.to_owned(),
            setup,
            seen: brokers.iter().map(|_| Seen::default()).collect(),
            brokers,
            relay: None,
            proxies: Vec::new(),
            driver: None,
            folder: TempDir::new().unwrap(),
            rounds: 1,
            mended: Vec::new(),
            peak_memory: 0,
            complaints: Vec::new(),
        }
    }

    /// The one broker of the scenario.
    pub fn broker(&mut self) -> &mut Broker {
        &mut self.brokers[0]
    }

    pub fn sink(&self) -> Sink {
        self.brokers[0].sink
    }

    pub fn brokers(&mut self) -> &mut [Broker] {
        self.brokers
    }

    pub fn relay(&self) -> &Relay {
        self.relay.as_ref().expect("a relay that runs")
    }

    pub const fn pick<T>(&self, short: T, long: T) -> T
    where
        T: Copy,
    {
        match self.options.form {
            Form::Short => short,
            Form::Long => long,
        }
    }

    /// One more setting of the relays that are started from now on.
    pub fn set(&mut self, name: &str, value: &str) {
        self.setup = self.setup.with(name, value);
    }

    /// Relays that are started from now on reach their brokers through proxies.
    pub fn put_proxies(&mut self) {
        for broker in &*self.brokers {
            let (setup, proxy) = broker.behind_proxy(self.setup.clone());
            self.setup = setup;
            self.proxies.push(proxy);
        }
    }

    /// Relays that are started from now on have a disk that can fail.
    pub fn put_faults(&mut self) -> Faults {
        let faults = Faults::new();
        self.setup = self.setup.with_faults(&faults);
        faults
    }

    /// Waits until callbacks are refused, under load.
    pub fn play_on_until_refused(&mut self) {
        self.wait_under_load("/readyz to be 503", |relay| {
            relay.admin("/readyz").status == 503
        });
    }

    /// Waits until a callback of the load is accepted, which means that its event was written: the
    /// driver never sends the same recall twice, and a repeated one has another outcome.
    pub fn play_on_until_accepted(&mut self) {
        let before = self.relay().outcome_count("accepted");
        self.wait_under_load("callbacks to be accepted", |relay| {
            relay.admin("/readyz").status == 200 && relay.outcome_count("accepted") > before
        });
    }

    fn wait_under_load(&mut self, what: &str, condition: impl Fn(&Relay) -> bool) {
        let until = Instant::now() + READY;
        while !condition(self.relay()) {
            if Instant::now() > until {
                let readiness = self.relay().readiness();
                let complaint =
                    format!("timed out after {READY:?} waiting for {what}: {readiness}");
                return self.complain(complaint);
            }
            self.play_on(Duration::from_millis(20));
        }
    }

    /// Waits until the relay has ended by itself, which it has to do with 1.
    pub fn relay_ends(&mut self) {
        let mut relay = self.relay.take().expect("a relay");
        let code = relay.wait().code();
        if code != Some(1) {
            self.complain(format!("the relay ended with {code:?}:\n{}", relay.log()));
        }
    }

    /// What becomes of bytes in the first broker's proxy.
    pub fn network(&self, way: Way) {
        self.network_of(0, way);
    }

    /// What becomes of bytes in a broker's proxy.
    pub fn network_of(&self, broker: usize, way: Way) {
        self.proxies[broker].set(way);
    }

    /// The relay finds out sooner that a broker does not answer, where the scenario is to be short.
    pub fn impatient(&mut self) {
        if self.options.form == Form::Short {
            self.make_impatient();
        }
    }

    /// The relay finds out sooner that a broker does not answer.
    pub fn make_impatient(&mut self) {
        for broker in &*self.brokers {
            self.setup = broker.impatient(self.setup.clone());
        }
    }

    pub fn start_relay(&mut self) {
        assert!(self.relay.is_none(), "a relay runs already");
        self.relay = Some(self.setup.start());
    }

    /// As after a crash: the time to recover counts from here.
    pub fn restart_relay(&mut self) {
        self.mended();
        self.start_relay();
    }

    /// `kill -9`.
    pub fn kill_relay(&mut self) {
        self.look_at_memory();
        let mut relay = self.relay.take().expect("a relay");
        assert!(relay.runs(), "the relay ended by itself:\n{}", relay.log());
        relay.kill();
    }

    /// Starts a relay and kills it at a random moment of its start, or soon after.
    pub fn start_and_kill_relay(&mut self, at_most: Duration) {
        let mut relay = self.setup.launch();
        self.play_on_until(at_most);
        assert!(relay.runs(), "the relay ended by itself:\n{}", relay.log());
        relay.kill();
    }

    /// SIGTERM; it has to end cleanly.
    pub fn stop_relay(&mut self) {
        self.look_at_memory();
        self.relay.take().expect("a relay").stop();
    }

    /// Stops its clock, and waits until what it had sent has reached the broker.
    pub fn freeze_relay(&mut self) {
        self.look_at_memory();
        self.relay().signal(Signal::SIGSTOP);
        thread::park_timeout(Duration::from_millis(400));
    }

    pub fn thaw_relay(&mut self) {
        self.relay().signal(Signal::SIGCONT);
    }

    /// Starts relay and load, and waits until events go through.
    pub fn begin(&mut self) {
        self.start_relay();
        self.start_load();
        self.catch_up();
    }

    pub fn start_load(&mut self) {
        let to = self.relay().callbacks;
        let driver = Driver::start(to, &self.tag(), &self.options, &self.ledger());
        self.driver = Some(driver);
        self.play_on(Duration::from_millis(300));
    }

    pub fn end_load(&mut self) {
        if let Some(driver) = self.driver.take() {
            driver.stop();
        }
    }

    /// Lets time pass under load.
    pub fn play_on(&mut self, time: Duration) {
        let until = Instant::now() + time;
        loop {
            self.look_at_memory();
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            thread::park_timeout(left.min(Duration::from_millis(200)));
        }
        if let Some(driver) = &mut self.driver {
            assert!(driver.runs(), "the driver has ended");
        }
    }

    /// A random time.
    pub fn play_on_until(&mut self, at_most: Duration) {
        let millis = u64::try_from(at_most.as_millis()).unwrap();
        let millis = self.rng.u64(0..=millis);
        self.play_on(Duration::from_millis(millis));
    }

    /// Nothing is broken from here on: recovering is what follows.
    pub fn mended(&mut self) {
        self.mended.push(Mended {
            at: now(),
            caught_up: None,
        });
    }

    /// Sees that the fault bites: the first sink falls behind.
    pub fn expect_behind(&mut self) {
        let sink = self.sink().name();
        let lag = self.relay().readiness()["sinks"][sink]["lag"].as_u64();
        if lag.is_none_or(|lag| lag < u64::from(self.options.rate / 2)) {
            self.complain(format!("events go through nevertheless: lag {lag:?}"));
        }
    }

    /// Waits until every sink is up and no more than a quarter of a second's callbacks behind, and, under
    /// load, until callbacks are accepted: a relay that refuses them all is never behind.
    pub fn catch_up(&mut self) {
        let behind = u64::from(self.options.rate / 4);
        self.wait_for_lag(behind);
        if self.driver.is_some() {
            self.play_on_until_accepted();
        }
    }

    /// Waits until everything is confirmed; without load.
    pub fn wait_until_empty(&mut self) {
        self.wait_for_lag(0);
    }

    fn wait_for_lag(&mut self, at_most: u64) {
        let until = Instant::now() + DRAIN;
        let sinks: Vec<&str> = self.brokers.iter().map(|b| b.sink.name()).collect();
        loop {
            let readiness = self.relay().readiness();
            let there = sinks.iter().all(|sink| {
                let sink = &readiness["sinks"][sink];
                sink["state"] == "up" && sink["lag"].as_u64().is_some_and(|lag| lag <= at_most)
            });
            if there {
                break;
            }
            if Instant::now() > until {
                self.complain(format!("not caught up after {DRAIN:?}: {readiness}"));
                return;
            }
            self.play_on(Duration::from_millis(20));
        }
        if let Some(last) = self.mended.last_mut()
            && last.caught_up.is_none()
        {
            last.caught_up = Some(Duration::from_micros(now() - last.at));
        }
    }

    pub fn complain(&mut self, complaint: String) {
        self.complaints.push(complaint);
    }

    /// Reads what has arrived so far, and what is on its way within the broker: all of it is about to go for good.
    pub fn read_before_it_goes(&mut self) {
        self.read_now();
        let tag = self.tag();
        for (broker, seen) in self.brokers.iter().zip(&mut self.seen) {
            let gone = broker.read_open(&self.name, &tag, &seen.position);
            seen.gone.extend(gone);
        }
    }

    /// Reads what has arrived so far.
    pub fn read_now(&mut self) {
        let tag = self.tag();
        for (broker, seen) in self.brokers.iter().zip(&mut self.seen) {
            let arrivals = broker.read(&self.name, &tag, &mut seen.position);
            seen.arrivals.extend(arrivals);
        }
    }

    /// The topic is a new one: its offsets begin again.
    pub fn read_from_the_beginning(&mut self) {
        for seen in &mut self.seen {
            seen.position = Position::default();
        }
    }

    /// Ends the load, waits until everything has been forwarded, reads and judges. What follows is a new
    /// round: other conversations.
    pub fn drain(&mut self) -> Vec<Row> {
        self.end_load();
        self.wait_for_lag(0);
        self.look_at_memory();
        let ledger = Ledger::read(&self.ledger());
        if ledger.ok == 0 {
            self.complain("no callback was answered OK".to_owned());
        }
        let until = Instant::now() + LATE;
        let mut verdicts;
        loop {
            self.read_now();
            verdicts = Vec::new();
            for seen in &self.seen {
                verdicts.push(judge(&ledger, &seen.arrivals, &seen.gone));
            }
            let whole = verdicts.iter().all(|verdict| verdict.missing.is_empty());
            if whole || Instant::now() > until {
                break;
            }
            self.play_on(Duration::from_millis(500));
        }
        let answers_again = self.mended.iter();
        let answers_again = answers_again.filter_map(|mended| ledger.next_ok_after(mended.at));
        let answers_again = answers_again.max();
        let caught_up = self.mended.iter().filter_map(|mended| mended.caught_up);
        let caught_up = caught_up.max();
        let rows = self.brokers.iter().zip(verdicts).map(|(broker, verdict)| {
            let mut row = Row::new(&self.name, broker.sink.label(), &ledger, &verdict);
            row.faults = self.mended.len();
            row.answers_again = answers_again;
            row.caught_up = caught_up;
            row.peak_memory = self.peak_memory;
            row.complaints.extend(self.complaints.iter().cloned());
            row
        });
        let rows = rows.collect();
        fs::remove_file(self.ledger()).unwrap();
        self.rounds += 1;
        self.mended.clear();
        self.complaints.clear();
        for seen in &mut self.seen {
            seen.arrivals.clear();
            seen.gone.clear();
        }
        rows
    }

    /// Drains, and stops the relay, which has to end cleanly.
    pub fn finish(&mut self) -> Vec<Row> {
        let rows = self.drain();
        self.stop_relay();
        rows
    }

    fn look_at_memory(&mut self) {
        if let Some(relay) = &mut self.relay {
            assert!(relay.runs(), "the relay ended by itself:\n{}", relay.log());
            self.peak_memory = self.peak_memory.max(relay.memory().1);
        }
    }

    fn tag(&self) -> String {
        format!("round{}", self.rounds)
    }

    fn ledger(&self) -> PathBuf {
        self.folder.path().join(self.tag())
    }
}
