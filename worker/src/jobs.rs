//! The jobs that a worker holds, oldest first, and how far each is.

use crate::batch;
use crate::stopwatch::Stopwatch;
use crate::text::{Text, Tokens};
use ringfence_protocol::{EmbedInput, Item, JobError, SLOTS_MAX};
use std::collections::VecDeque;

/// A job from its `Run` to its end.
#[derive(Debug)]
pub struct Job {
    /// The server's number for it.
    pub slot: u32,
    truncate: bool,
    /// What the tokeniser has not seen.
    untokenised: VecDeque<Item>,
    /// How many items it has seen.
    tokenised: u32,
    /// What the device has not seen.
    waiting: VecDeque<Tokens>,
    /// How many items have their output.
    pub finished: u32,
    /// Number of the next chunk.
    pub sequence: u32,
    /// Tokens of all items.
    pub tokens: u32,
    /// Items that were cut.
    pub truncated: u32,
    /// Time spent on this job.
    pub compute_us: u64,
}

impl Job {
    fn new(slot: u32, input: EmbedInput) -> Self {
        Self {
            slot,
            truncate: input.truncate,
            untokenised: input.items.into(),
            tokenised: 0,
            waiting: VecDeque::new(),
            finished: 0,
            sequence: 0,
            tokens: 0,
            truncated: 0,
            compute_us: 0,
        }
    }

    /// Whether every item has its output.
    pub fn is_finished(&self) -> bool {
        self.untokenised.is_empty() && self.waiting.is_empty()
    }

    /// Takes the next waiting item.
    ///
    /// # Panics
    /// If none waits.
    pub fn take(&mut self) -> Tokens {
        self.waiting.pop_front().expect("it was chosen among the waiting")
    }

    fn tokenise_one(&mut self, text: &Text) -> Result<usize, JobError> {
        let item = self.untokenised.pop_front().expect("it was asked for");
        let watch = Stopwatch::start();
        let tokens = text.tokens(self.tokenised, &item, self.truncate)?;
        self.compute_us += watch.micros();
        self.tokenised += 1;
        self.tokens = self.tokens.saturating_add(u32::try_from(tokens.ids.len()).unwrap_or(u32::MAX));
        self.truncated += u32::from(tokens.truncated);
        self.waiting.push_back(tokens);
        Ok(size(&item))
    }

    /// Only jobs whose items are all well run: what is wrong with a client's input is said before any output.
    fn next_lengths(&self, n: usize) -> Option<usize> {
        self.untokenised.is_empty().then(|| self.waiting.get(n)).flatten().map(|tokens| tokens.ids.len())
    }
}

fn size(item: &Item) -> usize {
    match item {
        Item::Text(text) => text.len(),
        Item::Tokens(ids) => ids.len() * size_of::<u32>(),
    }
}

/// What the server may not do with slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SlotFault {
    /// There is no such slot.
    #[error("a slot beyond the last")]
    Beyond,
    /// It has a job.
    #[error("a job for a slot that is taken")]
    Taken,
    /// It never had a job.
    #[error("a cancel for a slot that never had a job")]
    Never,
}

/// The jobs by age.
#[derive(Debug)]
pub struct Jobs {
    jobs: Vec<Job>,
    /// Slots that have had a job: a cancel may cross its job's end on the way.
    used: Vec<bool>,
}

impl Default for Jobs {
    fn default() -> Self {
        Self { jobs: Vec::new(), used: vec![false; SLOTS_MAX as usize] }
    }
}

impl Jobs {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    /// A slot that may take a job now.
    pub fn free(&mut self, slot: u32) -> Result<(), SlotFault> {
        let used = self.used.get_mut(slot as usize).ok_or(SlotFault::Beyond)?;
        if self.jobs.iter().any(|job| job.slot == slot) {
            return Err(SlotFault::Taken);
        }
        *used = true;
        Ok(())
    }

    /// Adds a job to a free slot.
    pub fn add(&mut self, slot: u32, input: EmbedInput) {
        self.jobs.push(Job::new(slot, input));
    }

    /// Drops a slot's job; false if it has ended already.
    pub fn cancel(&mut self, slot: u32) -> Result<bool, SlotFault> {
        match self.used.get(slot as usize) {
            None => Err(SlotFault::Beyond),
            Some(false) => Err(SlotFault::Never),
            Some(true) => Ok(self.remove(slot)),
        }
    }

    /// Ends a slot's job; false if there is none.
    pub fn remove(&mut self, slot: u32) -> bool {
        let before = self.jobs.len();
        self.jobs.retain(|job| job.slot != slot);
        self.jobs.len() < before
    }

    /// The job in a slot.
    ///
    /// # Panics
    /// If it has none.
    pub fn get_mut(&mut self, slot: u32) -> &mut Job {
        self.jobs.iter_mut().find(|job| job.slot == slot).expect("the slot has a job")
    }

    /// Tokenises waiting items, oldest job first, until about `bytes` of input are done.
    ///
    /// # Errors
    /// An item is refused: its slot, and why.
    pub fn tokenise(&mut self, text: &Text, bytes: usize) -> Result<(), (u32, JobError)> {
        let mut done = 0;
        for job in &mut self.jobs {
            while !job.untokenised.is_empty() {
                if done >= bytes {
                    return Ok(());
                }
                done += job.tokenise_one(text).map_err(|error| (job.slot, error))?.max(1);
            }
        }
        Ok(())
    }

    /// What goes into the next step: slots, oldest first, each with a number of items that is not 0.
    pub fn choose(&self, budget: usize) -> Vec<(u32, usize)> {
        let taken = batch::choose(self.jobs.len(), budget, |job, n| self.jobs[job].next_lengths(n));
        self.jobs.iter().map(|job| job.slot).zip(taken).filter(|(_, items)| *items > 0).collect()
    }

    /// Tokens of the first `items` waiting items of a slot.
    pub fn tokens_of(&self, slot: u32, items: usize) -> usize {
        let job = self.jobs.iter().find(|job| job.slot == slot).expect("the slot has a job");
        job.waiting.iter().take(items).map(|tokens| tokens.ids.len()).sum()
    }
}
