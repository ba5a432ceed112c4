//! Names that try to lead out of the granted folder, through listings and through jobs.

use super::ground::{Ground, INSIDE};
use super::holder::Holder;
use crate::error::CliError;
use crate::stress::load::{COSINE_MIN, in_words};
use crate::stress::promise::{Bound, Findings};
use crate::stress::stats::cosine;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Names that are tried, each in a listing and in a job.
const NAMES_MAX: u32 = 4_000;
/// Pieces of one name.
const PIECES_MAX: usize = 12;
/// One name in four is of one of six fixed kinds.
const KINDS: usize = 24;
/// Lengths about the bounds of names and paths.
const LENGTHS: [usize; 6] = [255, 256, 4_094, 4_095, 4_096, 30_000];
/// As much of a name as a report shows.
const NAME_CHARS_SHOWN: usize = 100;
/// The same names each time.
const SEED: u64 = 0x5eed;

const NONE: (Bound, &str) = (Bound::AtMost(0.0), "names");
const SOME: (Bound, &str) = (Bound::AtLeast(1.0), "names");

/// Steps back and what somebody might take for one; what separates; names that exist, inside and out.
const PIECES: [&[&str]; 3] = [
    &[
        "..",
        "..",
        ".",
        "...",
        "%2e%2e",
        "%252e%252e",
        "..%00",
        "..;",
        ".. ",
        "\u{2025}",
        "\u{ff0e}\u{ff0e}",
        ".\u{200b}.",
        "%c0%ae%c0%ae",
        "\\..",
    ],
    &["/", "/", "/", "//", "\\", "%2f", "%5c", "\0", "\u{2215}", "\u{ff0f}", ":", "\n", ""],
    &[
        "sub",
        "a.md",
        "outside",
        "secret",
        "granted",
        "sub/b.md",
        "link-out",
        "link-up",
        "link-secret",
        "proc/self/root",
        "proc/self/fd/3",
        "proc/self/cwd",
        "etc/passwd",
        "dev/fd/0",
        "tmp",
        "~",
        "file://",
        "C:",
    ],
];

/// All names below the granted folder.
const NAMES_INSIDE: [&str; 7] = ["a.md", "b.md", "big.txt", "link-out", "link-secret", "link-up", "sub"];

/// xorshift64*.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }
}

/// A name that tries to lead to the secret file at this path.
fn name(random: &mut Random, secret: &str) -> String {
    match random.below(KINDS) {
        0 => "a".repeat(random.of(&LENGTHS)),
        1 => "../".repeat(random.of(&LENGTHS) / 3) + secret.trim_start_matches('/'),
        2 => "sub/../".repeat(1 + random.below(600)) + "../outside/secret",
        3 => secret.to_owned(),
        4 => "/".repeat(1 + random.below(8)) + secret,
        5 => "sub/".repeat(1 + random.below(3)) + &"../".repeat(1 + random.below(6)) + "outside/secret",
        _ => {
            let pieces = 2 + random.below(PIECES_MAX - 1);
            (0..pieces)
                .map(|_| {
                    let kind = random.of(&PIECES);
                    random.of(kind)
                })
                .collect()
        }
    }
}

/// What came of all names.
#[derive(Debug, Default)]
struct Tally {
    /// Names that were served with what is inside.
    inside: usize,
    /// Names that were served with anything else.
    outside: Vec<String>,
    /// Refusals by code.
    refused: BTreeMap<String, usize>,
    /// Answers that are no refusal of the server's own.
    untyped: BTreeMap<String, usize>,
}

pub(super) async fn play(ground: &Ground<'_>, findings: &mut Findings) -> Result<(), CliError> {
    let times = ground.times(NAMES_MAX);
    let mut holder = ground.holder();
    let granted = holder.granted(&ground.root(), &[]).await?;
    let inside = vector(&holder.embed(INSIDE).await?);
    let secret = ground.root().with_file_name("outside").join("secret").display().to_string();
    let (mut random, mut tally, mut names) = (Random(SEED), Tally::default(), BTreeSet::new());
    for _ in 0..times {
        let name = name(&mut random, &secret);
        let listed = holder.entries(&granted.string, &name).await;
        tally.count(&name, listed, is_of_inside)?;
        let read = holder.read(&granted.string, &name).await;
        tally.count(&name, read, |read| cosine(&vector(read), &inside) > COSINE_MIN)?;
        names.insert(name);
        ground.bar.inc(1);
    }
    findings.figure("different names", Some(names.len() as f64), "");
    still_served(&mut holder, &granted.string, findings).await?;
    holder.revoke(granted.number).await?;
    tally.judge(findings);
    Ok(())
}

