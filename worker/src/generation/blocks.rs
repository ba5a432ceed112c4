//! Which blocks of keys and values are whose, and which hold the beginning of a prompt that may come again.
//!
//! A block that is full and was written for anybody to read is known by all tokens up to its end, and by the domain: two
//! domains never read one block. Known blocks that nobody reads stay until there is no other room, the longest unread first.

use crate::device::CACHE_BLOCK_TOKENS;
use std::collections::BTreeMap;

/// What comes before the first block of a prompt.
pub const BEGINNING: u64 = 0;
/// A block is copied where at least so many of its tokens are wanted; fewer are as soon computed.
const COPIED_MIN: usize = 4;

/// All blocks of a model.
#[derive(Debug)]
pub struct Blocks {
    blocks: Vec<Block>,
    free: Vec<u32>,
    /// Known blocks by what they hold.
    known: BTreeMap<Key, u32>,
    /// Known blocks that nobody reads, by when that was last.
    unread: BTreeMap<u64, u32>,
    /// Counts releases.
    clock: u64,
    /// Of the block that became known last.
    serial: u64,
}

#[derive(Clone, Debug, Default)]
struct Block {
    readers: u32,
    known: Option<Known>,
}

#[derive(Clone, Debug)]
struct Known {
    key: Key,
    serial: u64,
    /// Where it stands among the unread.
    unread_since: u64,
}

/// What a known block holds: exactly, so that no two texts are taken for one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    domain: u64,
    /// The serial number of the block before it, which stands for all tokens before.
    before: u64,
    tokens: [u32; CACHE_BLOCK_TOKENS],
}

/// The known beginning of a prompt.
#[derive(Debug, PartialEq, Eq)]
pub struct Found {
    /// Whole blocks, which now have one reader more.
    pub blocks: Vec<u32>,
    /// The serial number of the last one.
    pub last: u64,
    /// A known block that goes on as the prompt does for so many tokens: to be copied.
    pub part: Option<(u32, usize)>,
}

