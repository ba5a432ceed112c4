//! The scheduler's rules one by one: what happens when, and what is decided.

#![allow(clippy::unwrap_used, reason = "a test program: a panic is its answer")]

use ringfence_scheduler::*;
use std::time::Duration;

const MS: u64 = 1_000;

/// A scheduler with an event at a time, in milliseconds, and its decisions as text.
struct Script(Scheduler);

fn config() -> ConfigValues {
    ConfigValues {
        devices: Devices { cpu: DeviceConfig { budget_bytes: 100, cores: 2 }, gpu_budgets_bytes: Vec::new() },
        host_budget_bytes: 100,
        queue_total_max: 20,
        order: Order::Fair,
        aging: Duration::from_secs(10),
        client: unnamed(10),
    }
}

fn script(models: &[ModelValues]) -> Script {
    script_with(models, config())
}

fn script_with(models: &[ModelValues], config: ConfigValues) -> Script {
    let mut script = Script(Scheduler::new(Config::new(config).unwrap()));
    for (id, values) in models.iter().enumerate() {
        let config = ModelConfig::new(values.clone()).unwrap();
        script.0.step(Time(0), Event::ModelAdded { model: ModelId(id as u32), config });
    }
    script
}

fn unnamed(queue_max: u32) -> ClientConfig {
    let class = Class::Interactive;
    ClientConfig::new(ClientValues {
        weight: 1,
        class,
        queue_max,
        jobs: None,
        device_us: None,
        tokens: None,
        audio_ms: None,
    })
    .unwrap()
}

fn values() -> ModelValues {
    ModelValues {
        lease_bytes: 40,
        device_lease_bytes: 0,
        gpus: Vec::new(),
        package_bytes: 20,
        workers_max: 1,
        concurrency: 4,
        queue_max: 8,
        timeout: Duration::from_millis(500),
        step_tokens: 512,
        shares_steps: false,
        step_target: Duration::from_millis(50),
        step_limit: Duration::from_millis(50),
        load_limit: Duration::from_millis(1_000),
        idle_unload: None,
        threads: 4,
        keep_loaded: false,
    }
}

impl Script {
    /// Lets something happen, and holds what is decided against what is expected.
    #[track_caller]
    fn at(&mut self, ms: u64, event: Event, expected: &str) -> &mut Self {
        let actions = self.0.step(Time(ms * MS), event.clone());
        let text: Vec<String> = actions.iter().map(text).collect();
        assert_eq!(text.join("; "), expected, "at {ms} ms after {event:?}");
        self
    }

    /// Waits for nothing but time: the scheduler must ask to be woken then.
    #[track_caller]
    fn wakes(&mut self, ms: u64, expected: &str) -> &mut Self {
        assert_eq!(self.0.next_wake(), Some(Time(ms * MS)), "the next wake");
        self.at(ms, Event::Tick, expected)
    }
}

fn text(action: &Action) -> String {
    match action {
        Action::Spawn { worker, model, gpu, .. } => {
            let on = gpu.map_or(String::new(), |gpu| format!(" on gpu {}", gpu.0));
            format!("spawn {} for {}{on}", worker.0, model.0)
        }
        Action::Run { job, worker, .. } => format!("run {} in {}", job.0, worker.0),
        Action::CancelJob { job, worker } => format!("cancel {} in {}", job.0, worker.0),
        Action::End { job, outcome } => format!("end {} {}", job.0, outcome.code()),
        Action::Stop { worker } => format!("stop {}", worker.0),
        Action::Kill { worker, why } => format!("kill {} {}", worker.0, why.code()),
        Action::DropPackage { model } => format!("drop {}", model.0),
    }
}

fn job(job: u64, model: u32) -> Submit {
    let (job, model) = (JobId(job), ModelId(model));
    Submit {
        job,
        client: ClientId(1),
        model,
        deadline: None,
        tokens: 1,
        tokens_bound: 1,
        audio_ms: 0,
        canary: false,
        live: false,
    }
}

fn submit(id: u64, model: u32) -> Event {
    Event::Submit(job(id, model))
}

fn submit_until(id: u64, deadline_ms: u64) -> Event {
    Event::Submit(Submit { deadline: Some(Time(deadline_ms * MS)), ..job(id, 0) })
}

fn canary(id: u64) -> Event {
    Event::Submit(Submit { canary: true, ..job(id, 0) })
}

fn ready(worker: u64) -> Event {
    Event::WorkerReady { worker: WorkerId(worker), bytes_per_token: 1, used_bytes: 10 }
}

fn used(worker: u64, device_ms: u64) -> Event {
    Event::Used { worker: WorkerId(worker), device_us: device_ms * MS, tokens: Vec::new() }
}

fn ended(worker: u64, job: u64, end: JobEnd) -> Event {
    Event::JobEnded { worker: WorkerId(worker), job: JobId(job), end }
}

fn done(worker: u64, job: u64) -> Event {
    ended(worker, job, JobEnd::Done)
}

fn exit(worker: u64, exit: Exit) -> Event {
    Event::WorkerExited { worker: WorkerId(worker), exit }
}

#[test]
fn a_job_starts_a_worker_and_runs_when_it_is_ready() {
    script(&[values()])
        .at(0, submit(1, 0), "spawn 1 for 0")
        .at(5, submit(2, 0), "")
        .at(10, ready(1), "run 1 in 1; run 2 in 1")
        .at(20, used(1, 10), "")
        .at(20, done(1, 1), "end 1 done")
        .at(20, ended(1, 2, JobEnd::Failed), "end 2 in_worker")
        .at(20, done(1, 2), "");
}

