//! A disk that keeps what was synced apart from what was only written, and what it may hold after the
//! power is cut.
//!
//! Of a file everything that was done before its last sync began is there. Of what was done since,
//! anything may be: each write whole, torn at sectors, or absent, in any order, and the file's length
//! likewise. What a failed sync should have brought to the disk never gets there. Names in a folder are there once the folder was synced; of changes since, some are.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use bytes::Bytes;
use fastrand::Rng;

use super::trace::{Record, What};

/// What a disk writes at once, or not.
const SECTOR: u64 = 512;

#[derive(Debug, Clone, Default)]
pub struct Disk {
    files: BTreeMap<u64, File>,
    next_file: u64,
    /// As programs see them.
    names: Names,
    /// As they are on the disk.
    synced_names: Names,
    /// Changes to names that no sync has covered, with their places in the trace.
    name_changes: Vec<(u64, NameChange)>,
}

type Names = BTreeMap<String, Node>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Node {
    Folder,
    File(u64),
}

#[derive(Debug, Clone)]
enum NameChange {
    Add(String, Node),
    Remove(String),
    Rename(String, String),
}

#[derive(Debug, Clone, Default)]
struct File {
    synced: Vec<u8>,
    changes: Vec<(u64, Change)>,
}

#[derive(Debug, Clone)]
enum Change {
    Write(u64, Bytes),
    Resize(u64),
}

/// How a power cut treats what was not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Nothing of it is there.
    Lost,
    /// All of it is, as after a `kill -9`.
    Kept,
    /// All up to some moment, and a part of the write at that moment.
    Interrupted,
    /// Each change whole, torn or absent.
    Torn,
    /// Each change whole, torn or absent, and older ones may win.
    Shuffled,
}

impl Fate {
    pub const ALL: [Self; 5] = [
        Self::Lost,
        Self::Kept,
        Self::Interrupted,
        Self::Torn,
        Self::Shuffled,
    ];
}

impl Disk {
    /// A disk on which everything in `folder` is safe.
    pub fn holding(folder: &Path) -> Self {
        let mut disk = Self::default();
        disk.take_in(folder, "");
        disk.synced_names = disk.names.clone();
        disk
    }

    fn take_in(&mut self, folder: &Path, prefix: &str) {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let path = format!("{prefix}{}", entry.file_name().to_str().unwrap());
            if entry.file_type().unwrap().is_dir() {
                self.take_in(&entry.path(), &format!("{path}/"));
                self.names.insert(path, Node::Folder);
            } else {
                let node = self.add_file(fs::read(entry.path()).unwrap());
                self.names.insert(path, node);
            }
        }
    }

    fn add_file(&mut self, synced: Vec<u8>) -> Node {
        self.next_file += 1;
        let changes = Vec::new();
        self.files.insert(self.next_file, File { synced, changes });
        Node::File(self.next_file)
    }

    /// Does what the program did.
    pub fn apply(&mut self, record: &Record) {
        let position = record.position;
        match &record.what {
            What::Write { path, offset, data } => {
                let change = Change::Write(*offset, data.clone());
                self.file(path).changes.push((position, change));
            }
            What::Truncate { path, length } => {
                let change = Change::Resize(*length);
                self.file(path).changes.push((position, change));
            }
            What::Create { path } => {
                let node = self.add_file(Vec::new());
                self.rename(position, NameChange::Add(path.clone(), node));
            }
            What::MakeFolder { path } => {
                self.rename(position, NameChange::Add(path.clone(), Node::Folder));
            }
            What::Remove { path } => self.rename(position, NameChange::Remove(path.clone())),
            What::Rename { from, to } => {
                self.rename(position, NameChange::Rename(from.clone(), to.clone()));
            }
            What::Sync { path, began } => self.sync(path, *began),
            What::SyncFailed { path, began } => self.lose(path, *began),
            What::Output(_) => {}
        }
    }

    fn file(&mut self, path: &str) -> &mut File {
        let Some(Node::File(number)) = self.names.get(path) else {
            panic!("no file {path:?} in {:?}", self.names);
        };
        self.files.get_mut(number).unwrap()
    }

    fn rename(&mut self, position: u64, change: NameChange) {
        change.apply(&mut self.names);
        self.name_changes.push((position, change));
    }

    fn sync(&mut self, path: &str, began: u64) {
        if path.is_empty() || self.names.get(path) == Some(&Node::Folder) {
            let (synced, rest) = std::mem::take(&mut self.name_changes)
                .into_iter()
                .partition(|(position, change)| *position < began && change.folder() == path);
            self.name_changes = rest;
            for (_, change) in synced {
                change.apply(&mut self.synced_names);
            }
        } else {
            let file = self.file(path);
            let end = file
                .changes
                .partition_point(|(position, _)| *position < began);
            for (_, change) in file.changes.drain(..end) {
                change.apply(&mut file.synced);
            }
        }
    }

    /// The system could not write what it held, counts it as written all the same, and goes on telling
    /// it to whoever reads: no later sync will bring it to the disk.
    fn lose(&mut self, path: &str, began: u64) {
        if matches!(self.names.get(path), Some(Node::File(_))) {
            let changes = &mut self.file(path).changes;
            changes.retain(|(position, _)| *position >= began);
        }
    }

    /// Writes into `folder`, which is empty, what the disk may hold if the power is cut now.
    pub fn cut(&self, fate: Fate, rng: &mut Rng, folder: &Path) {
        let mut names = self.synced_names.clone();
        let until = rng.usize(..=self.name_changes.len());
        for (index, (_, change)) in self.name_changes.iter().enumerate() {
            let kept = match fate {
                Fate::Lost => false,
                Fate::Kept => true,
                Fate::Interrupted => index < until,
                Fate::Torn | Fate::Shuffled => rng.bool(),
            };
            if kept {
                change.apply(&mut names);
            }
        }
        let moments: Vec<u64> = self
            .files
            .values()
            .flat_map(|file| file.changes.iter().map(|(position, _)| *position))
            .collect();
        let moment = rng.choice(moments).unwrap_or_default();
        // Folders come before what is in them.
        for (path, node) in &names {
            let place = folder.join(path);
            if !place.parent().unwrap().is_dir() {
                continue;
            }
            match node {
                Node::Folder => fs::create_dir(place).unwrap(),
                // SQLite builds it anew whenever nobody has the database open.
                Node::File(_) if path.ends_with("-shm") => {}
                Node::File(number) => {
                    let content = self.files[number].cut(fate, moment, rng);
                    fs::write(place, content).unwrap();
                }
            }
        }
    }
}

