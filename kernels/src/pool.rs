//! A fixed pool of threads for work that comes in quick succession: they spin a while for the next job before they sleep.

use std::cell::{Cell, UnsafeCell};
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread::{self, JoinHandle, Thread};

/// The most threads of a pool.
pub const THREADS_MAX: usize = 256;

/// How often a thread looks for a next job before it sleeps: a few tens of microseconds, the time between two steps of
/// a forward pass many times over, and little beside what a wake-up costs.
const SPINS_MAX: u32 = 2000;

/// How often the caller looks whether the others are done before it gives up its core between looks.
const SPINS_BEFORE_YIELD: u32 = 500;

/// In the state word: a job may be joined.
const OPEN: u64 = 1 << 31;
/// In the state word: the number of threads in the job.
const ACTIVE: u64 = OPEN - 1;
/// In the state word: one more job.
const EPOCH: u64 = 1 << 32;

/// Bytes of stack for a pool thread.
const STACK_BYTES: usize = 512 * 1024;

/// `(thread, item)`: the thread counts from 0, the caller's own is the last.
type Call<'a> = dyn Fn(usize, usize) + Sync + 'a;

struct Job {
    call: *const Call<'static>,
    items: usize,
}

struct Shared {
    /// Epoch in the upper half; OPEN; the number of pool threads that are in the job.
    state: AtomicU64,
    /// Written by the caller while the state is neither open nor active; read by threads that have joined.
    job: UnsafeCell<Job>,
    /// The next item that nobody has taken.
    next: AtomicUsize,
    stop: AtomicBool,
    panicked: AtomicBool,
    sleeping: Vec<AtomicBool>,
}

// SAFETY: `job` is written only while no thread can join or is in a job, and the state word orders that (see `run`).
unsafe impl Sync for Shared {}
// SAFETY: the pointer in `job` is only followed while `run` keeps its referent alive.
unsafe impl Send for Shared {}

/// The pool. It belongs to one thread at a time, so that there is one job at a time.
pub struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    handles: Vec<Thread>,
    one_caller: PhantomData<Cell<()>>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pool({})", self.threads())
    }
}

impl Pool {
    /// A pool of this many threads, the caller's own included.
    ///
    /// # Errors
    /// The system starts no more threads.
    ///
    /// # Panics
    /// If `threads` is 0 or over [`THREADS_MAX`].
    pub fn new(threads: usize) -> std::io::Result<Self> {
        assert!((1..=THREADS_MAX).contains(&threads), "a pool of {threads} threads");
        let others = threads - 1;
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            job: UnsafeCell::new(Job { call: std::ptr::from_ref::<Call<'static>>(&|_, _| ()), items: 0 }),
            next: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            panicked: AtomicBool::new(false),
            sleeping: (0..others).map(|_| AtomicBool::new(false)).collect(),
        });
        let mut pool = Self { shared, threads: Vec::new(), handles: Vec::new(), one_caller: PhantomData };
        for index in 0..others {
            pool.start(index)?;
        }
        Ok(pool)
    }

