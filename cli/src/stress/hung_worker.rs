//! The worker is stopped in the middle of work, as one that hangs.

use super::bystanders::{self, CONNECTIONS};
use super::chart::{Panel, Series};
use super::load::{self, Log, millis};
use super::promise::{Bound, Findings};
use super::server::send_signal;
use super::stats::{median, percentile};
use super::{Scenario, Stage, quotas};
use crate::clock;
use crate::error::CliError;
use rustix::process::{Pid, Signal};
use std::time::{Duration, Instant};

/// The limit of a step during the scenario, where it can be set.
const STEP_LIMIT: Duration = Duration::from_secs(1);
/// The default of that, where it can't.
const STEP_LIMIT_DEFAULT: Duration = Duration::from_secs(10);
/// How much later than the limit the worker must be replaced, and how exactly we look.
const REPLACE_WAIT: Duration = Duration::from_millis(1_000 + 100);
/// How much longer we look for one that is not replaced in time.
const LOOK_MORE: Duration = Duration::from_secs(20);
/// How often.
const LOOK_EVERY: Duration = Duration::from_millis(10);

pub(super) async fn play(stage: &Stage<'_>) -> Result<Findings, CliError> {
    let mut findings = Findings::new(Scenario::HungWorker.name());
    stage.bar.set_length(u64::from(stage.extent.rounds));
    let server = stage.server;
    let step_limit = set_step_limit(stage).await?;
    let bound = (Bound::AtMost(millis(step_limit + REPLACE_WAIT)), "ms");
    let running = bystanders::start(stage).await?;
    if let Err(why) = server.worker_to_signal().await? {
        for (promise, bound) in
            [("replaced_after", bound), ("lost_jobs", bystanders::NONE), ("wrong_answers", bystanders::NONE)]
        {
            findings.skip(promise, bound, why.clone());
        }
        return Ok(findings);
    }
    let mut times = Vec::new();
    for _ in 0..stage.extent.rounds {
        times.extend(hang_once(stage, running.log(), step_limit).await?);
        stage.bar.inc(1);
    }
    let log = running.stop().await;
    let missed = stage.extent.rounds as usize - times.len();
    let of =
        |value: fn(&Times) -> Duration| times.iter().map(|times| millis(value(times))).collect::<Vec<_>>();
    let (detected, replaced, answered) =
        (of(|one| one.detected), of(|one| one.replaced), of(|one| one.answered));
    let worst = percentile(&replaced, 1.0).filter(|_| missed == 0);
    let note = if missed == 0 { String::new() } else { format!("{missed} workers were not replaced at all") };
    findings.judge("replaced_after", worst, bound, note);
    bystanders::judge(&mut findings, &log);
    findings.figure("SIGSTOP to the worker's end (median)", median(&detected), "ms");
    findings.figure("SIGSTOP to a new worker (median)", median(&replaced), "ms");
    findings.figure("SIGSTOP to the next answer (median)", median(&answered), "ms");
    let series =
        vec![Series::by_number("new worker", &replaced), Series::by_number("next answer", &answered)];
    let title = "hung-worker: from SIGSTOP".to_owned();
    let bound = Some(millis(step_limit + REPLACE_WAIT));
    findings.panels.push(Panel { title, across: "round", up: "ms", series, bound });
    Ok(findings)
}

async fn set_step_limit(stage: &Stage<'_>) -> Result<Duration, CliError> {
    let Some(original) = stage.original else { return Ok(STEP_LIMIT_DEFAULT) };
    let limit = format!("models.\"{}\".step_limit_ms={}", stage.server.model, STEP_LIMIT.as_millis());
    quotas::put(stage.server, &quotas::with(original, &[&limit])?, None).await?;
    Ok(STEP_LIMIT)
}

/// All since SIGSTOP.
struct Times {
    detected: Duration,
    replaced: Duration,
    answered: Duration,
}

/// A stopped worker goes on when this is dropped, unless it was killed by then; also where we are interrupted.
struct Stopped(Pid);

impl Drop for Stopped {
    fn drop(&mut self) {
        if super::server::is_worker(self.0) {
            // It may end at this moment, which is as good.
            let _ = send_signal(self.0, Signal::CONT);
        }
    }
}

/// Waits until work goes on, stops the worker and waits for another one. None where none comes.
async fn hang_once(stage: &Stage<'_>, log: &Log, step_limit: Duration) -> Result<Option<Times>, CliError> {
    let quiet = clock::now();
    load::until(quiet + LOOK_MORE, || (log.successes_after(quiet) > 2 * CONNECTIONS).then_some(())).await;
    let Ok(worker) = stage.server.worker_to_signal().await? else { return Ok(None) };
    send_signal(worker, Signal::STOP)?;
    let (_stopped, begin) = (Stopped(worker), clock::now());
    let limit = begin + step_limit + REPLACE_WAIT + LOOK_MORE;
    let (mut detected, mut replaced) = (None, None);
    while replaced.is_none() && clock::now() < limit {
        if !super::server::is_worker(worker) {
            detected = detected.or_else(|| Some(clock::now()));
        }
        let ready = stage.server.ready_workers().await?;
        replaced = ready.iter().any(|&pid| pid != worker).then(clock::now);
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let Some(replaced) = replaced else { return Ok(None) };
    // Whatever ends now was answered by the new worker: the old one is gone.
    let answered = load::until(limit, || log.answer_after(replaced)).await;
    let since = |time: Instant| time.saturating_duration_since(begin);
    Ok(answered.map(|answered| Times {
        detected: since(detected.unwrap_or(replaced)),
        replaced: since(replaced),
        answered: since(answered),
    }))
}
