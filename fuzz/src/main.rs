//! Fuzzing of everything that reads a stranger's bytes, by libFuzzer: `scripts/fuzz`. One program holds all targets, as
//! linking one for each would take longer than running them; `RINGFENCE_FUZZ` names the one to run.
#![no_main]

mod support;
mod targets;

use std::sync::OnceLock;
use targets::TARGETS;

static CHOSEN: OnceLock<fn(&[u8])> = OnceLock::new();

fn choose() -> fn(&[u8]) {
    let wanted = std::env::var("RINGFENCE_FUZZ").unwrap_or_default();
    let target = TARGETS.iter().find(|(name, _)| *name == wanted);
    target.unwrap_or_else(|| panic!("RINGFENCE_FUZZ is {wanted:?}, which is no target")).1
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    CHOSEN.get_or_init(choose)(bytes);
});
