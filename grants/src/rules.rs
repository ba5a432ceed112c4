//! What is decided without asking anybody: `grants.toml`. The first rule that fits counts; without one somebody is asked.

use crate::ask::{Ask, Audience, Kind, check_absolute};
use crate::path::RelativePath;
use crate::source::{Source, Transform};
use crate::{Moment, RULE_TRANSFORMS_MAX};
use serde::Deserialize;

/// Rules of one file.
pub(crate) const RULES_MAX: usize = 1_000;

/// What a rule says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Without a question.
    Allow,
    /// Somebody is asked.
    Ask,
    /// Without a question, no.
    Deny,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    /// A client's name, or `*`.
    client: String,
    kind: Kind,
    decision: Verdict,
    /// The folder that the path must be in, or the path itself; none is anywhere.
    below: Option<String>,
    /// The source of sound; none is any.
    source: Option<String>,
    /// What is done to sound that is captured by a grant that this rule fits, before anything that the client wants.
    #[serde(default)]
    transforms: Vec<Transform>,
    /// The model that the bytes go to; none is anybody.
    model: Option<String>,
    /// The last day on which it counts; none is for ever.
    until: Option<toml::value::Datetime>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    rule: Vec<Rule>,
}

/// All rules, in the order of the file.
#[derive(Clone, Debug, Default)]
pub struct Rules(Vec<(Rule, Option<u64>)>);

/// What is wrong with a file of rules.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    /// It can't be read.
    #[error("it does not parse: {0}")]
    Syntax(#[from] toml::de::Error),
    /// A rule can't stand.
    #[error("rule {number}: {fault}")]
    Rule {
        /// Counted from 1.
        number: usize,
        /// What is wrong.
        fault: &'static str,
    },
}

impl Rules {
    /// The rules of a text.
    ///
    /// # Errors
    /// It does not parse, or a rule allows without bounds.
    pub fn parse(text: &str) -> Result<Self, RulesError> {
        let file: File = toml::from_str(text)?;
        if file.rule.len() > RULES_MAX {
            return Err(RulesError::Rule { number: RULES_MAX + 1, fault: "there are more than 1000 rules" });
        }
        let mut rules = Vec::new();
        for (at, rule) in file.rule.into_iter().enumerate() {
            let until = check(&rule).map_err(|fault| RulesError::Rule { number: at + 1, fault })?;
            rules.push((rule, until));
        }
        Ok(Self(rules))
    }

    /// What the rules say to a question.
    pub fn verdict(&self, now: Moment, ask: &Ask) -> Verdict {
        self.first(now, ask).map_or(Verdict::Ask, |rule| rule.decision)
    }

    /// What they want done to sound.
    pub fn transforms(&self, now: Moment, ask: &Ask) -> &[Transform] {
        self.first(now, ask).map_or(&[], |rule| &rule.transforms)
    }

    fn first(&self, now: Moment, ask: &Ask) -> Option<&Rule> {
        let fits = |(rule, until): &&(Rule, Option<u64>)| {
            (rule.client == "*" || rule.client == ask.client)
                && rule.kind == ask.kind
                && rule.below.as_deref().is_none_or(|below| is_below(below, &ask.path))
                && rule.source.as_ref().is_none_or(|source| *source == ask.path)
                && rule.model.as_ref().is_none_or(|model| ask.audience == Audience::Model(model.clone()))
                && until.is_none_or(|until| now.wall_ms < until)
        };
        self.0.iter().find(fits).map(|(rule, _)| rule)
    }
}

/// The end of the rule in milliseconds since 1970.
fn check(rule: &Rule) -> Result<Option<u64>, &'static str> {
    if rule.client.is_empty() {
        return Err("`client` is empty: a name, or `*` for everybody");
    }
    match rule.kind {
        Kind::FileRead | Kind::FileWrite => check_files(rule)?,
        Kind::AudioCapture => check_sound(rule)?,
    }
    rule.until.as_ref().map(end_of).transpose()
}

fn check_files(rule: &Rule) -> Result<(), &'static str> {
    if rule.below.as_deref().is_some_and(|below| check_absolute(below).is_err()) {
        return Err("`below` must be an absolute path without `.`, `..` or a slash at the end");
    }
    if rule.source.is_some() || !rule.transforms.is_empty() {
        return Err("`source` and `transforms` are of rules for `audio_capture`");
    }
    if rule.decision == Verdict::Allow && (rule.below.is_none() || rule.until.is_none()) {
        return Err("a rule that allows needs `below` and `until`");
    }
    Ok(())
}

fn check_sound(rule: &Rule) -> Result<(), &'static str> {
    if rule.below.is_some() {
        return Err("`below` is of rules for files; sound has a `source`");
    }
    if rule.source.as_deref().is_some_and(|source| Source::parse(source).is_err()) {
        return Err("`source` must be `pulse`, `pulse:SOURCE`, `alsa`, `alsa:DEVICE` or `pushed`");
    }
    if rule.transforms.len() > RULE_TRANSFORMS_MAX || !rule.transforms.iter().all(|one| one.is_legal()) {
        return Err("`transforms` are at most 4; a high-pass is from 20 to 2000 Hz, decimation by 2 or 4");
    }
    if rule.decision == Verdict::Allow && (rule.source.is_none() || rule.until.is_none()) {
        return Err("a rule that allows sound needs `source` and `until`");
    }
    Ok(())
}

fn is_below(folder: &str, path: &str) -> bool {
    let parts = |text: &str| RelativePath::new(text.trim_start_matches('/'));
    matches!((parts(folder), parts(path)), (Ok(folder), Ok(path)) if folder.holds(&path))
}

/// The end of a day (UTC).
fn end_of(date: &toml::value::Datetime) -> Result<u64, &'static str> {
    let (Some(date), None) = (date.date, date.time) else {
        return Err("`until` must be a day, like 2027-01-31");
    };
    let days = days_since_1970(i64::from(date.year), i64::from(date.month), i64::from(date.day));
    u64::try_from((days + 1) * 86_400_000).map_err(|_| "`until` is before 1970")
}

/// Days from 1970-01-01 to a day of the Gregorian calendar, counted in years that begin in March.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    365 * year + year.div_euclid(4) - year.div_euclid(100)
        + year.div_euclid(400)
        + (153 * month + 2) / 5
        + day
        - 719_469
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_counted_from_1970() {
        for (day, number) in
            [((1970, 1, 1), 0), ((2000, 3, 1), 11_017), ((2024, 2, 29), 19_782), ((2026, 11, 27), 20_784)]
        {
            assert_eq!(days_since_1970(day.0, day.1, day.2), number, "{day:?}");
        }
    }
}