#[test]
fn a_worker_that_shares_its_steps_takes_more_than_one_and_keeps_its_last_place_for_another_client() {
    let long = |id, client| {
        let client = ClientId(client);
        Event::Submit(Submit { client, tokens: 512, ..job(id, 0) })
    };
    script(&[ModelValues { concurrency: 3, shares_steps: true, ..values() }])
        .at(0, long(1, 1), "spawn 1 for 0")
        .at(10, ready(1), "run 1 in 1")
        .at(11, long(2, 1), "run 2 in 1")
        .at(12, long(3, 1), "")
        .at(13, long(4, 2), "run 4 in 1")
        .at(14, used(1, 3), "")
        .at(14, done(1, 1), "end 1 done")
        .at(15, used(1, 1), "")
        .at(15, done(1, 4), "end 4 done; run 3 in 1");
    script(&[ModelValues { concurrency: 3, ..values() }])
        .at(0, long(1, 1), "spawn 1 for 0")
        .at(10, ready(1), "run 1 in 1")
        .at(11, long(2, 1), "");
}

#[test]
fn suspects_of_a_crash_run_again_alone_and_fail_after_the_second() {
    script(&[values()])
        .at(0, submit(1, 0), "spawn 1 for 0")
        .at(10, ready(1), "run 1 in 1")
        .at(10, submit(2, 0), "run 2 in 1")
        .at(20, exit(1, Exit::Crashed), "spawn 2 for 0")
        .at(20, submit(3, 0), "")
        .at(30, ready(2), "run 1 in 2")
        .at(40, exit(2, Exit::Crashed), "end 1 worker_died")
        .wakes(140, "spawn 3 for 0")
        .at(150, ready(3), "run 2 in 3")
        .at(160, done(3, 2), "end 2 done; run 3 in 3");
}

#[test]
fn out_of_memory_fails_a_job_that_was_alone_and_replays_others() {
    script(&[values()])
        .at(0, submit(1, 0), "spawn 1 for 0")
        .at(10, ready(1), "run 1 in 1")
        .at(10, submit(2, 0), "run 2 in 1")
        .at(20, exit(1, Exit::OutOfMemory), "spawn 2 for 0")
        .at(30, ready(2), "run 1 in 2")
        .at(40, exit(2, Exit::OutOfMemory), "end 1 out_of_memory")
        .wakes(140, "spawn 3 for 0")
        .at(150, ready(3), "run 2 in 3")
        .at(160, ended(3, 2, JobEnd::OutOfMemory), "end 2 out_of_memory");
}

#[test]
fn a_limit_behind_the_lease_makes_suspects_of_those_inside_and_blames_one_that_was_alone_twice() {
    script(&[values()])
        .at(0, submit(1, 0), "spawn 1 for 0")
        .at(10, ready(1), "run 1 in 1")
        .at(20, exit(1, Exit::OverLimit), "spawn 2 for 0")
        .at(30, ready(2), "run 1 in 2")
        .at(40, exit(2, Exit::OverLimit), "end 1 out_of_memory");
}

#[test]
fn a_deadline_answers_at_once_and_spares_a_worker_that_gives_the_slot_back() {
    script(&[values()])
        .at(0, submit_until(1, 100), "spawn 1 for 0")
        .at(10, ready(1), "run 1 in 1")
        .at(90, used(1, 1), "")
        .wakes(100, "end 1 deadline_passed; cancel 1 in 1")
        .at(130, ended(1, 1, JobEnd::Cancelled), "")
        .at(9_000, Event::Tick, "");
}

#[test]
fn a_worker_that_ignores_a_cancel_is_killed_and_its_other_jobs_are_no_suspects() {
    script(&[values()])
        .at(0, submit(1, 0), "spawn 1 for 0")
        .at(10, ready(1), "run 1 in 1")
        .at(10, submit(2, 0), "run 2 in 1")
        .at(10, submit(3, 0), "run 3 in 1")
        .at(20, Event::Cancel { job: JobId(1) }, "end 1 cancelled; cancel 1 in 1")
        .at(60, used(1, 1), "")
        .at(150, used(1, 1), "")
        .wakes(170, "kill 1 cancel_ignored")
        .at(180, exit(1, Exit::Crashed), "spawn 2 for 0")
        .at(190, ready(2), "run 2 in 2; run 3 in 2");
}

fn forget(job: u64) -> Event {
    Event::Forget { job: JobId(job) }
}

fn of(client: u32, id: u64) -> Event {
    Event::Submit(Submit { client: ClientId(client), ..job(id, 0) })
}

fn device_ms(script: &Script, client: u32) -> u64 {
    script.0.usage(Some(ClientId(client)))[0].usage.device_us / MS
}

#[test]
fn a_worker_that_gives_the_slot_back_in_time_lives_on_after_the_end_of_a_grant() {
    script(&[values()])
        .at(0, submit(1, 0), "spawn 1 for 0")
        .at(0, submit(2, 0), "")
        .at(10, forget(2), "end 2 cancelled")
        .at(10, ready(1), "run 1 in 1")
        .at(20, forget(1), "end 1 cancelled; cancel 1 in 1")
        .at(59, ended(1, 1, JobEnd::Cancelled), "")
        .at(70, forget(1), "")
        .at(9_000, Event::Tick, "");
}

