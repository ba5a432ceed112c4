//! The jobs that a worker holds, oldest first, and how far each is. Those of one domain are a lane: a step is shared by
//! lanes, so that nobody gets more of it by bringing more jobs.

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
    domain: u64,
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
    fn new(slot: u32, domain: u64, input: EmbedInput) -> Self {
        Self {
            slot,
            domain,
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
    /// Whose turn it is to be first in a step.
    turn: usize,
}

impl Default for Jobs {
    fn default() -> Self {
        Self { jobs: Vec::new(), used: vec![false; SLOTS_MAX as usize], turn: 0 }
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
    pub fn add(&mut self, slot: u32, domain: u64, input: EmbedInput) {
        self.jobs.push(Job::new(slot, domain, input));
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

    /// What goes into the next step: slots, each with a number of items that is not 0. Lanes take turns to be first.
    pub fn choose(&mut self, budget: usize) -> Vec<(u32, usize)> {
        let mut lanes = self.lanes();
        if lanes.is_empty() {
            return Vec::new();
        }
        let lanes_now = lanes.len();
        lanes.rotate_left(self.turn % lanes_now);
        self.turn = (self.turn + 1) % lanes_now;
        let taken =
            batch::choose(lanes.len(), budget, |lane, n| lanes[lane].get(n).map(|(_, tokens)| *tokens));
        let mut chosen: Vec<(u32, usize)> = Vec::new();
        for (slot, _) in lanes.iter().zip(taken).flat_map(|(lane, taken)| &lane[..taken]) {
            match chosen.last_mut() {
                Some((last, items)) if last == slot => *items += 1,
                Some(_) | None => chosen.push((*slot, 1)),
            }
        }
        chosen
    }

    /// For each domain that has items which can run, the slots and tokens of these, oldest job first.
    fn lanes(&self) -> Vec<Vec<(u32, usize)>> {
        let mut lanes: Vec<(u64, Vec<(u32, usize)>)> = Vec::new();
        for job in &self.jobs {
            let items = (0..).map_while(|n| job.next_lengths(n)).map(|tokens| (job.slot, tokens));
            match lanes.iter_mut().find(|(domain, _)| *domain == job.domain) {
                Some((_, lane)) => lane.extend(items),
                None => lanes.push((job.domain, items.collect())),
            }
        }
        lanes.into_iter().map(|(_, lane)| lane).filter(|lane| !lane.is_empty()).collect()
    }

    /// Tokens of the first `items` waiting items of a slot.
    pub fn tokens_of(&self, slot: u32, items: usize) -> usize {
        let job = self.jobs.iter().find(|job| job.slot == slot).expect("the slot has a job");
        job.waiting.iter().take(items).map(|tokens| tokens.ids.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Jobs as domain and lengths of their items, in slots from 0.
    fn jobs(of: &[(u64, &[usize])]) -> Jobs {
        let mut jobs = Jobs::default();
        for (slot, (domain, lengths)) in (0..).zip(of) {
            let mut job = Job::new(slot, *domain, EmbedInput { items: Vec::new(), truncate: false });
            job.waiting =
                lengths.iter().map(|length| Tokens { ids: vec![0; *length], truncated: false }).collect();
            jobs.jobs.push(job);
        }
        jobs
    }

    #[test]
    fn a_step_is_shared_by_domains_however_many_jobs_they_bring() {
        let many = [(1, &[4, 4][..]), (1, &[4, 4]), (1, &[4, 4]), (2, &[4, 4, 4])];
        assert_eq!(jobs(&many).choose(24), [(0, 2), (1, 1), (3, 3)]);
        assert_eq!(jobs(&many).choose(100), [(0, 2), (1, 2), (2, 2), (3, 3)]);
    }

    #[test]
    fn lanes_take_turns_where_a_step_has_no_room_for_all() {
        let mut jobs = jobs(&[(1, &[10; 4]), (2, &[10; 4]), (3, &[10; 4])]);
        let first: Vec<u32> = (0..4).map(|_| jobs.choose(10)[0].0).collect();
        assert_eq!(first, [0, 1, 2, 0]);
        assert_eq!(Jobs::default().choose(10), []);
    }
}
