//! What each path found: one list for the table, the JSON and the exit code.

use super::stop::Stop;
use super::{Device, Path};
use crate::output::{Style, table};
use crate::stress::load::{Log, in_words};
use crate::stress::promise::Verdict;
use crate::stress::stats::percentile;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// What one path found.
#[derive(Clone, Debug, Serialize)]
pub struct PathReport {
    /// Which.
    pub path: Path,
    /// What was done, in words.
    pub done: &'static str,
    /// How often.
    pub tries: usize,
    /// Tries that each rung stopped.
    pub caught: BTreeMap<String, usize>,
    /// Tries that there was enough memory for.
    pub served: usize,
    /// Tries that ended without a rung, by their codes.
    pub unnamed: BTreeMap<String, usize>,
    /// From the stop to the next right answer of the model, in milliseconds; none where nothing was stopped.
    pub recovery_ms: Option<Recovery>,
    /// Jobs of clients that did nothing wrong; none where no model could answer them.
    pub others: Option<Others>,
    /// Whether it was as promised.
    pub verdict: Verdict,
    /// What was not, or why it was skipped; may be empty.
    pub note: String,
    #[serde(skip)]
    pub(super) recoveries: Vec<f64>,
}

/// Times in milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Recovery {
    /// Half of them were at most this.
    pub p50: f64,
    /// 99 of 100 were.
    pub p99: f64,
}

/// Jobs of clients that did nothing wrong.
#[derive(Clone, Debug, Serialize)]
pub struct Others {
    /// Answered as before.
    pub answered: usize,
    /// Not taken, with a code and a time to come back.
    pub refused: usize,
    /// Taken and not answered.
    pub lost: usize,
    /// Answered otherwise than before.
    pub wrong: usize,
    #[serde(skip)]
    lost_codes: String,
}

/// What all paths found.
#[derive(Debug, Serialize)]
pub struct OomReport {
    /// The model under stress.
    pub model: String,
    /// Where it computed.
    pub device: Device,
    /// Tries of each path.
    pub rounds: u32,
    /// In the order in which they were gone.
    pub paths: Vec<PathReport>,
    /// As the error of the exit code, where a path was not as promised.
    pub error: Option<serde_json::Value>,
}

/// What the tries of a path came to, as they are made.
#[derive(Debug, Default)]
pub(super) struct Tries {
    stops: Vec<Stop>,
    recoveries: Vec<f64>,
}

impl Tries {
    /// One try: what ended it, and how long the next answer took after that.
    pub(super) fn push(&mut self, stop: Stop, recovered: Duration) {
        if stop != Stop::Served {
            self.recoveries.push(recovered.as_secs_f64() * 1e3);
        }
        self.stops.push(stop);
    }
}

impl Others {
    pub(super) fn of(log: &Log) -> Self {
        let lost = log.lost();
        Self {
            answered: log.right(),
            refused: log.refused().values().sum(),
            lost: lost.values().sum(),
            wrong: log.wrong(),
            lost_codes: in_words(&lost),
        }
    }

    /// Both together.
    pub(super) fn and(self, more: Self) -> Self {
        let codes = [self.lost_codes, more.lost_codes];
        Self {
            answered: self.answered + more.answered,
            refused: self.refused + more.refused,
            lost: self.lost + more.lost,
            wrong: self.wrong + more.wrong,
            lost_codes: codes.into_iter().filter(|codes| !codes.is_empty()).collect::<Vec<_>>().join(", "),
        }
    }
}

