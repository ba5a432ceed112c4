//! The log as its users meet it: written, cut off, tampered with, verified by us and by others.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod disk;
mod faults;
mod kills;
mod log;
mod others;
mod tamper;

use ringfence_audit::{Entry, Event, KEYS_BYTES, Keys, Word};

/// An installation's keys.
fn keys() -> Keys {
    Keys::generate(&std::array::from_fn::<u8, KEYS_BYTES, _>(|index| index as u8))
}

/// A word that is one.
fn word(text: &str) -> Word {
    Word::new(text).unwrap()
}

/// A short entry, each another.
fn entry(number: u64) -> Entry {
    let event = Event::Refused { code: word("x"), count: number };
    Entry::of_server(1_000 + number, word("r"), event)
}

/// A seeded generator (splitmix64): a failing seed is all that a report needs.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

/// A number from the environment, for the long runs of `make soak`.
fn count(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).map_or(otherwise, |text| text.parse().unwrap())
}
