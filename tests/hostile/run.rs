//! Runs the attacks one after the other, checks the bars of each, and prints the table.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rcgen::ExtendedKeyUsagePurpose;
use tempfile::TempDir;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::attack::{Attack, Listener};
use super::attacks;
use super::connect::Tls;
use super::form::Form;
use super::honest::{Load, Sample, TOKEN, VENDOR_WAITS, watch_liveness};
use super::rig::{Authority, Recall, Relay, Setup, published};
use super::smuggling::assert_not_served;
use super::table::{Row, markdown};

/// How much the attack may add to the quiet 99th percentile.
const MAX_ADDED: Duration = Duration::from_millis(300);

/// The minimum percentage of the connections that `connects` is to open, in the long form.
const MIN_OPENED: u64 = 60;

/// The maximum peak memory of the relay.
const MAX_MEMORY: u64 = 128 << 20;

/// The maximum time of an answer of `/livez`.
const MAX_LIVEZ: Duration = Duration::from_secs(1);

/// Runs the attacks that the command line selects.
pub fn all() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // The attacks share the machine.
    arguments.test_threads = Some(1);
    let form = Form::read();
    raise_nofile_limit();
    let stage = Arc::new(Stage::new());
    let rows: Arc<Mutex<Vec<Row>>> = Arc::default();
    let mut trials = Vec::new();
    for (number, attack) in attacks::all(&stage.tls).into_iter().enumerate() {
        let (stage, rows) = (Arc::clone(&stage), Arc::clone(&rows));
        let trial = Trial::test(attack.name, move || {
            // Made when it begins, because signatures expire.
            let mut attack = attacks::all(&stage.tls).swap_remove(number);
            if form == Form::Short && attack.listener == Listener::Tls {
                // All handshakes fall into the short time, and the relay of the tests is not optimised.
                attack.opens_per_second /= 2;
            }
            let (row, problems) = stage.run(&attack, form);
            rows.lock().unwrap().push(row);
            if problems.is_empty() {
                Ok(())
            } else {
                Err(Failed::from(problems.join("\n")))
            }
        });
        trials.push(trial);
    }
    trials.push(Trial::test(
        "nothing_that_is_smuggled_is_served",
        move || {
            assert_not_served(stage.start(Listener::Plain));
            Ok(())
        },
    ));
    let conclusion = libtest_mimic::run(&arguments, trials);
    let rows = rows.lock().unwrap();
    if !rows.is_empty() {
        println!("{}", markdown(&rows));
    }
    conclusion.exit_code()
}

/// Each attacking connection is an open file of this process.
fn raise_nofile_limit() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
}

/// What all attacks share.
struct Stage {
    authority: Authority,
    tls: Tls,
}

impl Stage {
    fn new() -> Self {
        let authority = Authority::new();
        let tls = Tls::trusting(&authority.ca());
        Self { authority, tls }
    }

    fn start(&self, listener: Listener) -> Relay {
        // In memory, so that another program's use of the disk is not taken for the effect of an attack.
        let folder = TempDir::new_in("/dev/shm").unwrap_or_else(|_| TempDir::new().unwrap());
        let mut setup = Setup::on(folder)
            .set("RECALL_HTTP__MAX_CONNECTIONS", "1024")
            .set("RECALL_AUTH__TOKENS", TOKEN);
        if listener == Listener::Tls {
            let (cert, key) = self
                .authority
                .sign("relay", ExtendedKeyUsagePurpose::ServerAuth);
            setup = setup
                .set("RECALL_HTTP__TLS__CERT", cert.to_str().unwrap())
                .set("RECALL_HTTP__TLS__KEY", key.to_str().unwrap());
        }
        setup.start()
    }

    /// Attacks a new relay. Returns what was measured, and what is wrong with it.
    fn run(&self, attack: &Attack, form: Form) -> (Row, Vec<String>) {
        let relay = self.start(attack.listener);
        let tls = (attack.listener == Listener::Tls).then_some(&self.tls);
        let from = Instant::now() + Duration::from_millis(100);
        let attack_at = from + form.quiet();
        let load = Load {
            to: relay.callbacks,
            tls: tls.cloned(),
            from,
            until: attack_at + form.attack(),
        };
        let stop = CancellationToken::new();
        // Attackers have a thread of their own, so that they do not delay the honest clients.
        let ((opened, lasted), samples, slowest_livez) = thread::scope(|scope| {
            let attackers = scope.spawn(|| {
                #[expect(clippy::disallowed_methods, reason = "the attack begins at this time")]
                thread::sleep(attack_at.saturating_duration_since(Instant::now()));
                let began = Instant::now();
                let opened = attack.run(relay.callbacks, tls, &stop);
                (opened, began.elapsed())
            });
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let (samples, slowest_livez) = runtime.block_on(async {
                let honest = async {
                    // The attack ends after the last answer, or when this fails.
                    let _stopped = stop.clone().drop_guard();
                    load.run().await
                };
                sleep_until(from).await;
                tokio::join!(honest, watch_liveness(relay.admin, MAX_LIVEZ, stop.clone()))
            });
            (attackers.join().unwrap(), samples, slowest_livez)
        });
        let (_, peak_memory) = relay.memory();
        let found = published(&relay.stop());

        let (quiet, attacked): (Vec<_>, Vec<_>) =
            samples.iter().partition(|sample| sample.due < attack_at);
        let times = latencies(&attacked);
        let in_time: Vec<_> = attacked
            .iter()
            .filter(|sample| sample.answered.is_ok())
            .collect();
        let row = Row {
            attack: attack.name.to_owned(),
            connections: attack.connections,
            opened,
            lasted,
            sent: attacked.len(),
            in_time: in_time.len(),
            on_kept: in_time.iter().filter(|sample| sample.kept).count(),
            quiet_p99: p99(&latencies(&quiet)),
            p99: p99(&times),
            longest: times.last().copied().unwrap_or_default(),
            slowest_livez,
            peak_memory,
        };
        let mut problems = check(&row, required_opens(attack, lasted, form), form);
        problems.extend(failures(&samples));
        problems.extend(check_events(&samples, &attack.signed, &found));
        (row, problems)
    }
}