#[test]
fn a_worker_that_does_not_forget_is_killed_on_its_clients_account_and_others_lose_nothing() {
    let mut script = script(&[values()]);
    script
        .at(0, of(1, 1), "spawn 1 for 0")
        .at(10, ready(1), "run 1 in 1")
        .at(10, of(2, 2), "run 2 in 1")
        .at(20, used(1, 0), "")
        .at(30, forget(1), "end 1 cancelled; cancel 1 in 1")
        .at(31, of(2, 3), "run 3 in 1")
        .wakes(70, "kill 1 forget_ignored");
    assert_eq!((device_ms(&script, 1), device_ms(&script, 2)), (40, 0), "the step that was cut off");
    script.at(85, exit(1, Exit::Crashed), "spawn 2 for 0").at(86, of(2, 4), "").at(
        115,
        ready(2),
        "run 2 in 2; run 3 in 2; run 4 in 2",
    );
    assert_eq!((device_ms(&script, 1), device_ms(&script, 2)), (70, 0), "and the load");
    let Explanation { replays, decisions, .. } = script.0.explain(JobId(2)).unwrap();
    assert_eq!((replays, decisions.last().unwrap().rule), (1, Rule::Replay));
    let decisions = script.0.explain(JobId(1)).unwrap().decisions;
    let why: Vec<String> =
        decisions.iter().map(|made| format!("{} by {:?}", text(&made.action), made.rule)).collect();
    assert_eq!(
        why[1..],
        [
            "end 1 cancelled by GrantEnded",
            "cancel 1 in 1 by GrantEnded",
            "kill 1 forget_ignored by ForgetGrace"
        ]
    );
}

#[test]
fn a_step_that_was_reported_is_not_charged_twice_and_a_slot_whose_job_ended_before_counts_too() {
    let mut script = script(&[values()]);
    script
        .at(0, Event::Submit(Submit { deadline: Some(Time(40 * MS)), ..job(1, 0) }), "spawn 1 for 0")
        .at(10, ready(1), "run 1 in 1")
        .wakes(40, "end 1 deadline_passed; cancel 1 in 1")
        .at(60, forget(1), "")
        .at(80, used(1, 5), "")
        .at(90, forget(1), "")
        .wakes(100, "kill 1 forget_ignored")
        .at(120, exit(1, Exit::Crashed), "");
    assert_eq!(device_ms(&script, 1), 5 + 20);
}

/// Client 1 has a worker killed, or would, while client 2 has a job in it. The worker after it is ready at the end.
fn round(script: &mut Script, ms: u64, worker: u64, killed: bool) {
    script.at(ms, of(1, ms), &format!("run {ms} in {worker}")).at(
        ms,
        forget(ms),
        &format!("end {ms} cancelled; cancel {ms} in {worker}"),
    );
    if killed {
        script
            .wakes(ms + 40, &format!("kill {worker} forget_ignored"))
            .at(ms + 60, exit(worker, Exit::Crashed), &format!("spawn {} for 0", worker + 1))
            .at(ms + 70, ready(worker + 1), &format!("run 2 in {}", worker + 1));
    }
}

#[test]
fn such_kills_break_no_model_use_up_no_replay_and_are_few() {
    let long = Duration::from_secs(600);
    let mut script = script(&[ModelValues { step_limit: Duration::from_secs(1), timeout: long, ..values() }]);
    script.at(0, of(2, 2), "spawn 1 for 0").at(10, ready(1), "run 2 in 1");
    // A burst, and then one every twelve seconds.
    let at = [1, 2, 3, 4, 5].map(|n| n * 100).into_iter();
    let mut worker = 1;
    for ms in at.chain([12_200, 24_300, 36_400, 48_500, 60_600]) {
        // What keeps the worker alive meanwhile.
        for alive in (1_000..ms).step_by(500) {
            script.0.step(Time(alive * MS), used(worker, 0));
        }
        round(&mut script, ms, worker, true);
        worker += 1;
    }
    // No eleventh: the slot has as long as any that is cancelled.
    round(&mut script, 61_000, worker, false);
    script
        .wakes(61_040, "")
        .at(61_100, used(worker, 1), "")
        .at(62_000, used(worker, 1), "")
        .wakes(62_100, &format!("kill {worker} cancel_ignored"));
    assert_eq!(script.0.explain(JobId(2)).unwrap().replays, 10);
    script
        .at(62_110, exit(worker, Exit::Crashed), &format!("spawn {} for 0", worker + 1))
        .at(62_120, ready(worker + 1), &format!("run 2 in {}", worker + 1))
        .at(62_130, done(worker + 1, 2), "end 2 done");
}

#[test]
fn a_canary_in_a_worker_that_did_not_forget_says_nothing_of_its_health() {
    script(&[values()])
        .at(0, Event::Load { model: ModelId(0) }, "spawn 1 for 0")
        .at(10, ready(1), "")
        .at(20, canary(1), "run 1 in 1")
        .at(20, submit(2, 0), "run 2 in 1")
        .at(20, forget(2), "end 2 cancelled; cancel 2 in 1")
        .wakes(60, "kill 1 forget_ignored")
        .at(80, exit(1, Exit::Crashed), "end 1 cancelled");
}

