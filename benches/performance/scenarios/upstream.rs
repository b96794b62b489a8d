//! The price of a hop: callbacks that are handed on to a backend, compared with nginx as a plain reverse proxy; and recalls
//! while the backend hangs.

use std::net::TcpListener;
use std::thread;
use std::time::Duration;

use recall_relay::vendor::CallbackKind;

use super::super::bench::{Bench, Sink};
use super::super::columns::{ROUND_COLUMNS, cells};
use super::super::cores::CoreSet;
use super::super::load::Load;
use super::super::round::{Round, SinkWait, measure, median, medians, ratio};
use super::super::server::Server;
use super::super::table::{Cell, Report, Table, Target};
use super::{MAX_P99_RATIO, warm_up};

pub const NAME: &str = "upstream";

const CONNECTIONS: u32 = 64;

/// The mean pause of a connection between two callbacks, for a load below what the servers can take: 64 connections send
/// about 2,000 a second.
const PAUSE: Duration = Duration::from_millis(32);

/// The mean pause of the connections that send other commands while recalls are measured: 64 send about 100 a second.
const OTHERS_PAUSE: Duration = Duration::from_millis(640);

/// How much later than nginx's an answer of the relay may be, in milliseconds.
const MAX_P50_ABOVE_NGINX: f64 = 0.2;
const MAX_P99_ABOVE_NGINX: f64 = 1.0;

pub fn run(bench: &mut Bench) -> Report {
    let mut report = Report::new(NAME);
    handed_on(bench, &mut report);
    while_the_backend_hangs(bench, &mut report);
    report
}

fn handed_on(bench: &Bench, report: &mut Report) {
    let backend = Server::bare(bench.setup(), &bench.cores, CoreSet::Generator);
    let nginx = Server::nginx(bench.setup(), backend.address, &bench.cores);
    let url = format!("http://{}/", backend.address);
    let setup = bench.setup().set("RECALL_UPSTREAM__URL", &url);
    let relay = Server::relay(setup, &bench.cores, CoreSet::Server);
    for server in [&nginx, &relay] {
        warm_up(server, &bench.cores, SinkWait::Ignored);
    }
    let columns = [
        ("server", "server"),
        ("load", "load"),
        ("CPU of nginx", "cpu_of_nginx"),
    ];
    let columns: Vec<_> = columns.into_iter().chain(ROUND_COLUMNS).collect();
    let title = "Every callback is handed on to a backend that answers at once; it shares a core with the load.";
    let mut table = Table::new(title, &columns);
    for (name, pause) in [("paced", PAUSE), ("unlimited", Duration::ZERO)] {
        let load = Load {
            kind: CallbackKind::Other,
            pause,
            ..Load::new(CONNECTIONS, bench.options.round)
        };
        let (mut nginx_rounds, mut again, mut relay_rounds) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..bench.options.rounds {
            for (server, rounds) in [
                (&nginx, &mut nginx_rounds),
                (&relay, &mut relay_rounds),
                (&nginx, &mut again),
            ] {
                rounds.push(measure(server, &load, &bench.cores, SinkWait::Ignored));
            }
        }
        for (server, rounds) in [
            ("nginx", &nginx_rounds),
            ("nginx again", &again),
            ("recall-relay", &relay_rounds),
        ] {
            let mut row: Vec<Cell> = vec![server.into(), name.into()];
            row.push(Cell::Number(ratio(rounds, &nginx_rounds, |it| it.cpu), 2));
            row.extend(cells(&medians(rounds)));
            table.push(row);
        }
        if pause > Duration::ZERO {
            let above = |field: fn(&Round) -> f64| {
                let pairs = relay_rounds.iter().zip(&nginx_rounds);
                median(pairs.map(|(relay, nginx)| field(relay) - field(nginx)))
            };
            for (what, bound, value) in [
                (
                    "p50 above nginx's, ms",
                    MAX_P50_ABOVE_NGINX,
                    above(|it| it.p50),
                ),
                (
                    "p99 above nginx's, ms",
                    MAX_P99_ABOVE_NGINX,
                    above(|it| it.p99),
                ),
            ] {
                report.targets.push(Target::at_most(what, bound, value));
            }
        }
    }
    report.tables.push(table);
}

fn while_the_backend_hangs(bench: &mut Bench, report: &mut Report) {
    let hanging = TcpListener::bind("127.0.0.1:0").expect("cannot listen");
    let url = format!("http://{}/", hanging.local_addr().expect("no address"));
    thread::spawn(move || {
        let mut open = Vec::new();
        while let Ok((connection, _)) = hanging.accept() {
            open.push(connection);
        }
    });
    let (without, _) = bench.relay(Sink::Stdout);
    let setup = bench.setup().set("RECALL_UPSTREAM__URL", &url);
    let hung = Server::relay(setup, &bench.cores, CoreSet::Server);
    let columns = [("backend", "backend"), ("p99 of none", "p99_of_none")];
    let columns: Vec<_> = columns.into_iter().chain(ROUND_COLUMNS).collect();
    let title = "Recalls, while other connections send about 100 other commands a second.";
    let mut table = Table::new(title, &columns);
    for server in [&without, &hung] {
        warm_up(server, &bench.cores, SinkWait::Ignored);
    }
    let load = Load::new(CONNECTIONS, bench.options.round);
    let others = Load {
        kind: CallbackKind::Other,
        pause: OTHERS_PAUSE,
        ..load
    };
    let measure_beside = |server: &Server| {
        let address = server.address;
        thread::scope(|scope| {
            scope.spawn(|| others.run(address, &bench.cores));
            measure(server, &load, &bench.cores, SinkWait::Ignored)
        })
    };
    let (mut baseline, mut rounds) = (Vec::new(), Vec::new());
    for _ in 0..bench.options.rounds {
        baseline.push(measure_beside(&without));
        rounds.push(measure_beside(&hung));
    }
    for (name, rounds) in [("none", &baseline), ("hangs", &rounds)] {
        let mut row: Vec<Cell> = vec![name.into()];
        row.push(Cell::Number(ratio(rounds, &baseline, |it| it.p99), 2));
        row.extend(cells(&medians(rounds)));
        table.push(row);
    }
    report.tables.push(table);
    let figure = ratio(&rounds, &baseline, |it| it.p99);
    let what = "p99 of recalls while the backend hangs, of that without one";
    report
        .targets
        .push(Target::at_most(what, MAX_P99_RATIO, figure));
}
