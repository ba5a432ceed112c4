//! The worker is killed again and again in the middle of work.

use super::bystanders::{self, CONNECTIONS};
use super::chart::{Panel, Series};
use super::load::{self, Job, Log, millis};
use super::promise::{Bound, Findings};
use super::server::{lineage, send_signal};
use super::stats::{median, percentile};
use super::{Scenario, Stage};
use crate::clock;
use crate::error::CliError;
use crate::http::Address;
use rustix::process::{Pid, Signal};
use std::time::Duration;

/// Kills in a round.
const KILLS: u32 = 4;
/// How long the next success may take until we give up on it.
const SUCCESS_WAIT_MAX: Duration = Duration::from_secs(30);
/// A refused probe comes back after this.
const PROBE_EVERY: Duration = Duration::from_millis(20);
/// How long the last killed worker may take to be gone.
const END_WAIT_MAX: Duration = Duration::from_secs(2);

const RECOVERY: (Bound, &str) = (Bound::AtMost(1_000.0), "ms");
const NO_PROCESS: (Bound, &str) = (Bound::AtMost(0.0), "processes");

pub(super) async fn play(stage: &Stage<'_>) -> Result<Findings, CliError> {
    let mut findings = Findings::new(Scenario::CrashLoop.name());
    let (server, kills) = (stage.server, KILLS * stage.extent.rounds);
    stage.bar.set_length(u64::from(kills));
    let probe_address = server.client("stress-probe").await?;
    let probe = load::jobs(server, &probe_address, 1).await?.swap_remove(0);
    let running = bystanders::start(stage).await?;
    if let Err(why) = server.worker_to_signal().await? {
        let all = [
            ("recovery_p99", RECOVERY),
            ("lost_jobs", bystanders::NONE),
            ("wrong_answers", bystanders::NONE),
            ("orphans", NO_PROCESS),
        ];
        all.into_iter().for_each(|(promise, bound)| findings.skip(promise, bound, why.clone()));
        return Ok(findings);
    }
    let (mut recoveries, mut ended, mut kills_done) = (Vec::new(), Vec::new(), 0_u32);
    for _ in 0..kills {
        let Some((worker, recovery)) = kill_once(stage, running.log(), (&probe, &probe_address)).await?
        else {
            continue;
        };
        kills_done += 1;
        ended.extend(worker);
        recoveries.extend(recovery.map(millis));
        stage.bar.inc(1);
    }
    let log = running.stop().await;
    let missed = kills as usize - recoveries.len();
    let note = if missed == 0 {
        String::new()
    } else {
        format!("{missed} of {kills} kills had no success after them")
    };
    findings.judge("recovery_p99", percentile(&recoveries, 0.99).filter(|_| missed == 0), RECOVERY, note);
    bystanders::judge(&mut findings, &log);
    let orphans = last_orphans(stage, &ended).await?;
    findings.judge("orphans", Some(orphans.len() as f64), NO_PROCESS, in_words(&orphans));
    findings.figure("kills", Some(f64::from(kills_done)), "");
    findings.figure("SIGKILL to the next success (median)", median(&recoveries), "ms");
    let series = vec![Series::by_number("next success", &recoveries)];
    let title = "crash-loop: from SIGKILL".to_owned();
    findings.panels.push(Panel { title, across: "kill", up: "ms", series, bound: Some(1_000.0) });
    Ok(findings)
}

/// Kills the worker and waits for a success of a job that was sent after that: what the dead one had answered before
/// counts for nothing. Between two kills every connection has successes, so that no job is in two crashes and the
/// breaker sees a worker that serves.
async fn kill_once(
    stage: &Stage<'_>,
    log: &Log,
    (probe, address): (&Job, &Address),
) -> Result<Option<(Vec<Pid>, Option<Duration>)>, CliError> {
    let quiet = clock::now();
    load::until(quiet + SUCCESS_WAIT_MAX, || (log.successes_after(quiet) > 3 * CONNECTIONS).then_some(()))
        .await;
    let Ok(worker) = stage.server.worker_to_signal().await? else { return Ok(None) };
    let processes = [vec![worker], lineage(worker)].concat();
    send_signal(worker, Signal::KILL)?;
    let begin = clock::now();
    let limit = begin + SUCCESS_WAIT_MAX;
    let of_traffic = load::until(limit, || log.success_after(begin));
    let of_probe = async {
        loop {
            let heard = probe.send(address).await;
            if heard.ending == load::Ending::Right {
                return heard.ended;
            }
            tokio::time::sleep(PROBE_EVERY).await;
        }
    };
    let success = tokio::select! {
        success = of_traffic => success,
        success = of_probe => Some(success),
    };
    Ok(Some((processes, success.map(|success| success.saturating_duration_since(begin)))))
}

/// Those that are left when the last one had time to end.
async fn last_orphans(stage: &Stage<'_>, killed: &[Pid]) -> Result<Vec<Pid>, CliError> {
    let until = clock::now() + END_WAIT_MAX;
    loop {
        let orphans = stage.server.orphans(killed).await?;
        if orphans.is_empty() || clock::now() >= until {
            return Ok(orphans);
        }
        tokio::time::sleep(PROBE_EVERY).await;
    }
}

fn in_words(pids: &[Pid]) -> String {
    pids.iter().map(|pid| pid.as_raw_nonzero().to_string()).collect::<Vec<_>>().join(", ")
}
