//! What this machine has of what Ringfence can use, and what to do about what is missing.
//!
//! | file | looks at |
//! | --- | --- |
//! | `kernel` | the floors of the sandbox, and what backs memory leases |
//! | `devices` | processors and graphics cards, with their drivers, as the system names them |
//! | `adapters` | the same as sandboxed workers see them |
//! | `sound` | sound servers and microphones |
//! | `sharing` | what can divide a card between processes, and cap what each takes |
//! | `home` | keys, trust, quotas and the server of this home |

mod adapters;
mod devices;
mod home;
mod kernel;
mod sharing;
mod sound;

use crate::home::Home;
use crate::operator::Config;
use serde::Serialize;

/// The answer to one question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It is there.
    Yes,
    /// It is not, and the server can do without.
    Absent,
    /// It is not, and the server needs it.
    No,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What it is about: `kernel`, `caps`, `devices`, `sound`, `home` or `server`.
    pub area: &'static str,
    /// Stable name, for scripts.
    pub name: String,
    /// Whether it is there.
    pub answer: Answer,
    /// What was found.
    pub found: String,
    /// What to do about it; every answer but yes has one.
    pub advice: Option<String>,
}

impl Finding {
    fn yes(area: &'static str, name: impl Into<String>, found: impl Into<String>) -> Self {
        Self { area, name: name.into(), answer: Answer::Yes, found: found.into(), advice: None }
    }

    fn absent(area: &'static str, name: &str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        let (name, found, advice) = (name.to_owned(), found.into(), Some(advice.into()));
        Self { area, name, answer: Answer::Absent, found, advice }
    }

    fn no(area: &'static str, name: &str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { answer: Answer::No, ..Self::absent(area, name, found, advice) }
    }
}

/// Looks at everything. Nothing is changed, and no model is loaded.
pub fn examine(home: &Home, config: &Config, now: u64) -> Vec<Finding> {
    let mut findings = kernel::floors();
    findings.extend(kernel::caps());
    findings.extend(sharing::all());
    findings.extend(devices::all());
    findings.extend(adapters::all(home));
    findings.extend(sound::all());
    findings.extend(home::files(home, config, now));
    findings.extend(home::server(home));
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_missing_comes_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::resolve(Some(folder.path().join("none"))).unwrap();
        let config = Config::resolve(Some(folder.path().join("no-config"))).unwrap();
        let findings = examine(&home, &config, 1_800_000_000);
        for finding in &findings {
            let advised = finding.advice.as_ref().is_some_and(|advice| !advice.is_empty());
            assert_eq!(advised, finding.answer != Answer::Yes, "{finding:?}");
        }
        let answer = |name: &str| findings.iter().find(|finding| finding.name == name).unwrap().answer;
        assert_eq!(answer("home"), Answer::No);
        assert_eq!(answer("server"), Answer::Absent);
        assert_eq!(answer("landlock"), Answer::Yes);
    }
}