#[test]
fn a_worker_without_a_sign_of_life_is_killed_only_while_it_has_jobs() {
    script(&[values()])
        .at(0, Event::Load { model: ModelId(0) }, "spawn 1 for 0")
        .at(10, ready(1), "")
        .at(5_000, submit(1, 0), "run 1 in 1")
        .at(5_100, used(1, 1), "")
        .wakes(5_250, "kill 1 step_limit")
        .at(5_260, exit(1, Exit::Crashed), "spawn 2 for 0")
        .at(5_300, ready(2), "run 1 in 2")
        .wakes(5_450, "kill 2 step_limit")
        .at(5_460, exit(2, Exit::Crashed), "end 1 worker_died");
}

#[test]
fn a_timeout_counts_device_time_and_not_waiting() {
    script(&[values()])
        .at(0, submit(1, 0), "spawn 1 for 0")
        .at(900, ready(1), "run 1 in 1")
        .at(950, used(1, 499), "")
        .at(960, used(1, 1), "end 1 timeout; cancel 1 in 1")
        .at(970, ended(1, 1, JobEnd::Cancelled), "");
}

#[test]
fn a_timeout_of_audio_is_longer_by_what_the_audio_lasts() {
    let mut script = script(&[values()]);
    script
        .at(0, Event::Submit(Submit { audio_ms: 10_000, ..job(1, 0) }), "spawn 1 for 0")
        .at(900, ready(1), "run 1 in 1")
        .at(950, Event::Heard { job: JobId(1), audio_ms: 2_000 }, "")
        .at(1_450, used(1, 500), "")
        .at(3_300, used(1, 1_850), "")
        .at(3_350, exit(1, Exit::Crashed), "spawn 2 for 0")
        // It is known when the next worker begins.
        .at(3_900, ready(2), "run 1 in 2")
        .at(6_300, used(2, 2_499), "")
        .at(6_310, used(2, 1), "end 1 timeout; cancel 1 in 2");
}

#[test]
fn a_job_that_would_wait_past_its_deadline_is_refused() {
    let mut script = script(&[ModelValues { concurrency: 1, ..values() }]);
    script
        .at(0, submit_until(1, 0), "end 1 deadline_unmeetable")
        .at(0, submit(2, 0), "spawn 1 for 0")
        .at(10, ready(1), "run 2 in 1")
        .at(110, used(1, 100), "")
        .at(110, done(1, 2), "end 2 done")
        .at(110, submit_until(3, 150), "run 3 in 1")
        .at(110, submit_until(4, 300), "")
        .at(110, submit_until(5, 210), "end 5 deadline_unmeetable")
        .at(110, submit_until(6, 211), "");
    let refusal = script.0.step(Time(110 * MS), submit_until(7, 310));
    let (estimate, deadline) = (Duration::from_millis(200), Duration::from_millis(200));
    let refused = Outcome::Refused(Refusal::DeadlineUnmeetable { estimate, deadline });
    assert_eq!(refusal, [Action::End { job: JobId(7), outcome: refused }]);
}

#[test]
fn every_queue_is_bounded_also_for_a_loaded_model() {
    let mut script = script(&[ModelValues { concurrency: 1, ..values() }, values(), values()]);
    script.at(0, submit(1, 0), "spawn 1 for 0").at(1, ready(1), "run 1 in 1");
    (2..10).for_each(|id| {
        script.at(2, submit(id, 0), "");
    });
    script
        .at(2, submit(10, 0), "end 10 queue_full_model")
        .at(2, submit(11, 1), "spawn 2 for 1")
        .at(2, submit(12, 1), "")
        .at(2, submit(13, 1), "end 13 queue_full_client")
        .at(3, Event::Cancel { job: JobId(2) }, "end 2 cancelled")
        .at(3, submit(14, 0), "");
    for client in 2..4 {
        (0..5).for_each(|id| {
            let of_client = Submit { client: ClientId(client), ..job(u64::from(client) * 100 + id, 2) };
            script.0.step(Time(3 * MS), Event::Submit(of_client));
        });
    }
    script.at(4, Event::Submit(Submit { client: ClientId(9), ..job(999, 1) }), "");
    assert_eq!(script.0.snapshot().waiting, 19, "eight of ten fitted the third model's queue");
    script.at(4, Event::Submit(Submit { client: ClientId(9), ..job(1_000, 1) }), "").at(
        4,
        Event::Submit(Submit { client: ClientId(9), ..job(1_001, 1) }),
        "end 1001 queue_full",
    );
}

#[test]
fn what_can_never_fit_is_refused_with_the_numbers() {
    let large = ModelValues { lease_bytes: 101, ..values() };
    let heavy = ModelValues { package_bytes: 102, ..values() };
    let mut script = script(&[values(), large, heavy]);
    let refusal = |device, wanted| Refusal::LeaseTooLargeForDevice { device, wanted, budget: 100 };
    let refused = |job, refusal| vec![Action::End { job: JobId(job), outcome: Outcome::Refused(refusal) }];
    assert_eq!(script.0.step(Time(0), submit(1, 1)), refused(1, refusal(Device::Cpu, 101)));
    assert_eq!(script.0.step(Time(0), submit(2, 2)), refused(2, refusal(Device::Host, 102)));
    let of_tokens = |id, tokens_bound| Event::Submit(Submit { tokens_bound, ..job(id, 0) });
    script.at(0, of_tokens(3, 31), "spawn 1 for 0").at(0, of_tokens(4, 30), "").at(
        10,
        ready(1),
        "end 3 job_too_large; run 4 in 1",
    );
    let too_large = Refusal::JobTooLargeForLease { wanted: 41, lease: 40 };
    assert_eq!(script.0.step(Time(11 * MS), of_tokens(5, 31)), refused(5, too_large));
}

