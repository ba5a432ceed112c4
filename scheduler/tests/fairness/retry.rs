//! What a client is told to wait when a rate is used up is exact: a millisecond less is refused again.

use crate::each_seed;
use crate::random::Random;
use crate::world::rated;
use ringfence_scheduler::{
    Action, Class, ClientConfig, ClientId, ClientValues, Event, JobEnd, JobId, Outcome, Rate, Refusal,
    Scheduler, Submit, Time, WorkerId,
};
use std::time::Duration;

#[test]
fn waiting_as_long_as_told_succeeds_and_a_millisecond_less_does_not() {
    each_seed(|random| {
        let mut scheduler = rated(client(random));
        let (mut now, mut jobs, mut refused) = (0, 0, 0);
        while refused < 5 && jobs < 2_000 {
            now += random.within(0, 40_000);
            jobs += 1;
            let tokens = random.within(1, 300);
            let outcome = submit(&mut scheduler, now, jobs, tokens);
            let Some(Outcome::Refused(Refusal::RateLimited(limit))) = outcome else {
                assert!(outcome.is_none(), "{outcome:?}");
                run(&mut scheduler, now, jobs, random, tokens);
                continue;
            };
            refused += 1;
            // As the client is told: whole milliseconds, upwards.
            let told = limit.retry_after.as_nanos().div_ceil(1_000_000) as u64 * 1_000;
            let again = |after| submit(&mut scheduler.clone(), now + after, jobs + 1, tokens);
            assert_eq!(again(told), None, "{limit:?}");
            let early = again(told.saturating_sub(1_000));
            assert!(matches!(early, Some(Outcome::Refused(Refusal::RateLimited(_)))), "{limit:?}: {early:?}");
        }
        assert!(refused > 0, "no rate was used up");
    });
}

fn client(random: &mut Random) -> ClientConfig {
    let mut rate = |least, most, burst| {
        let per_minute = random.within(least, most);
        random.permille(600).then(|| Rate { per_minute, burst: random.within(1, burst) })
    };
    let jobs = Some(Rate { per_minute: 300, burst: 3 });
    ClientConfig::new(ClientValues {
        weight: 1,
        class: Class::Interactive,
        queue_max: 1_000,
        jobs: rate(30, 600, 20).or(jobs),
        device_us: rate(100_000, 20_000_000, 1_000_000),
        tokens: rate(500, 50_000, 2_000),
        audio_ms: None,
    })
    .unwrap()
}

fn submit(scheduler: &mut Scheduler, now: u64, job: u64, tokens: u64) -> Option<Outcome> {
    let submit = Submit {
        job: JobId(job),
        client: ClientId(1),
        model: crate::world::MODEL,
        deadline: None,
        tokens,
        tokens_bound: 0,
        audio_ms: 0,
        canary: false,
        live: false,
    };
    scheduler.step(Time(now), Event::Submit(submit)).into_iter().find_map(|action| match action {
        Action::End { outcome, .. } => Some(outcome),
        _ => None,
    })
}

/// The job runs in no time, and uses some of what it might.
fn run(scheduler: &mut Scheduler, now: u64, job: u64, random: &mut Random, tokens: u64) {
    let (worker, job) = (WorkerId(1), JobId(job));
    let tokens = vec![(job, random.within(1, tokens) as u32)];
    let device_us = random.within(0, Duration::from_millis(20).as_micros() as u64);
    scheduler.step(Time(now), Event::Used { worker, device_us, tokens });
    scheduler.step(Time(now), Event::JobEnded { worker, job, end: JobEnd::Done });
}