impl PathReport {
    /// Judges the tries of a path: each ends on one of these rungs (or, where that is among them, is served), and
    /// nobody else loses anything.
    pub(super) fn judged(
        path: Path,
        done: &'static str,
        tries: Tries,
        expected: &[&str],
        others: Option<Others>,
    ) -> Self {
        let (mut caught, mut unnamed, mut served) = (BTreeMap::new(), BTreeMap::new(), 0);
        for stop in &tries.stops {
            match stop {
                Stop::Rung(rung) => *caught.entry(rung.clone()).or_default() += 1,
                Stop::Unnamed(code) => *unnamed.entry(code.clone()).or_default() += 1,
                Stop::Served => served += 1,
            }
        }
        let mut wrong = Vec::new();
        let strange = caught.keys().filter(|rung| !expected.contains(&rung.as_str()));
        wrong.extend(strange.map(|rung| format!("stopped by {rung}")));
        if !unnamed.is_empty() {
            wrong.push(format!("without a rung: {}", in_words(&unnamed)));
        }
        if served > 0 && !expected.contains(&SERVED) {
            wrong.push(format!("{served} were not stopped"));
        }
        if tries.stops.is_empty() {
            wrong.push("nothing was tried".to_owned());
        }
        if let Some(others) = others.as_ref().filter(|others| others.lost > 0 || others.wrong > 0) {
            wrong
                .push(format!("others lost {} ({}), wrong {}", others.lost, others.lost_codes, others.wrong));
        }
        let recovery = |fraction| percentile(&tries.recoveries, fraction);
        Self {
            path,
            done,
            tries: tries.stops.len(),
            caught,
            served,
            unnamed,
            recovery_ms: recovery(0.5).zip(recovery(0.99)).map(|(p50, p99)| Recovery { p50, p99 }),
            others,
            verdict: if wrong.is_empty() { Verdict::Held } else { Verdict::Broken },
            note: wrong.join("; "),
            recoveries: tries.recoveries,
        }
    }

    /// A path that can't be gone here; that is not the same as held.
    pub(super) fn skipped(path: Path, done: &'static str, why: String) -> Self {
        let judged = Self::judged(path, done, Tries::default(), &[], None);
        Self { verdict: Verdict::Skipped, note: why, ..judged }
    }

    /// Something else was not as promised.
    pub(super) fn breaks(&mut self, what: &str) {
        self.verdict = Verdict::Broken;
        self.note = if self.note.is_empty() { what.to_owned() } else { format!("{}; {what}", self.note) };
    }

    fn row(&self) -> Vec<String> {
        let stopped = [in_words(&self.caught), in_words(&self.unnamed)].into_iter();
        let served = (self.served > 0).then(|| format!("{} served", self.served));
        let stopped: Vec<String> = stopped.filter(|words| !words.is_empty()).chain(served).collect();
        let times = self.recovery_ms.map_or(["-".to_owned(), "-".to_owned()], |recovery| {
            [format!("{:.1}", recovery.p50), format!("{:.1}", recovery.p99)]
        });
        let others = self.others.as_ref().map_or(["-".to_owned(), "-".to_owned()], |others| {
            [others.answered.to_string(), (others.lost + others.wrong).to_string()]
        });
        let verdict = match self.verdict {
            Verdict::Held => "held",
            Verdict::Broken => "BROKEN",
            Verdict::Skipped => "skipped",
        };
        let head = [self.path.name().to_owned(), self.tries.to_string(), stopped.join(", ")];
        head.into_iter().chain(times).chain(others).chain([verdict.to_owned()]).collect()
    }
}

/// Stands among the rungs that are expected where there may be enough memory.
pub(super) const SERVED: &str = "served";

impl OomReport {
    pub(super) fn new(model: &str, device: Device, rounds: u32, paths: Vec<PathReport>) -> Self {
        Self { model: model.to_owned(), device, rounds, paths, error: None }
    }

    /// The paths that were not as promised, each in words.
    pub fn broken(&self) -> Vec<String> {
        let broken = self.paths.iter().filter(|path| path.verdict == Verdict::Broken);
        broken.map(|path| format!("{}: {}", path.path.name(), path.note)).collect()
    }

