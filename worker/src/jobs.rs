//! The jobs that a worker holds, oldest first, and how far each is. Those of one domain are a lane: steps are shared by
//! lanes and their weights, so that nobody gets more by bringing more jobs.

use crate::lanes::{Lanes, Share};
use crate::stopwatch::Stopwatch;
use crate::text::{Next, Text, Tokens};
use ringfence_protocol::{EmbedInput, ITEMS_MAX, Item, JobError, Passage, SLOTS_MAX};
use std::collections::{BTreeMap, VecDeque};

/// A job from its `Run` to its end.
#[derive(Debug)]
pub struct Job {
    /// The server's number for it.
    pub slot: u32,
    domain: u64,
    truncate: bool,
    /// What the tokeniser has not seen.
    untokenised: VecDeque<Item>,
    /// A text that is split, until it is and the server knows of it.
    splitting: Option<Splitting>,
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

/// A text on its way to be items.
#[derive(Debug)]
struct Splitting {
    text: SplitText,
    /// How far it is split.
    at: usize,
    passages: Vec<Passage>,
    /// Nothing but white space is left.
    done: bool,
}

/// A text and how it is split.
#[derive(Debug)]
pub struct SplitText {
    /// The text.
    pub text: String,
    /// Where it begins in its file, in bytes.
    pub offset: usize,
    /// The most tokens of a passage, without special ones.
    pub tokens_max: u32,
}

impl Job {
    fn new(slot: u32, domain: u64, input: EmbedInput) -> Self {
        Self {
            slot,
            domain,
            truncate: input.truncate,
            untokenised: input.items.into(),
            splitting: None,
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
        self.is_tokenised() && self.waiting.is_empty()
    }

    fn is_tokenised(&self) -> bool {
        self.untokenised.is_empty() && self.splitting.is_none()
    }

    /// Takes the next waiting item.
    ///
    /// # Panics
    /// If none waits.
    pub fn take(&mut self) -> Tokens {
        self.waiting.pop_front().expect("it was chosen among the waiting")
    }

    /// Whether the tokeniser has more to do.
    fn untokenised(&self) -> bool {
        !self.untokenised.is_empty() || self.splitting.as_ref().is_some_and(|splitting| !splitting.done)
    }

    fn tokenise_one(&mut self, text: &Text) -> Result<usize, JobError> {
        let watch = Stopwatch::start();
        let bytes = match self.untokenised.pop_front() {
            Some(item) => {
                let tokens = text.tokens(self.tokenised, &item, self.truncate)?;
                self.is_to_run(tokens);
                size(&item)
            }
            None => self.split_one(text)?,
        };
        self.compute_us += watch.micros();
        Ok(bytes)
    }

    fn split_one(&mut self, text: &Text) -> Result<usize, JobError> {
        let splitting = self.splitting.as_mut().expect("there is more to do");
        let SplitText { text: source, offset, tokens_max } = &splitting.text;
        let (range, tokens) = match text.passage(source, splitting.at, *tokens_max as usize)? {
            Next::Passage { bytes, tokens } => (bytes, tokens),
            Next::Nothing { behind } => return Ok(behind - std::mem::replace(&mut splitting.at, behind)),
            Next::End => {
                splitting.done = true;
                return Ok(0);
            }
        };
        if splitting.passages.len() == ITEMS_MAX {
            return Err(JobError::PassagesTooMany { limit: ITEMS_MAX as u32 });
        }
        let in_file = |at: usize| u32::try_from(offset + at).expect("an input is shorter");
        splitting.passages.push(Passage { start: in_file(range.start), end: in_file(range.end) });
        let bytes = range.end - splitting.at;
        splitting.at = range.end;
        self.is_to_run(tokens);
        Ok(bytes)
    }

    fn is_to_run(&mut self, tokens: Tokens) {
        self.tokenised += 1;
        self.tokens = self.tokens.saturating_add(u32::try_from(tokens.ids.len()).unwrap_or(u32::MAX));
        self.truncated += u32::from(tokens.truncated);
        self.waiting.push_back(tokens);
    }

    /// Only jobs whose items are all well run: what is wrong with a client's input is said before any output.
    fn next_lengths(&self, n: usize) -> Option<usize> {
        self.is_tokenised().then(|| self.waiting.get(n)).flatten().map(|tokens| tokens.ids.len())
    }
}

fn size(item: &Item) -> usize {
    match item {
        Item::Text(text) => text.len(),
        Item::Tokens(ids) => ids.len() * size_of::<u32>(),
    }
}

/// Whose the memory is that the last step was computed in.
#[derive(Debug, Default)]
pub struct Owner(Option<u64>);

impl Owner {
    /// Hands it to the jobs of these domains; true if it must be overwritten first. What several domains were computed in
    /// together is nobody's afterwards.
    pub fn passes_to(&mut self, mut domains: impl Iterator<Item = u64>) -> bool {
        let first = domains.next();
        let next = first.filter(|first| domains.all(|domain| domain == *first));
        let stays = next.is_some() && next == self.0;
        self.0 = next;
        !stays
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

/// Slots that have had a job: a cancel may cross its job's end on the way.
#[derive(Debug)]
pub(crate) struct UsedSlots(Vec<bool>);

impl Default for UsedSlots {
    fn default() -> Self {
        Self(vec![false; SLOTS_MAX as usize])
    }
}

impl UsedSlots {
    /// Gives a slot a job, if it has none now.
    pub(crate) fn take(&mut self, slot: u32, is_taken: bool) -> Result<(), SlotFault> {
        let used = self.0.get_mut(slot as usize).ok_or(SlotFault::Beyond)?;
        if is_taken {
            return Err(SlotFault::Taken);
        }
        *used = true;
        Ok(())
    }

    /// Whether a slot's job may be cancelled, even if it has ended.
    pub(crate) fn check(&self, slot: u32) -> Result<(), SlotFault> {
        match self.0.get(slot as usize) {
            None => Err(SlotFault::Beyond),
            Some(false) => Err(SlotFault::Never),
            Some(true) => Ok(()),
        }
    }
}

/// The jobs by age.
#[derive(Debug, Default)]
pub struct Jobs {
    jobs: Vec<Job>,
    used: UsedSlots,
    /// By domain; those without a job are forgotten at the next step.
    lanes: Lanes,
}

impl Jobs {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    /// A slot that may take a job now.
    pub fn free(&mut self, slot: u32) -> Result<(), SlotFault> {
        let is_taken = self.jobs.iter().any(|job| job.slot == slot);
        self.used.take(slot, is_taken)
    }

    /// Adds a job to a free slot.
    pub fn add(&mut self, slot: u32, share: Share, input: EmbedInput) {
        self.lanes.join(share);
        self.jobs.push(Job::new(slot, share.domain, input));
    }

    /// Adds a job to a free slot whose items are the passages of a text.
    pub fn add_split(&mut self, slot: u32, share: Share, text: SplitText) {
        self.add(slot, share, EmbedInput { items: Vec::new(), truncate: false });
        let splitting = Splitting { text, at: 0, passages: Vec::new(), done: false };
        self.get_mut(slot).splitting = Some(splitting);
    }

    /// The slots whose text has been split since this was asked last, with what it was split into.
    pub fn split(&mut self) -> Vec<(u32, Vec<Passage>)> {
        let done = |job: &&mut Job| job.splitting.as_ref().is_some_and(|splitting| splitting.done);
        let told = |job: &mut Job| (job.slot, job.splitting.take().expect("it was there").passages);
        self.jobs.iter_mut().filter(done).map(told).collect()
    }

    /// Drops a slot's job; false if it has ended already.
    pub fn cancel(&mut self, slot: u32) -> Result<bool, SlotFault> {
        self.used.check(slot)?;
        Ok(self.remove(slot))
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
            while job.untokenised() {
                if done >= bytes {
                    return Ok(());
                }
                done += job.tokenise_one(text).map_err(|error| (job.slot, error))?.max(1);
            }
        }
        Ok(())
    }

    /// What goes into the next step: slots, each with a number of items that is not 0. The next item is always of the lane
    /// that has had the least for its weight; the first is taken whatever its length, and a step ends with the first that
    /// finds no room in its budget of tokens.
    pub fn choose(&mut self, budget: usize) -> Vec<(u32, usize)> {
        self.lanes.retain(|domain| self.jobs.iter().any(|job| job.domain == domain));
        let mut waiting = self.waiting();
        let mut chosen: Vec<(u32, usize)> = Vec::new();
        let mut tokens = 0;
        while let Some(domain) = self.lanes.next(|domain| !waiting[&domain].is_empty()) {
            let (slot, more) = waiting[&domain][0];
            if tokens > 0 && tokens + more > budget {
                break;
            }
            tokens += more;
            self.lanes.charge(domain, more as u64);
            waiting.get_mut(&domain).expect("it was there").pop_front();
            match chosen.iter_mut().find(|(chosen, _)| *chosen == slot) {
                Some((_, items)) => *items += 1,
                None => chosen.push((slot, 1)),
            }
        }
        chosen
    }

    /// For each domain, the slots and tokens of its items that can run, oldest job first.
    fn waiting(&self) -> BTreeMap<u64, VecDeque<(u32, usize)>> {
        let mut waiting: BTreeMap<u64, VecDeque<(u32, usize)>> = BTreeMap::new();
        for job in &self.jobs {
            let items = (0..).map_while(|n| job.next_lengths(n)).map(|tokens| (job.slot, tokens));
            waiting.entry(job.domain).or_default().extend(items);
        }
        waiting
    }

    /// The domain of a slot's job.
    ///
    /// # Panics
    /// If it has none.
    pub fn domain_of(&self, slot: u32) -> u64 {
        self.jobs.iter().find(|job| job.slot == slot).expect("the slot has a job").domain
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
            jobs.add(
                slot,
                Share { domain: *domain, weight: 1 },
                EmbedInput { items: Vec::new(), truncate: false },
            );
            jobs.get_mut(slot).waiting =
                lengths.iter().map(|length| Tokens { ids: vec![0; *length], truncated: false }).collect();
        }
        jobs
    }

