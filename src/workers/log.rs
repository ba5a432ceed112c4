//! What happened to a model's workers, with what they wrote to their standard output and error: bounded rings in memory,
//! never a file.

use crate::clock;
use serde::Serialize;
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::io::AsyncReadExt;
use utoipa::ToSchema;

/// Lines of one model that are kept, the latest.
const LINES_MAX: usize = 500;
/// Models that have a ring; those that nothing happened to for the longest time are forgotten.
const MODELS_MAX: usize = 1_024;
/// Bytes of a line; the rest is another line.
const LINE_BYTES_MAX: usize = 1_024;
/// As much of a line as is repeated elsewhere, in characters.
const LAST_LINE_CHARS_MAX: usize = 300;

/// Who says a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Source {
    /// The worker's program, and whoever has taken it over: nothing in it is to be believed.
    Worker,
    /// The server, of the worker.
    Server,
}

/// A line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Line {
    /// Its number, from 1 in each run.
    pub(crate) number: u64,
    /// When it came, in milliseconds since 1970.
    pub(crate) time_ms: u64,
    /// Which worker.
    pub(crate) worker: u64,
    /// Whose word it is.
    pub(crate) source: Source,
    /// Its text, with control characters made harmless.
    pub(crate) text: String,
}

/// The rings of all models.
#[derive(Debug, Clone, Default)]
pub(crate) struct Logs(Arc<Mutex<Rings>>);

#[derive(Debug, Default)]
struct Rings {
    last: u64,
    models: BTreeMap<String, VecDeque<Line>>,
}

impl Logs {
    /// The log of a worker of a model.
    pub(crate) fn of(&self, model: &str, worker: u64) -> Log {
        Log { logs: self.clone(), model: model.to_owned(), worker }
    }

    /// A model's lines after a number, the oldest first.
    pub(crate) fn lines(&self, model: &str, after: u64) -> Vec<Line> {
        let rings = self.rings();
        let lines = rings.models.get(model).into_iter().flatten();
        lines.filter(|line| line.number > after).cloned().collect()
    }

    fn rings(&self) -> MutexGuard<'_, Rings> {
        self.0.lock().expect("no thread panics with this lock")
    }
}

impl Rings {
    fn add(&mut self, model: &str, worker: u64, source: Source, text: String) {
        self.last += 1;
        let line = Line { number: self.last, time_ms: clock::moment().wall_ms, worker, source, text };
        let ring = self.models.entry(model.to_owned()).or_default();
        if ring.len() == LINES_MAX {
            ring.pop_front();
        }
        ring.push_back(line);
        if self.models.len() > MODELS_MAX {
            let last = |lines: &VecDeque<Line>| lines.back().map_or(0, |line| line.number);
            let oldest =
                self.models.iter().min_by_key(|(_, lines)| last(lines)).map(|(name, _)| name.clone());
            oldest.map(|oldest| self.models.remove(&oldest));
        }
    }
}

/// Where what one worker writes goes, and what the server says of it.
#[derive(Debug, Clone)]
pub(crate) struct Log {
    logs: Logs,
    model: String,
    worker: u64,
}

impl Log {
    /// Reads a pipe to its end, in a task of its own.
    pub(crate) fn follow(&self, pipe: OwnedFd) {
        // Ours is a duplicate of the end that blocks, and that nobody else reads.
        let unblocked = rustix::io::ioctl_fionbio(&pipe, true).map_err(std::io::Error::from);
        let pipe = match unblocked.and_then(|()| tokio::net::unix::pipe::Receiver::from_owned_fd(pipe)) {
            Ok(pipe) => pipe,
            Err(error) => {
                tracing::warn!(%error, "a worker's output can't be read");
                return;
            }
        };
        tokio::spawn(self.clone().read(pipe));
    }

    async fn read(self, mut pipe: tokio::net::unix::pipe::Receiver) {
        let (mut block, mut line) = ([0; 4096], Vec::new());
        while let Ok(count) = pipe.read(&mut block).await
            && count > 0
        {
            self.take(&mut line, &block[..count]);
        }
        self.wrote(&line);
    }

    /// Whole lines of what has come; the beginning of the next stays.
    fn take(&self, line: &mut Vec<u8>, bytes: &[u8]) {
        for byte in bytes {
            if *byte == b'\n' || line.len() == LINE_BYTES_MAX {
                self.wrote(line);
                line.clear();
            }
            if *byte != b'\n' {
                line.push(*byte);
            }
        }
    }

    fn wrote(&self, line: &[u8]) {
        let text: String = String::from_utf8_lossy(line).chars().filter(|c| !c.is_control()).collect();
        if !text.trim().is_empty() {
            self.logs.rings().add(&self.model, self.worker, Source::Worker, text);
        }
    }

    /// What the server has to say of the worker: nothing of a client's.
    pub(crate) fn say(&self, text: String) {
        self.logs.rings().add(&self.model, self.worker, Source::Server, text);
    }

    /// The last line that it wrote, shortened.
    pub(crate) fn last_line(&self) -> Option<String> {
        let rings = self.logs.rings();
        let mut lines = rings.models.get(&self.model)?.iter().rev();
        let own = |line: &&Line| line.worker == self.worker && line.source == Source::Worker;
        lines.find(own).map(|line| line.text.chars().take(LAST_LINE_CHARS_MAX).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_keeps_the_last_lines_of_a_model_and_nothing_that_a_terminal_obeys() {
        let logs = Logs::default();
        let (one, other) = (logs.of("a", 1), logs.of("a", 2));
        assert_eq!(one.last_line(), None);
        let mut line = Vec::new();
        one.take(&mut line, b"begun ");
        one.take(&mut line, b"and ended\n\n  \nred \x1b[31m\xff alert\n");
        other.say("started".to_owned());
        assert_eq!(one.last_line().unwrap(), "red [31m\u{fffd} alert");
        assert_eq!(other.last_line(), None);
        let texts = |after| logs.lines("a", after).into_iter().map(|line| line.text).collect::<Vec<_>>();
        assert_eq!(texts(0), ["begun and ended", "red [31m\u{fffd} alert", "started"]);
        assert_eq!(texts(2), ["started"]);
        one.take(&mut line, &vec![b'x'; 3 * LINE_BYTES_MAX + 1]);
        assert_eq!(texts(3).len(), 3, "a line without an end is cut");
        (0..2 * LINES_MAX).for_each(|n| one.say(n.to_string()));
        assert_eq!(texts(0).len(), LINES_MAX);
        assert_eq!(logs.lines("b", 0), []);
    }

    #[test]
    fn only_so_many_models_are_remembered() {
        let logs = Logs::default();
        (0..MODELS_MAX + 10).for_each(|n| logs.of(&format!("m{n}"), 1).say("started".to_owned()));
        assert_eq!(logs.rings().models.len(), MODELS_MAX);
        assert!(logs.lines("m0", 0).is_empty() && !logs.lines("m10", 0).is_empty());
    }
}
