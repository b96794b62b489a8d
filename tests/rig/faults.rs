//! A disk that fails when it is told to, and a wall clock that can be set: `tests/faults/disk.c`, built
//! here and loaded into the relays of a [`Setup`](super::Setup).

use std::env;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tempfile::TempDir;

/// What fails, and what was called so far. Clones are the same disk.
#[derive(Clone)]
pub struct Faults {
    /// Holds the shared file and the trace: outside of the folder whose disk it is.
    folder: Arc<TempDir>,
    control: Arc<File>,
    records: bool,
}

/// The words of `struct control` in disk.c, in its order.
#[derive(Clone, Copy)]
enum Word {
    WriteErrno,
    WriteBudget,
    ReadErrno,
    SyncErrno,
    SyncFails,
    SyncDelay,
    SyncHang,
    Capacity,
    ClockOffset,
    OutputErrno,
}

/// Where `only` begins, and how long it is.
const ONLY: u64 = 10 * 8;
const ONLY_BYTES: usize = 56;

/// Where the counters begin.
const COUNTERS: u64 = ONLY + ONLY_BYTES as u64;

const EIO: i64 = 5;
const ENOSPC: i64 = 28;
const ALL: i64 = -1;

/// Calls that the relays of a setup have made below its folder; the clock's anywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Calls {
    pub reads: u64,
    pub writes: u64,
    pub syncs: u64,
    pub opens: u64,
    pub clock_reads: u64,
    pub failed_reads: u64,
    pub failed_writes: u64,
    pub failed_syncs: u64,
}

impl Faults {
    /// A disk without faults.
    pub fn new() -> Self {
        let folder = Arc::new(TempDir::new().unwrap());
        let path = folder.path().join("control");
        fs::write(&path, [0; 4096]).unwrap();
        let control = File::options().read(true).write(true).open(path).unwrap();
        Self {
            folder,
            control: Arc::new(control),
            records: false,
        }
    }

    /// A disk without faults, that records everything that is done to it.
    pub fn recording() -> Self {
        Self {
            records: true,
            ..Self::new()
        }
    }

    /// What was recorded so far.
    pub fn trace(&self) -> Vec<u8> {
        fs::read(self.folder.path().join("trace")).unwrap()
    }

    /// What a relay needs in its environment.
    pub(super) fn environment(&self, disk: &Path) -> Vec<(&'static str, String)> {
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let mut environment = vec![
            ("LD_PRELOAD", text(library())),
            ("FAULTS_FOLDER", text(&disk.canonicalize().unwrap())),
            ("FAULTS_CONTROL", text(&self.folder.path().join("control"))),
        ];
        if self.records {
            let trace = self.folder.path().join("trace");
            environment.push(("FAULTS_TRACE", text(&trace)));
        }
        environment
    }

    /// Every write fails.
    pub fn fail_writes(&self) {
        self.set(Word::WriteBudget, 0);
        self.set(Word::WriteErrno, EIO);
    }

    /// Every write fails for want of space, after `bytes` more.
    pub fn fill_up_after(&self, bytes: u64) {
        self.set(Word::WriteBudget, i64::try_from(bytes).unwrap());
        self.set(Word::WriteErrno, ENOSPC);
    }

    /// The disk is so large, and says so: files cannot grow over it.
    pub fn set_capacity(&self, bytes: u64) {
        self.set(Word::Capacity, i64::try_from(bytes).unwrap());
    }

    /// Every read fails.
    pub fn fail_reads(&self) {
        self.set(Word::ReadErrno, EIO);
    }

    /// Every sync fails, and syncs nothing.
    pub fn fail_syncs(&self) {
        self.set(Word::SyncFails, ALL);
        self.set(Word::SyncErrno, EIO);
    }

    /// The next sync fails, those after it do not.
    pub fn fail_one_sync(&self) {
        self.set(Word::SyncFails, 1);
        self.set(Word::SyncErrno, EIO);
    }

    /// Every sync takes so much longer.
    pub fn slow_syncs(&self, delay: Duration) {
        self.set(Word::SyncDelay, nanoseconds(delay));
    }

    /// No sync ends until [`Self::heal`].
    pub fn hang_syncs(&self) {
        self.set(Word::SyncHang, 1);
    }

    /// Every write to standard output fails: that sink is down.
    pub fn fail_output(&self) {
        self.set(Word::OutputErrno, EIO);
    }

    /// Only files whose name ends so fail; the others are well.
    pub fn only(&self, name: &str) {
        let mut bytes = [0; ONLY_BYTES];
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        self.control.write_all_at(&bytes, ONLY).unwrap();
    }

    /// The wall clock is so much behind the real one.
    pub fn set_clock_back(&self, by: Duration) {
        self.set(Word::ClockOffset, -nanoseconds(by));
    }

    /// The wall clock is so much ahead of the real one.
    pub fn set_clock_forward(&self, by: Duration) {
        self.set(Word::ClockOffset, nanoseconds(by));
    }

    /// The disk is well again. Its size and the clock stay.
    pub fn heal(&self) {
        for word in [
            Word::WriteErrno,
            Word::ReadErrno,
            Word::SyncErrno,
            Word::SyncDelay,
            Word::SyncHang,
            Word::OutputErrno,
        ] {
            self.set(word, 0);
        }
        self.only("");
    }

    /// What was called so far. None at all, where the library was not loaded.
    pub fn calls(&self) -> Calls {
        let word = |index: u64| {
            let mut bytes = [0; 8];
            let at = COUNTERS + index * 8;
            self.control.read_exact_at(&mut bytes, at).unwrap();
            u64::from_ne_bytes(bytes)
        };
        Calls {
            reads: word(0),
            writes: word(1),
            syncs: word(2),
            opens: word(3),
            clock_reads: word(4),
            failed_reads: word(5),
            failed_writes: word(6),
            failed_syncs: word(7),
        }
    }

    fn set(&self, word: Word, value: i64) {
        let at = word as u64 * 8;
        self.control.write_all_at(&value.to_ne_bytes(), at).unwrap();
    }
}

fn nanoseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap()
}

/// Builds the library once for each state of its source.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults/disk.c");
        let state = crc32fast::hash(&fs::read(&source).unwrap());
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let library = folder.join(format!("disk-{state:08x}.so"));
        if !library.exists() {
            // Several test programs may do this at once.
            let unfinished = folder.join(format!("disk-{state:08x}-{}.so", process::id()));
            let built = Command::new(env::var_os("CC").unwrap_or_else(|| "cc".into()))
                .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
                .args([&unfinished, &source])
                .args(["-ldl", "-lpthread"])
                .output()
                .expect("a C compiler, as the build needs one");
            assert!(
                built.status.success(),
                "{}",
                String::from_utf8_lossy(&built.stderr)
            );
            fs::rename(&unfinished, &library).unwrap();
        }
        library
    })
}
