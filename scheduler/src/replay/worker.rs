//! A simulated worker: which inputs of its jobs are in its next step, as the real one chooses them.

use crate::ids::{ClientId, JobId};
use std::collections::BTreeMap;

/// Lanes count parts of a token, so that weights up to the largest make a difference.
const LANE_SCALE: u64 = 1_000;

/// What a job has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Work {
    /// Inputs, at least 1: none is cut.
    pub(super) items: u32,
    /// Of all inputs, at least as many.
    pub(super) tokens: u64,
    /// Device time of all in nanoseconds.
    pub(super) ns: u64,
}

/// How long a step of a model may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct StepSize {
    pub(super) tokens: u64,
}

/// A job in a worker.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    pub(super) job: JobId,
    pub(super) client: ClientId,
    pub(super) weight: u16,
    pub(super) work: Work,
    /// Inputs that are done, or in the running step.
    taken: u32,
    pub(super) cancelled: bool,
}

/// A worker.
#[derive(Clone, Debug, Default)]
pub(super) struct Worker {
    pub(super) model: usize,
    pub(super) ready: bool,
    pub(super) slots: Vec<Slot>,
    /// What each client has had here, for its weight.
    lanes: BTreeMap<ClientId, u64>,
    virtual_time: u64,
    /// The running step: nanoseconds, and tokens by job.
    pub(super) step: Option<(u64, BTreeMap<JobId, u64>)>,
}

impl Work {
    /// Tokens and nanoseconds of one input: together they are those of the job.
    fn item(&self, index: u32) -> (u64, u64) {
        let (index, items) = (u128::from(index), u128::from(self.items));
        let part = |whole: u64| {
            let upto = |count: u128| (u128::from(whole) * count / items) as u64;
            upto(index + 1) - upto(index)
        };
        (part(self.tokens), part(self.ns))
    }
}

impl Slot {
    pub(super) fn new(job: JobId, client: ClientId, weight: u16, work: Work) -> Self {
        Self { job, client, weight, work, taken: 0, cancelled: false }
    }

    pub(super) fn is_done(&self) -> bool {
        self.taken == self.work.items
    }
}

impl Worker {
    /// One that loads its package.
    pub(super) fn new(model: usize) -> Self {
        Self { model, ..Self::default() }
    }

    /// Takes inputs, the next always of the client that has had the least for its weight, until the step is full.
    /// Gives its nanoseconds.
    pub(super) fn start_step(&mut self, size: StepSize) -> u64 {
        let virtual_time = self.virtual_time;
        let slots = &self.slots;
        self.lanes
            .retain(|client, had| *had > virtual_time || slots.iter().any(|slot| slot.client == *client));
        let (mut tokens, mut ns, mut taken) = (0, 0u64, BTreeMap::new());
        while let Some(index) = self.next_slot() {
            let slot = &mut self.slots[index];
            let (more, more_ns) = slot.work.item(slot.taken);
            if !taken.is_empty() && tokens + more > size.tokens {
                break;
            }
            slot.taken += 1;
            tokens += more;
            ns = ns.saturating_add(more_ns);
            *taken.entry(slot.job).or_default() += more;
            let lane = self.lanes.entry(slot.client).or_insert(virtual_time);
            *lane = (*lane).max(virtual_time);
            self.virtual_time = self.virtual_time.max(*lane);
            *lane += (more * LANE_SCALE / u64::from(slot.weight)).max(1);
        }
        self.step = Some((ns, taken));
        ns
    }

    /// The first job, with something left, of the client whose turn it is.
    fn next_slot(&self) -> Option<usize> {
        let lane = |slot: &Slot| self.lanes.get(&slot.client).copied().unwrap_or(0).max(self.virtual_time);
        let open = self.slots.iter().enumerate().filter(|(_, slot)| !slot.is_done() && !slot.cancelled);
        open.min_by_key(|(index, slot)| (lane(slot), slot.client, *index)).map(|(index, _)| index)
    }
}
