//! Fault injection: a disk that fails on demand, a wall clock that can be set, and a host whose address can be set.
//! `tests/faults/disk.c` is built here and loaded into the relays of a [`Setup`](super::Setup).

use std::env;
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tempfile::TempDir;

/// Sets faults and counts calls. Clones control the same disk.
#[derive(Clone)]
pub struct Faults {
    /// Contains the shared file and the trace; it is outside the folder whose disk fails.
    folder: Arc<TempDir>,
    control: Arc<File>,
    records: bool,
}

/// The words of `struct control` in disk.c, in the same order.
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
    HostAddress,
    FileSystem,
    KernelClock,
}

/// The offset and length of `only`.
const ONLY: u64 = 13 * 8;
const ONLY_BYTES: usize = 56;

/// The offset of the counters.
const COUNTERS: u64 = ONLY + ONLY_BYTES as u64;

const EIO: i64 = 5;
const ENOSPC: i64 = 28;
const ALL: i64 = -1;

/// Calls that the relays of a setup have made on files below its folder, and reads of the clock.
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

    /// A disk without faults that records every operation.
    pub fn recording() -> Self {
        Self {
            records: true,
            ..Self::new()
        }
    }

    /// The operations recorded so far.
    pub fn trace(&self) -> Vec<u8> {
        fs::read(self.folder.path().join("trace")).unwrap()
    }

    /// The environment variables that a relay needs.
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

    /// Makes every write fail.
    pub fn fail_writes(&self) {
        self.set(Word::WriteBudget, 0);
        self.set(Word::WriteErrno, EIO);
    }

    /// Makes every write fail with "no space left on device" after `bytes` more bytes.
    pub fn fill_up_after(&self, bytes: u64) {
        self.set(Word::WriteBudget, i64::try_from(bytes).unwrap());
        self.set(Word::WriteErrno, ENOSPC);
    }

    /// Sets the size of the disk: writes beyond it fail, and the reported free space is what is left of it.
    pub fn set_capacity(&self, bytes: u64) {
        self.set(Word::Capacity, i64::try_from(bytes).unwrap());
    }

    /// Makes every read fail.
    pub fn fail_reads(&self) {
        self.set(Word::ReadErrno, EIO);
    }

    /// Makes every sync fail without syncing anything.
    pub fn fail_syncs(&self) {
        self.set(Word::SyncFails, ALL);
        self.set(Word::SyncErrno, EIO);
    }

    /// Makes only the next sync fail.
    pub fn fail_one_sync(&self) {
        self.set(Word::SyncFails, 1);
        self.set(Word::SyncErrno, EIO);
    }

    /// Makes every sync take longer by `delay`.
    pub fn slow_syncs(&self, delay: Duration) {
        self.set(Word::SyncDelay, nanoseconds(delay));
    }

    /// Makes every sync hang until [`Self::heal`], but at most for a minute.
    pub fn hang_syncs(&self) {
        self.set(Word::SyncHang, 1);
    }

    /// Makes every write to standard output fail: that sink is down.
    pub fn fail_output(&self) {
        self.set(Word::OutputErrno, EIO);
    }

    /// Restricts failing reads, writes and syncs, and slow or hanging syncs, to files whose path ends with `name`.
    pub fn only(&self, name: &str) {
        let mut bytes = [0; ONLY_BYTES];
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        self.control.write_all_at(&bytes, ONLY).unwrap();
    }

    /// Sets the wall clock back by `by` from the real time.
    pub fn set_clock_back(&self, by: Duration) {
        self.set(Word::ClockOffset, -nanoseconds(by));
    }

    /// Sets the wall clock forward by `by` from the real time.
    pub fn set_clock_forward(&self, by: Duration) {
        self.set(Word::ClockOffset, nanoseconds(by));
    }

    /// Sets the address of the host `moving.test`, whose name does not resolve before.
    pub fn set_host_address(&self, address: Ipv4Addr) {
        self.set(Word::HostAddress, u32::from(address).into());
    }

    /// Sets what the system says is the type of every file system: a number of `linux/magic.h`.
    pub fn set_file_system(&self, magic: i64) {
        self.set(Word::FileSystem, magic);
    }

    /// Sets what the kernel says of its clock.
    pub fn set_kernel_clock(&self, is_synchronised: bool) {
        self.set(Word::KernelClock, if is_synchronised { 1 } else { 2 });
    }

    /// Removes all faults. Disk, file system, clock and the host's address stay as they are.
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

    /// The calls made so far. All are zero if the library was not loaded.
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

/// Builds the library once for each version of its source.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults/disk.c");
        let state = crc32fast::hash(&fs::read(&source).unwrap());
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let library = folder.join(format!("disk-{state:08x}.so"));
        if !library.exists() {
            // Several test programs may build the library at once.
            let unfinished = folder.join(format!("disk-{state:08x}-{}.so", process::id()));
            let built = Command::new(env::var_os("CC").unwrap_or_else(|| "cc".into()))
                .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
                .args([&unfinished, &source])
                .args(["-ldl", "-lpthread"])
                .output()
                .expect("cannot run the C compiler");
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