#[test]
fn deaths_in_a_row_delay_the_next_worker_and_break_the_model_for_a_while() {
    let mut script = script(&[values()]);
    script.at(0, submit(1, 0), "spawn 1 for 0").at(0, exit(1, Exit::Crashed), "spawn 2 for 0");
    script.at(0, exit(2, Exit::Crashed), "").wakes(100, "spawn 3 for 0");
    script.at(100, exit(3, Exit::Crashed), "").wakes(300, "spawn 4 for 0");
    script.at(300, exit(4, Exit::Crashed), "").wakes(700, "spawn 5 for 0");
    script.at(700, exit(5, Exit::Crashed), "end 1 model_broken");
    let refusal = script.0.step(Time(800 * MS), submit(2, 0));
    let (cause, retry_after) = (BrokenCause::Deaths { deaths: 5 }, Some(Duration::from_millis(700)));
    let refused = Outcome::Refused(Refusal::ModelBroken { cause, retry_after });
    assert_eq!(refusal, [Action::End { job: JobId(2), outcome: refused }]);
    script
        .at(1_500, submit(3, 0), "spawn 6 for 0")
        .at(1_510, ready(6), "run 3 in 6")
        .at(1_520, done(6, 3), "end 3 done")
        .at(1_530, exit(6, Exit::Crashed), "")
        .at(1_530, submit(4, 0), "spawn 7 for 0");
}

#[test]
fn a_package_that_does_not_load_breaks_the_model_until_the_operator_acts() {
    let spawn_failed = |worker, fault| Event::SpawnFailed { worker: WorkerId(worker), fault };
    script(&[values()])
        .at(0, submit(1, 0), "spawn 1 for 0")
        .at(10, Event::LoadFailed { worker: WorkerId(1) }, "end 1 load_failed")
        .at(10, submit(2, 0), "end 2 model_broken")
        .at(20, exit(1, Exit::Finished), "drop 0")
        .at(99_000, submit(3, 0), "end 3 model_broken")
        .at(99_000, Event::Load { model: ModelId(0) }, "spawn 2 for 0")
        .at(99_000, submit(4, 0), "")
        .at(99_010, spawn_failed(2, SpawnFault::Package), "end 4 load_failed; drop 0")
        .at(99_020, submit(5, 0), "end 5 model_broken")
        .at(99_030, changed(0, values()), "")
        .at(99_030, submit(6, 0), "spawn 3 for 0")
        .at(99_040, spawn_failed(3, SpawnFault::Host), "spawn 4 for 0");
}

fn changed(model: u32, values: ModelValues) -> Event {
    Event::ModelChanged { model: ModelId(model), config: ModelConfig::new(values).unwrap() }
}

#[test]
fn room_is_made_by_the_longest_idle_and_counts_only_once_it_is_back() {
    let kept = ModelValues { keep_loaded: true, ..values() };
    script(&[kept, values(), values()])
        .at(0, Event::Tick, "")
        .at(10, ready(1), "")
        .at(10, submit(1, 1), "spawn 2 for 1")
        .at(20, ready(2), "run 1 in 2")
        .at(30, done(2, 1), "end 1 done")
        .at(100, submit(2, 2), "stop 2")
        .at(110, submit(3, 2), "")
        .at(120, exit(2, Exit::Finished), "drop 1; spawn 3 for 2");
}

#[test]
fn a_busy_worker_yields_after_its_job_to_a_model_that_has_waited() {
    let large =
        ModelValues { lease_bytes: 70, concurrency: 1, step_limit: Duration::from_secs(60), ..values() };
    script(&[ModelValues { timeout: Duration::from_secs(60), ..large.clone() }, large])
        .at(0, submit(1, 0), "spawn 1 for 0")
        .at(10, ready(1), "run 1 in 1")
        .at(500, submit(2, 1), "")
        .at(500, submit(3, 0), "")
        .wakes(1_010, "")
        .wakes(1_500, "")
        .at(2_000, done(1, 1), "end 1 done; stop 1")
        .at(2_010, exit(1, Exit::Finished), "spawn 2 for 1");
}

#[test]
fn nobody_overtakes_a_large_model_to_the_room_that_is_free() {
    let large = ModelValues { lease_bytes: 100, ..values() };
    script(&[values(), large, values()])
        .at(0, submit(1, 0), "spawn 1 for 0")
        .at(10, ready(1), "run 1 in 1")
        .at(20, submit(2, 1), "")
        .at(30, submit(3, 2), "")
        .at(40, done(1, 1), "end 1 done; stop 1")
        .at(50, exit(1, Exit::Finished), "drop 0; spawn 2 for 1")
        .at(60, ready(2), "run 2 in 2")
        .at(70, done(2, 2), "end 2 done; stop 2")
        .at(80, exit(2, Exit::Finished), "drop 1; spawn 3 for 2");
}

