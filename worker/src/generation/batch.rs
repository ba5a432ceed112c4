//! Which tokens of which sequences a step takes, and whose blocks they go into.
//!
//! Every answer that is being written has one token in each step; what is left of the step goes to prompts, by the weights
//! of their domains, and within one to the prompt of which the least is left, so that a short one does not wait for a long
//! one; but a part of it to the oldest, so that no stream of short ones keeps it waiting. Where there are too few blocks, the latest sequence of the last precedence gives up all of its blocks and is computed again later.

use super::blocks::{BEGINNING, Blocks, Found};
use crate::device::CACHE_BLOCK_TOKENS;
use crate::lanes::{Lanes, Share};
use ringfence_protocol::Precedence;

/// The most tokens that a prompt gets at a time.
const TURN_TOKENS_MAX: usize = CACHE_BLOCK_TOKENS;
/// One part in so many of what a domain's prompts get in a step is its oldest one's.
const OLDEST_PART: usize = 4;
/// Tokens of prompts that a step has at least, however many answers are written: else they would wait for those to end.
const PROMPT_TOKENS_MIN: usize = 8;

/// Rows that a step may have in any case, with so many sequences.
pub fn rows_least(sequences: usize) -> usize {
    sequences + PROMPT_TOKENS_MIN
}

/// A prompt and its answer so far.
#[derive(Debug)]
pub struct Sequence {
    /// The server's number for it.
    pub slot: u32,
    /// Whose it is.
    pub share: Share,
    /// Who gives way.
    pub precedence: Precedence,
    /// Whether its blocks are for no other sequence, and overwritten behind it.
    pub is_private: bool,
    tokens: Vec<u32>,
    /// Tokens whose keys and values are in its blocks; always fewer than there are.
    computed: usize,
    blocks: Vec<u32>,
    /// Of its blocks, those that are known or are copies of known ones.
    kept: usize,
    last_kept: u64,
    /// Of the prompt, what was known when it began; unknown before.
    cached: Option<usize>,
    /// Of the step that is planned.
    rows: usize,
}

/// All sequences and the blocks that they share.
#[derive(Debug)]
pub struct Batch {
    /// In the order in which they came.
    sequences: Vec<Sequence>,
    blocks: Blocks,
    lanes: Lanes,
}

/// What becomes of a block before a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    /// It is overwritten with zeros.
    Wipe(u32),
    /// It is overwritten with another.
    Copy {
        /// With which.
        from: u32,
        /// It.
        to: u32,
    },
}

/// What to do before a step.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Preparation {
    /// In this order: a block may be copied, then taken, given up and wiped, all while one step is planned.
    pub moves: Vec<Move>,
    /// Sequences that gave up their blocks.
    pub preempted: usize,
}

/// A sequence's part of a step.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// Whose.
    pub slot: u32,
    /// The tokens.
    pub ids: &'a [u32],
    /// The position of the first.
    pub first: usize,
    /// The sequence's blocks.
    pub blocks: &'a [u32],
    /// Whether the next token is wanted.
    pub answers: bool,
}

impl Sequence {
    /// A prompt of at least one token.
    pub fn new(slot: u32, share: Share, precedence: Precedence, is_private: bool, prompt: Vec<u32>) -> Self {
        assert!(!prompt.is_empty(), "a prompt has tokens");
        Self {
            slot,
            share,
            precedence,
            is_private,
            tokens: prompt,
            computed: 0,
            blocks: Vec::new(),
            kept: 0,
            last_kept: BEGINNING,
            cached: None,
            rows: 0,
        }
    }

    /// Prompt and answer.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Of the prompt, what was known when it began.
    pub fn cached(&self) -> usize {
        self.cached.unwrap_or(0)
    }

    /// Tokens that are still to be computed.
    fn missing(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Whether it writes its answer: all but the last token are computed, and more than the prompt was at some time.
    fn is_writing(&self) -> bool {
        self.missing() == 1 && self.computed > 0
    }

    /// Blocks that it lacks for this many more tokens.
    fn lacking(&self, rows: usize) -> usize {
        (self.computed + rows).div_ceil(CACHE_BLOCK_TOKENS).saturating_sub(self.blocks.len())
    }
}

impl Batch {
    /// None yet, over so many blocks.
    pub fn new(blocks: usize) -> Self {
        Self { sequences: Vec::new(), blocks: Blocks::new(blocks), lanes: Lanes::default() }
    }

    /// The longest sequence that there is room for, in tokens.
    pub fn tokens_max(&self) -> usize {
        self.blocks.count() * CACHE_BLOCK_TOKENS
    }

