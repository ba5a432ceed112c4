//! One client asks and asks: it is refused with its code, and another client's questions are answered as before.

use super::ground::{ASKER, Ground};
use super::holder::Holder;
use crate::clock;
use crate::error::CliError;
use crate::http::Ask;
use crate::stress::load::{in_words, millis};
use crate::stress::promise::{Bound, Findings};
use crate::stress::server::Server;
use crate::stress::stats::percentile;
use hyper::Method;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::task::JoinSet;

/// Connections that ask without a pause.
const CONNECTIONS: usize = 8;
/// How often each of the three phases comes.
const SLICES: u32 = 5;
/// How often the other client asks.
const ASK_EVERY: Duration = Duration::from_millis(20);
/// How often somebody says no to what waits, so that both bounds are met: of those that wait, and of how often.
const DENY_EVERY: Duration = Duration::from_millis(100);
/// Questions that a client may put at once, and how long until it may put one more.
const BURST: f64 = 10.0;
const QUESTION_EVERY: Duration = Duration::from_secs(6);
/// How much slower the other client may be answered than beside as much traffic that asks for no grant.
const SLOWER: f64 = 2.0;
/// Refusals that this is about.
const CODES: [&str; 2] = ["grants_pending", "grants_too_often"];

const NONE: (Bound, &str) = (Bound::AtMost(0.0), "answers");
const SOME: (Bound, &str) = (Bound::AtLeast(1.0), "answers");

/// What the flood was told.
#[derive(Debug, Default)]
struct Told {
    taken: usize,
    refused: BTreeMap<String, usize>,
    /// Refusals for another reason, or without a time to come back.
    odd: BTreeMap<String, usize>,
}

impl Told {
    fn add(&mut self, more: Self) {
        self.taken += more.taken;
        more.refused.into_iter().for_each(|(code, count)| *self.refused.entry(code).or_default() += count);
        more.odd.into_iter().for_each(|(code, count)| *self.odd.entry(code).or_default() += count);
    }

    fn count(&mut self, answer: &Result<Value, CliError>) {
        match answer {
            Ok(_) => self.taken += 1,
            Err(CliError::Refused { code, retry_after_ms: Some(_), .. })
                if CODES.contains(&code.as_str()) =>
            {
                *self.refused.entry(code.clone()).or_default() += 1;
            }
            Err(error) => *self.odd.entry(error.code().to_owned()).or_default() += 1,
        }
    }
}

/// What others were answered in, in milliseconds.
#[derive(Debug, Default)]
struct Answered {
    alone: Vec<f64>,
    /// Beside as many connections without a pause that ask for nothing: what any traffic costs on this machine.
    beside_traffic: Vec<f64>,
    beside_flood: Vec<f64>,
}

pub(super) async fn play(ground: &Ground<'_>, findings: &mut Findings) -> Result<(), CliError> {
    let slice = ground.extent.phase() / SLICES;
    ground.bar.set_length(u64::from(SLICES));
    let (mut answered, mut told) = (Answered::default(), Told::default());
    // In turns: what else the machine does changes meanwhile.
    for _ in 0..SLICES {
        answered.alone.extend(asks(ground, slice).await?);
        let (times, _) = beside(ground, Kind::Traffic, slice).await?;
        answered.beside_traffic.extend(times);
        let (times, more) = beside(ground, Kind::Questions, slice).await?;
        answered.beside_flood.extend(times);
        told.add(more);
        ground.bar.inc(1);
    }
    judge(findings, &answered, &told, 3 * ground.extent.phase());
    Ok(())
}

async fn beside(ground: &Ground<'_>, kind: Kind, slice: Duration) -> Result<(Vec<f64>, Told), CliError> {
    let flood = Flood::start(ground, kind);
    let times = asks(ground, slice).await;
    let told = flood.stop().await;
    Ok((times?, told))
}

fn judge(findings: &mut Findings, answered: &Answered, told: &Told, lasted: Duration) {
    let refused: usize = told.refused.values().sum();
    findings.judge("refused_with_its_code", Some(refused as f64), SOME, in_words(&told.refused));
    let odd: usize = told.odd.values().sum();
    findings.judge("other_answers", Some(odd as f64), NONE, in_words(&told.odd));
    let most = BURST + (lasted.as_secs_f64() / QUESTION_EVERY.as_secs_f64()).ceil();
    findings.judge("questions_taken", Some(told.taken as f64), (Bound::AtMost(most), "questions"), "");
    let p95 = |values: &[f64]| percentile(values, 0.95);
    let slower = |than: &[f64]| p95(than).zip(p95(&answered.beside_flood)).map(|(than, flood)| flood / than);
    // Connections without a pause cost others the cores, whatever they ask for: that is the scheduler's and the kernel's.
    let note = "p95 from another client's question to its answer, beside the flood and beside as much traffic without questions";
    findings.judge("others_slower_by", slower(&answered.beside_traffic), (Bound::AtMost(SLOWER), ""), note);
    findings.figure("slower than alone, by", slower(&answered.alone), "");
    for (name, values) in [
        ("alone", &answered.alone),
        ("beside traffic without questions", &answered.beside_traffic),
        ("beside the flood", &answered.beside_flood),
    ] {
        findings.figure(format!("ask to answer {name}, p50"), percentile(values, 0.5), "ms");
        findings.figure(format!("ask to answer {name}, p95"), p95(values), "ms");
    }
}