#[test]
fn idle_time_unloads_and_a_canary_does_not_put_it_off() {
    let idle = Some(Duration::from_millis(1_000));
    script(&[ModelValues { idle_unload: idle, ..values() }])
        .at(0, canary(1), "end 1 not_idle")
        .at(0, submit(2, 0), "spawn 1 for 0")
        .at(10, ready(1), "run 2 in 1")
        .at(20, canary(3), "end 3 not_idle")
        .at(30, done(1, 2), "end 2 done")
        .at(800, canary(4), "run 4 in 1")
        .at(810, done(1, 4), "end 4 done")
        .wakes(1_030, "stop 1")
        .at(1_040, exit(1, Exit::Finished), "drop 0");
}

#[test]
fn the_package_of_a_worker_that_died_is_kept_for_the_next_one_for_the_idle_time() {
    let idle = Some(Duration::from_millis(1_000));
    script(&[ModelValues { idle_unload: idle, ..values() }])
        .at(0, Event::Load { model: ModelId(0) }, "spawn 1 for 0")
        .at(10, ready(1), "")
        .at(20, exit(1, Exit::Crashed), "")
        .wakes(1_020, "drop 0");
}

#[test]
fn another_worker_starts_when_those_that_run_are_full_and_never_by_evicting() {
    let two = ModelValues { workers_max: 3, concurrency: 1, lease_bytes: 30, threads: 1, ..values() };
    script(&[two, ModelValues { lease_bytes: 30, ..values() }])
        .at(0, submit(1, 0), "spawn 1 for 0")
        .at(0, submit(2, 0), "")
        .at(10, ready(1), "run 1 in 1; spawn 2 for 0")
        .at(20, ready(2), "run 2 in 2")
        .at(30, Event::Load { model: ModelId(1) }, "spawn 3 for 1")
        .at(40, ready(3), "")
        .at(50, submit(3, 0), "")
        .at(60, done(2, 2), "end 2 done; run 3 in 2");
}

#[test]
fn no_other_worker_starts_for_which_there_would_be_no_cores() {
    let two = ModelValues { workers_max: 2, concurrency: 1, lease_bytes: 30, threads: 2, ..values() };
    script(&[two])
        .at(0, submit(1, 0), "spawn 1 for 0")
        .at(0, submit(2, 0), "")
        .at(10, ready(1), "run 1 in 1")
        .at(20, done(1, 1), "end 1 done; run 2 in 1");
}

#[test]
fn workers_take_turns_at_the_cores_and_share_them_with_jobs_that_take_long() {
    let batch = ModelValues { concurrency: 1, lease_bytes: 30, ..values() };
    let mut script = script(&[batch.clone(), batch]);
    script
        .at(0, submit(1, 0), "spawn 1 for 0")
        .at(0, submit(2, 1), "spawn 2 for 1")
        .at(10, ready(1), "run 1 in 1")
        .at(20, ready(2), "")
        .at(20, submit(3, 0), "");
    let waits = |script: &Script, job| match script.0.explain(JobId(job)).unwrap().state {
        JobState::Waiting { waits_for, .. } => waits_for,
        other => panic!("{other:?}"),
    };
    assert_eq!(waits(&script, 2), WaitsFor::Cores { threads: 2, free: 0 });
    assert_eq!(waits(&script, 3), WaitsFor::Step);
    assert_eq!(script.0.snapshot().cores, CoresSnapshot { budget: 2, held: 2 });
    // It came first.
    script.at(30, done(1, 1), "end 1 done; run 2 in 2").at(40, submit(4, 0), "");
    // A step later the third does not wait for the end of the second.
    script.wakes(80, "run 3 in 1");
    assert_eq!(script.0.snapshot().cores, CoresSnapshot { budget: 2, held: 4 });
}

#[test]
fn a_changed_lease_replaces_workers_after_their_jobs() {
    script(&[values()])
        .at(0, submit(1, 0), "spawn 1 for 0")
        .at(10, ready(1), "run 1 in 1")
        .at(20, changed(0, ModelValues { lease_bytes: 50, ..values() }), "")
        .at(20, submit(2, 0), "spawn 2 for 0")
        .at(30, done(1, 1), "end 1 done; stop 1")
        .at(40, ready(2), "run 2 in 2")
        .at(50, changed(0, ModelValues { concurrency: 9, lease_bytes: 50, ..values() }), "")
        .at(60, changed(0, ModelValues { lease_bytes: 500, ..values() }), "")
        .at(70, done(2, 2), "end 2 done; stop 2");
}

#[test]
fn a_removed_model_ends_what_waits_and_finishes_what_runs() {
    let one = ModelValues { concurrency: 1, ..values() };
    let mut script = script(&[one]);
    script
        .at(0, submit(1, 0), "spawn 1 for 0")
        .at(10, ready(1), "run 1 in 1")
        .at(10, submit(2, 0), "")
        .at(20, Event::ModelRemoved { model: ModelId(0) }, "end 2 model_removed")
        .at(30, submit(3, 0), "end 3 model_unknown")
        .at(40, done(1, 1), "end 1 done; stop 1")
        .at(50, exit(1, Exit::Finished), "drop 0");
    assert_eq!(script.0.snapshot().models, []);
}

#[test]
fn unloading_lasts_until_somebody_uses_the_model() {
    script(&[ModelValues { keep_loaded: true, ..values() }])
        .at(10, ready(1), "")
        .at(20, Event::Unload { model: ModelId(0) }, "stop 1")
        .at(30, exit(1, Exit::Finished), "drop 0")
        .at(40, Event::Tick, "")
        .at(50, submit(1, 0), "spawn 2 for 0");
}