    /// The blocks.
    pub fn blocks(&self) -> &Blocks {
        &self.blocks
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.sequences.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }

    /// The sequence in a slot.
    pub fn get(&self, slot: u32) -> Option<&Sequence> {
        self.sequences.iter().find(|sequence| sequence.slot == slot)
    }

    /// One more sequence; its tokens fit in the blocks that there are.
    pub fn join(&mut self, sequence: Sequence) {
        assert!(sequence.tokens.len() <= self.tokens_max(), "it was refused");
        self.lanes.join(sequence.share);
        self.sequences.push(sequence);
    }

    /// A sequence goes; blocks to overwrite with zeros.
    pub fn leave(&mut self, slot: u32) -> Vec<u32> {
        let Some(at) = self.sequences.iter().position(|sequence| sequence.slot == slot) else {
            return Vec::new();
        };
        let mut sequence = self.sequences.remove(at);
        let given_up = give_up(&mut sequence, &mut self.blocks);
        let Self { sequences, lanes, .. } = self;
        lanes.retain(|domain| sequences.iter().any(|other| other.share.domain == domain));
        if sequence.is_private { given_up } else { Vec::new() }
    }

    /// Chooses the tokens of the next step: at most so many, but that every answer has one and prompts have a few.
    pub fn plan(&mut self, rows_max: usize) -> Preparation {
        let mut preparation = Preparation::default();
        self.sequences.iter_mut().for_each(|sequence| sequence.rows = 0);
        let mut order: Vec<usize> = (0..self.sequences.len()).collect();
        // Stable: those that came first are first.
        order.sort_by_key(|at| self.sequences[*at].precedence);
        for at in &order {
            if self.sequences[*at].is_writing() && self.make_room(*at, 1, &order, true, &mut preparation) {
                self.give(*at, 1);
            }
        }
        let given: usize = self.sequences.iter().map(|sequence| sequence.rows).sum();
        self.plan_prompts(rows_max.saturating_sub(given).max(PROMPT_TOKENS_MIN), &order, &mut preparation);
        preparation
    }

    fn plan_prompts(&mut self, mut left: usize, order: &[usize], preparation: &mut Preparation) {
        // Sequences that get nothing more in this step.
        let mut over = vec![false; self.sequences.len()];
        let turn = (left / OLDEST_PART).clamp(1, TURN_TOKENS_MAX);
        while left > 0
            && let Some(at) = self.next_prompt(order, &over)
        {
            let is_first = order.first() == Some(&at);
            let has_begun = self.begin(at, is_first, order, preparation);
            let Sequence { rows, .. } = self.sequences[at];
            let wanted = (self.sequences[at].missing() - rows).min(turn).min(left);
            if has_begun && self.make_room(at, rows + wanted, order, is_first, preparation) {
                self.give(at, wanted);
                left -= wanted;
            } else {
                over[at] = true;
            }
        }
    }

    fn give(&mut self, at: usize, rows: usize) {
        let sequence = &mut self.sequences[at];
        sequence.rows += rows;
        self.lanes.charge(sequence.share.domain, rows as u64);
    }

    /// The prompt whose turn it is: of the domain that has had the least the oldest, where that has had less than its part
    /// of this step, else the one of which the least is left.
    fn next_prompt(&self, order: &[usize], over: &[bool]) -> Option<usize> {
        let wants = |at: usize| !over[at] && self.sequences[at].missing() > self.sequences[at].rows;
        let wanting = || order.iter().copied().filter(|at| wants(*at));
        let of = |domain: u64| wanting().filter(move |at| self.sequences[*at].share.domain == domain);
        let domain = self.lanes.next(|domain| of(domain).next().is_some())?;
        let oldest = of(domain).next()?;
        let prompts = self.sequences.iter().filter(|sequence| !sequence.is_writing());
        let given: usize = prompts.filter(|one| one.share.domain == domain).map(|one| one.rows).sum();
        if self.sequences[oldest].rows * OLDEST_PART < given {
            return Some(oldest);
        }
        of(domain).min_by_key(|at| self.sequences[*at].missing() - self.sequences[*at].rows)
    }

    /// Gives a sequence that has no blocks what is known of it; whether it may go on. It begins where there is room for
    /// all of it, or where it is the first of all.
    fn begin(&mut self, at: usize, is_first: bool, order: &[usize], preparation: &mut Preparation) -> bool {
        if !self.sequences[at].blocks.is_empty() {
            return true;
        }
        if !self.sequences[at].is_private {
            self.recall(at, preparation);
        }
        let sequence = &mut self.sequences[at];
        let (computed, missing) = (sequence.computed, sequence.missing());
        sequence.cached.get_or_insert(computed);
        let may_begin = is_first || self.could_have(at, missing, order);
        if !may_begin {
            self.give_up(at, preparation);
        }
        may_begin
    }

