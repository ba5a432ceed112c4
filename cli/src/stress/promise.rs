//! What the server promises, what was measured, and whether it held: one list for the table, the JSON and the exit code.

use super::Extent;
use super::chart::Panel;
use crate::output::{Style, table};
use serde::Serialize;

/// What a measured value must not pass.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// Inclusive.
    AtMost(f64),
    /// Inclusive.
    AtLeast(f64),
}

impl Bound {
    /// Whether a value keeps it. What is no number keeps nothing.
    pub fn holds(self, value: f64) -> bool {
        match self {
            Self::AtMost(most) => value <= most,
            Self::AtLeast(least) => value >= least,
        }
    }

    fn shown(self) -> String {
        match self {
            Self::AtMost(most) => format!("<= {}", number(most)),
            Self::AtLeast(least) => format!(">= {}", number(least)),
        }
    }
}

/// Whether a promise held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It did.
    Held,
    /// It did not.
    Broken,
    /// It could not be measured; that is not the same as held.
    Skipped,
}

/// One promise.
#[derive(Clone, Debug, Serialize)]
pub struct Promise {
    /// Where it was measured.
    pub scenario: &'static str,
    /// Stable name.
    pub promise: &'static str,
    /// What was measured; none where it was skipped.
    pub measured: Option<f64>,
    /// What it must not pass.
    pub bound: Bound,
    /// Of both.
    pub unit: &'static str,
    /// Whether it held.
    pub verdict: Verdict,
    /// Why it was skipped, or what broke it first; may be empty.
    pub note: String,
}

/// A value that is reported and judged by nobody.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// Where it was measured.
    pub scenario: &'static str,
    /// What it is.
    pub name: String,
    /// The value.
    pub value: f64,
    /// Its unit.
    pub unit: &'static str,
}

/// What one scenario found.
#[derive(Debug)]
pub struct Findings {
    scenario: &'static str,
    /// The promises.
    pub promises: Vec<Promise>,
    /// What else was measured.
    pub figures: Vec<Figure>,
    /// What can be drawn of it.
    pub panels: Vec<Panel>,
}

impl Findings {
    /// Nothing yet, of what has this name.
    pub fn new(scenario: &'static str) -> Self {
        Self { scenario, promises: Vec::new(), figures: Vec::new(), panels: Vec::new() }
    }

    /// Judges a measured value. A value that there is none of, though it was to be measured, breaks the promise.
    pub fn judge(
        &mut self,
        promise: &'static str,
        measured: Option<f64>,
        (bound, unit): (Bound, &'static str),
        note: impl Into<String>,
    ) {
        let holds = measured.is_some_and(|value| bound.holds(value));
        let verdict = if holds { Verdict::Held } else { Verdict::Broken };
        let note = if measured.is_none() { "nothing was measured".to_owned() } else { note.into() };
        self.promises.push(Promise {
            scenario: self.scenario,
            promise,
            measured,
            bound,
            unit,
            verdict,
            note,
        });
    }

    /// A promise that could not be measured.
    pub fn skip(
        &mut self,
        promise: &'static str,
        (bound, unit): (Bound, &'static str),
        why: impl Into<String>,
    ) {
        let (scenario, verdict) = (self.scenario, Verdict::Skipped);
        let note = why.into();
        self.promises.push(Promise { scenario, promise, measured: None, bound, unit, verdict, note });
    }

    /// Reports a value, if there is one.
    pub fn figure(&mut self, name: impl Into<String>, value: Option<f64>, unit: &'static str) {
        let Some(value) = value else { return };
        self.figures.push(Figure { scenario: self.scenario, name: name.into(), value, unit });
    }
}

/// What all scenarios found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The model that was asked.
    pub model: String,
    /// How long and how often.
    #[serde(flatten)]
    pub extent: Extent,
    /// The promises.
    pub promises: Vec<Promise>,
    /// What else was measured.
    pub figures: Vec<Figure>,
    /// As the error of the exit code, where promises broke.
    pub error: Option<serde_json::Value>,
}

impl Report {
    /// Of these findings.
    pub fn new(model: String, extent: Extent, all: &[Findings]) -> Self {
        let promises = all.iter().flat_map(|findings| findings.promises.clone()).collect();
        let figures = all.iter().flat_map(|findings| findings.figures.clone()).collect();
        Self { model, extent, promises, figures, error: None }
    }

    /// The broken promises, each in words.
    pub fn broken(&self) -> Vec<String> {
        let broken = self.promises.iter().filter(|promise| promise.verdict == Verdict::Broken);
        broken.map(Promise::in_words).collect()
    }

    /// For people.
    pub fn page(&self, style: Style) -> String {
        const HEADING: [&str; 5] = ["SCENARIO", "PROMISE", "MEASURED", "BOUND", "VERDICT"];
        let rows: Vec<Vec<String>> = self.promises.iter().map(Promise::row).collect();
        let figures: Vec<Vec<String>> = self.figures.iter().map(Figure::row).collect();
        let mut parts = vec![table(style, &HEADING, &rows)];
        let notes: Vec<String> = self.promises.iter().filter_map(|promise| promise.remark(style)).collect();
        parts.extend((!notes.is_empty()).then(|| notes.join("\n")));
        parts.extend((!figures.is_empty()).then(|| table(style, &["SCENARIO", "FIGURE", "VALUE"], &figures)));
        parts.push(self.summary(style));
        parts.join("\n\n")
    }