#[test]
fn a_drain_finishes_what_is_here_and_then_stops_everything() {
    let one = ModelValues { concurrency: 1, ..values() };
    let mut script = script(&[one, values()]);
    script
        .at(0, submit(1, 0), "spawn 1 for 0")
        .at(10, ready(1), "run 1 in 1")
        .at(10, submit(2, 0), "")
        .at(10, Event::Load { model: ModelId(1) }, "spawn 2 for 1")
        .at(20, Event::Drain, "stop 2")
        .at(20, submit(3, 0), "end 3 draining")
        .at(30, exit(2, Exit::Finished), "drop 1")
        .at(30, done(1, 1), "end 1 done; run 2 in 1")
        .at(40, done(1, 2), "end 2 done; stop 1");
    assert!(!script.0.drained());
    script.at(50, exit(1, Exit::Finished), "drop 0");
    assert!(script.0.drained());
}

#[test]
fn a_worker_that_ends_a_job_as_cancelled_unasked_is_killed_and_the_job_is_a_suspect() {
    script(&[values()])
        .at(0, submit(1, 0), "spawn 1 for 0")
        .at(10, ready(1), "run 1 in 1")
        .at(20, ended(1, 1, JobEnd::Cancelled), "kill 1 illegal")
        .at(30, exit(1, Exit::Crashed), "spawn 2 for 0")
        .at(40, ready(2), "run 1 in 2");
}

#[test]
fn refusals_grow_nothing_and_decisions_are_remembered_up_to_their_bound() {
    let mut script = script(&[values()]);
    for id in 0..20_000 {
        script.0.step(Time(id), Event::Submit(Submit { client: ClientId(id as u32), ..job(id, 7) }));
    }
    assert_eq!(script.0.snapshot().clients, []);
    assert_eq!(script.0.usage(None).len(), CLIENTS_MAX);
    assert_eq!(script.0.decisions().count(), DECISIONS_MAX);
    assert!(script.0.explain(JobId(0)).is_none() && script.0.explain(JobId(19_999)).is_some());
    let last = script.0.decisions().next_back().unwrap();
    assert_eq!((last.at, last.event, last.rule), (Time(19_999), "submit", Rule::Admission));
}

#[test]
fn values_out_of_range_are_refused_by_name() {
    let check = |values, field| assert_eq!(ModelConfig::new(values).unwrap_err().field, field);
    check(ModelValues { lease_bytes: 0, ..values() }, "lease_bytes");
    check(ModelValues { concurrency: 257, ..values() }, "concurrency");
    check(ModelValues { workers_max: 0, ..values() }, "workers_max");
    check(ModelValues { queue_max: 0, ..values() }, "queue_max");
    check(ModelValues { timeout: Duration::ZERO, ..values() }, "timeout");
    check(ModelValues { idle_unload: Some(Duration::MAX), ..values() }, "idle_unload");
}

/// Two GPUs of 100 bytes; models 0 and 1 may be on either, model 2 on the second only.
fn on_gpus() -> Script {
    let of = |lease: u64, gpus: &[u16]| ModelValues {
        device_lease_bytes: lease,
        gpus: gpus.iter().copied().map(GpuId).collect(),
        lease_bytes: 1,
        threads: 1,
        ..values()
    };
    script_with(
        &[of(60, &[0, 1]), of(60, &[0, 1]), of(100, &[1])],
        ConfigValues {
            devices: Devices {
                cpu: DeviceConfig { budget_bytes: 100, cores: 2 },
                gpu_budgets_bytes: vec![100, 100],
            },
            ..config()
        },
    )
}

#[test]
fn workers_go_to_the_gpu_with_most_room_and_make_room_on_the_one_that_is_needed() {
    on_gpus()
        .at(0, submit(1, 0), "spawn 1 for 0 on gpu 0")
        .at(0, submit(2, 1), "spawn 2 for 1 on gpu 1")
        .at(10, ready(1), "run 1 in 1")
        .at(10, ready(2), "run 2 in 2")
        .at(20, done(1, 1), "end 1 done")
        .at(20, done(2, 2), "end 2 done")
        .at(30, submit(3, 2), "stop 2")
        .at(40, exit(2, Exit::Finished), "drop 1; spawn 3 for 2 on gpu 1")
        .at(50, ready(3), "run 3 in 3")
        .at(60, submit(4, 1), "stop 1")
        .at(70, exit(1, Exit::Finished), "drop 0; spawn 4 for 1 on gpu 0");
}

#[test]
fn what_no_gpu_could_ever_hold_is_refused_and_a_gpu_that_is_gone_holds_nothing() {
    let mut script = on_gpus();
    let smaller = ConfigValues {
        devices: Devices { cpu: DeviceConfig { budget_bytes: 100, cores: 2 }, gpu_budgets_bytes: vec![100] },
        ..config()
    };
    script
        .at(0, submit(1, 2), "spawn 1 for 2 on gpu 1")
        .at(10, ready(1), "run 1 in 1")
        .at(20, Event::Configured(Config::new(smaller).unwrap()), "")
        .at(30, submit(2, 2), "end 2 lease_too_large")
        .at(40, done(1, 1), "end 1 done; stop 1");
}

