//! The files that settings name: secrets and certificates.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::setting;

/// A digest of each file's content, to notice a change. None if the file cannot be read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileDigests(BTreeMap<PathBuf, Option<[u8; 32]>>);

impl FileDigests {
    /// Adds a file whose content was read. What is not a regular file, such as a pipe, cannot be read again.
    pub(super) fn insert(&mut self, path: impl Into<PathBuf>, content: &[u8]) {
        let path = path.into();
        if is_regular(&path) {
            self.0.insert(path, Some(digest(content)));
        }
    }

    pub(super) fn append(&mut self, other: &mut Self) {
        self.0.append(&mut other.0);
    }

    /// Reads these files.
    pub(super) fn read(&mut self, paths: impl IntoIterator<Item = PathBuf>) {
        for path in paths {
            // Opening a pipe would wait for its writer.
            let content = is_regular(&path).then(|| setting::read_bytes(&path).ok());
            let digest = content.flatten().map(|content| digest(&content));
            self.0.insert(path, digest);
        }
    }

    /// Reads the same files again. Blocks.
    #[must_use]
    pub fn read_again(&self) -> Self {
        let mut again = Self::default();
        again.read(self.0.keys().cloned());
        again
    }

    /// The files that have other content than in `before`.
    #[must_use]
    pub fn changed_since(&self, before: &Self) -> Vec<&Path> {
        let changed = self
            .0
            .iter()
            .filter(|(path, digest)| before.0.get(*path) != Some(*digest));
        changed.map(|(path, _)| path.as_path()).collect()
    }
}

fn is_regular(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|file| file.is_file())
}

fn digest(content: &[u8]) -> [u8; 32] {
    Sha256::digest(content).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_of_content_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let [file, link] = ["file", "link"].map(|name| folder.path().join(name));
        fs::write(&file, "a").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let mut before = FileDigests::default();
        before.insert(&file, b"a");
        before.read([link.clone()]);
        assert_eq!(before.read_again(), before);

        // Kubernetes replaces a link, not the file.
        let other = folder.path().join("other");
        fs::write(&other, "b").unwrap();
        fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink(&other, &link).unwrap();
        let after = before.read_again();
        assert_eq!(after.changed_since(&before), [&link]);
        fs::remove_file(&file).unwrap();
        assert_eq!(after.read_again().changed_since(&after), [&file]);
    }
}
