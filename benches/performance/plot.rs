//! Draws tables of a report as bar charts in SVG, from the report's JSON.

use charts_rs::HorizontalBarChart;
use serde_json::{Value, json};

/// A chart of one table of a scenario.
struct Plot {
    file: &'static str,
    title: &'static str,
    scenario: &'static str,
    /// The index of the table in the scenario.
    table: usize,
    /// The columns that name a group of bars, and the title of the axis with these names.
    groups: &'static [&'static str],
    groups_axis: &'static str,
    bars: Bars,
    /// The title of the values' axis.
    axis: &'static str,
    /// Set if the values span several powers of ten.
    is_logarithmic: bool,
    /// The decimals of the label at each bar; trailing zeros are not drawn.
    decimals: usize,
}

/// The bars of a group.
enum Bars {
    /// One bar per row: its name is `prefix` followed by the column `name`, its length is the column `value`.
    Rows {
        name: &'static str,
        prefix: &'static str,
        value: &'static str,
    },
    /// One bar per column: its name, and the column.
    Columns([(&'static str, &'static str); 2]),
}

const PLOTS: [Plot; 12] = [
    Plot {
        file: "answers.svg",
        title: "Answers per second",
        scenario: "answers",
        table: 0,
        groups: &["connections"],
        groups_axis: "connections",
        bars: Bars::Rows {
            name: "server",
            prefix: "",
            value: "answers_per_second",
        },
        axis: "answers per second",
        is_logarithmic: true,
        decimals: 0,
    },
    Plot {
        file: "answers-cpu.svg",
        title: "CPU time per callback",
        scenario: "answers",
        table: 0,
        groups: &["connections"],
        groups_axis: "connections",
        bars: Bars::Rows {
            name: "server",
            prefix: "",
            value: "cpu_seconds_per_million",
        },
        axis: "CPU time per callback, µs",
        is_logarithmic: true,
        decimals: 1,
    },
    Plot {
        file: "answers-p99.svg",
        title: "Latency of an answer",
        scenario: "answers",
        table: 0,
        groups: &["connections"],
        groups_axis: "connections",
        bars: Bars::Rows {
            name: "server",
            prefix: "",
            value: "p99_ms",
        },
        axis: "p99, ms",
        is_logarithmic: true,
        decimals: 2,
    },
    Plot {
        file: "broker-down.svg",
        title: "Latency of an answer while the broker is down",
        scenario: "broker_down",
        table: 0,
        groups: &["sink", "connections"],
        groups_axis: "sink, connections",
        bars: Bars::Rows {
            name: "broker",
            prefix: "broker ",
            value: "p99_ms",
        },
        axis: "p99, ms",
        is_logarithmic: false,
        decimals: 2,
    },
    Plot {
        file: "catching-up.svg",
        title: "Latency of an answer while the sink catches up",
        scenario: "catching_up",
        table: 0,
        groups: &["sink", "connections"],
        groups_axis: "sink, connections",
        bars: Bars::Rows {
            name: "sink_is",
            prefix: "sink ",
            value: "p99_ms",
        },
        axis: "p99, ms",
        is_logarithmic: false,
        decimals: 2,
    },
    Plot {
        file: "growth-messages.svg",
        title: "CPU time per callback, by recalled messages",
        scenario: "growth",
        table: 1,
        groups: &["messages"],
        groups_axis: "messages per callback",
        bars: Bars::Rows {
            name: "server",
            prefix: "",
            value: "cpu_seconds_per_million",
        },
        axis: "CPU time per callback, µs",
        is_logarithmic: false,
        decimals: 1,
    },
    Plot {
        file: "growth-conversations.svg",
        title: "Events that the broker confirms, by conversations",
        scenario: "growth",
        table: 2,
        groups: &["conversations"],
        groups_axis: "conversations",
        bars: Bars::Rows {
            name: "sink",
            prefix: "",
            value: "sink_events_per_second",
        },
        axis: "events per second",
        is_logarithmic: false,
        decimals: 0,
    },
    Plot {
        file: "slow-disk.svg",
        title: "Latency of an answer on a slow disk",
        scenario: "slow_disk",
        table: 0,
        groups: &["sync_delay_ms"],
        groups_axis: "delay of each sync, ms",
        bars: Bars::Rows {
            name: "connections",
            prefix: "connections: ",
            value: "p99_ms",
        },
        axis: "p99, ms",
        is_logarithmic: true,
        decimals: 1,
    },
    Plot {
        file: "exactly-once-latency.svg",
        title: "Time from an answer until a subscriber sees the event",
        scenario: "exactly_once",
        table: 0,
        groups: &["callbacks_per_second"],
        groups_axis: "callbacks per second",
        bars: Bars::Rows {
            name: "exactly_once",
            prefix: "exactly once: ",
            value: "p99_ms",
        },
        axis: "p99, ms",
        is_logarithmic: false,
        decimals: 1,
    },
    Plot {
        file: "exactly-once-backlog.svg",
        title: "Publishing a backlog exactly once",
        scenario: "exactly_once",
        table: 1,
        groups: &["batch"],
        groups_axis: "events per transaction",
        bars: Bars::Columns([
            ("exactly once", "events_per_second"),
            ("at least once", "events_per_second_without"),
        ]),
        axis: "events per second",
        is_logarithmic: false,
        decimals: 0,
    },
    Plot {
        file: "backlog.svg",
        title: "Publishing a backlog",
        scenario: "backlog",
        table: 0,
        groups: &["sink", "retention"],
        groups_axis: "sink, retention",
        bars: Bars::Columns([
            ("relay", "relay_events_per_second"),
            ("bare client", "bare_events_per_second"),
        ]),
        axis: "events per second",
        is_logarithmic: false,
        decimals: 0,
    },
    Plot {
        file: "answer-after.svg",
        title: "Latency of an answer after the disk or the broker",
        scenario: "answer_after",
        table: 0,
        groups: &["sink", "connections"],
        groups_axis: "sink, connections",
        bars: Bars::Rows {
            name: "answer_after",
            prefix: "after the ",
            value: "p99_ms",
        },
        axis: "p99, ms",
        is_logarithmic: true,
        decimals: 2,
    },
];