    /// Takes the known beginning of a sequence.
    fn recall(&mut self, at: usize, preparation: &mut Preparation) {
        let sequence = &mut self.sequences[at];
        let Found { blocks, last, part } = self.blocks.find(sequence.share.domain, &sequence.tokens);
        sequence.computed = blocks.len() * CACHE_BLOCK_TOKENS;
        (sequence.kept, sequence.last_kept) = (blocks.len(), last);
        sequence.blocks = blocks;
        if let Some((known, tokens)) = part
            && let Some(copy) = self.blocks.take_copy(known)
        {
            preparation.moves.push(Move::Copy { from: known, to: copy });
            sequence.blocks.push(copy);
            sequence.computed += tokens;
        }
    }

    /// Whether there are blocks for so many more tokens of a sequence, if all of a later precedence give way.
    fn could_have(&self, at: usize, rows: usize, order: &[usize]) -> bool {
        let sequence = &self.sequences[at];
        let later = order.iter().map(|other| &self.sequences[*other]);
        let later = later.filter(|other| other.precedence > sequence.precedence);
        let theirs: usize = later.map(|other| other.blocks.len()).sum();
        sequence.lacking(rows) <= self.blocks.available() + theirs
    }

    /// Takes the blocks that a sequence lacks for so many tokens, from others where there is no room: from those of a
    /// later precedence, and with `from_equals` from those that are behind it in the order. Whether it has them.
    fn make_room(
        &mut self,
        at: usize,
        rows: usize,
        order: &[usize],
        from_equals: bool,
        preparation: &mut Preparation,
    ) -> bool {
        while self.sequences[at].lacking(rows) > 0 {
            if let Some(block) = self.blocks.take() {
                self.sequences[at].blocks.push(block);
                continue;
            }
            let own = self.sequences[at].precedence;
            let last = order.iter().copied().rev().find(|other| !self.sequences[*other].blocks.is_empty());
            match last {
                Some(last) if last != at && (from_equals || self.sequences[last].precedence > own) => {
                    self.preempt(last, preparation);
                }
                // It is the last of all itself.
                Some(last) if last == at && from_equals && order.first() != Some(&at) => {
                    self.preempt(at, preparation);
                    return false;
                }
                Some(_) | None => return false,
            }
        }
        true
    }

    fn preempt(&mut self, at: usize, preparation: &mut Preparation) {
        self.give_up(at, preparation);
        preparation.preempted += 1;
    }

    /// Lets a sequence's blocks go, and what was planned for them.
    fn give_up(&mut self, at: usize, preparation: &mut Preparation) {
        let sequence = &mut self.sequences[at];
        let given_up = give_up(sequence, &mut self.blocks);
        let is_for_them = |one: &Move| matches!(one, Move::Copy { to, .. } if given_up.contains(to));
        preparation.moves.retain(|one| !is_for_them(one));
        if sequence.is_private {
            preparation.moves.extend(given_up.into_iter().map(Move::Wipe));
        }
    }

    /// What was planned, in the order in which sequences came.
    pub fn parts(&self) -> impl Iterator<Item = Part<'_>> {
        self.sequences.iter().filter(|sequence| sequence.rows > 0).map(|sequence| {
            let end = sequence.computed + sequence.rows;
            Part {
                slot: sequence.slot,
                ids: &sequence.tokens[sequence.computed..end],
                first: sequence.computed,
                blocks: &sequence.blocks,
                answers: end == sequence.tokens.len(),
            }
        })
    }

    /// What was planned is computed.
    pub fn computed(&mut self) {
        for sequence in &mut self.sequences {
            sequence.computed += std::mem::take(&mut sequence.rows);
            if sequence.is_private {
                continue;
            }
            while (sequence.kept + 1) * CACHE_BLOCK_TOKENS <= sequence.computed {
                let at = sequence.kept * CACHE_BLOCK_TOKENS;
                let (tokens, block) =
                    (&sequence.tokens[at..at + CACHE_BLOCK_TOKENS], sequence.blocks[sequence.kept]);
                let domain = sequence.share.domain;
                sequence.last_kept = self.blocks.keep(domain, sequence.last_kept, tokens, block);
                sequence.kept += 1;
            }
        }
    }

    /// The next token of an answer.
    pub fn push(&mut self, slot: u32, token: u32) {
        let sequence = self.sequences.iter_mut().find(|sequence| sequence.slot == slot);
        sequence.expect("it has a slot").tokens.push(token);
    }
}

