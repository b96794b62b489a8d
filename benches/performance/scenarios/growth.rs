//! How the cost grows with connections, messages per callback, conversations and backlog.

use std::time::Duration;

use super::super::bench::{Bench, Sink};
use super::super::columns::{ROUND_COLUMNS, cells};
use super::super::cores::CoreSet;
use super::super::load::Load;
use super::super::options::Form;
use super::super::round::{Round, SinkWait, measure, median, medians};
use super::super::server::Server;
use super::super::table::{Cell, Report, Table, Target};
use super::{MAX_MEMORY_MIB, warm_up};

pub const NAME: &str = "growth";

/// wrk stays below 1024 open files, the usual default limit.
const CONNECTIONS: [u32; 5] = [1, 8, 64, 256, 1000];
const MESSAGES: [u32; 3] = [1, 10, 100];
const CONVERSATIONS: [u32; 4] = [1, 100, 10_000, 1_000_000];

/// The maximum wait for a sink after the load: with few conversations, RabbitMQ would take long to confirm all events.
const OBSERVATION: Duration = Duration::from_secs(1);

/// The connections for callbacks while there is a backlog.
const BACKLOG_CONNECTIONS: u32 = 64;

pub fn run(bench: &mut Bench) -> Report {
    let mut tables = vec![connections(bench), messages(bench)];
    tables.push(conversations(bench));
    let (backlogs, memory) = backlogs(bench);
    tables.push(backlogs);
    Report {
        name: NAME,
        tables,
        targets: vec![Target::at_most(
            "peak memory beside a backlog, MiB",
            MAX_MEMORY_MIB,
            memory,
        )],
    }
}

fn connections(bench: &mut Bench) -> Table {
    let title = "Over connections: one message, 1000 conversations.";
    let loads = CONNECTIONS.map(|connections| {
        let load = Load::new(connections, bench.options.half_round());
        (connections, load)
    });
    bare_and_stdout(bench, title, ("connections", "connections"), &loads)
}

fn messages(bench: &mut Bench) -> Table {
    let title = "Over recalled messages of a callback: 64 connections.";
    let loads = MESSAGES.map(|messages| {
        let load = Load::new(64, bench.options.half_round());
        (messages, Load { messages, ..load })
    });
    bare_and_stdout(bench, title, ("messages", "messages"), &loads)
}

fn bare_and_stdout(
    bench: &mut Bench,
    title: &str,
    grows: (&'static str, &'static str),
    loads: &[(u32, Load)],
) -> Table {
    let columns: Vec<_> = [grows, ("server", "server")]
        .into_iter()
        .chain(ROUND_COLUMNS)
        .collect();
    let mut table = Table::new(title, &columns);
    let bare = bench.bare();
    let (relay, _) = bench.relay(Sink::Stdout);
    warm_up(&relay, &bench.cores, SinkWait::UntilDrained("stdout"));
    for (grown, load) in loads {
        let (mut bare_rounds, mut rounds) = (Vec::new(), Vec::new());
        for _ in 0..bench.options.rounds {
            bare_rounds.push(measure(&bare, load, &bench.cores, SinkWait::Ignored));
            let sink_wait = SinkWait::UntilDrained("stdout");
            rounds.push(measure(&relay, load, &bench.cores, sink_wait));
        }
        for (server, rounds) in [("bare hyper", &bare_rounds), ("stdout", &rounds)] {
            let mut row: Vec<Cell> = vec![(*grown).into(), server.into()];
            row.extend(cells(&medians(rounds)));
            table.push(row);
        }
    }
    table
}

/// Each round has its own spool, so that it does not begin with events that RabbitMQ has not confirmed yet.
fn conversations(bench: &mut Bench) -> Table {
    let columns = [("conversations", "conversations"), ("sink", "sink")];
    let columns: Vec<_> = columns.into_iter().chain(ROUND_COLUMNS).collect();
    let title = "Over conversations: 64 connections, the sink watched for a second after the load.";
    let mut table = Table::new(title, &columns);
    for conversations in CONVERSATIONS {
        let load = Load::new(64, bench.options.half_round());
        let load = Load {
            conversations,
            ..load
        };
        let mut all = Sink::BROKERS.map(|sink| (sink, Vec::new()));
        for _ in 0..bench.options.rounds {
            for (sink, rounds) in &mut all {
                let (relay, destination) = bench.relay(*sink);
                relay.wait_for_sink(sink.name(), OBSERVATION * 60, |it| it.lag == 0);
                let sink_wait = SinkWait::For(sink.name(), OBSERVATION);
                rounds.push(measure(&relay, &load, &bench.cores, sink_wait));
                drop(relay);
                destination.clear();
            }
        }
        for (sink, rounds) in &all {
            let mut row: Vec<Cell> = vec![conversations.into(), sink.name().into()];
            row.extend(cells(&medians(rounds)));
            table.push(row);
        }
    }
    table
}

/// Callbacks while a backlog waits for a broker that is down.
fn backlogs(bench: &mut Bench) -> (Table, f64) {
    let columns = [
        ("backlog", "backlog"),
        ("first answer, s", "first_answer_seconds"),
    ];
    let columns: Vec<_> = columns.into_iter().chain(ROUND_COLUMNS).collect();
    let title = "Over the backlog: the broker is down, 64 connections, a start before each round.";
    let (mut table, mut memory) = (Table::new(title, &columns), 0.0_f64);
    let sizes: &[u64] = match bench.options.form {
        Form::Short => &[0, 10_000, 100_000],
        Form::Normal => &[0, 10_000, 100_000, 1_000_000],
        Form::Full => &[0, 10_000, 100_000, 1_000_000, 10_000_000],
    };
    for backlog in sizes {
        let load = Load::new(BACKLOG_CONNECTIONS, bench.options.half_round());
        let (mut starts, mut rounds): (Vec<f64>, Vec<Round>) = (Vec::new(), Vec::new());
        let setup = bench.setup_without_broker(Sink::Kafka);
        if *backlog > 0 {
            bench.backlogs.copy(*backlog, &setup);
        }
        for _ in 0..bench.options.rounds {
            let mut relay = Server::launch(setup.clone(), &bench.cores, CoreSet::Server);
            starts.push(relay.wait_for_answer().as_secs_f64());
            rounds.push(measure(&relay, &load, &bench.cores, SinkWait::Ignored));
        }
        let round = medians(&rounds);
        let mut row: Vec<Cell> = vec![(*backlog).into(), Cell::Number(median(starts), 3)];
        row.extend(cells(&round));
        table.push(row);
        memory = memory.max(round.memory);
    }
    (table, memory)
}
