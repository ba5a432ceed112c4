//! Ends of grants in the middle of their use: by revocation, and by time.

use super::ground::{Ground, INSIDE};
use super::holder::{Granted, Holder, SERVED, code_of};
use crate::clock;
use crate::error::CliError;
use crate::stress::chart::{Panel, Series};
use crate::stress::load::millis;
use crate::stress::promise::{Bound, Findings};
use crate::stress::server::{descendants, is_alive};
use crate::stress::stats::{median, percentile};
use rustix::process::Pid;
use serde_json::json;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Grants that are revoked in the middle of a job.
const REVOCATIONS_MAX: u32 = 200;
/// Grants that expire in the middle of their use.
const EXPIRIES_MAX: u32 = 50;
/// How long each of those lives, beyond what a job takes alone.
const LIFETIME_MS: u64 = 200;
/// How exactly the end by time takes effect.
const EXACTLY_MS: f64 = 10.0;
/// How long a worker may keep what it has to forget.
const FORGET_MS: f64 = 50.0;
/// Jobs of which one's usual time is the median.
const USUAL: usize = 5;
/// Moments of a job in which its grant is revoked, spread over its usual time.
const MOMENTS: u32 = 8;
/// How long an ended file service is looked for, and how often.
const GONE_WAIT_MAX: Duration = Duration::from_secs(2);
const LOOK_EVERY: Duration = Duration::from_millis(1);

const NO_BYTES: (Bound, &str) = (Bound::AtMost(0.0), "bytes");
const NO_PROCESS: (Bound, &str) = (Bound::AtMost(0.0), "processes");
const NO_JOB: (Bound, &str) = (Bound::AtMost(0.0), "jobs");
const SOME_JOB: (Bound, &str) = (Bound::AtLeast(1.0), "jobs");
const EXACTLY: (Bound, &str) = (Bound::AtMost(EXACTLY_MS), "ms");
const UNSEEN: &str = "the server's processes can't be seen from here";

const BIG: &str = "big.txt";

/// One revocation, in milliseconds from when it was sent.
struct Revoked {
    /// Until its answer.
    answered: f64,
    /// Until the running job's answer, where it was still running.
    job: Option<f64>,
    /// Until another client's next job was answered.
    next: f64,
    /// Until the worker had answered that, or was gone.
    forgotten: f64,
    /// Uses that were served after the revocation's answer.
    served_after: u32,
    /// The running job's end, where it was another one than it must be.
    other_code: Option<String>,
    /// Processes of the file service that were there after the answer.
    processes: Option<usize>,
}

pub(super) async fn revocation(ground: &Ground<'_>, findings: &mut Findings) -> Result<(), CliError> {
    let times = ground.times(REVOCATIONS_MAX);
    let (big, small) = (usual_big(ground).await?, usual_small(ground).await?);
    let mut all = Vec::new();
    for turn in 0..times {
        let moment = big.mul_f64(f64::from(turn % MOMENTS) / f64::from(MOMENTS));
        all.push(revoke_once(ground, moment).await?);
        ground.bar.inc(1);
    }
    judge_bytes(findings, &all);
    judge_processes(findings, &all);
    let next: Vec<f64> = all.iter().map(|one| one.next).collect();
    let forgotten: Vec<f64> = all.iter().map(|one| one.forgotten).collect();
    let bound = (Bound::AtMost(FORGET_MS + millis(small)), "ms");
    let note = "from DELETE to another client's next answer of the worker, or to the worker's end, p99; 50 ms and what that \
                job takes alone";
    findings.judge("forgotten_after", percentile(&forgotten, 0.99), bound, note);
    let killed = all.iter().filter(|one| one.forgotten < one.next).count();
    findings.figure("workers that did not forget in time and were killed", Some(killed as f64), "workers");
    let (answered, jobs) = (all.iter().map(|one| one.answered).collect::<Vec<_>>(), jobs_of(&all));
    findings.figure("a job with the big file alone", Some(millis(big)), "ms");
    figures(findings, "DELETE to its answer", &answered);
    figures(findings, "DELETE to the job's answer", &jobs);
    figures(findings, "DELETE to the next answer", &next);
    let series = [("revocation", &answered), ("job", &jobs), ("next job", &next)];
    let series = series.map(|(name, values)| Series::by_number(name, values)).to_vec();
    let title = "revocation: from DELETE to the answer".to_owned();
    findings.panels.push(Panel { title, across: "revocation", up: "ms", series, bound: None });
    Ok(())
}

