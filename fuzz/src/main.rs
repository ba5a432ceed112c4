//! Fuzzing of everything that reads a stranger's bytes, by libFuzzer: `scripts/fuzz`. One program holds all targets, as
//! linking one for each would take longer than running them; `RINGFENCE_FUZZ` names the one to run.
#![no_main]
#![allow(clippy::unwrap_used, reason = "a panic is how a target fails")]

mod support;
mod targets;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};
use targets::TARGETS;

/// What libFuzzer takes for coverage of a program that was built without: the power of two that an input is long. With none
/// at all it has nothing by which to choose an input.
#[allow(
    unsafe_code,
    reason = "libFuzzer looks for its counters in a section of this name, and may change them"
)]
#[unsafe(link_section = "__libfuzzer_extra_counters")]
static LENGTHS: [AtomicU8; 65] = [const { AtomicU8::new(0) }; 65];

static CHOSEN: OnceLock<fn(&[u8])> = OnceLock::new();

fn choose() -> fn(&[u8]) {
    let wanted = std::env::var("RINGFENCE_FUZZ").unwrap_or_default();
    let target = TARGETS.iter().find(|(name, _)| *name == wanted);
    target.unwrap_or_else(|| panic!("RINGFENCE_FUZZ is {wanted:?}, which is no target")).1
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    LENGTHS[(usize::BITS - bytes.len().leading_zeros()) as usize].store(1, Ordering::Relaxed);
    CHOSEN.get_or_init(choose)(bytes);
});
