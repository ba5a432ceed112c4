//! What the server promises about grants, held against a running one with real files in a temporary folder.

mod ends;
mod escapes;
mod ground;
mod holder;
mod many;
mod questions;
mod refusals;
pub(in crate::stress) mod rules;

use super::promise::Findings;
use super::server::Server;
use super::{Extent, interrupted};
use crate::error::CliError;
use clap::ValueEnum;
use ground::Ground;
use indicatif::ProgressBar;
use std::fs;
use std::time::Duration;
use tokio::time::timeout;

/// Grants that come and go one after the other, where nobody says another number.
pub const ROUNDS: u32 = 10_000;
/// How long one part may take.
const PART_WAIT_MAX: Duration = Duration::from_secs(2 * 60 * 60);
/// How long the load was averaged over, as the kernel keeps it.
const LOAD_FILE: &str = "/proc/loadavg";

/// What is held against the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Every refused use has a code of its own
    Refusals,
    /// A grant is revoked while a worker reads a big file on it
    Revocation,
    /// A grant's time is over, while it is used and while a worker reads on it
    Expiry,
    /// A thousand live grants at a time
    ManyGrants,
    /// Grants that are asked for, used and revoked one after the other
    OneAfterTheOther,
    /// Names that try to lead out of the granted folder
    Traversal,
    /// One client asks and asks
    QuestionFlood,
}

impl Part {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Refusals => "refusals",
            Self::Revocation => "revocation",
            Self::Expiry => "expiry",
            Self::ManyGrants => "many-grants",
            Self::OneAfterTheOther => "one-after-the-other",
            Self::Traversal => "traversal",
            Self::QuestionFlood => "question-flood",
        }
    }
}

/// Holds these parts, or all, against the server. Its rules are then those from before and its clients gone, whatever
/// happened.
///
/// # Errors
/// Those of the connections, and [`CliError::Failed`] where no files can be given, where the rules can't be set or put back,
/// where somebody interrupts it, or where it takes too long.
pub async fn run(
    server: &Server,
    (wanted, extent): (&[Part], Extent),
    bar: &ProgressBar,
) -> Result<Vec<Findings>, CliError> {
    let ground = Ground::prepare(server, extent, bar.clone()).await?;
    let found = tokio::select! {
        found = go(&ground, wanted) => found,
        stopped = interrupted() => stopped.and(Err(failed("interrupted", "a signal ended it"))),
    };
    // That rules or clients of ours are left is worse than whatever ended it.
    ground.clear().await.and(found)
}

async fn go(ground: &Ground<'_>, wanted: &[Part]) -> Result<Vec<Findings>, CliError> {
    let all = if wanted.is_empty() { Part::value_variants() } else { wanted };
    let mut found = Vec::new();
    for &part in all {
        let before = load();
        let mut findings = timeout(PART_WAIT_MAX, play(part, ground))
            .await
            .unwrap_or_else(|_| Err(failed("too_long", part.name())))?;
        findings.figure("load before", before, "");
        findings.figure("load after", load(), "");
        found.push(findings);
    }
    Ok(found)
}

async fn play(part: Part, ground: &Ground<'_>) -> Result<Findings, CliError> {
    ground.bar.set_message(part.name());
    ground.bar.set_position(0);
    let mut findings = Findings::new(part.name());
    match part {
        Part::Refusals => refusals::play(ground, &mut findings).await?,
        Part::Revocation => ends::revocation(ground, &mut findings).await?,
        Part::Expiry => ends::expiry(ground, &mut findings).await?,
        Part::ManyGrants => many::at_a_time(ground, &mut findings).await?,
        Part::OneAfterTheOther => many::one_after_the_other(ground, &mut findings).await?,
        Part::Traversal => escapes::play(ground, &mut findings).await?,
        Part::QuestionFlood => questions::play(ground, &mut findings).await?,
    }
    Ok(findings)
}

/// The machine's load over the last minute.
fn load() -> Option<f64> {
    fs::read_to_string(LOAD_FILE).ok()?.split(' ').next()?.parse().ok()
}

fn failed(code: &'static str, what: &str) -> CliError {
    let subject = "stress --grants".to_owned();
    CliError::Failed { subject, code, source: what.to_owned().into(), advice: String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_has_the_name_of_the_command_line() {
        for part in Part::value_variants() {
            assert_eq!(part.to_possible_value().unwrap().get_name(), part.name());
        }
    }
}
