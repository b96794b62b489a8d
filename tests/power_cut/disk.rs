//! A model of a disk that distinguishes synced changes from unsynced ones, and builds what may be left after a power
//! cut.
//!
//! A file keeps every change from before its last sync began. Each later write may be complete, torn at sectors or
//! absent, in any order; the same holds for the file's length. Changes that a failed sync covered are never written.
//! Names in a folder are kept after the folder was synced; of later changes to names, any subset may be kept.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use bytes::Bytes;
use fastrand::Rng;

use super::trace::{Record, What};

/// The unit that a disk writes atomically.
const SECTOR: u64 = 512;

#[derive(Debug, Clone, Default)]
pub struct Disk {
    files: BTreeMap<u64, File>,
    next_file: u64,
    /// The names that programs see.
    names: Names,
    /// The names that are on the disk.
    synced_names: Names,
    /// Changes to names that no sync has covered, with their positions in the trace.
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

/// What a power cut does to unsynced changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// No change is kept.
    Lost,
    /// All changes are kept, as after a `kill -9`.
    Kept,
    /// All changes up to some moment are kept, and a part of the write at that moment.
    Interrupted,
    /// Each change is complete, torn or absent.
    Torn,
    /// Each change is complete, torn or absent, and an older one may overwrite a newer one.
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
    /// A disk that contains `folder`, with everything synced.
    pub fn from_folder(folder: &Path) -> Self {
        let mut disk = Self::default();
        disk.add_folder(folder, "");
        disk.synced_names = disk.names.clone();
        disk
    }

    fn add_folder(&mut self, folder: &Path, prefix: &str) {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let path = format!("{prefix}{}", entry.file_name().to_str().unwrap());
            if entry.file_type().unwrap().is_dir() {
                self.add_folder(&entry.path(), &format!("{path}/"));
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

    /// Applies an operation of the program.
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
                self.change_name(position, NameChange::Add(path.clone(), node));
            }
            What::MakeFolder { path } => {
                self.change_name(position, NameChange::Add(path.clone(), Node::Folder));
            }
            What::Remove { path } => self.change_name(position, NameChange::Remove(path.clone())),
            What::Rename { from, to } => {
                self.change_name(position, NameChange::Rename(from.clone(), to.clone()));
            }
            What::Sync { path, began } => self.sync(path, *began),
            What::SyncFailed { path, began } => self.drop_unsynced(path, *began),
            What::Output(_) => {}
        }
    }

    fn file(&mut self, path: &str) -> &mut File {
        let Some(Node::File(number)) = self.names.get(path) else {
            panic!("no file {path:?} in {:?}", self.names);
        };
        self.files.get_mut(number).unwrap()
    }

    fn change_name(&mut self, position: u64, change: NameChange) {
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

    /// After a failed sync, the kernel marks the dirty pages as clean and still shows them to readers, but no later
    /// sync writes them to the disk.
    fn drop_unsynced(&mut self, path: &str, began: u64) {
        if matches!(self.names.get(path), Some(Node::File(_))) {
            let changes = &mut self.file(path).changes;
            changes.retain(|(position, _)| *position >= began);
        }
    }

    /// Writes what the disk may contain if the power is cut now into `folder`, which must be empty.
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
        // The names are sorted, so a folder comes before its files.
        for (path, node) in &names {
            let place = folder.join(path);
            if !place.parent().unwrap().is_dir() {
                continue;
            }
            match node {
                Node::Folder => fs::create_dir(place).unwrap(),
                // SQLite rebuilds it when the first process opens the database.
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

    /// The folder that contains the name.
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
            Self::Write(offset, data) => write_at(content, *offset, data),
            Self::Resize(length) => content.resize(usize::try_from(*length).unwrap(), 0),
        }
    }

    /// Applies a part of the change: some sectors, and perhaps the length without the data.
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
                write_at(content, at, sector);
            }
            at += sector.len() as u64;
            rest = after;
        }
    }
}

fn write_at(content: &mut Vec<u8>, offset: u64, data: &[u8]) {
    let start = usize::try_from(offset).unwrap();
    let end = start + data.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    content[start..end].copy_from_slice(data);
}
