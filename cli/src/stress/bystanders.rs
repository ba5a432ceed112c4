//! Jobs of a client that did nothing wrong, while something is done to the server: none may be lost or answered wrong.

use super::Stage;
use super::load::{self, Log, Running, Traffic};
use super::promise::{Bound, Findings};
use crate::error::CliError;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Connections with work under way.
pub(super) const CONNECTIONS: usize = 4;
/// Texts in each of its jobs.
const TEXTS: u32 = 4;

/// None may be.
pub(super) const NONE: (Bound, &str) = (Bound::AtMost(0.0), "jobs");

/// Traffic of the client `stress-polite` on a model that is loaded.
pub(super) async fn start(stage: &Stage<'_>) -> Result<Running, CliError> {
    let address = stage.server.client("stress-polite").await?;
    let jobs = Arc::new(load::jobs(stage.server, &address, TEXTS).await?);
    Ok(Traffic { address, jobs, connections: CONNECTIONS, every: Duration::ZERO, polite: true }.start())
}

/// No innocent job is lost or answered wrong. Where no job was answered at all, nothing can be said.
pub(super) fn judge(findings: &mut Findings, log: &Log) {
    let (lost, refused) = (log.lost(), log.refused());
    let sum = |codes: &BTreeMap<String, usize>| codes.values().sum::<usize>() as f64;
    let count = Some(sum(&lost)).filter(|&lost| log.right() > 0 || lost > 0.0);
    let wrong = Some(log.wrong() as f64).filter(|&wrong| log.right() > 0 || wrong > 0.0);
    findings.judge("lost_jobs", count, NONE, load::in_words(&lost));
    findings.judge("wrong_answers", wrong, NONE, "");
    findings.figure("jobs answered", Some(log.right() as f64), "");
    let name = format!("jobs refused {}", load::in_words(&refused));
    findings.figure(name.trim_end(), Some(sum(&refused)), "");
    findings.figure("jobs not remembered", Some(log.beyond() as f64).filter(|&beyond| beyond > 0.0), "");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stress::Scenario;
    use crate::stress::promise::Verdict;

    #[test]
    fn where_nothing_was_answered_nothing_was_kept() {
        let mut findings = Findings::new(Scenario::CrashLoop.name());
        judge(&mut findings, &Log::default());
        assert!(findings.promises.iter().all(|promise| promise.verdict == Verdict::Broken));
    }
}
