//! Fairness in virtual time: clients with random weights, sizes and manners against one worker whose steps take time. From a
//! seed; `RINGFENCE_HISTORIES` sets how many, `RINGFENCE_SEED` runs one.
#![allow(clippy::unwrap_used, reason = "a test program: a panic is its answer")]

#[path = "../simulation/random.rs"]
#[expect(dead_code, reason = "the other simulation uses all of it")]
mod random;
mod retry;
mod world;

use random::Random;
use ringfence_scheduler::{Class, ModelId, Order};
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;
use world::{MODEL, Manner, Outcome, Person, World};

/// Of each kind; more are a soak.
const HISTORIES: u64 = 1_250;

const MS: u64 = 1_000;
const SECOND: u64 = 1_000 * MS;

#[test]
fn clients_that_always_want_more_get_shares_by_weight() {
    each_seed(|random| {
        let clients = random.within(2, 5);
        let people: Vec<Person> = (0..clients)
            .map(|_| Person { weight: random.within(1, 8) as u16, ..saturating(random) })
            .collect();
        let weights: u64 = people.iter().map(|person| u64::from(person.weight)).sum();
        let world = World::new(random, people.clone());
        let had = world.run(40 * SECOND);
        let all: u64 = had.iter().map(|client| client.device_us).sum();
        for (person, had) in people.iter().zip(&had) {
            let share = had.device_us as f64 / all as f64;
            let entitled = f64::from(person.weight) / weights as f64;
            assert!((share - entitled).abs() <= 0.02, "{share} of {entitled}: {people:?}");
        }
        let weighted = people.iter().zip(&had).map(|(person, had)| had.device_us / u64::from(person.weight));
        let (least, most) = (weighted.clone().min().unwrap(), weighted.max().unwrap());
        let bound = had[0].unfairness_bound_us;
        assert!(most - least <= bound, "{least} to {most}, the bound is {bound}: {people:?}");
    });
}

#[test]
fn clients_of_different_models_get_shares_of_the_cores_by_weight() {
    each_seed_of(HISTORIES / 10, |random| {
        let clients = random.within(2, 5);
        // Jobs that are not longer than a step: the cores are shared with those that are.
        let people: Vec<Person> = (0..clients)
            .map(|who| Person {
                model: ModelId(if who < 2 { who as u32 } else { random.within(0, 2) as u32 }),
                weight: random.within(1, 8) as u16,
                items: 1,
                item_tokens: random.within(4, 50),
                manner: Manner::Saturating { depth: random.within(200, 250) as u32 },
                ..any(random)
            })
            .collect();
        let weights: u64 = people.iter().map(|person| u64::from(person.weight)).sum();
        let had = World::new(random, people.clone()).run(40 * SECOND);
        let all: u64 = had.iter().map(|client| client.device_us).sum();
        for (person, had) in people.iter().zip(&had) {
            let share = had.device_us as f64 / all as f64;
            let entitled = f64::from(person.weight) / weights as f64;
            assert!((share - entitled).abs() <= 0.02, "{share} of {entitled}: {people:?}");
        }
    });
}

#[test]
fn whoever_comes_now_and_then_waits_for_one_step_whatever_others_do() {
    each_seed(|random| waits_for_steps(random, 1));
}

/// Where others want other models, one step of each may come before.
#[test]
fn whoever_comes_now_and_then_waits_for_one_step_of_each_model() {
    each_seed_of(HISTORIES / 5, |random| waits_for_steps(random, 3));
}

fn waits_for_steps(random: &mut Random, models: u64) {
    let polite = Person { manner: Manner::Paced { every_us: random.within(300, 900) * MS }, ..small(random) };
    let others = (0..random.within(1, 4))
        .map(|_| Person { model: ModelId(random.within(0, models - 1) as u32), ..any(random) });
    let others: Vec<Person> = others.collect();
    let models: BTreeSet<ModelId> = others.iter().map(|person| person.model).collect();
    let alone = World::new(random, vec![polite.clone()]).run(10 * SECOND).remove(0);
    let mut people = vec![polite];
    people.extend(others);
    let world = World::new(random, people.clone());
    let step = world.longest_step_us();
    let among = world.run(10 * SECOND).remove(0);
    let bound = (alone.longest_wait_us + step * models.len() as u64) * 12 / 10;
    assert!(among.waits > 5, "nothing was measured");
    assert!(
        among.longest_wait_us <= bound,
        "waited {} us, alone {} us, a step {step} us: {people:?}",
        among.longest_wait_us,
        alone.longest_wait_us
    );
}