fn jobs_of(all: &[Revoked]) -> Vec<f64> {
    all.iter().filter_map(|one| one.job).collect()
}

fn judge_bytes(findings: &mut Findings, all: &[Revoked]) {
    findings.judge("revoked_in_mid_job", Some(jobs_of(all).len() as f64), SOME_JOB, "");
    let served: u32 = all.iter().map(|one| one.served_after).sum();
    let bytes = f64::from(served) * super::ground::BIG_BYTES as f64;
    findings.judge("bytes_after_the_answer", Some(bytes), NO_BYTES, "");
    let other: Vec<&str> = all.iter().filter_map(|one| one.other_code.as_deref()).collect();
    findings.judge("jobs_with_another_code", Some(other.len() as f64), NO_JOB, other.join(", "));
}

fn judge_processes(findings: &mut Findings, all: &[Revoked]) {
    let seen: Vec<usize> = all.iter().filter_map(|one| one.processes).collect();
    if seen.is_empty() {
        return findings.skip("processes_after_the_answer", NO_PROCESS, UNSEEN);
    }
    let left: usize = seen.iter().sum();
    findings.judge("processes_after_the_answer", Some(left as f64), NO_PROCESS, "");
}

async fn revoke_once(ground: &Ground<'_>, moment: Duration) -> Result<Revoked, CliError> {
    let (mut holder, mut reader, mut other) = (ground.holder(), ground.holder(), ground.other());
    let (granted, service) = with_service(ground, &mut holder).await?;
    let workers = ground.server.ready_workers().await?;
    let Granted { number, string, .. } = granted;
    let over = Notify::new();
    let revoking = async {
        tokio::time::sleep(moment).await;
        let sent = clock::now();
        holder.revoke(number).await?;
        let answered = clock::now();
        over.notify_one();
        let left = service.as_ref().map(|pids| pids.iter().filter(|pid| is_alive(**pid)).count());
        Ok::<_, CliError>((sent, answered, left))
    };
    let running = async {
        let code = code_of(reader.read(&string, BIG).await)?;
        let ended = clock::now();
        // A job that is refused was taken from its worker before that was said, and what comes now runs after it.
        if code == SERVED {
            over.notified().await;
        }
        let mut answer = std::pin::pin!(other.embed(INSIDE));
        let (forgotten, next) = tokio::select! {
            biased;
            answer = &mut answer => { answer?; let now = clock::now(); (now, now) }
            gone = any_gone(&workers) => { answer.await?; (gone, clock::now()) }
        };
        Ok::<_, CliError>((code, ended, forgotten, next))
    };
    let (revoked, ran) = tokio::join!(revoking, running);
    let (sent, answered, processes) = revoked?;
    let (code, ended, forgotten, next) = ran?;
    let since = |time: Instant| millis(time.saturating_duration_since(sent));
    let (forgotten, next) = (since(forgotten), since(next));
    let again = code_of(reader.read(&string, BIG).await)?;
    let was_served = code == SERVED;
    let served_after = u32::from(was_served && ended > answered) + u32::from(again == SERVED);
    let other_code = (!was_served && code != "grant_revoked").then_some(code);
    let job = (!was_served && ended >= sent).then(|| since(ended));
    Ok(Revoked { answered: since(answered), job, next, forgotten, served_after, other_code, processes })
}

