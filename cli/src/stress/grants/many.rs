//! Many grants at a time and many one after the other: what the server holds is what it held before.

use super::ground::Ground;
use super::holder::Granted;
use crate::clock;
use crate::error::CliError;
use crate::stress::chart::{Panel, Series};
use crate::stress::load::millis;
use crate::stress::promise::{Bound, Findings};
use crate::stress::server::{descendants, descriptors, resident_bytes};
use crate::stress::stats::percentile;
use rustix::process::Pid;
use serde_json::json;
use std::time::Duration;

/// Live grants at a time.
const GRANTS: u32 = 1_000;
/// Of each root: itself and those that are narrowed from it. 1,000 grants are 40 roots, of the 64 that a server holds.
const OF_EACH_ROOT: u32 = 25;
/// Grants before the first look: the server remembers the last 1,024 that have ended.
const WARM_UP: u32 = 1_100;
/// Looks at the server's memory on the way.
const LOOKS: u32 = 50;
/// What the memory may grow by: a twentieth, and what allocators keep.
const GROWTH_PARTS: f64 = 0.05;
const GROWTH_BYTES: f64 = 4.0 * MIB;
/// Connections of ours that the server may not have closed yet.
const DESCRIPTORS_MORE: usize = 8;
/// How long the server may take until it holds what it held before.
const SETTLE_MAX: Duration = Duration::from_secs(2);
const LOOK_EVERY: Duration = Duration::from_millis(20);
const MIB: f64 = 1024.0 * 1024.0;

const GROWTH: (Bound, &str) = (Bound::AtMost(0.0), "bytes over");
const NO_MORE: (Bound, &str) = (Bound::AtMost(0.0), "more");
const UNSEEN: &str = "the server's process can't be seen from here";

/// What the server holds.
#[derive(Clone, Copy, Debug)]
struct Held {
    memory: f64,
    descriptors: usize,
    processes: usize,
}

impl Held {
    fn now(server: Option<Pid>) -> Option<Self> {
        let server = server?;
        let (memory, descriptors) = (resident_bytes(server)?, descriptors(server)?);
        Some(Self { memory: memory as f64, descriptors, processes: descendants(server).len() })
    }
}

pub(super) async fn at_a_time(ground: &Ground<'_>, findings: &mut Findings) -> Result<(), CliError> {
    let roots = (ground.extent.rounds.min(GRANTS) / OF_EACH_ROOT).max(1);
    ground.bar.set_length(2 * u64::from(roots));
    wave(ground, roots).await?;
    let before = settled(ground, None).await;
    let (live, most) = wave(ground, roots).await?;
    let after = settled(ground, before).await;
    let wanted = (Bound::AtLeast(f64::from(roots * OF_EACH_ROOT)), "grants");
    findings.judge("live_at_a_time", Some(live as f64), wanted, format!("{roots} roots"));
    if let Some(most) = most {
        findings.figure("memory of the server meanwhile", Some(most.memory / MIB), "MiB");
        findings.figure("descriptors meanwhile", Some(most.descriptors as f64), "");
        findings.figure("processes meanwhile", Some(most.processes as f64), "");
    }
    judge(findings, before, after);
    Ok(())
}

/// Makes as many as there may be, uses some and revokes them: how many lived, and what the server held then.
async fn wave(ground: &Ground<'_>, roots: u32) -> Result<(u64, Option<Held>), CliError> {
    let (mut holder, root) = (ground.holder(), ground.root());
    let mut all: Vec<Granted> = Vec::new();
    for _ in 0..roots {
        let granted = holder.granted(&root, &[]).await?;
        let mut last = granted.string.clone();
        for _ in 1..OF_EACH_ROOT {
            last = holder.narrowed(&granted.string, &[("path", json!("sub"))]).await?.string;
        }
        holder.read(&granted.string, "a.md").await?;
        holder.read(&last, "b.md").await?;
        all.push(granted);
        ground.bar.inc(1);
    }
    let live = ground.server.status().await?["grants"]["open"].as_u64().unwrap_or(0);
    let held = Held::now(ground.process);
    for granted in all {
        holder.revoke(granted.number).await?;
    }
    Ok((live, held))
}