/// Returns the names and contents of the SVG files, for the scenarios in the report.
pub fn draw(report: &Value) -> Vec<(&'static str, String)> {
    let scenarios = report["scenarios"]
        .as_array()
        .expect("the report has no scenarios");
    let mut files = Vec::new();
    for plot in &PLOTS {
        if let Some(scenario) = scenarios.iter().find(|it| it["scenario"] == plot.scenario) {
            let rows = scenario["tables"][plot.table]["rows"].as_array();
            files.push((plot.file, plot.svg(rows.expect("a table has no rows"))));
        }
    }
    files
}

impl Plot {
    fn svg(&self, rows: &[Value]) -> String {
        let (mut groups, mut bars): (Vec<String>, Vec<(String, Vec<&Value>)>) = Default::default();
        for row in rows {
            let group: Vec<_> = self.groups.iter().map(|it| text(&row[it])).collect();
            let group = group.join(", ");
            if !groups.contains(&group) {
                groups.push(group);
            }
            for (name, value) in self.bars.of(row) {
                match bars.iter_mut().find(|it| it.0 == name) {
                    Some((_, values)) => values.push(value),
                    None => bars.push((name, vec![value])),
                }
            }
        }
        self.chart(groups, bars)
    }

    fn chart(&self, mut groups: Vec<String>, bars: Vec<(String, Vec<&Value>)>) -> String {
        let height = 130 + groups.len() * (12 + 18 * bars.len());
        let values: Vec<_> = bars.iter().flat_map(|it| &it.1).copied().collect();
        let axis = self.value_axis(&values);
        // The library draws the first group at the bottom, so the groups and their values are reversed.
        groups.reverse();
        let bars = bars.into_iter().map(|(name, values)| {
            let values: Vec<_> = values.into_iter().rev().collect();
            json!({"name": padded(&name), "label_show": true, "data": values})
        });
        let groups = groups.iter().map(|it| padded(it));
        let chart = json!({
            "width": 740,
            "height": height,
            "margin": {"left": 10, "top": 10, "right": 60, "bottom": 10},
            "font_family": "Roboto, Helvetica, Arial, sans-serif",
            "title_text": self.title,
            "title_font_size": 16,
            "legend_category": "rect",
            "legend_margin": {"top": 30, "bottom": 5},
            "x_axis_data": groups.collect::<Vec<_>>(),
            "x_axis_title": self.axis,
            "x_axis_font_size": 12,
            "y_axis_configs": [axis],
            "series_label_formatter": format!("{{:.{}}}", self.decimals),
            "series_label_font_size": 12,
            "series_list": bars.collect::<Vec<_>>(),
        });
        let chart = HorizontalBarChart::from_json(&chart.to_string())
            .expect("the options of a chart are invalid");
        chart.svg().expect("cannot draw a chart")
    }

    /// The axis of the values: from one power of ten to another if logarithmic, otherwise from zero in round steps.
    #[expect(clippy::cast_possible_truncation, reason = "the axis has few steps")]
    fn value_axis(&self, values: &[&Value]) -> Value {
        let values = values.iter().filter_map(|it| it.as_f64());
        let (min, max) = values.fold((f64::MAX, 0.0_f64), |(min, max), value| {
            (min.min(value), max.max(value))
        });
        let mut axis = json!({"axis_title": self.groups_axis, "axis_font_size": 12});
        if self.is_logarithmic {
            axis["axis_scale"] = "log".into();
            axis["axis_split_number"] = ((max.log10().ceil() - min.log10().floor()) as i64).into();
        } else {
            let power = 10_f64.powf(max.log10().floor());
            let step = if max < 5.0 * power {
                power / 2.0
            } else {
                power
            };
            let steps = (max / step).ceil();
            axis["axis_max"] = (steps * step).into();
            axis["axis_split_number"] = (steps as i64).into();
        }
        axis
    }
}

impl Bars {
    /// The names and values of the bars that a row adds.
    fn of<'a>(&self, row: &'a Value) -> Vec<(String, &'a Value)> {
        match self {
            Self::Rows {
                name,
                prefix,
                value,
            } => vec![(format!("{prefix}{}", text(&row[name])), &row[value])],
            Self::Columns(columns) => columns
                .map(|(name, value)| (name.to_owned(), &row[value]))
                .into(),
        }
    }
}

fn text(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

/// Appends spaces, which are not drawn: the library measures text in Roboto, and a viewer's font may be wider.
fn padded(name: &str) -> String {
    format!("{name:<0$}", name.len() + 4)
}