    fn summary(&self, style: Style) -> String {
        let count = |verdict| self.promises.iter().filter(|promise| promise.verdict == verdict).count();
        let [held, broken, skipped] = [Verdict::Held, Verdict::Broken, Verdict::Skipped].map(count);
        let text = format!("{held} held, {broken} broken, {skipped} skipped");
        if broken > 0 { style.red(&text) } else { style.green(&text) }
    }
}

impl Promise {
    fn value(&self) -> String {
        self.measured.map_or("-".to_owned(), |value| with_unit(value, self.unit))
    }

    fn row(&self) -> Vec<String> {
        let verdict = match self.verdict {
            Verdict::Held => "held",
            Verdict::Broken => "BROKEN",
            Verdict::Skipped => "skipped",
        };
        let scenario = self.scenario.to_owned();
        vec![scenario, self.promise.to_owned(), self.value(), self.bound.shown(), verdict.to_owned()]
    }

    fn in_words(&self) -> String {
        let (scenario, promise, bound) = (self.scenario, self.promise, self.bound.shown());
        match self.measured {
            Some(_) => format!("{scenario} {promise} is {}, not {bound}", self.value()),
            None => format!("{scenario} {promise} ({bound}): {}", self.note),
        }
    }

    fn remark(&self, style: Style) -> Option<String> {
        let line = format!("{} {}: {}", self.scenario, self.promise, self.note);
        match self.verdict {
            _ if self.note.is_empty() => None,
            Verdict::Held => Some(style.dim(&line)),
            Verdict::Broken | Verdict::Skipped => Some(style.red(&line)),
        }
    }
}

impl Figure {
    fn row(&self) -> Vec<String> {
        vec![self.scenario.to_owned(), self.name.clone(), with_unit(self.value, self.unit)]
    }
}

fn with_unit(value: f64, unit: &str) -> String {
    format!("{} {unit}", number(value)).trim_end().to_owned()
}

/// Whole numbers whole, others with three digits after the point.
fn number(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.3}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stress::Scenario;

    const RATIO: (Bound, &str) = (Bound::AtMost(2.0), "");
    const EXTENT: Extent = Extent { seconds: 1, rounds: 1 };

    fn verdict(measured: Option<f64>, bound: Bound) -> Verdict {
        let mut findings = Findings::new(Scenario::Flood.name());
        findings.judge("p", measured, (bound, "ms"), "");
        findings.promises[0].verdict
    }

    #[test]
    fn a_promise_holds_up_to_its_bound() {
        assert_eq!(verdict(Some(2.0), Bound::AtMost(2.0)), Verdict::Held);
        assert_eq!(verdict(Some(2.001), Bound::AtMost(2.0)), Verdict::Broken);
        assert_eq!(verdict(Some(0.99), Bound::AtLeast(0.99)), Verdict::Held);
        assert_eq!(verdict(Some(0.98), Bound::AtLeast(0.99)), Verdict::Broken);
    }

    #[test]
    fn what_was_not_measured_or_is_no_number_breaks_it() {
        for bound in [Bound::AtMost(2.0), Bound::AtLeast(2.0)] {
            assert_eq!(verdict(None, bound), Verdict::Broken);
            assert_eq!(verdict(Some(f64::NAN), bound), Verdict::Broken);
        }
    }

    #[test]
    fn a_skipped_promise_is_neither_held_nor_broken() {
        let mut findings = Findings::new(Scenario::HungWorker.name());
        findings.skip("recovery", RATIO, "no right to signal the worker");
        let report = Report::new("m".to_owned(), EXTENT, &[findings]);
        assert!(report.broken().is_empty());
        let page = report.page(Style::plain());
        assert!(
            page.contains("0 held, 0 broken, 1 skipped") && page.contains("no right to signal"),
            "{page}"
        );
    }

    #[test]
    fn the_report_names_every_broken_promise() {
        let mut findings = Findings::new(Scenario::NoisyNeighbour.name());
        findings.judge("polite_ratio", Some(2.5), RATIO, "round 3");
        findings.judge("jain", Some(0.999), (Bound::AtLeast(0.99), ""), "");
        findings.figure("polite p50 alone", Some(61.25), "ms");
        let report = Report::new("m".to_owned(), EXTENT, &[findings]);
        assert_eq!(report.broken(), ["noisy-neighbour polite_ratio is 2.500, not <= 2"]);
        let expected = "\
SCENARIO         PROMISE       MEASURED  BOUND     VERDICT
noisy-neighbour  polite_ratio  2.500     <= 2      BROKEN
noisy-neighbour  jain          0.999     >= 0.990  held

noisy-neighbour polite_ratio: round 3

SCENARIO         FIGURE            VALUE
noisy-neighbour  polite p50 alone  61.250 ms

1 held, 1 broken, 0 skipped";
        assert_eq!(report.page(Style::plain()), expected);
    }

    #[test]
    fn the_json_has_names_bounds_and_verdicts() {
        let mut findings = Findings::new(Scenario::CrashLoop.name());
        findings.judge("lost_jobs", Some(0.0), (Bound::AtMost(0.0), "jobs"), "");
        let report = serde_json::to_value(Report::new("m".to_owned(), EXTENT, &[findings])).unwrap();
        let expected = serde_json::json!({
            "scenario": "crash-loop", "promise": "lost_jobs", "measured": 0.0, "bound": {"at_most": 0.0},
            "unit": "jobs", "verdict": "held", "note": ""});
        assert_eq!((&report["promises"][0], &report["seconds"]), (&expected, &serde_json::json!(1)));
    }
}
