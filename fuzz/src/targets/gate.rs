//! The gate's arithmetic against drivers that round up, hold blocks back and refuse as they like: what is counted never
//! passes the lease and is never below what the driver says; what is let go comes back, all of it, and once.

#[path = "../../../gpu/src/ledger.rs"]
#[allow(dead_code, unreachable_pub, reason = "a file of another crate, which uses more of it")]
mod ledger;

use ledger::{GRAIN_BYTES, Ledger, Report};
use std::cell::Cell;
use std::rc::Rc;

/// Buffers that are held at a time.
const HELD_MAX: usize = 64;

/// A driver's buffer: dropping it frees it.
struct Buffer {
    bytes: u64,
    allocated: Rc<Cell<u64>>,
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.allocated.set(self.allocated.get() - self.bytes);
    }
}

/// Numbers from the fuzzer's bytes.
struct Words<'a>(&'a [u8]);

impl Words<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    /// Of all magnitudes.
    fn number(&mut self) -> Option<u64> {
        let (shift, low, high) = (self.byte()?, self.byte()?, self.byte()?);
        Some(u64::from(u16::from_le_bytes([low, high])) << (shift % 49))
    }
}

/// One run.
pub(crate) fn run(bytes: &[u8]) {
    let _ends_anywhere = play(&mut Words(bytes));
}

fn play(words: &mut Words<'_>) -> Option<()> {
    let allocated = Rc::new(Cell::new(0));
    let (lease, block) = (words.number()?, words.number()?.clamp(1, 1 << 40));
    let reserved = |allocated: u64| allocated.checked_next_multiple_of(block).unwrap_or(u64::MAX);
    let report = |allocated: u64| Report { allocated, reserved: reserved(allocated) };
    let mut ledger = Ledger::new(lease);
    // The device's own, before any work.
    let _own = buffer(&allocated, 1 + words.number()? % (1 << 30));
    let headroom = ledger.measure_headroom(report(allocated.get()));
    if headroom > lease {
        return None;
    }
    let mut held: Vec<(Buffer, u64)> = Vec::new();
    loop {
        match words.byte()? % 8 {
            0..=3 => {
                let wanted = words.number()?;
                if !ledger.fits(wanted) || held.len() == HELD_MAX {
                    continue;
                }
                // It may round up by as much as it likes.
                let taken = wanted.saturating_add(words.number()? % (4 * GRAIN_BYTES));
                if allocated.get().checked_add(taken).is_none() {
                    continue;
                }
                let (before, said) = (ledger.used(), report(allocated.get()));
                let made = buffer(&allocated, taken);
                match ledger.admit(wanted, said, report(allocated.get())) {
                    Some(counted) => {
                        assert_eq!(ledger.used(), before + counted);
                        held.push((made, counted));
                    }
                    None => {
                        drop(made);
                        assert_eq!(ledger.used(), before);
                    }
                }
            }
            4 | 5 if !held.is_empty() => {
                let at = usize::from(words.byte()?) % held.len();
                let (buffer, counted) = held.swap_remove(at);
                ledger.release(buffer, counted);
            }
            6 => ledger.busy(),
            7 => {
                ledger.idle();
                assert!(!ledger.waits_for_idle());
                assert_eq!(ledger.used(), headroom + held.iter().map(|(_, counted)| counted).sum::<u64>());
            }
            _ => {}
        }
        assert!(ledger.used() <= ledger.lease() && ledger.used() >= ledger.headroom());
        assert!(ledger.used() >= allocated.get(), "{} counted, {} allocated", ledger.used(), allocated.get());
        assert!(ledger.peak() >= ledger.used() && ledger.peak() <= ledger.lease());
    }
}

fn buffer(allocated: &Rc<Cell<u64>>, bytes: u64) -> Buffer {
    allocated.set(allocated.get() + bytes);
    Buffer { bytes, allocated: allocated.clone() }
}
