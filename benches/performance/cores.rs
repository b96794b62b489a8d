//! Pins processes to cores: the measured server has one core, everything else shares the others.

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CoreSet {
    /// The core of the measured server.
    Server,
    /// The cores of the generator, the brokers and this process.
    Generator,
    All,
}

#[derive(Debug, Clone, Copy)]
pub struct Cores {
    all: CpuSet,
    server: CpuSet,
    generator: CpuSet,
    count: usize,
}

impl Cores {
    /// Divides the cores that this process may use. If there is only one, everything shares it.
    pub fn find() -> Self {
        let all = sched_getaffinity(THIS_THREAD).expect("cannot read the CPU affinity");
        let usable = (0..CpuSet::count()).filter(|core| all.is_set(*core).unwrap_or(false));
        let usable: Vec<usize> = usable.collect();
        let is_divided = usable.len() > 1;
        let (server, generator) = usable.split_at(usize::from(is_divided));
        Self {
            all,
            server: set(if is_divided { server } else { generator }),
            generator: set(generator),
            count: usable.len(),
        }
    }

    pub const fn count(&self) -> usize {
        self.count
    }

    /// One thread for each core of the generator.
    pub fn generator_threads(&self) -> usize {
        (self.count - 1).max(1)
    }

    /// Calls `run` with the calling thread pinned to these cores; processes and threads that it starts inherit them.
    pub fn run_on<T>(&self, core_set: CoreSet, run: impl FnOnce() -> T) -> T {
        let before = sched_getaffinity(THIS_THREAD).expect("cannot read the CPU affinity");
        self.pin_current_thread(core_set);
        let result = run();
        sched_setaffinity(THIS_THREAD, &before).expect("cannot restore the CPU affinity");
        result
    }

    pub fn pin_current_thread(&self, core_set: CoreSet) {
        let cores = match core_set {
            CoreSet::Server => &self.server,
            CoreSet::Generator => &self.generator,
            CoreSet::All => &self.all,
        };
        sched_setaffinity(THIS_THREAD, cores).expect("cannot set the CPU affinity");
    }
}

const THIS_THREAD: Pid = Pid::from_raw(0);

fn set(cores: &[usize]) -> CpuSet {
    let mut set = CpuSet::new();
    for core in cores {
        set.set(*core).expect("the core number exceeds CpuSet");
    }
    set
}