pub(super) async fn one_after_the_other(
    ground: &Ground<'_>,
    findings: &mut Findings,
) -> Result<(), CliError> {
    let rounds = ground.extent.rounds;
    let warm_up = rounds.min(WARM_UP);
    ground.bar.set_length(u64::from(warm_up + rounds));
    let mut times = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..warm_up {
        come_and_go(ground, &mut times).await?;
    }
    times.iter_mut().for_each(Vec::clear);
    let before = settled(ground, None).await;
    let mut memory = Vec::new();
    for round in 0..rounds {
        come_and_go(ground, &mut times).await?;
        if round % (rounds / LOOKS).max(1) == 0 {
            let bytes = ground.process.and_then(resident_bytes);
            memory.extend(bytes.map(|bytes| (f64::from(round), bytes as f64 / MIB)));
        }
    }
    let after = settled(ground, before).await;
    judge(findings, before, after);
    for (name, values) in ["ask and claim", "use", "revoke"].into_iter().zip(&times) {
        for (word, fraction) in [("p50", 0.5), ("p99", 0.99)] {
            findings.figure(format!("{name}, {word}"), percentile(values, fraction), "ms");
        }
    }
    findings.panels.push(Panel {
        title: "one after the other: memory of the server".to_owned(),
        across: "grants",
        up: "MiB",
        series: vec![Series { name: "RSS".to_owned(), points: memory }],
        bound: before.map(|before| bound_of(before) / MIB),
    });
    Ok(())
}

/// Asked for, used, revoked; how long each took, in milliseconds.
async fn come_and_go(ground: &Ground<'_>, times: &mut [Vec<f64>; 3]) -> Result<(), CliError> {
    let mut holder = ground.holder();
    let begun = clock::now();
    let granted = holder.granted(&ground.root(), &[]).await?;
    let live = clock::now();
    holder.read(&granted.string, "a.md").await?;
    let used = clock::now();
    holder.revoke(granted.number).await?;
    let spans = [live - begun, used - live, clock::now() - used];
    times.iter_mut().zip(spans).for_each(|(times, span)| times.push(millis(span)));
    ground.bar.inc(1);
    Ok(())
}

/// What the server holds once that is as little as it was, or after a while.
async fn settled(ground: &Ground<'_>, before: Option<Held>) -> Option<Held> {
    let limit = clock::now() + SETTLE_MAX;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let now = Held::now(ground.process)?;
        let done = before
            .is_some_and(|before| now.processes <= before.processes && now.descriptors <= before.descriptors);
        if done || clock::now() >= limit {
            return Some(now);
        }
    }
}

fn bound_of(before: Held) -> f64 {
    before.memory * (1.0 + GROWTH_PARTS) + GROWTH_BYTES
}

fn judge(findings: &mut Findings, before: Option<Held>, after: Option<Held>) {
    let Some((before, after)) = before.zip(after) else {
        findings.skip("memory_growth", GROWTH, UNSEEN);
        findings.skip("descriptors_more", NO_MORE, UNSEEN);
        findings.skip("processes_more", NO_MORE, UNSEEN);
        return;
    };
    let over = (after.memory - bound_of(before)).max(0.0);
    let words = |before: String, after: String| format!("{before} before, {after} after");
    let mib = |held: Held| format!("{:.1} MiB", held.memory / MIB);
    findings.judge("memory_growth", Some(over), GROWTH, words(mib(before), mib(after)));
    let more = after.descriptors.saturating_sub(before.descriptors + DESCRIPTORS_MORE);
    let note = words(before.descriptors.to_string(), after.descriptors.to_string());
    findings.judge("descriptors_more", Some(more as f64), NO_MORE, note);
    let more = after.processes.saturating_sub(before.processes);
    let note = words(before.processes.to_string(), after.processes.to_string());
    findings.judge("processes_more", Some(more as f64), NO_MORE, note);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stress::promise::Verdict;

    #[test]
    fn what_stays_behind_breaks_the_promise() {
        let held =
            |mib: f64, descriptors, processes| Some(Held { memory: mib * MIB, descriptors, processes });
        let check = |after: Option<Held>, expected: [Verdict; 3]| {
            let mut findings = Findings::new("many-grants");
            judge(&mut findings, held(40.0, 30, 3), after);
            let verdicts: Vec<Verdict> = findings.promises.iter().map(|promise| promise.verdict).collect();
            assert_eq!(verdicts, expected, "{after:?}");
        };
        check(held(45.9, 38, 3), [Verdict::Held; 3]);
        check(held(46.1, 39, 4), [Verdict::Broken; 3]);
        check(held(30.0, 20, 2), [Verdict::Held; 3]);
        check(None, [Verdict::Skipped; 3]);
    }
}