async fn still_served(holder: &mut Holder, string: &str, findings: &mut Findings) -> Result<(), CliError> {
    let served = holder.read(string, "a.md").await.is_ok();
    findings.judge("served_inside_afterwards", Some(f64::from(u8::from(served))), SOME, "");
    Ok(())
}

impl Tally {
    /// Counts an answer; what is none of the server's is an error.
    fn count(
        &mut self,
        name: &str,
        answer: Result<Value, CliError>,
        is_inside: impl FnOnce(&Value) -> bool,
    ) -> Result<(), CliError> {
        match answer {
            Ok(answer) if is_inside(&answer) => self.inside += 1,
            Ok(_) => self.outside.push(format!("{name:?}").chars().take(NAME_CHARS_SHOWN).collect()),
            Err(CliError::Refused { code, status, .. }) => {
                let typed = status < 500 && !code.starts_with("http_");
                let codes = if typed { &mut self.refused } else { &mut self.untyped };
                *codes.entry(code).or_default() += 1;
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn judge(&self, findings: &mut Findings) {
        let first = self.outside.first().cloned().unwrap_or_default();
        findings.judge("served_outside", Some(self.outside.len() as f64), NONE, first);
        let untyped: usize = self.untyped.values().sum();
        findings.judge("answers_without_a_refusal", Some(untyped as f64), NONE, in_words(&self.untyped));
        let refused: usize = self.refused.values().sum();
        findings.judge("refused", Some(refused as f64), SOME, in_words(&self.refused));
        findings.figure("served inside", Some(self.inside as f64), "names");
    }
}

/// Whether a listing has nothing but names of the granted folder and of what is in it. The links have names there, which may
/// be listed; what they lead to may not.
fn is_of_inside(listed: &Value) -> bool {
    let names = listed["entries"].as_array().into_iter().flatten().map(|entry| entry["name"].as_str());
    names.into_iter().all(|name| name.is_some_and(|name| NAMES_INSIDE.contains(&name)))
}

/// The embedding of the only text of an answer.
fn vector(answer: &Value) -> Vec<f32> {
    let numbers = answer["data"][0]["embedding"].as_array().into_iter().flatten();
    numbers.filter_map(Value::as_f64).map(|number| number as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_same_each_time_and_of_many_kinds() {
        let names = || {
            let mut random = Random(SEED);
            (0..1_000).map(|_| name(&mut random, "/tmp/x/outside/secret")).collect::<Vec<_>>()
        };
        let all = names();
        assert_eq!(all, names());
        let distinct: BTreeSet<&String> = all.iter().collect();
        assert!(distinct.len() > 750, "{}", distinct.len());
        for piece in ["../", "secret", "%2e", "\0", "proc/self"] {
            assert!(all.iter().any(|name| name.contains(piece)), "{piece:?}");
        }
    }

    #[test]
    fn a_listing_may_name_links_but_not_what_they_lead_to() {
        let listed = |names: &[&str]| {
            let entries: Vec<Value> = names.iter().map(|name| serde_json::json!({"name": name})).collect();
            serde_json::json!({"entries": entries})
        };
        assert!(is_of_inside(&listed(&["a.md", "link-secret", "sub"])) && is_of_inside(&listed(&[])));
        for wrong in [&["secret"][..], &["a.md", "outside"], &["passwd"], &["granted"]] {
            assert!(!is_of_inside(&listed(wrong)), "{wrong:?}");
        }
    }

    #[test]
    fn what_is_served_and_not_inside_breaks_the_promise() {
        let refused = |status, code: &str| {
            Err(CliError::Refused {
                request: String::new(),
                status,
                code: code.to_owned(),
                message: String::new(),
                retry_after_ms: None,
                rung: None,
            })
        };
        let mut tally = Tally::default();
        tally.count("a", Ok(Value::Null), |_| true).unwrap();
        tally.count("b", refused(422, "file_refused"), |_| true).unwrap();
        tally.count("../c", Ok(Value::Null), |_| false).unwrap();
        tally.count("d", refused(500, "internal"), |_| true).unwrap();
        let mut findings = Findings::new("traversal");
        tally.judge(&mut findings);
        let measured: Vec<f64> = findings.promises.iter().filter_map(|promise| promise.measured).collect();
        assert_eq!(measured, [1.0, 1.0, 1.0]);
        assert_eq!(findings.promises[0].note, "\"../c\"");
    }
}