#[test]
fn nobody_starves_past_the_aging_bound() {
    each_seed(|random| {
        let batch = Person { class: Class::Batch, manner: Manner::Saturating { depth: 1 }, ..small(random) };
        let better = Person { class: Class::Realtime, ..saturating(random) };
        let others = random.within(1, 4);
        let mut people = vec![batch];
        people.extend((0..others).map(|_| Person {
            class: if random.permille(500) { Class::Interactive } else { better.class },
            ..saturating(random)
        }));
        let world = World::new(random, people.clone());
        let (aging, turn) = (world.aging_us(), world.longest_turn_us());
        let had = world.run(20 * SECOND).remove(0);
        // Then it is one of the first class: each of the others may have a turn before it, and one runs.
        let bound = aging + turn * (others + 2);
        assert!(
            had.waits > 3 && had.longest_wait_us <= bound,
            "{} of {bound}: {people:?}",
            had.longest_wait_us
        );
    });
}

#[test]
fn fair_order_costs_little_against_first_come_first_served() {
    let (mut fair, mut arrival) = (0, 0);
    each_seed_of(HISTORIES / 10, |random| {
        let people: Vec<Person> = (0..random.within(2, 5)).map(|_| saturating(random)).collect();
        let seed = random.next();
        for (order, sum) in [(Order::Fair, &mut fair), (Order::Arrival, &mut arrival)] {
            let mut world = World::new(&mut Random::new(seed), people.clone());
            world.set_order(order);
            *sum += world.run(5 * SECOND).iter().map(|client: &Outcome| client.device_us).sum::<u64>();
        }
    });
    let ratio = fair as f64 / arrival as f64;
    assert!(ratio >= 0.95, "{ratio}");
}

fn saturating(random: &mut Random) -> Person {
    let person = any(random);
    // More than the worker takes at a time, or it would not always want more: two steps' worth of jobs that are expected
    // to be a fifth of what they are, since others' have five times the size that they need.
    let (items, item_tokens) = (person.items.max(3), person.item_tokens.max(16));
    let least = 5 * 2_048 / (items * item_tokens) + 1;
    let depth = random.within(8, 40).max(least) as u32;
    Person { items, item_tokens, manner: Manner::Saturating { depth }, ..person }
}

/// With small jobs.
fn small(random: &mut Random) -> Person {
    Person { items: 1, item_tokens: random.within(4, 60), ..any(random) }
}

fn any(random: &mut Random) -> Person {
    Person {
        model: MODEL,
        weight: 1,
        class: Class::Interactive,
        items: random.within(1, 12),
        item_tokens: random.within(4, 128),
        oversize: random.within(1, 5),
        manner: match random.within(0, 2) {
            0 => Manner::Paced { every_us: random.within(1, 40) * MS },
            1 => Manner::Saturating { depth: random.within(1, 100) as u32 },
            _ => {
                Manner::Bursts { jobs: random.within(5, 100) as u32, every_us: random.within(50, 2_000) * MS }
            }
        },
    }
}

fn each_seed(check: impl Fn(&mut Random)) {
    each_seed_of(HISTORIES, check);
}

fn each_seed_of(usual: u64, mut check: impl FnMut(&mut Random)) {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let seeds = match number("RINGFENCE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("RINGFENCE_HISTORIES").map_or(usual, |all| all * usual / (4 * HISTORIES)),
    };
    for seed in seeds {
        let held = catch_unwind(AssertUnwindSafe(|| check(&mut Random::new(seed))));
        assert!(held.is_ok(), "a promise broke: repeat with RINGFENCE_SEED={seed}");
    }
}

fn duration(us: u64) -> Duration {
    Duration::from_micros(us)
}