/// When the first of them was gone; never, where they stay or can't be seen.
async fn any_gone(workers: &[Pid]) -> Instant {
    let seen: Vec<Pid> = workers.iter().copied().filter(|pid| is_alive(*pid)).collect();
    while seen.iter().all(|pid| is_alive(*pid)) {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    clock::now()
}

/// A grant with the processes that were started for it, where they can be seen.
async fn with_service(
    ground: &Ground<'_>,
    holder: &mut Holder,
) -> Result<(Granted, Option<Vec<Pid>>), CliError> {
    let before = ground.process.map(descendants);
    let granted = holder.granted(&ground.root(), &[]).await?;
    Ok((granted, started(ground, before)))
}

fn started(ground: &Ground<'_>, before: Option<Vec<Pid>>) -> Option<Vec<Pid>> {
    let (before, now) = before.zip(ground.process.map(descendants))?;
    let new: Vec<Pid> = now.into_iter().filter(|pid| !before.contains(pid)).collect();
    (!new.is_empty()).then_some(new)
}

async fn usual_big(ground: &Ground<'_>) -> Result<Duration, CliError> {
    let mut holder = ground.holder();
    let granted = holder.granted(&ground.root(), &[]).await?;
    let mut times = Vec::new();
    for _ in 0..USUAL {
        let begun = clock::now();
        holder.read(&granted.string, BIG).await?;
        times.push(clock::now() - begun);
    }
    holder.revoke(granted.number).await?;
    Ok(middle(times))
}

async fn usual_small(ground: &Ground<'_>) -> Result<Duration, CliError> {
    let mut other = ground.other();
    let mut times = Vec::new();
    for _ in 0..USUAL {
        let begun = clock::now();
        other.embed(INSIDE).await?;
        times.push(clock::now() - begun);
    }
    Ok(middle(times))
}

fn middle(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// One grant whose time was over, in milliseconds after its end; negative before it.
struct Expired {
    /// When the last use was answered that was served.
    served: f64,
    /// When the first was refused.
    refused: f64,
    /// When the job that was running then was answered.
    job: f64,
    /// When the file service's processes were gone.
    gone: Option<f64>,
}

pub(super) async fn expiry(ground: &Ground<'_>, findings: &mut Findings) -> Result<(), CliError> {
    let times = ground.times(EXPIRIES_MAX);
    let lifetime = usual_big(ground).await?.as_millis() as u64 + LIFETIME_MS;
    let mut all = Vec::new();
    for _ in 0..times {
        all.push(expire_once(ground, lifetime).await?);
        ground.bar.inc(1);
    }
    let of = |value: fn(&Expired) -> f64| all.iter().map(|one| value(one).max(0.0)).collect::<Vec<_>>();
    let late = of(|one| one.served);
    let early = of(|one| -one.refused);
    let jobs = of(|one| one.job);
    let gone: Vec<f64> = all.iter().filter_map(|one| one.gone).collect();
    findings.judge("served_after_its_end", median(&late), EXACTLY, "median; the most is below");
    findings.judge("refused_before_its_end", median(&early), EXACTLY, "median; the most is below");
    findings.judge("job_ended_after_its_end", median(&jobs), EXACTLY, "median; the most is below");
    match (gone.len() == all.len(), ground.process) {
        (_, None) => findings.skip("process_ended_after_its_end", EXACTLY, UNSEEN),
        (seen, Some(_)) => {
            let measured = median(&gone).filter(|_| seen);
            findings.judge("process_ended_after_its_end", measured, EXACTLY, "median; the most is below");
        }
    }
    for (name, values) in [
        ("served after its end, at most", &late),
        ("refused before its end, at most", &early),
        ("the running job's answer after its end, at most", &jobs),
        ("the process's end after its end, at most", &gone),
    ] {
        findings.figure(name, percentile(values, 1.0), "ms");
    }
    Ok(())
}

async fn expire_once(ground: &Ground<'_>, lifetime_ms: u64) -> Result<Expired, CliError> {
    let (mut holder, mut reader) = (ground.holder(), ground.holder());
    let before = ground.process.map(descendants);
    let granted = holder.granted(&ground.root(), &[("lifetime_ms", json!(lifetime_ms))]).await?;
    let service = started(ground, before);
    let string = granted.string.clone();
    let uses = async {
        let mut served = 0.0;
        loop {
            let code = code_of(holder.entries(&granted.string, "sub").await)?;
            let at = clock::unix_ms();
            if code != SERVED {
                return Ok::<_, CliError>((served, at));
            }
            served = at;
        }
    };
    let jobs = async {
        while code_of(reader.read(&string, BIG).await)? == SERVED {}
        Ok::<_, CliError>(clock::unix_ms())
    };
    let (used, job, gone) = tokio::join!(uses, jobs, gone(service, granted.until_ms));
    let (served, refused) = used?;
    let since = |at: f64| at - granted.until_ms;
    Ok(Expired { served: since(served), refused: since(refused), job: since(job?), gone: gone.map(since) })
}

/// When processes were gone, in Unix milliseconds; none where they can't be seen, or stay.
async fn gone(service: Option<Vec<Pid>>, until_ms: f64) -> Option<f64> {
    let pids = service?;
    let limit = until_ms + millis(GONE_WAIT_MAX);
    loop {
        let now = clock::unix_ms();
        if !pids.iter().any(|pid| is_alive(*pid)) {
            return Some(now);
        }
        if now > limit {
            return None;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn figures(findings: &mut Findings, name: &str, values: &[f64]) {
    for (word, fraction) in [("p50", 0.5), ("p99", 0.99)] {
        findings.figure(format!("{name}, {word}"), percentile(values, fraction), "ms");
    }
}
