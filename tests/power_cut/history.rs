//! The history of a run: for any moment, the disk, the acknowledged recalls and the published recalls.

use std::collections::{HashMap, HashSet};

use super::disk::Disk;
use super::load::Acknowledged;
use super::trace::{Record, What};
use crate::rig::Recall;

/// A recorded run of the relay.
pub struct History {
    pub name: String,
    /// The disk at the start of the run.
    pub disk: Disk,
    pub records: Vec<Record>,
    /// Sorted by time.
    acknowledged: Vec<Acknowledged>,
    /// For each published recall, the number of records up to and including its output.
    published: HashMap<Recall, usize>,
    /// The acknowledged and published recalls at the start of the run.
    pub past: Past,
}

/// The acknowledged and published recalls at a moment.
#[derive(Debug, Clone, Default)]
pub struct Past {
    pub acknowledged: HashSet<Recall>,
    pub published: HashSet<Recall>,
}

impl History {
    pub fn new(
        name: String,
        disk: Disk,
        records: Vec<Record>,
        mut acknowledged: Vec<Acknowledged>,
        past: Past,
    ) -> Self {
        acknowledged.sort_by_key(|acknowledged| acknowledged.at);
        let published = published(&records);
        Self {
            name,
            disk,
            records,
            acknowledged,
            published,
            past,
        }
    }

    /// The acknowledged and published recalls after the first `count` records.
    pub fn past(&self, count: usize) -> Past {
        let mut past = self.past.clone();
        let before = self.records.get(count).map_or(u64::MAX, |next| next.at);
        let acknowledged = self
            .acknowledged
            .iter()
            .take_while(|acknowledged| acknowledged.at < before);
        past.acknowledged
            .extend(acknowledged.map(|acknowledged| acknowledged.recall.clone()));
        let published = self.published.iter().filter(|(_, after)| **after <= count);
        past.published
            .extend(published.map(|(recall, _)| recall.clone()));
        past
    }

    /// A random moment for a power cut, as a number of records; risky moments are more frequent.
    pub fn moment(&self, rng: &mut fastrand::Rng) -> usize {
        let rare = |record: &Record| match &record.what {
            What::Write { path, .. } => !path.ends_with("-wal"),
            What::Output(_) | What::Sync { .. } => false,
            _ => true,
        };
        let anywhere = rng.usize(..=self.records.len());
        if rng.u8(..10) < 6 {
            return anywhere;
        }
        // Near the next change that is not an append to the WAL: a checkpoint, a new file, a truncation.
        let next = self.records[anywhere..]
            .iter()
            .position(rare)
            .map_or(anywhere, |ahead| anywhere + ahead);
        (next + rng.usize(..4)).min(self.records.len())
    }

    /// The recalls that were acknowledged but not published.
    pub fn unpublished(&self) -> Vec<Recall> {
        let past = self.past(self.records.len());
        past.acknowledged
            .difference(&past.published)
            .cloned()
            .collect()
    }
}

fn published(records: &[Record]) -> HashMap<Recall, usize> {
    let mut published = HashMap::new();
    let mut line = Vec::new();
    for (index, record) in records.iter().enumerate() {
        let What::Output(data) = &record.what else {
            continue;
        };
        for part in data.split_inclusive(|byte| *byte == b'\n') {
            line.extend_from_slice(part);
            if line.last() == Some(&b'\n') {
                published.entry(Recall::of(&line)).or_insert(index + 1);
                line.clear();
            }
        }
    }
    published
}
