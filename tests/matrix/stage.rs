//! The environment of a scenario: a relay, its brokers and the driver, with methods that inject faults.

mod reading;

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use self::reading::Seen;
use super::broker::{Broker, Sink};
use super::driver::Driver;
use super::ledger::now;
use super::lost_machines::{LostMachines, Sampler};
use super::options::{Form, Options};
use super::rig::{Faults, NetworkMode, Proxy, Relay, Setup, free_port};

/// The timeout for all events to reach the brokers after a fault has ended.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(90);

/// How long the sinks may take in the short form to catch up under load. After that the load is paused until they have:
/// while a machine's disk is slow, RabbitMQ may confirm less than the load, because it syncs before it confirms, and the
/// relay publishes one message of a conversation at a time.
const CATCH_UP_UNDER_LOAD: Duration = Duration::from_secs(15);

/// The timeout for callbacks to be refused after a fault of the disk begins, and accepted after it ends.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

pub struct Stage<'a> {
    pub options: Options,
    pub rng: fastrand::Rng,
    /// The name of the scenario, and of its topic or exchange and queue.
    pub name: String,
    pub setup: Setup,
    brokers: &'a mut [Broker],
    seen: Vec<Seen>,
    relay: Option<Relay>,
    proxies: Vec<Proxy>,
    driver: Option<Driver>,
    folder: TempDir,
    rounds: u32,
    recoveries: Vec<Recovery>,
    peak_memory: u64,
    problems: Vec<String>,
    /// Reads the relay's metrics, if it may lose its machine.
    sampler: Option<Sampler>,
    lost_machines: LostMachines,
    /// The transactional ids of relays whose machines were lost.
    lost_ids: Vec<String>,
}

