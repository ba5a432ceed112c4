//! The quotas change while jobs run, valid and invalid texts in turn.

use super::bystanders;
use super::chart::{Panel, Series};
use super::load::millis;
use super::promise::{Bound, Findings};
use super::quotas::{self, Original};
use super::stats::median;
use super::{Scenario, Stage};
use crate::clock;
use crate::error::CliError;
use std::time::Duration;

/// Changes in a round; every other one is invalid.
const EDITS: u32 = 20;
/// Between two changes.
const PAUSE: Duration = Duration::from_millis(20);
/// Whose weight is changed.
const CLIENT: &str = "stress-polite";
/// Ends of a text that make it invalid, each in another way.
const INVALID: [&str; 5] = [
    "\n[clients.stress-wrong]\nweight = 0\n",
    "\n[clients.stress-wrong]\nwieght = 1\n",
    "\n[clients.stress-wrong]\nclass = \"royal\"\n",
    "\n[clients.stress-wrong]\njobs_burst = 5\n",
    "\n[clients.stress-wrong\n",
];

const NONE: (Bound, &str) = (Bound::AtMost(0.0), "edits");
const YES: (Bound, &str) = (Bound::AtLeast(1.0), "");

/// What went wrong, and the first case of it.
#[derive(Default)]
struct Wrong {
    count: u32,
    first: String,
}

impl Wrong {
    fn note(&mut self, what: impl FnOnce() -> String) {
        if self.count == 0 {
            self.first = what();
        }
        self.count += 1;
    }

    fn judge(self, findings: &mut Findings, promise: &'static str) {
        findings.judge(promise, Some(f64::from(self.count)), NONE, self.first);
    }
}

#[derive(Default)]
struct Edits {
    valid_refused: Wrong,
    invalid_taken: Wrong,
    invalid_without_line: Wrong,
    stale_taken: Wrong,
    took_ms: Vec<f64>,
    last: Option<(String, u32)>,
}

pub(super) async fn play(stage: &Stage<'_>) -> Result<Findings, CliError> {
    let mut findings = Findings::new(Scenario::QuotaEdits.name());
    let Some(original) = stage.original else {
        for promise in [
            "valid_refused",
            "invalid_taken",
            "invalid_without_line",
            "stale_taken",
            "lost_jobs",
            "wrong_answers",
        ] {
            findings.skip(promise, NONE, super::NO_QUOTAS);
        }
        for promise in ["last_valid_is_there", "last_valid_counts", "original_restored"] {
            findings.skip(promise, YES, super::NO_QUOTAS);
        }
        return Ok(findings);
    };
    let count = EDITS * stage.extent.rounds;
    stage.bar.set_length(u64::from(count));
    let running = bystanders::start(stage).await?;
    let mut edits = Edits::default();
    for number in 0..count {
        edit(stage, original, number, &mut edits).await?;
        tokio::time::sleep(PAUSE).await;
        stage.bar.inc(1);
    }
    judge_last(stage, &mut findings, edits.last.as_ref()).await?;
    let log = running.stop().await;
    bystanders::judge(&mut findings, &log);
    edits.valid_refused.judge(&mut findings, "valid_refused");
    edits.invalid_taken.judge(&mut findings, "invalid_taken");
    edits.invalid_without_line.judge(&mut findings, "invalid_without_line");
    edits.stale_taken.judge(&mut findings, "stale_taken");
    findings.figure("edits", Some(f64::from(count)), "");
    findings.figure("a valid edit (median)", median(&edits.took_ms), "ms");
    let series = vec![Series::by_number("valid edit", &edits.took_ms)];
    let title = "quota-edits: PUT /quotas".to_owned();
    findings.panels.push(Panel { title, across: "edit", up: "ms", series, bound: None });
    Ok(findings)
}

/// An even number is a valid edit, an odd one an invalid; every tenth is made from a text that is no longer there.
async fn edit(
    stage: &Stage<'_>,
    original: &Original,
    number: u32,
    edits: &mut Edits,
) -> Result<(), CliError> {
    let server = stage.server;
    let weight = number % 100 + 1;
    let text = quotas::with(original, &[&format!("clients.{CLIENT}.weight={weight}")])?;
    if number % 10 == 4 {
        let stale = quotas::put(server, &text, Some("stale")).await;
        if refusal(stale)?.is_none_or(|(code, _)| code != "quota_changed") {
            edits.stale_taken.note(|| format!("edit {number}"));
        }
    }
    if number % 2 == 1 {
        let end = INVALID[number as usize / 2 % INVALID.len()];
        match refusal(quotas::put(server, &format!("{text}{end}"), None).await)? {
            Some((code, message)) if code == "quota_invalid" => {
                if !message.contains("line ") {
                    edits.invalid_without_line.note(|| message);
                }
            }
            other => edits.invalid_taken.note(|| format!("edit {number}: {other:?}")),
        }
        return Ok(());
    }
    let now = quotas::read(server).await?.map(|now| now.revision);
    let begin = clock::now();
    match refusal(quotas::put(server, &text, now.as_deref()).await)? {
        None => {
            edits.took_ms.push(millis(clock::now() - begin));
            edits.last = Some((text, weight));
        }
        Some((code, message)) => edits.valid_refused.note(|| format!("edit {number}: {code}: {message}")),
    }
    Ok(())
}

/// The code and message of a refusal; every other error is one.
fn refusal<T>(result: Result<T, CliError>) -> Result<Option<(String, String)>, CliError> {
    match result {
        Ok(_) => Ok(None),
        Err(CliError::Refused { code, message, .. }) => Ok(Some((code, message))),
        Err(error) => Err(error),
    }
}

/// The last valid text is the one that is there and that counts.
async fn judge_last(
    stage: &Stage<'_>,
    findings: &mut Findings,
    last: Option<&(String, u32)>,
) -> Result<(), CliError> {
    let now = quotas::read(stage.server).await?;
    let is_there = now.is_some_and(|now| last.is_some_and(|(text, _)| *text == now.text));
    findings.judge("last_valid_is_there", Some(f64::from(u8::from(is_there))), YES, "");
    let usage = stage.server.usage_of(CLIENT).await?;
    let Some(weight) = usage.and_then(|usage| usage["weight"].as_u64()) else {
        findings.skip("last_valid_counts", YES, "this server does not say what counts (GET /usage)");
        return Ok(());
    };
    let counts = last.is_some_and(|(_, last)| u64::from(*last) == weight);
    findings.judge("last_valid_counts", Some(f64::from(u8::from(counts))), YES, format!("weight {weight}"));
    Ok(())
}

/// Whether the text from before is there again.
pub(super) fn judge_restored(findings: &mut Findings, restored: &Result<(), CliError>) {
    let note = restored.as_ref().err().map(ToString::to_string).unwrap_or_default();
    findings.judge("original_restored", Some(f64::from(u8::from(restored.is_ok()))), YES, note);
}