impl NameChange {
    fn apply(&self, names: &mut Names) {
        match self {
            Self::Add(path, node) => {
                names.insert(path.clone(), *node);
            }
            Self::Remove(path) => {
                names.remove(path);
            }
            Self::Rename(from, to) => {
                if let Some(node) = names.remove(from) {
                    names.insert(to.clone(), node);
                }
            }
        }
    }

    /// The folder that holds the name.
    fn folder(&self) -> &str {
        let (Self::Add(path, _) | Self::Remove(path) | Self::Rename(path, _)) = self;
        path.rsplit_once('/').map_or("", |(folder, _)| folder)
    }
}

impl File {
    fn cut(&self, fate: Fate, moment: u64, rng: &mut Rng) -> Vec<u8> {
        let mut content = self.synced.clone();
        let mut changes: Vec<_> = self.changes.iter().collect();
        if fate == Fate::Shuffled {
            rng.shuffle(&mut changes);
        }
        for (position, change) in changes {
            match fate {
                Fate::Lost => {}
                Fate::Interrupted if *position > moment => {}
                Fate::Interrupted if *position == moment => change.tear(&mut content, rng),
                Fate::Interrupted | Fate::Kept => change.apply(&mut content),
                Fate::Torn | Fate::Shuffled => match rng.u8(..3) {
                    0 => {}
                    1 => change.apply(&mut content),
                    _ => change.tear(&mut content, rng),
                },
            }
        }
        content
    }
}

impl Change {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Self::Write(offset, data) => put(content, *offset, data),
            Self::Resize(length) => content.resize(usize::try_from(*length).unwrap(), 0),
        }
    }

    /// Does some of it: some sectors, and perhaps the length without what was to be there.
    fn tear(&self, content: &mut Vec<u8>, rng: &mut Rng) {
        let Self::Write(offset, data) = self else {
            if rng.bool() {
                self.apply(content);
            }
            return;
        };
        let end = usize::try_from(*offset).unwrap() + data.len();
        if content.len() < end && rng.bool() {
            content.resize(end, if rng.bool() { 0 } else { 0xa5 });
        }
        let mut at = *offset;
        let mut rest = &data[..];
        while !rest.is_empty() {
            let to_boundary = usize::try_from(SECTOR - at % SECTOR).unwrap();
            let (sector, after) = rest.split_at(to_boundary.min(rest.len()));
            if rng.bool() {
                put(content, at, sector);
            }
            at += sector.len() as u64;
            rest = after;
        }
    }
}

fn put(content: &mut Vec<u8>, offset: u64, data: &[u8]) {
    let start = usize::try_from(offset).unwrap();
    let end = start + data.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    content[start..end].copy_from_slice(data);
}