impl Blocks {
    /// So many, all free.
    pub fn new(count: usize) -> Self {
        let count = u32::try_from(count).expect("blocks are counted in u32");
        Self {
            blocks: vec![Block::default(); count as usize],
            free: (0..count).rev().collect(),
            known: BTreeMap::new(),
            unread: BTreeMap::new(),
            clock: 0,
            serial: BEGINNING,
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.blocks.len()
    }

    /// How many could be taken now.
    pub fn available(&self) -> usize {
        self.free.len() + self.unread.len()
    }

    /// How many have no reader and hold nothing known.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// A block to write into, for one reader.
    pub fn take(&mut self) -> Option<u32> {
        let block = self.free.pop().or_else(|| self.forget_oldest())?;
        self.blocks[block as usize].readers = 1;
        Some(block)
    }

    fn forget_oldest(&mut self) -> Option<u32> {
        let (_, block) = self.unread.pop_first()?;
        self.forget(block);
        Some(block)
    }

    fn forget(&mut self, block: u32) {
        if let Some(Known { key, .. }) = self.blocks[block as usize].known.take() {
            self.known.remove(&key);
        }
    }

    /// The longest known beginning of these tokens; at least the last one is left to be computed.
    pub fn find(&mut self, domain: u64, tokens: &[u32]) -> Found {
        let mut found = Found { blocks: Vec::new(), last: BEGINNING, part: None };
        let mut rest = tokens;
        while rest.len() > CACHE_BLOCK_TOKENS {
            let (block, behind) = rest.split_at(CACHE_BLOCK_TOKENS);
            let Some(block) = self.known.get(&key(domain, found.last, block)).copied() else { break };
            found.last = self.read(block);
            found.blocks.push(block);
            rest = behind;
        }
        found.part = self.part(domain, found.last, rest);
        found
    }

    /// One more reader of a known block; its serial number.
    fn read(&mut self, block: u32) -> u64 {
        let Block { readers, known } = &mut self.blocks[block as usize];
        let known = known.as_ref().expect("it was found");
        if *readers == 0 {
            self.unread.remove(&known.unread_since);
        }
        *readers += 1;
        known.serial
    }

    /// The known block that has most in common with the beginning of these tokens. Such blocks stand together, and
    /// next to where the tokens themselves would stand are those that begin alike.
    fn part(&self, domain: u64, before: u64, tokens: &[u32]) -> Option<(u32, usize)> {
        let wanted = &tokens[..tokens.len().saturating_sub(1).min(CACHE_BLOCK_TOKENS)];
        let mut here = [0; CACHE_BLOCK_TOKENS];
        here[..wanted.len()].copy_from_slice(wanted);
        let here = Key { domain, before, tokens: here };
        let alike = |(key, block): (&Key, &u32)| {
            let is_sibling = (key.domain, key.before) == (domain, before);
            let common = key.tokens.iter().zip(wanted).take_while(|(a, b)| a == b).count();
            (is_sibling && common >= COPIED_MIN).then_some((*block, common))
        };
        let after = self.known.range(here.clone()..).next().and_then(alike);
        let ahead = self.known.range(..here).next_back().and_then(alike);
        after.into_iter().chain(ahead).max_by_key(|(_, common)| *common)
    }

    /// A copy of a known block, for one reader: where it is. The block itself stays known until the copy is made, even if
    /// it is the only one that could be taken.
    pub fn take_copy(&mut self, of: u32) -> Option<u32> {
        self.read(of);
        let copy = self.take();
        self.release(&[of]);
        copy
    }

    /// Makes a block known that is full and that only one reads; the serial number for the one after it. Where another
    /// block holds the same, that one is known.
    pub fn keep(&mut self, domain: u64, before: u64, tokens: &[u32], block: u32) -> u64 {
        let key = key(domain, before, tokens);
        if let Some(twin) = self.known.get(&key) {
            return self.blocks[*twin as usize].known.as_ref().expect("it is known").serial;
        }
        self.serial += 1;
        let known = Known { key: key.clone(), serial: self.serial, unread_since: 0 };
        self.blocks[block as usize].known = Some(known);
        self.known.insert(key, block);
        self.serial
    }

    /// A reader gives up a sequence's blocks.
    pub fn release(&mut self, blocks: &[u32]) {
        // What comes later is of no use without what comes before it, so it goes first.
        for block in blocks.iter().rev() {
            let Block { readers, known } = &mut self.blocks[*block as usize];
            *readers = readers.checked_sub(1).expect("a block is given up by a reader");
            match known {
                _ if *readers > 0 => {}
                Some(known) => {
                    self.clock += 1;
                    known.unread_since = self.clock;
                    self.unread.insert(self.clock, *block);
                }
                None => self.free.push(*block),
            }
        }
    }

    /// Whether exactly one reads a block and nobody else ever will as it is: it may be written.
    pub fn is_own(&self, block: u32) -> bool {
        let Block { readers, known } = &self.blocks[block as usize];
        *readers == 1 && known.is_none()
    }
}

fn key(domain: u64, before: u64, tokens: &[u32]) -> Key {
    Key { domain, before, tokens: tokens.try_into().expect("a whole block") }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: usize = CACHE_BLOCK_TOKENS;

    fn tokens(from: u32, count: usize) -> Vec<u32> {
        (from..).take(count).collect()
    }

    /// Writes two blocks of a domain and gives them up.
    fn written(blocks: &mut Blocks, domain: u64, text: &[u32]) -> [u32; 2] {
        let taken = [blocks.take().unwrap(), blocks.take().unwrap()];
        let first = blocks.keep(domain, BEGINNING, &text[..BLOCK], taken[0]);
        blocks.keep(domain, first, &text[BLOCK..2 * BLOCK], taken[1]);
        blocks.release(&taken);
        taken
    }

    #[test]
    fn a_prompt_that_comes_again_finds_its_blocks_in_its_domain_only() {
        let mut blocks = Blocks::new(4);
        let text = tokens(1, 80);
        let taken = written(&mut blocks, 7, &text);
        assert_eq!((blocks.free(), blocks.available()), (2, 4));
        let found = blocks.find(7, &text);
        assert_eq!((&found.blocks[..], found.part), (&taken[..], None));
        assert_eq!(blocks.available(), 2);
        assert_eq!(blocks.find(8, &text), Found { blocks: vec![], last: BEGINNING, part: None });
        // A second reader of the same; both give up.
        assert_eq!(blocks.find(7, &text).blocks, taken);
        blocks.release(&taken);
        assert_eq!(blocks.available(), 2);
        blocks.release(&taken);
        assert_eq!(blocks.available(), 4);
    }

    #[test]
    fn the_last_token_is_always_left_and_a_part_is_copied() {
        let mut blocks = Blocks::new(3);
        let text = tokens(1, 2 * BLOCK);
        let taken = written(&mut blocks, 7, &text);
        let found = blocks.find(7, &text);
        assert_eq!((&found.blocks[..], found.part), (&taken[..1], Some((taken[1], BLOCK - 1))));
        blocks.release(&found.blocks);
        let mut other = text.clone();
        other[BLOCK + 9] = 1_000;
        let found = blocks.find(7, &other);
        assert_eq!((&found.blocks[..], found.part), (&taken[..1], Some((taken[1], 9))));
        let copy = blocks.take_copy(taken[1]).unwrap();
        assert!(!taken.contains(&copy) && blocks.is_own(copy));
        // There is no other room now, and what is to be copied is not taken for its own copy.
        assert_eq!(blocks.take_copy(taken[1]), None);
        let few = tokens(1, COPIED_MIN);
        assert_eq!(blocks.find(7, &few).part, None);
    }

    #[test]
    fn what_was_longest_unread_is_taken_first_and_the_end_of_a_text_before_its_beginning() {
        let mut blocks = Blocks::new(4);
        let old = written(&mut blocks, 7, &tokens(1, 64));
        let new = written(&mut blocks, 7, &tokens(1_000, 64));
        let order = [old[1], old[0], new[1], new[0]];
        assert_eq!(order.map(|_| blocks.take().unwrap()), order);
        assert_eq!(blocks.take(), None);
        assert!(blocks.find(7, &tokens(1, 64)).blocks.is_empty());
    }

    #[test]
    fn what_two_wrote_at_once_is_known_once() {
        let mut blocks = Blocks::new(2);
        let text = tokens(1, BLOCK);
        let (one, two) = (blocks.take().unwrap(), blocks.take().unwrap());
        let serial = blocks.keep(7, BEGINNING, &text, one);
        assert_eq!(blocks.keep(7, BEGINNING, &text, two), serial);
        blocks.release(&[one]);
        blocks.release(&[two]);
        assert_eq!((blocks.free(), blocks.available()), (1, 2));
    }
}