    fn start(&mut self, index: usize) -> std::io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let builder = thread::Builder::new().name(format!("compute-{index}")).stack_size(STACK_BYTES);
        let thread = builder.spawn(move || shared.work(index))?;
        self.handles.push(thread.thread().clone());
        self.threads.push(thread);
        Ok(())
    }

    /// How many threads work, the caller's own included.
    pub fn threads(&self) -> usize {
        self.threads.len() + 1
    }

    /// Calls `call(thread, item)` once for every item below `items`, on whichever threads come first, and returns when
    /// all calls have returned. A thread that is late takes no part and isn't waited for.
    ///
    /// # Panics
    /// If a call panicked.
    pub fn run(&self, items: usize, call: &(dyn Fn(usize, usize) + Sync)) {
        if items <= 1 || self.threads.is_empty() {
            (0..items).for_each(|item| call(self.threads.len(), item));
            return;
        }
        self.open(items, call);
        let own = catch_unwind(AssertUnwindSafe(|| self.shared.take_items(self.threads.len(), items, call)));
        self.close();
        if own.is_err() || self.shared.panicked.swap(false, Ordering::Relaxed) {
            panic!("a call in the pool panicked");
        }
    }

    /// Returns when every thread has run a call: none is still starting.
    pub fn run_on_each_thread(&self, call: &(dyn Fn(usize) + Sync)) {
        let all_here = Barrier::new(self.threads());
        self.run(self.threads(), &|thread, _| {
            // Nobody can take a second item before everybody has one.
            all_here.wait();
            call(thread);
        });
    }

    fn open(&self, items: usize, call: &Call<'_>) {
        // SAFETY: only the lifetime changes. `close` returns when no thread can reach the pointer any more.
        let call = unsafe { std::mem::transmute::<*const Call<'_>, *const Call<'static>>(call) };
        // SAFETY: the state is closed and nobody is active since the last `close`, and there is one caller.
        unsafe { *self.shared.job.get() = Job { call, items } };
        self.shared.next.store(0, Ordering::Relaxed);
        let state = self.shared.state.load(Ordering::Relaxed);
        assert_eq!(state & (OPEN | ACTIVE), 0, "one job at a time");
        self.shared.state.store(state.wrapping_add(EPOCH) | OPEN, Ordering::SeqCst);
        for (sleeping, thread) in self.shared.sleeping.iter().zip(&self.handles) {
            if sleeping.load(Ordering::SeqCst) {
                thread.unpark();
            }
        }
    }

    fn close(&self) {
        let mut state = self.shared.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut spins = 0;
        while state & ACTIVE != 0 {
            spins += 1;
            if spins > SPINS_BEFORE_YIELD {
                thread::yield_now()
            } else {
                std::hint::spin_loop()
            }
            state = self.shared.state.load(Ordering::Acquire);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for (handle, thread) in self.handles.iter().zip(self.threads.drain(..)) {
            handle.unpark();
            // A thread's panics are caught in `work`, so that joining can't fail.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn work(&self, index: usize) {
        let mut seen = 0;
        while let Some(epoch) = self.join(index, seen) {
            seen = epoch;
            // SAFETY: this thread is active, so the job is not written and its referent lives until `leave`.
            let (call, items) = unsafe { (&*(*self.job.get()).call, (*self.job.get()).items) };
            if catch_unwind(AssertUnwindSafe(|| self.take_items(index, items, call))).is_err() {
                self.panicked.store(true, Ordering::Relaxed);
            }
            self.state.fetch_sub(1, Ordering::Release);
        }
    }

    /// Waits for an open job after `seen` and joins it; `None` when the pool ends.
    fn join(&self, index: usize, seen: u64) -> Option<u64> {
        let mut spins = 0;
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return None;
            }
            let state = self.state.load(Ordering::Acquire);
            let epoch = state / EPOCH;
            if state & OPEN != 0 && epoch != seen {
                let joined =
                    self.state.compare_exchange(state, state + 1, Ordering::AcqRel, Ordering::Relaxed);
                if joined.is_ok() {
                    return Some(epoch);
                }
            } else if spins < SPINS_MAX {
                spins += 1;
                std::hint::spin_loop();
            } else {
                self.sleep(index, seen);
                spins = 0;
            }
        }
    }

    /// Sleeps unless a job has opened since. The caller stores the state and then reads the flag, this stores the flag
    /// and then reads the state: one of the two sees the other.
    fn sleep(&self, index: usize, seen: u64) {
        self.sleeping[index].store(true, Ordering::SeqCst);
        let state = self.state.load(Ordering::SeqCst);
        let nothing_to_do = state & OPEN == 0 || state / EPOCH == seen;
        if nothing_to_do && !self.stop.load(Ordering::SeqCst) {
            thread::park();
        }
        self.sleeping[index].store(false, Ordering::SeqCst);
    }

    fn take_items(&self, thread: usize, items: usize, call: &Call<'_>) {
        loop {
            let item = self.next.fetch_add(1, Ordering::Relaxed);
            if item >= items {
                return;
            }
            call(thread, item);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_taken_once() {
        for threads in 1..=4 {
            let pool = Pool::new(threads).unwrap();
            for items in [0, 1, 2, 3, 100] {
                let counts: Vec<AtomicUsize> = (0..items).map(|_| AtomicUsize::new(0)).collect();
                pool.run(items, &|_, item| {
                    counts[item].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn a_thread_that_went_to_sleep_takes_part_again() {
        let pool = Pool::new(3).unwrap();
        for _ in 0..20 {
            let seen: Vec<AtomicBool> = (0..3).map(|_| AtomicBool::new(false)).collect();
            pool.run_on_each_thread(&|thread| seen[thread].store(true, Ordering::Relaxed));
            assert!(seen.iter().all(|seen| seen.load(Ordering::Relaxed)));
            thread::sleep(std::time::Duration::from_millis(2));
        }
    }

    #[test]
    fn a_panic_in_a_call_reaches_the_caller_and_the_pool_goes_on() {
        let pool = Pool::new(2).unwrap();
        let panics = catch_unwind(AssertUnwindSafe(|| {
            pool.run(8, &|_, item| assert_ne!(item, 5, "on purpose"));
        }));
        assert!(panics.is_err());
        let count = AtomicUsize::new(0);
        pool.run(8, &|_, _| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.into_inner(), 8);
    }
}