/// Lets a sequence's blocks go: which they were.
fn give_up(sequence: &mut Sequence, blocks: &mut Blocks) -> Vec<u32> {
    let given_up = std::mem::take(&mut sequence.blocks);
    blocks.release(&given_up);
    (sequence.computed, sequence.rows, sequence.kept, sequence.last_kept) = (0, 0, 0, BEGINNING);
    given_up
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const BLOCK: usize = CACHE_BLOCK_TOKENS;

    fn sequence(slot: u32, domain: u64, precedence: Precedence, prompt: Vec<u32>) -> Sequence {
        Sequence::new(slot, Share { domain, weight: 1 }, precedence, false, prompt)
    }

    fn plain(slot: u32, tokens: usize) -> Sequence {
        let from = slot * 1_000;
        sequence(slot, 1, Precedence::Interactive, (from..).take(tokens).collect())
    }

    /// Tokens by slot in the next step.
    fn rows(batch: &mut Batch, rows_max: usize) -> Vec<(u32, usize)> {
        batch.plan(rows_max);
        let rows = batch.parts().map(|part| (part.slot, part.ids.len())).collect();
        batch.computed();
        rows
    }

    #[test]
    fn answers_have_a_token_in_each_step_and_a_short_prompt_does_not_wait_for_a_long_one() {
        let mut batch = Batch::new(64);
        batch.join(plain(1, 20));
        assert_eq!(rows(&mut batch, 64), [(1, 20)]);
        batch.push(1, 5);
        batch.join(plain(2, 500));
        batch.join(plain(3, 30));
        assert_eq!(rows(&mut batch, 65), [(1, 1), (2, 34), (3, 30)]);
        batch.push(1, 6);
        batch.push(3, 7);
        assert_eq!(rows(&mut batch, 1), [(1, 1), (2, PROMPT_TOKENS_MIN), (3, 1)]);
    }

    #[test]
    fn a_short_prompt_overtakes_a_long_one_which_goes_on_all_the_same() {
        let mut batch = Batch::new(64);
        batch.join(plain(1, 1000));
        assert_eq!(rows(&mut batch, 8), [(1, 8)]);
        batch.join(plain(2, 18));
        for expected in [[(1, 2), (2, 6)], [(1, 2), (2, 6)], [(1, 2), (2, 6)]] {
            assert_eq!(rows(&mut batch, 8), expected);
        }
        batch.push(2, 7);
        assert_eq!(rows(&mut batch, 8), [(1, 8), (2, 1)]);
    }

    #[test]
    fn domains_share_steps_by_weight() {
        let mut batch = Batch::new(64);
        for (slot, domain, weight) in [(1, 1, 1), (2, 2, 3)] {
            let share = Share { domain, weight };
            batch.join(Sequence::new(slot, share, Precedence::Batch, false, vec![9; 900]));
        }
        let mut had = BTreeMap::new();
        for _ in 0..4 {
            rows(&mut batch, 128).into_iter().for_each(|(slot, rows)| *had.entry(slot).or_insert(0) += rows);
        }
        assert_eq!(had, BTreeMap::from([(1, 128), (2, 384)]));
    }

    #[test]
    fn a_later_precedence_gives_way_and_goes_on_where_it_was() {
        let mut batch = Batch::new(4);
        batch.join(sequence(1, 1, Precedence::Batch, vec![1; 3 * BLOCK]));
        assert_eq!(rows(&mut batch, 200), [(1, 96)]);
        batch.push(1, 2);
        batch.join(sequence(2, 2, Precedence::Interactive, vec![3; 2 * BLOCK]));
        let preparation = batch.plan(200);
        assert_eq!(preparation.preempted, 1);
        assert_eq!(batch.parts().map(|part| (part.slot, part.first)).collect::<Vec<_>>(), [(2, 0)]);
        batch.computed();
        batch.leave(2);
        // Its beginning was known, but for what was taken for the other.
        let preparation = batch.plan(200);
        assert_eq!(preparation, Preparation::default());
        let part = batch.parts().next().unwrap();
        assert_eq!((part.slot, part.first, part.ids.last(), part.answers), (1, 2 * BLOCK, Some(&2), true));
    }

    /// What a token's keys and values come from: all tokens up to it, in its domain, or for its slot only.
    type Content = (u64, Option<u32>, Vec<u32>);

    /// Blocks as a device has them.
    struct World {
        batch: Batch,
        blocks: Vec<[Option<Content>; BLOCK]>,
        lengths: BTreeMap<u32, usize>,
        steps: usize,
    }

    impl World {
        fn new(blocks: usize) -> Self {
            let none = || std::array::from_fn(|_| None);
            let blocks = (0..blocks).map(|_| none()).collect::<Vec<_>>();
            Self { batch: Batch::new(blocks.len()), blocks, lengths: BTreeMap::new(), steps: 0 }
        }

        fn wipe(&mut self, blocks: &[u32]) {
            blocks.iter().for_each(|block| self.blocks[*block as usize].fill(None));
        }

        fn step(&mut self, rows_max: usize) {
            for one in self.batch.plan(rows_max).moves {
                match one {
                    Move::Wipe(block) => self.wipe(&[block]),
                    Move::Copy { from, to } => self.blocks[to as usize] = self.blocks[from as usize].clone(),
                }
            }
            let mut answered = Vec::new();
            let (mut rows, mut writers) = (0, 0);
            for part in self.batch.parts() {
                let sequence = self.batch.get(part.slot).unwrap();
                let of = sequence.is_private.then_some(part.slot);
                let content = |end: usize| (sequence.share.domain, of, sequence.tokens()[..=end].to_vec());
                for at in 0..part.first {
                    let read = &self.blocks[part.blocks[at / BLOCK] as usize][at % BLOCK];
                    assert_eq!(read.as_ref(), Some(&content(at)), "token {at} of slot {}", part.slot);
                }
                for at in part.first..part.first + part.ids.len() {
                    let block = part.blocks[at / BLOCK];
                    assert!(self.batch.blocks().is_own(block), "slot {} writes a shared block", part.slot);
                    self.blocks[block as usize][at % BLOCK] = Some(content(at));
                }
                rows += part.ids.len();
                writers += usize::from(part.first > 0);
                if part.answers {
                    answered.push(part.slot);
                }
            }
            assert!(rows <= rows_max.max(writers + PROMPT_TOKENS_MIN), "{rows} rows");
            assert!(rows > 0 || self.batch.is_empty(), "nobody goes on");
            self.batch.computed();
            for slot in answered {
                let length = self.batch.get(slot).unwrap().tokens().len();
                if length == self.lengths[&slot] {
                    self.leave(slot);
                } else {
                    self.batch.push(slot, length as u32 % 3);
                }
            }
            self.steps += 1;
            self.count();
        }

        fn leave(&mut self, slot: u32) {
            self.lengths.remove(&slot);
            let wiped = self.batch.leave(slot);
            self.wipe(&wiped);
        }

        /// Each block has as many readers as it has, and none is lost.
        fn count(&self) {
            let blocks = self.batch.blocks();
            let mut read: Vec<u32> =
                self.batch.sequences.iter().flat_map(|sequence| sequence.blocks.iter().copied()).collect();
            read.sort_unstable();
            read.dedup();
            assert_eq!(read.len() + blocks.available(), blocks.count());
        }
    }

    proptest! {
        /// Whoever comes, goes or is in the way: nobody reads what is not his, and no block is lost.
        #[test]
        fn joins_leaves_preemptions_and_cancels_lose_no_block(
            count in 2_usize..12,
            acts in prop::collection::vec((0_u8..10, any::<u32>()), 1..200),
        ) {
            let mut world = World::new(count);
            let mut slot = 0;
            for (act, number) in acts {
                match act {
                    0..3 => {
                        slot += 1;
                        let most = world.batch.tokens_max();
                        // Few beginnings, so that many are alike.
                        let length = 1 + number as usize / 7 % most;
                        let prompt = (0..length as u32).map(|at| at / 40 * (number % 3)).collect();
                        let share = Share { domain: u64::from(number % 2), weight: 1 + (number % 3) as u16 };
                        let precedence = [Precedence::Realtime, Precedence::Interactive, Precedence::Batch]
                            [number as usize / 5 % 3];
                        let is_private = number.is_multiple_of(11);
                        world.batch.join(Sequence::new(slot, share, precedence, is_private, prompt));
                        world.lengths.insert(slot, (length + number as usize % 50).min(most));
                    }
                    3 => {
                        let slots: Vec<u32> = world.lengths.keys().copied().collect();
                        if let Some(slot) = slots.get(number as usize % slots.len().max(1)) {
                            world.leave(*slot);
                        }
                    }
                    _ => world.step(1 + number as usize % 100),
                }
                world.count();
            }
            let steps = world.steps;
            while !world.batch.is_empty() {
                world.step(64);
                prop_assert!(world.steps < steps + 100_000, "it never ends");
            }
            prop_assert_eq!(world.batch.blocks().available(), count);
        }
    }
}
