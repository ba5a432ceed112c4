//! What ended one try to have too much memory.

use crate::error::CliError;
use crate::http::{Address, Ask, Connection};
use hyper::Method;
use hyper::body::Bytes;
use std::collections::BTreeMap;
use std::time::Duration;

/// How often a job is sent again that was not taken.
const SENDS_MAX: usize = 200;
/// The longest wait between two of them.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// What ended a try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// A rung of the contract.
    Rung(String),
    /// Nothing: there was enough.
    Served,
    /// An answer that names no rung, by its code.
    Unnamed(String),
}

/// Rungs of the contract.
pub(super) const BY_PROFILE: &str = "refused-by-profile";
pub(super) const BY_WORKER: &str = "refused-by-worker";
pub(super) const BY_KERNEL: &str = "killed-by-kernel";
pub(super) const BY_RECONCILE: &str = "killed-by-reconcile";

/// Sends a job until it is taken, and says what came of it.
pub(super) async fn send(address: &Address, body: &Bytes) -> Stop {
    let mut last = "not_sent".to_owned();
    for _ in 0..SENDS_MAX {
        let ask = Ask { body: body.clone(), ..Ask::plain(Method::POST, "/v1/embeddings") };
        let answer = async { Connection::open(address).await?.send(&ask).await }.await;
        match answer {
            Ok(_) => return Stop::Served,
            Err(CliError::Refused { rung: Some(rung), .. }) => return Stop::Rung(rung),
            // That will not change by waiting.
            Err(CliError::Refused { code, .. }) if code == "load_failed" || code == "package_refused" => {
                return Stop::Unnamed(code);
            }
            Err(CliError::Refused { status: 429 | 503, code, retry_after_ms, .. }) => {
                last = code;
                let wait = retry_after_ms.map_or(PAUSE_MAX, Duration::from_millis);
                tokio::time::sleep(wait.min(PAUSE_MAX)).await;
            }
            Err(error) => return Stop::Unnamed(error.code().to_owned()),
        }
    }
    Stop::Unnamed(last)
}

/// How often each rung has stopped something of a model, by `ringfence_oom_total` in the text of `/metrics`.
pub(super) fn counted(metrics: &str, model: &str) -> BTreeMap<String, u64> {
    let mut rungs = BTreeMap::new();
    for line in metrics.lines().filter_map(|line| line.strip_prefix("ringfence_oom_total{")) {
        let Some((labels, count)) = line.rsplit_once("} ") else { continue };
        let label = |name: &str| {
            let (_, rest) = labels.split_once(&format!("{name}=\""))?;
            Some(rest.split_once('"')?.0)
        };
        if label("model") == Some(model)
            && let (Some(rung), Ok(count)) = (label("rung"), count.trim().parse::<u64>())
        {
            *rungs.entry(rung.to_owned()).or_default() += count;
        }
    }
    rungs
}

/// The rung that has stopped more than before, if one has; the last one of several.
pub(super) fn rose(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) -> Option<String> {
    const LAST_FIRST: [&str; 4] = [BY_RECONCILE, BY_KERNEL, BY_WORKER, BY_PROFILE];
    let of = |counts: &BTreeMap<String, u64>, rung: &str| counts.get(rung).copied().unwrap_or(0);
    LAST_FIRST.into_iter().find(|rung| of(after, rung) > of(before, rung)).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    const METRICS: &str = "\
# TYPE ringfence_oom_total counter
ringfence_oom_total{rung=\"refused-by-worker\",model=\"minilm\",device=\"cpu\"} 3
ringfence_oom_total{rung=\"refused-by-worker\",model=\"minilm\",device=\"wgpu\"} 2
ringfence_oom_total{rung=\"killed-by-kernel\",model=\"other\",device=\"cpu\"} 7
ringfence_jobs_total{outcome=\"done\"} 9
";

    #[test]
    fn rungs_are_counted_for_one_model_over_its_devices() {
        assert_eq!(counted(METRICS, "minilm"), BTreeMap::from([("refused-by-worker".to_owned(), 5)]));
        assert_eq!(counted("nonsense", "minilm"), BTreeMap::new());
    }

    #[test]
    fn the_rung_that_rose_is_the_last_one_that_did() {
        let counts = |pairs: &[(&str, u64)]| {
            pairs.iter().map(|(rung, count)| ((*rung).to_owned(), *count)).collect::<BTreeMap<_, _>>()
        };
        let before = counts(&[(BY_WORKER, 1)]);
        assert_eq!(rose(&before, &before), None);
        assert_eq!(rose(&before, &counts(&[(BY_WORKER, 2)])).as_deref(), Some(BY_WORKER));
        assert_eq!(rose(&before, &counts(&[(BY_WORKER, 2), (BY_KERNEL, 1)])).as_deref(), Some(BY_KERNEL));
    }
}