    /// For people.
    pub fn page(&self, style: Style) -> String {
        const HEADING: [&str; 8] =
            ["PATH", "TRIES", "STOPPED BY", "NEXT P50 MS", "P99 MS", "OTHERS", "LOST", "VERDICT"];
        let rows: Vec<Vec<String>> = self.paths.iter().map(PathReport::row).collect();
        let mut parts = vec![table(style, &HEADING, &rows)];
        let notes: Vec<String> = self
            .paths
            .iter()
            .filter(|path| !path.note.is_empty())
            .map(|path| style.red(&format!("{}: {}", path.path.name(), path.note)))
            .collect();
        parts.extend((!notes.is_empty()).then(|| notes.join("\n")));
        let count = |verdict| self.paths.iter().filter(|path| path.verdict == verdict).count();
        let [held, broken, skipped] = [Verdict::Held, Verdict::Broken, Verdict::Skipped].map(count);
        let summary = format!(
            "{held} held, {broken} broken, {skipped} skipped, {} on {}",
            self.model,
            self.device.name()
        );
        parts.push(if broken > 0 { style.red(&summary) } else { style.green(&summary) });
        parts.join("\n\n")
    }
}

#[cfg(test)]
mod tests {
    use super::super::stop::{BY_KERNEL, BY_WORKER};
    use super::*;

    fn tries(stops: &[Stop]) -> Tries {
        let mut tries = Tries::default();
        stops.iter().for_each(|stop| tries.push(stop.clone(), Duration::from_millis(7)));
        tries
    }

    fn rung(name: &str) -> Stop {
        Stop::Rung(name.to_owned())
    }

    #[test]
    fn a_path_holds_where_every_try_ends_as_expected() {
        let check = |stops: &[Stop], expected: &[&str], verdict: Verdict| {
            let report = PathReport::judged(Path::HostileWorker, "d", tries(stops), expected, None);
            assert_eq!(report.verdict, verdict, "{stops:?} {}", report.note);
        };
        check(&[rung(BY_KERNEL)], &[BY_KERNEL], Verdict::Held);
        check(&[rung(BY_KERNEL), rung(BY_WORKER)], &[BY_KERNEL], Verdict::Broken);
        check(&[Stop::Served], &[BY_KERNEL], Verdict::Broken);
        check(&[Stop::Served], &[BY_KERNEL, SERVED], Verdict::Held);
        check(&[Stop::Unnamed("worker_died".to_owned())], &[BY_KERNEL], Verdict::Broken);
        check(&[], &[BY_KERNEL], Verdict::Broken);
    }

    #[test]
    fn a_job_of_others_that_is_lost_breaks_the_path() {
        let others =
            Others { answered: 9, refused: 0, lost: 1, wrong: 0, lost_codes: "1 worker_died".into() };
        let stops = tries(&[rung(BY_KERNEL)]);
        let report = PathReport::judged(Path::HostileWorker, "d", stops, &[BY_KERNEL], Some(others));
        assert_eq!(
            (report.verdict, report.note.as_str()),
            (Verdict::Broken, "others lost 1 (1 worker_died), wrong 0")
        );
    }

    #[test]
    fn the_page_and_the_json_say_what_stopped_what() {
        let held =
            PathReport::judged(Path::HostileWorker, "d", tries(&[rung(BY_KERNEL)]), &[BY_KERNEL], None);
        let skipped = PathReport::skipped(Path::HostMemory, "d", "no right".to_owned());
        let report = OomReport::new("minilm", Device::Cpu, 1, vec![held, skipped]);
        let expected = "\
PATH            TRIES  STOPPED BY          NEXT P50 MS  P99 MS  OTHERS  LOST  VERDICT
hostile-worker  1      1 killed-by-kernel  7.0          7.0     -       -     held
host-memory     0                          -            -       -       -     skipped

host-memory: no right

1 held, 0 broken, 1 skipped, minilm on cpu";
        assert_eq!(report.page(Style::plain()), expected);
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["paths"][0]["caught"]["killed-by-kernel"], 1);
        assert_eq!((&json["device"], &json["paths"][0]["recovery_ms"]["p99"]), (&"cpu".into(), &7.0.into()));
        assert!(report.broken().is_empty());
    }
}