/// Questions of the other client, which a rule answers: how long each took, in milliseconds.
async fn asks(ground: &Ground<'_>, phase: Duration) -> Result<Vec<f64>, CliError> {
    let (mut other, root) = (ground.other(), ground.root());
    let (begun, mut times) = (clock::now(), Vec::new());
    while clock::now() - begun < phase {
        let sent = clock::now();
        let granted = other.ask(&root, &[]).await?;
        times.push(millis(clock::now() - sent));
        other.forget(granted["grant"].as_u64().unwrap_or(0)).await?;
        tokio::time::sleep(ASK_EVERY).await;
    }
    Ok(times)
}

/// What connections without a pause ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Grants.
    Questions,
    /// The names of models.
    Traffic,
}

/// Requests without a pause; they end when this is dropped.
struct Flood {
    stop: Arc<AtomicBool>,
    told: Arc<Mutex<Told>>,
    tasks: JoinSet<()>,
}

impl Flood {
    fn start(ground: &Ground<'_>, kind: Kind) -> Self {
        let (stop, told, mut tasks) =
            (Arc::<AtomicBool>::default(), Arc::<Mutex<Told>>::default(), JoinSet::new());
        for _ in 0..CONNECTIONS {
            tasks.spawn(ask_and_ask(ground.asker(), (kind, ground.root()), stop.clone(), told.clone()));
        }
        tasks.spawn(say_no(ground.server.clone(), stop.clone()));
        Self { stop, told, tasks }
    }

    async fn stop(mut self) -> Told {
        self.stop.store(true, Ordering::Relaxed);
        while self.tasks.join_next().await.is_some() {}
        std::mem::take(&mut *self.told.lock().expect("no thread panics with this lock"))
    }
}

async fn ask_and_ask(
    mut asker: Holder,
    (kind, root): (Kind, PathBuf),
    stop: Arc<AtomicBool>,
    told: Arc<Mutex<Told>>,
) {
    while !stop.load(Ordering::Relaxed) {
        let answer = match kind {
            Kind::Questions => asker.ask(&root, &[]).await,
            Kind::Traffic => asker.models().await,
        };
        told.lock().expect("no thread panics with this lock").count(&answer);
    }
}

/// The operator's no to whatever waits. One that is over by then needs none.
async fn say_no(server: Server, stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::Relaxed) {
        tokio::time::sleep(DENY_EVERY).await;
        let Ok(grants) = server.ask(&Ask::plain(Method::GET, "/grants")).await else { continue };
        let all = grants["grants"].as_array().into_iter().flatten();
        let waits = all.filter(|grant| grant["client"] == ASKER && grant["state"] == "pending");
        for grant in waits.filter_map(|grant| grant["grant"].as_u64()) {
            let _ = server.ask(&Ask::plain(Method::POST, format!("/grants/{grant}/deny"))).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stress::promise::Verdict;

    #[test]
    fn a_refusal_needs_its_code_and_a_time() {
        let refused = |code: &str, retry_after_ms| {
            Err(CliError::Refused {
                request: String::new(),
                status: 429,
                code: code.to_owned(),
                message: String::new(),
                retry_after_ms,
                rung: None,
            })
        };
        let mut told = Told::default();
        told.count(&Ok(Value::Null));
        told.count(&refused("grants_pending", Some(6_000)));
        told.count(&refused("grants_too_often", None));
        told.count(&refused("http_429", Some(1)));
        let mut findings = Findings::new("question-flood");
        let answered =
            Answered { alone: vec![1.0], beside_traffic: vec![1.0, 2.0], beside_flood: vec![3.0, 4.1] };
        judge(&mut findings, &answered, &told, Duration::from_secs(7));
        let found: Vec<(Option<f64>, Verdict)> =
            findings.promises.iter().map(|promise| (promise.measured, promise.verdict)).collect();
        let (held, broken) = (Verdict::Held, Verdict::Broken);
        assert_eq!(found[..3], [(Some(1.0), held), (Some(2.0), broken), (Some(1.0), held)]);
        assert_eq!(found[3].1, broken);
    }
}
