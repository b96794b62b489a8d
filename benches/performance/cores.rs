//! Which processes run on which cores: what is measured on one, everything else on the others.

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The core of what is measured.
    Server,
    /// The cores of the generator, the brokers and the bench itself.
    Generator,
    /// All cores.
    Anywhere,
}

#[derive(Debug, Clone, Copy)]
pub struct Cores {
    all: CpuSet,
    server: CpuSet,
    generator: CpuSet,
    count: usize,
}

impl Cores {
    /// Those that this process may use. With a single one, all share it.
    pub fn find() -> Self {
        let all = sched_getaffinity(THIS_THREAD).expect("the cores of this process");
        let usable = (0..CpuSet::count()).filter(|core| all.is_set(*core).unwrap_or(false));
        let usable: Vec<usize> = usable.collect();
        let apart = usable.len() > 1;
        let (server, generator) = usable.split_at(usize::from(apart));
        Self {
            all,
            server: set(if apart { server } else { generator }),
            generator: set(generator),
            count: usable.len(),
        }
    }

    pub const fn count(&self) -> usize {
        self.count
    }

    /// Threads with which the generator fills its cores.
    pub fn of_generator(&self) -> usize {
        (self.count - 1).max(1)
    }

    /// Runs this with the calling thread in a place: processes and threads that it starts are there.
    pub fn on<T>(&self, place: Place, run: impl FnOnce() -> T) -> T {
        let before = sched_getaffinity(THIS_THREAD).expect("the cores of this thread");
        self.go(place);
        let result = run();
        sched_setaffinity(THIS_THREAD, &before).expect("cores that it had before");
        result
    }

    /// Moves the calling thread.
    pub fn go(&self, place: Place) {
        let cores = match place {
            Place::Server => &self.server,
            Place::Generator => &self.generator,
            Place::Anywhere => &self.all,
        };
        sched_setaffinity(THIS_THREAD, cores).expect("cores that this process may use");
    }
}

const THIS_THREAD: Pid = Pid::from_raw(0);

fn set(cores: &[usize]) -> CpuSet {
    let mut set = CpuSet::new();
    for core in cores {
        set.set(*core).expect("a core");
    }
    set
}
