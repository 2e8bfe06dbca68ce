//! Stacks instead of threads: production code that waits runs on a stack of its own and leaves it, at the places where it would wait.
//!
//! [`Machine`] is what a host's volume and lock cache get for clock and threads: a wait, a sleep or a slow request of the LUN suspends
//! the stack ([`Pause`] says why); jobs are queued. Nothing here runs anything: the host's side decides which stack goes on and when.
//!
//! Invariant: one thread, and a stack is left only inside [`Machine::wait`], [`Machine::sleep`] and the host's door to the LUN.

use luna_dlm as dlm;
use luna_dlm::{Job, Threads};
use parking_lot::Mutex;
use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Words of a stack: 1 MiB, of which the system gives what is touched.
const STACK_WORDS: usize = 1 << 17;
/// When the simulated clocks begin: some day in 2026.
const EPOCH_NS: u64 = 1_780_000_000_000_000_000;

/// Why a stack was left.
pub(crate) enum Pause {
    /// Its work is over.
    Over,
    /// It waits for something that happens on its host.
    Wait,
    /// It waits at the gate, with whatever it holds: nobody else of its host may run.
    Gate,
    /// For so many milliseconds.
    Sleep(u64),
    /// For the LUN, so long; a write with this number is on its way.
    Lun(u64, Option<u64>),
    /// The host dies in this very request.
    Die,
}

/// A stack with its work on it.
pub(crate) struct Task {
    stack: generator::Generator<'static, (), Pause>,
}

thread_local! {
    /// Stacks whose work is over, to be used again.
    static SPARE: RefCell<Vec<generator::Generator<'static, (), Pause>>> = const { RefCell::new(Vec::new()) };
}

impl Task {
    /// Puts work on a stack; it begins at the first [`Task::go_on`].
    pub(crate) fn new(work: Job) -> Self {
        let run = move || {
            work();
            Pause::Over
        };
        let stack = match SPARE.with_borrow_mut(Vec::pop) {
            Some(mut s) => {
                s.init_code(run);
                s
            }
            None => generator::Gn::<()>::new_opt(STACK_WORDS, run),
        };
        Self { stack }
    }

    /// Runs it until it pauses.
    pub(crate) fn go_on(&mut self) -> Pause {
        self.stack.resume().unwrap_or(Pause::Over)
    }

    /// Keeps the stack for the next one.
    pub(crate) fn done(self) {
        SPARE.with_borrow_mut(|all| all.push(self.stack));
    }
}

/// Leaves the current stack.
pub(crate) fn pause(p: Pause) {
    assert!(generator::is_generator(), "a wait outside of a stack");
    #[allow(deprecated, reason = "the form with a scope cannot be reached from inside production code")]
    generator::yield_with(p);
}

/// What a host's code queues for the world.
pub(crate) enum Said {
    /// For the router.
    Lock(dlm::Input),
    /// The lock cache believes to hold this from now on.
    Granted(dlm::Name, dlm::Mode),
    /// It came down to this.
    Released(dlm::Name, dlm::Mode),
    /// The lock cache withdrew itself.
    Failed(String),
    /// Of this world's own jobs.
    Fs(super::Heard),
}

/// See the module's text.
#[derive(Default)]
pub(crate) struct Machine {
    /// Milliseconds of the world.
    pub(crate) clock: Arc<AtomicU64>,
    /// Jobs that want a stack.
    pub(crate) jobs: Mutex<Vec<Job>>,
    /// The file system, as soon as it is mounted.
    pub(crate) mounted: Mutex<Weak<luna_fs::Fs>>,
    /// Stacks with work on them.
    pub(crate) stacks: AtomicU64,
    /// No new work of the host's own: it is about to leave.
    pub(crate) leaving: AtomicBool,
    /// What the world has to hear, in order.
    pub(crate) said: Mutex<Vec<Said>>,
}

impl Machine {
    pub(crate) fn say(&self, s: Said) {
        self.said.lock().push(s);
    }

    pub(crate) fn hear(&self, h: super::Heard) {
        self.say(Said::Fs(h));
    }
}

impl Threads for Machine {
    fn spawn(&self, job: Job) {
        self.jobs.lock().push(job);
    }

    fn wait(&self, ready: &dyn Fn() -> bool) {
        while !ready() {
            pause(Pause::Wait);
        }
    }
}

impl luna_fs::Machine for Machine {
    fn now_ns(&self) -> u64 {
        EPOCH_NS + self.clock.load(Ordering::Relaxed) * 1_000_000
    }

    fn sleep(&self, long: Duration) {
        pause(Pause::Sleep(long.as_millis() as u64));
    }
}

impl dlm::Requester for Machine {
    fn lock(&self, name: dlm::Name, mode: dlm::Mode, noqueue: bool) {
        self.say(Said::Lock(dlm::Input::Lock { name, mode, noqueue }));
    }

    fn release(&self, name: dlm::Name, from: dlm::Mode, to: dlm::Mode, value: Option<dlm::ValueBlock>) {
        self.say(Said::Released(name, to));
        self.say(Said::Lock(dlm::Input::Release { name, from, to, value }));
    }

    fn busy(&self, name: dlm::Name, wanted: dlm::Mode) {
        self.say(Said::Lock(dlm::Input::Busy { name, wanted }));
    }

    fn failed(&self, reason: &str) {
        self.say(Said::Failed(reason.to_owned()));
    }
}