    #[test]
    fn a_step_is_shared_by_domains_however_many_jobs_they_bring() {
        let many = [(1, &[4, 4][..]), (1, &[4, 4]), (1, &[4, 4]), (2, &[4, 4, 4])];
        assert_eq!(jobs(&many).choose(24), [(0, 2), (3, 3), (1, 1)]);
        assert_eq!(jobs(&many).choose(100), [(0, 2), (3, 3), (1, 2), (2, 2)]);
    }

    #[test]
    fn small_items_don_t_get_less_than_large_ones_nor_does_weight() {
        let mut even = jobs(&[(1, &[10; 40]), (2, &[50; 8])]);
        assert_eq!(even.choose(200), [(0, 10), (1, 2)]);
        let mut weighted = jobs(&[(1, &[10; 90]), (2, &[10; 90])]);
        weighted.lanes.join(Share { domain: 2, weight: 4 });
        assert_eq!(weighted.choose(500), [(0, 10), (1, 40)]);
    }

    #[test]
    fn memory_stays_with_a_domain_only_while_it_is_alone() {
        let mut owner = Owner::default();
        let mut passes = |domains: &[u64]| owner.passes_to(domains.iter().copied());
        assert_eq!([passes(&[1]), passes(&[1, 1]), passes(&[2])], [true, false, true]);
        assert_eq!([passes(&[2, 3]), passes(&[2, 3]), passes(&[2]), passes(&[2])], [true, true, true, false]);
    }

    #[test]
    fn lanes_take_turns_where_a_step_has_no_room_for_all() {
        let mut jobs = jobs(&[(1, &[10; 4]), (2, &[10; 4]), (3, &[10; 4])]);
        let first: Vec<u32> = (0..4).map(|_| jobs.choose(10)[0].0).collect();
        assert_eq!(first, [0, 1, 2, 0]);
        assert_eq!(Jobs::default().choose(10), []);
    }

    #[test]
    fn the_first_item_runs_whatever_its_length_and_jobs_that_are_not_tokenised_wait() {
        let mut jobs = jobs(&[(1, &[50, 1]), (2, &[60])]);
        assert_eq!(jobs.choose(10), [(0, 1)]);
        assert_eq!(jobs.choose(10), [(1, 1)]);
        jobs.jobs[1].untokenised.push_back(Item::Text("b".to_owned()));
        assert_eq!(jobs.choose(100), [(0, 2)]);
    }
}
