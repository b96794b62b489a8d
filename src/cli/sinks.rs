//! How far each sink is, from the spool's file and, if one runs, from the relay.

use anyhow::anyhow;

use crate::config::Config;
use crate::control::{self, RelayStatus, SinkStatus};
use crate::event::Seq;
use crate::spool::{Inspector, SpoolOverview};

/// What the spool holds, and how far each sink is.
#[derive(Debug)]
pub(super) struct SinkPositions {
    pub(super) overview: SpoolOverview,
    /// `None` if no relay answers on this spool.
    pub(super) relay: Option<RelayStatus>,
    /// The configured sinks, then others that have a cursor.
    pub(super) sinks: Vec<SinkPosition>,
}

/// How far a sink is.
#[derive(Debug)]
pub(super) struct SinkPosition {
    pub(super) name: String,
    pub(super) is_configured: bool,
    /// It has confirmed every event up to here. A sink without a cursor starts at the oldest event.
    pub(super) confirmed: Seq,
    /// Whether its saved cursor is damaged.
    pub(super) is_damaged: bool,
    /// Whether events after its cursor are kept for it.
    pub(super) pins: bool,
    /// What the relay says, if it runs.
    pub(super) status: Option<SinkStatus>,
}

impl SinkPositions {
    /// Reads the file, then asks the relay: its answer is the newer one.
    pub(super) fn read(inspector: &Inspector, config: &Config) -> anyhow::Result<Self> {
        let overview = inspector.overview()?;
        let relay = control::client::status(inspector.path());
        let configured = config.sink_names();
        let removed = overview.cursors.keys().map(String::as_str);
        let removed: Vec<_> = removed.filter(|sink| !configured.contains(sink)).collect();
        let start = Seq(overview.first.0 - 1);
        let position = |(name, is_configured): (&str, bool)| {
            let saved = overview.cursors.get(name);
            let cursor = saved.copied().flatten();
            let status = relay.as_ref().and_then(|relay| {
                let mut sinks = relay.sinks.iter();
                sinks.find(|status| status.sink == name).cloned()
            });
            let saved_at = cursor.map_or(start, |cursor| cursor.seq);
            let reported = status
                .as_ref()
                .map_or(Seq(0), |status| Seq(status.confirmed_seq));
            let confirmed = saved_at.max(reported);
            let is_waiting = overview.kept_within(confirmed, overview.last) > 0;
            SinkPosition {
                name: name.to_owned(),
                is_configured,
                confirmed,
                is_damaged: saved == Some(&None),
                // At a start, a removed sink pins nothing if it has confirmed everything, or if it is stdout.
                pins: is_configured
                    || name != crate::sink::stdout::NAME
                        && is_waiting
                        && cursor.is_none_or(|cursor| cursor.pins),
                status,
            }
        };
        let configured = configured.iter().map(|name| (*name, true));
        let removed = removed.into_iter().map(|name| (name, false));
        let sinks = configured.chain(removed).map(position).collect();
        Ok(Self {
            overview,
            relay,
            sinks,
        })
    }
}

impl SinkPositions {
    /// Every sink that pins events has confirmed every event up to here.
    pub(super) fn forwarded(&self) -> Seq {
        let pinning = self.sinks.iter().filter(|sink| sink.pins);
        let confirmed = pinning.map(|sink| sink.confirmed).min();
        confirmed.unwrap_or(self.overview.last)
    }

    /// The sink with this name.
    pub(super) fn named(&self, name: &str) -> anyhow::Result<&SinkPosition> {
        let found = self.sinks.iter().find(|sink| sink.name == name);
        found.ok_or_else(|| {
            let names: Vec<_> = self.sinks.iter().map(|sink| &*sink.name).collect();
            anyhow!(
                "the spool has no sink `{name}`; it has {}",
                names.join(", ")
            )
        })
    }
}

impl SinkPosition {
    /// `up`, `down`, `starting`; or why that is not known.
    pub(super) fn state(&self) -> &str {
        match &self.status {
            Some(status) => &status.state,
            None if self.is_configured => "unknown",
            None => "not_configured",
        }
    }

    /// Why the sink is down, if it is.
    pub(super) fn reason(&self) -> Option<&str> {
        self.status.as_ref()?.reason.as_deref()
    }

    /// Since when the sink has been down, if it is.
    pub(super) fn since(&self) -> Option<&str> {
        self.status.as_ref()?.since.as_deref()
    }
}