/// The recovery from a fault, which ended at `at`.
struct Recovery {
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
            recoveries: Vec::new(),
            peak_memory: 0,
            problems: Vec::new(),
            sampler: None,
            lost_machines: LostMachines::default(),
            lost_ids: Vec::new(),
        }
    }

    /// The only broker of a scenario, or the first one of the soak.
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
        self.relay.as_ref().expect("no relay is running")
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

    /// Sets a variable for the relays that are started from now on.
    pub fn set(&mut self, name: &str, value: &str) {
        self.setup = self.setup.with(name, value);
    }

    /// Starts a proxy in front of each broker, for the relays that are started from now on.
    pub fn add_proxies(&mut self) {
        for broker in &*self.brokers {
            let (setup, proxy) = broker.behind_proxy(self.setup.clone());
            self.setup = setup;
            self.proxies.push(proxy);
        }
    }

    /// Enables disk faults for the relays that are started from now on.
    pub fn add_disk_faults(&mut self) -> Faults {
        let faults = Faults::new();
        self.setup = self.setup.with_faults(&faults);
        faults
    }

    /// Waits under load until `/readyz` is 503, as it is while callbacks are refused.
    pub fn run_until_refused(&mut self) {
        self.wait_under_load("/readyz to be 503", |relay| {
            relay.admin("/readyz").status == 503
        });
    }

    /// Waits under load until a callback is accepted, which means that its event was written: the driver never sends the
    /// same recall twice, and a repeated recall would have another outcome.
    pub fn run_until_accepted(&mut self) {
        let before = self.relay().outcome_count("accepted");
        self.wait_under_load("callbacks to be accepted", |relay| {
            relay.admin("/readyz").status == 200 && relay.outcome_count("accepted") > before
        });
    }

    fn wait_under_load(&mut self, what: &str, condition: impl Fn(&Relay) -> bool) {
        let until = Instant::now() + READY_TIMEOUT;
        while !condition(self.relay()) {
            if Instant::now() > until {
                let readiness = self.relay().readiness();
                let problem =
                    format!("timed out after {READY_TIMEOUT:?} waiting for {what}: {readiness}");
                return self.report_problem(problem);
            }
            self.run_for(Duration::from_millis(20));
        }
    }

    /// Waits until the relay exits by itself; its exit code must be 1.
    pub fn wait_for_exit(&mut self) {
        let mut relay = self.relay.take().expect("no relay is running");
        let code = relay.wait().code();
        if code != Some(1) {
            self.report_problem(format!("the relay exited with {code:?}:\n{}", relay.log()));
        }
    }

    /// Sets what the proxy of the first broker does with bytes.
    pub fn network(&self, mode: NetworkMode) {
        self.network_of(0, mode);
    }

    /// Sets what the proxy of a broker does with bytes.
    pub fn network_of(&self, broker: usize, mode: NetworkMode) {
        self.proxies[broker].set(mode);
    }

    /// In the short form, shortens the relay's timeouts for a broker that does not answer.
    pub fn use_short_timeouts_in_short_form(&mut self) {
        if self.options.form == Form::Short {
            self.use_short_timeouts();
        }
    }

    /// Shortens the relay's timeouts for a broker that does not answer.
    pub fn use_short_timeouts(&mut self) {
        for broker in &*self.brokers {
            self.setup = broker.with_short_timeouts(self.setup.clone());
        }
    }

    pub fn start_relay(&mut self) {
        assert!(self.relay.is_none(), "a relay is running already");
        self.relay = Some(self.setup.start());
    }

    /// Starts the relay again; the time to recover counts from here.
    pub fn restart_relay(&mut self) {
        self.fault_ended();
        self.start_relay();
    }

    /// `kill -9`.
    pub fn kill_relay(&mut self) {
        self.sample_memory();
        let mut relay = self.relay.take().expect("no relay is running");
        assert!(
            relay.is_running(),
            "the relay exited by itself:\n{}",
            relay.log()
        );
        relay.kill();
    }

    /// Starts a relay on a new machine, with an empty spool, whose answers wait for the brokers.
    pub fn start_on_new_machine(&mut self) {
        let started_at = now();
        self.start_relay();
        self.sampler = Some(Sampler::start(self.relay().admin, started_at));
    }

    /// Loses the relay's machine: kills the relay (`kill -9`), and deletes its spool.
    pub fn lose_machine(&mut self) {
        let sampler = self.sampler.take().expect("nobody reads the metrics");
        let identity = self.relay().log_entry("exactly_once_started");
        let id = identity.map(|entry| entry["transactional_id"].as_str().unwrap().to_owned());
        self.lost_ids.extend(id);
        self.kill_relay();
        self.lost_machines.add(sampler.stop(now()));
        fs::remove_dir_all(self.setup.spool().parent().unwrap()).unwrap();
    }

    /// Starts a relay and kills it at a random moment within `at_most`.
    pub fn start_and_kill_relay(&mut self, at_most: Duration) {
        let mut relay = self.setup.launch();
        self.run_up_to(at_most);
        assert!(
            relay.is_running(),
            "the relay exited by itself:\n{}",
            relay.log()
        );
        relay.kill();
    }

    /// Stops the relay by SIGTERM; it must exit cleanly.
    pub fn stop_relay(&mut self) {
        self.sample_memory();
        self.relay.take().expect("no relay is running").stop();
    }

    /// Freezes the relay (SIGSTOP), and waits until the broker has received what the relay has sent.
    pub fn freeze_relay(&mut self) {
        self.sample_memory();
        self.relay().signal(Signal::SIGSTOP);
        thread::park_timeout(Duration::from_millis(400));
    }

    pub fn thaw_relay(&mut self) {
        self.relay().signal(Signal::SIGCONT);
    }

    /// Starts the relay and the load, and waits until the sinks have caught up.
    pub fn begin(&mut self) {
        self.start_relay();
        self.start_load();
        self.catch_up();
    }

    pub fn start_load(&mut self) {
        let to = self.relay().callbacks;
        let driver = Driver::start(to, &self.tag(), &self.options, &self.ledger());
        self.driver = Some(driver);
        self.run_for(Duration::from_millis(300));
    }

    pub fn end_load(&mut self) {
        if let Some(driver) = self.driver.take() {
            driver.stop();
        }
    }

    /// Waits while the load runs, if there is any.
    pub fn run_for(&mut self, time: Duration) {
        let until = Instant::now() + time;
        loop {
            self.sample_memory();
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            thread::park_timeout(left.min(Duration::from_millis(200)));
        }
        if let Some(driver) = &mut self.driver {
            assert!(driver.is_running(), "the driver has exited");
        }
    }

    /// Waits for a random time of at most `at_most`.
    pub fn run_up_to(&mut self, at_most: Duration) {
        let millis = u64::try_from(at_most.as_millis()).unwrap();
        let millis = self.rng.u64(0..=millis);
        self.run_for(Duration::from_millis(millis));
    }

    /// Marks the end of a fault; the time to recover counts from here.
    pub fn fault_ended(&mut self) {
        self.recoveries.push(Recovery {
            at: now(),
            caught_up: None,
        });
    }

    /// Checks that the fault has an effect: the first sink lags.
    pub fn expect_lag(&mut self) {
        let sink = self.sink().name();
        let lag = self.relay().readiness()["sinks"][sink]["lag"].as_u64();
        if lag.is_none_or(|lag| lag < u64::from(self.options.rate / 2)) {
            self.report_problem(format!("the fault has no effect: lag {lag:?}"));
        }
    }

    /// Checks that the broker's trouble has an effect: answers do not wait for it.
    pub fn expect_answers_after_disk(&mut self) {
        let after_disk = self.relay().metric("recall_answers_total{after=\"disk\"}");
        if after_disk == "0" {
            self.report_problem("the fault has no effect: all answers waited".to_owned());
        }
    }

    /// Waits until every sink is up and lags by at most a quarter of a second's callbacks. Under load, also waits until
    /// callbacks are accepted: a relay that refuses them all does not lag.
    pub fn catch_up(&mut self) {
        self.wait_for_lag(u64::from(self.options.rate / 4));
        if self.driver.is_some() {
            self.run_until_accepted();
        }
    }

    /// Waits until all events are confirmed; for use without load.
    pub fn wait_until_empty(&mut self) {
        self.wait_for_lag(0);
    }

    fn wait_for_lag(&mut self, at_most: u64) {
        let began = Instant::now();
        let mut paused = false;
        let sinks: Vec<&str> = self.brokers.iter().map(|b| b.sink.name()).collect();
        let caught_up = loop {
            let readiness = self.relay().readiness();
            let reached = sinks.iter().all(|sink| {
                let sink = &readiness["sinks"][sink];
                sink["state"] == "up" && sink["lag"].as_u64().is_some_and(|lag| lag <= at_most)
            });
            if reached {
                break true;
            }
            if began.elapsed() > DRAIN_TIMEOUT {
                self.report_problem(format!(
                    "not caught up after {DRAIN_TIMEOUT:?}: {readiness}"
                ));
                break false;
            }
            if !paused
                && self.options.form == Form::Short
                && began.elapsed() > CATCH_UP_UNDER_LOAD
                && let Some(driver) = &mut self.driver
            {
                driver.pause();
                paused = true;
                println!(
                    "{}: the load pauses until the sinks have caught up: {readiness}",
                    self.name
                );
            }
            self.run_for(Duration::from_millis(20));
        };
        if paused && let Some(driver) = &mut self.driver {
            driver.resume();
        }
        if caught_up
            && let Some(last) = self.recoveries.last_mut()
            && last.caught_up.is_none()
        {
            last.caught_up = Some(Duration::from_micros(now() - last.at));
        }
    }

    pub fn report_problem(&mut self, problem: String) {
        self.problems.push(problem);
    }

    fn sample_memory(&mut self) {
        if let Some(relay) = &mut self.relay {
            assert!(
                relay.is_running(),
                "the relay exited by itself:\n{}",
                relay.log()
            );
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
