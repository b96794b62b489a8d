//! Checks a spool after a power cut.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use recall_relay::event::{Event, Kind, Seq, UnixMillis};
use recall_relay::setting::Size;
use recall_relay::spool::{Appended, Config, Row, Spool};
use tokio::runtime::Runtime;
use tokio::time::timeout;
use uuid::Uuid;

use super::history::Past;
use crate::rig::Recall;

/// The timeout for reading a spool.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Examines spools, and remembers the events that it has seen.
#[derive(Default)]
pub struct Judge {
    events: HashMap<Uuid, (Bytes, Recall)>,
    /// The sequence numbers of the recalls that it has seen.
    numbers: HashMap<Recall, Seq>,
}

impl Judge {
    /// Opens the spool and checks that nothing is missing or wrong; otherwise returns what is.
    pub fn examine(
        &mut self,
        runtime: &Runtime,
        spool: &Path,
        sink: &str,
        past: &Past,
    ) -> Result<(), String> {
        let config = Config {
            path: spool.to_owned(),
            reserve: Size(0),
            ..Config::default()
        };
        let opened = Spool::open(&config, &[sink]);
        let spool = opened.map_err(|error| format!("{:#}", anyhow::Error::new(error)))?;
        let spool = spool.spool;
        runtime.block_on(async {
            let verdict = timeout(TIMEOUT, self.check(&spool, sink, past)).await;
            spool.close().await;
            verdict.unwrap_or_else(|_| Err("timed out waiting for rows".to_owned()))
        })
    }

    async fn check(&mut self, spool: &Spool, sink: &str, past: &Past) -> Result<(), String> {
        let rows = self.rows(spool).await?;
        let cursor = spool.cursor(sink).unwrap().position();

        let mut kept: HashSet<&Recall> = HashSet::new();
        let mut newest: BTreeMap<&str, u64> = BTreeMap::new();
        for (seq, recall) in &rows {
            if !kept.insert(recall) {
                return Err(format!("{recall:?} is in the spool twice"));
            }
            let last = newest.entry(&recall.group).or_default();
            if recall.number <= *last {
                return Err(format!("{recall:?} comes after number {last}"));
            }
            *last = recall.number;
            if *seq <= cursor && !past.published.contains(recall) {
                return Err(format!(
                    "the cursor is at {cursor}, but {recall:?}, number {seq}, was not published"
                ));
            }
        }
        let missing: Vec<_> = past
            .acknowledged
            .iter()
            .filter(|recall| !kept.contains(recall) && !past.published.contains(recall))
            .collect();
        if let Some(first) = missing.first() {
            return Err(format!(
                "missing {} of {}: {first:?} ... (the spool has {} rows)",
                missing.len(),
                past.acknowledged.len(),
                rows.len()
            ));
        }

        let event = Event {
            id: Uuid::from_u128(1),
            kind: Kind::Group,
            conversation: "1:group".into(),
            subject: None,
            group_type: None,
            time: UnixMillis::now(),
            body: Bytes::from_static(b"one more"),
        };
        let Ok(Appended::New(next)) = spool.append(event).await else {
            return Err("the spool does not accept a new event".to_owned());
        };
        let used = rows.last().map_or(Seq(0), |(seq, _)| *seq);
        let published = past.published.iter();
        let published = published.filter_map(|recall| self.numbers.get(recall));
        let used = used.max(published.max().copied().unwrap_or(Seq(0)));
        // Each published event had its own number, so at least this many have been assigned.
        let at_least = Seq(past.published.len() as u64);
        if next <= used.max(at_least) {
            return Err(format!("number {next} is assigned again"));
        }
        Ok(())
    }

    async fn rows(&mut self, spool: &Spool) -> Result<Vec<(Seq, Recall)>, String> {
        let mut rows: Vec<(Seq, Recall)> = Vec::new();
        let status = spool.status();
        let mut reader = spool.reader(Seq(0));
        while status.rows() > 0 && reader.position() < status.last {
            let read = reader.next(1000).await;
            for row in read.map_err(|error| format!("{error}: {error:?}"))? {
                let Row { seq, event } = row;
                let Some(event) = event else {
                    return Err(format!("number {seq} is damaged"));
                };
                if rows.last().is_some_and(|(last, _)| *last >= seq) {
                    return Err(format!("number {seq} is out of order"));
                }
                rows.push((seq, self.recall(&event)?));
            }
        }
        for (seq, recall) in &rows {
            self.numbers.insert(recall.clone(), *seq);
        }
        Ok(rows)
    }

    fn recall(&mut self, event: &Event) -> Result<Recall, String> {
        let (bytes, recall) = self
            .events
            .entry(event.id)
            .or_insert_with(|| (event.body.clone(), Recall::of(&event.body)));
        if *bytes != event.body {
            return Err(format!("{recall:?} has other bytes than before"));
        }
        Ok(recall.clone())
    }
}