#[test]
fn audio_is_guessed_when_a_job_comes_and_corrected_when_its_worker_has_heard_it() {
    let mut script = script(&[values()]);
    let rate = Rate { per_minute: 60_000, burst: 30_000 };
    let config = ClientConfig::new(ClientValues { audio_ms: Some(rate), ..unnamed(8).values().clone() });
    script.0.step(Time(0), Event::ClientConfigured { client: ClientId(1), config: Some(config.unwrap()) });
    let audio = |id, audio_ms| Event::Submit(Submit { audio_ms, ..job(id, 0) });
    let left =
        |script: &Script| script.0.usage(Some(ClientId(1)))[0].rates[Resource::Audio as usize].unwrap().1;
    script.at(0, audio(1, 20_000), "spawn 1 for 0");
    assert_eq!(left(&script), 10_000);
    script.at(0, audio(2, 10_001), "end 2 rate_audio");
    script.at(0, ready(1), "run 1 in 1");
    // It was shorter, which counts once; what else the worker says does not.
    let heard = |audio_ms| Event::Heard { job: JobId(1), audio_ms };
    script.at(0, heard(5_000), "").at(0, heard(29_000), "");
    script.at(0, done(1, 1), "end 1 done");
    assert_eq!(left(&script), 25_000);
    assert_eq!(script.0.usage(Some(ClientId(1)))[0].usage.audio_ms, 5_000);
    // It was longer: what is owed is waited for.
    script.at(0, audio(3, 1_000), "run 3 in 1");
    script.at(0, Event::Heard { job: JobId(3), audio_ms: 40_000 }, "");
    script.at(0, done(1, 3), "end 3 done");
    assert_eq!(left(&script), -15_000);
    script.at(15_000, audio(4, 1_000), "end 4 rate_audio");
    script.at(16_000, audio(5, 1_000), "run 5 in 1");
}

fn live(id: u64) -> Event {
    Event::Submit(Submit { live: true, tokens: 1, audio_ms: 1_000, ..job(id, 0) })
}

#[test]
fn a_live_job_lasts_as_long_as_its_stream_and_no_timeout_or_silence_ends_it() {
    let mut script = script(&[values()]);
    script.at(0, live(1), "spawn 1 for 0").at(0, ready(1), "run 1 in 1");
    // Its device time and the wait for a step would end any other job, or kill its worker.
    script.at(100, used(1, 3_600_000), "");
    script.at(3_600_000, Event::Tick, "");
    // What it shares a worker with is held to a step's limit from its own start.
    script.at(3_600_000, submit(2, 0), "run 2 in 1").at(3_600_001, done(1, 2), "end 2 done");
    script.at(3_600_002, Event::Cancel { job: JobId(1) }, "end 1 cancelled; cancel 1 in 1");
}

#[test]
fn what_a_live_job_hears_is_charged_while_it_runs_and_ends_it_where_no_more_may_be_heard() {
    let mut script = script(&[values()]);
    let rate = Rate { per_minute: 60_000, burst: 5_000 };
    let config = ClientConfig::new(ClientValues { audio_ms: Some(rate), ..unnamed(8).values().clone() });
    script.0.step(Time(0), Event::ClientConfigured { client: ClientId(1), config: Some(config.unwrap()) });
    let left =
        |script: &Script| script.0.usage(Some(ClientId(1)))[0].rates[Resource::Audio as usize].unwrap().1;
    let listened = |audio_ms| Event::Listened { job: JobId(1), audio_ms };
    script.at(0, live(1), "spawn 1 for 0").at(0, ready(1), "run 1 in 1");
    assert_eq!(left(&script), 4_000, "the first second is taken when it comes");
    script.at(0, listened(1_000), "").at(0, listened(3_000), "").at(0, listened(2_000), "");
    assert_eq!(left(&script), 2_000);
    assert_eq!(script.0.usage(Some(ClientId(1)))[0].usage.audio_ms, 3_000);
    script.at(0, listened(5_000), "").at(0, listened(5_001), "end 1 rate_audio; cancel 1 in 1");
    script.at(1, Event::JobEnded { worker: WorkerId(1), job: JobId(1), end: JobEnd::Cancelled }, "");
    assert_eq!(left(&script), 0, "what was heard stays charged: a millisecond has been paid since");
}

#[test]
fn live_jobs_share_a_worker_whose_steps_hold_one_token_with_each_other_and_with_other_jobs() {
    let mut script = script(&[values()]);
    script.at(0, live(1), "spawn 1 for 0").at(0, ready(1), "run 1 in 1");
    let slow = Event::Used { worker: WorkerId(1), device_us: 1_000 * MS, tokens: vec![(JobId(1), 1)] };
    script.at(10, slow, "").at(20, live(2), "run 2 in 1").at(30, submit(3, 0), "run 3 in 1");
    // Of other jobs it still holds one step's worth.
    script.at(40, submit(4, 0), "").at(50, live(5), "");
    script.at(60, done(1, 3), "end 3 done; run 4 in 1; run 5 in 1");
}

#[test]
fn a_live_job_is_not_replayed() {
    let mut script = script(&[values()]);
    script.at(0, live(1), "spawn 1 for 0").at(0, ready(1), "run 1 in 1");
    let died = Event::WorkerExited { worker: WorkerId(1), exit: Exit::Crashed };
    script.at(5, died, "end 1 worker_died");
}
