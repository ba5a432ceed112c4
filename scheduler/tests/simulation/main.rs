//! Random histories of clients, operators and workers that die, hang and lie, from a seed; each step is held against
//! the scheduler's promises. `RINGFENCE_HISTORIES` sets how many, `RINGFENCE_SEED` runs one.
#![allow(clippy::unwrap_used, reason = "a test program: a panic is its answer")]

mod oracle;
mod random;
mod world;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use world::{History, World};

const HISTORIES: u64 = 5_000;

/// Everything that the histories together must have shown, or they would prove nothing.
const SHOWN: &[&str] = &[
    "action spawn",
    "action run",
    "action cancel",
    "action stop",
    "action drop_package",
    "end done",
    "end model_unknown",
    "end queue_full_client",
    "end queue_full_model",
    "end queue_full",
    "end deadline_unmeetable",
    "end lease_too_large",
    "end job_too_large",
    "end model_broken",
    "end not_idle",
    "end draining",
    "end deadline_passed",
    "end timeout",
    "end worker_died",
    "end out_of_memory",
    "end cancelled",
    "end load_failed",
    "end model_removed",
    "end in_worker",
    "kill step_limit",
    "kill load_limit",
    "kill cancel_ignored",
    "kill forget_ignored",
    "no kill beyond the rate",
    "load owed",
    "grant ended after its job",
    "kill stop_ignored",
    "kill illegal",
    "end rate_jobs",
    "end rate_device_time",
    "end rate_tokens",
    "rule GrantEnded",
    "rule ForgetGrace",
    "rule Arrival",
    "rule Fair",
    "rule Operator",
    "rule Eviction",
    "rule Yield",
    "rule IdleUnload",
    "rule Replay",
    "rule KeepLoaded",
    "rule Canary",
    "cores divided",
    "cores shared",
    "waits for cores",
];

#[test]
fn every_promise_holds_in_random_histories() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let seeds = match number("RINGFENCE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("RINGFENCE_HISTORIES").unwrap_or(HISTORIES),
    };
    let all = seeds.end - seeds.start >= HISTORIES;
    let mut shown = BTreeSet::new();
    for seed in seeds {
        shown.extend(run(seed).shown);
    }
    let missing: Vec<_> = SHOWN.iter().filter(|what| !shown.contains(**what)).collect();
    assert!(!all || missing.is_empty(), "no history showed {missing:?}");
}

#[test]
fn the_same_seed_gives_the_same_actions() {
    for seed in 0..100 {
        assert_eq!(run(seed).digest, run(seed).digest, "seed {seed}");
    }
}

fn run(seed: u64) -> History {
    match catch_unwind(AssertUnwindSafe(|| World::new(seed).run())) {
        Ok(history) => history,
        Err(_) => panic!("a promise broke: repeat with RINGFENCE_SEED={seed}"),
    }
}