/// The times of the answers, in ascending order. A callback that was not answered OK counts as one that took 2 s.
fn latencies(samples: &[&Sample]) -> Vec<Duration> {
    let time = |sample: &&Sample| *sample.answered.as_ref().unwrap_or(&VENDOR_WAITS);
    let mut times: Vec<_> = samples.iter().map(time).collect();
    times.sort_unstable();
    times
}

fn p99(sorted: &[Duration]) -> Duration {
    let last = sorted.len().saturating_sub(1);
    sorted.get(last * 99 / 100).copied().unwrap_or_default()
}

/// How many connections there must have been at least, so that it was an attack.
fn required_opens(attack: &Attack, lasted: Duration, form: Form) -> u64 {
    let connections = u64::try_from(attack.connections).unwrap();
    let per_second = u64::from(attack.opens_per_second);
    // Opening connections is all that `connects` does.
    if form == Form::Long && per_second > connections {
        per_second * lasted.as_secs() * MIN_OPENED / 100
    } else {
        per_second.min(connections) / 2
    }
}

/// What violates a bar, or shows that there was hardly an attack. The short form does not assert how fast callbacks are
/// answered within the 2 s: that depends on what else the machine does.
fn check(row: &Row, required_opens: u64, form: Form) -> Vec<String> {
    let mut problems = Vec::new();
    if row.opened < required_opens {
        let (opened, lasted) = (row.opened, row.lasted);
        problems.push(format!(
            "attackers opened only {opened} connections in {lasted:?}"
        ));
    }
    // It would be half of the callbacks if a kept connection were always free. If the relay closed one without a notice,
    // the next callback on it is among the failures.
    if row.on_kept * 100 < row.sent * form.min_kept() {
        problems.push(format!(
            "only {} of {} were answered on kept connections",
            row.on_kept, row.sent
        ));
    }
    if form == Form::Long && row.p99 > row.quiet_p99 + MAX_ADDED {
        let (quiet, p99) = (row.quiet_p99, row.p99);
        problems.push(format!("p99 is {p99:?}, without the attack {quiet:?}"));
    }
    if row.peak_memory > MAX_MEMORY {
        problems.push(format!("peak memory is {} bytes", row.peak_memory));
    }
    if row.slowest_livez > MAX_LIVEZ {
        problems.push(format!("/livez took {:?}", row.slowest_livez));
    }
    problems
}

/// How many callbacks were not answered OK in time, and why.
fn failures(samples: &[Sample]) -> Option<String> {
    let mut reasons: BTreeMap<(bool, &str), usize> = BTreeMap::new();
    for sample in samples {
        if let Err(reason) = &sample.answered {
            *reasons.entry((sample.kept, reason)).or_default() += 1;
        }
    }
    let on = |kept| samples.iter().filter(|sample| sample.kept == kept).count();
    let reasons: Vec<_> = reasons
        .iter()
        .map(|((kept, reason), count)| {
            let connection = if *kept { "kept" } else { "new" };
            format!(
                "{count} of {} on {connection} connections: {reason}",
                on(*kept)
            )
        })
        .collect();
    (!reasons.is_empty()).then(|| format!("not answered OK in time: {}", reasons.join("; ")))
}

/// What is wrong with the events: each recall that was answered OK must be published exactly once, other honest ones
/// and those that attackers signed at most once, and nothing else.
fn check_events(samples: &[Sample], signed: &[Recall], found: &[Recall]) -> Vec<String> {
    let mut counts: BTreeMap<&Recall, usize> = BTreeMap::new();
    for recall in found {
        *counts.entry(recall).or_default() += 1;
    }
    let answered = samples.iter().filter(|sample| sample.answered.is_ok());
    let missing: Vec<_> = answered
        .map(|sample| &sample.recall)
        .filter(|recall| !counts.contains_key(recall))
        .collect();
    let known: BTreeSet<_> = samples
        .iter()
        .map(|sample| &sample.recall)
        .chain(signed)
        .collect();
    let twice: Vec<_> = counts.iter().filter(|(_, count)| **count > 1).collect();
    let unexpected: Vec<_> = counts
        .keys()
        .filter(|recall| !known.contains(*recall))
        .collect();
    let mut problems = Vec::new();
    if !missing.is_empty() {
        problems.push(format!("{} events are missing: {missing:?}", missing.len()));
    }
    if !twice.is_empty() {
        problems.push(format!("published more than once: {twice:?}"));
    }
    if !unexpected.is_empty() {
        problems.push(format!(
            "events of recalls that nobody signed: {unexpected:?}"
        ));
    }
    problems
}
