//! A trace: what came and how it ended, as JSON lines. Names and numbers only.

use crate::currency::CLIENTS_MAX;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};

/// The version that is written and read.
pub const TRACE_VERSION: u32 = 1;

/// The most lines of a trace, its first and last included.
pub const TRACE_LINES_MAX: usize = 400_000;

/// The longest trace.
pub const TRACE_BYTES_MAX: usize = 128 * 1024 * 1024;

/// The longest time that a trace may tell of, and the longest time in one, in microseconds.
pub(super) const TRACE_US_MAX: u64 = 24 * 60 * 60 * 1_000_000;

/// The most inputs of a job that are told apart.
const ITEMS_MAX: u32 = 65_536;

/// The first line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// [`TRACE_VERSION`].
    pub ringfence_trace: u32,
    /// The models, by name.
    pub models: BTreeMap<String, TracedModel>,
    /// What the quotas' defaults refer to.
    pub machine: TracedMachine,
    /// `quotas.toml` as it counted.
    pub quotas: String,
}

/// What a replay has to know of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TracedModel {
    /// A worker's lease under the recorded quotas.
    pub lease_bytes: u64,
    /// The lease where quotas name none.
    pub default_lease_bytes: u64,
    /// What its files take.
    pub package_bytes: u64,
    /// Compute threads of a worker.
    pub threads: u16,
    /// As in its configuration; older recordings don't say it.
    #[serde(default)]
    pub shares_steps: bool,
    /// Average time of a load; 0 where it was not measured.
    pub load_us: u64,
    /// Average device time of a token in nanoseconds; 0 where it was not measured.
    pub token_ns: u64,
    /// Workers that were ready when the recording began.
    pub ready: u32,
}

/// The machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TracedMachine {
    /// All memory.
    pub memory_bytes: u64,
    /// All cores.
    pub cores: u16,
}

/// Every other line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Microseconds since the recording began.
    pub t: u64,
    /// What happened.
    #[serde(flatten)]
    pub what: What,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// A job came.
    Submit(Submitted),
    /// A job ended.
    End(Ended),
    /// A client left, or took its job back.
    Cancel(Cancelled),
    /// The recording ended: the last line of every whole trace.
    Stop(Stop),
}

/// A job that came.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Submitted {
    /// Its number.
    pub job: u64,
    /// Whose.
    pub client: String,
    /// For which model.
    pub model: String,
    /// Inputs.
    pub items: u32,
    /// Upper bound of the tokens of all its inputs.
    pub tokens: u64,
    /// Upper bound of the tokens that it puts into one step.
    pub tokens_bound: u64,
    /// What its audio was expected to last, in milliseconds.
    #[serde(default, skip_serializing_if = "is_none")]
    pub audio_ms: u64,
    /// The deadline that its client asked for, from now; before the client's quotas cut it.
    pub deadline_us: Option<u64>,
}

/// A job of texts has none.
fn is_none(audio_ms: &u64) -> bool {
    *audio_ms == 0
}

/// A job that ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ended {
    /// Its number.
    pub job: u64,
    /// `done`, or the code of its refusal or failure.
    pub code: String,
    /// Device time that it took.
    pub device_us: u64,
    /// Tokens, as its worker said at its end; else 0.
    pub tokens: u64,
    /// From its arrival until a worker had it; absent where none did.
    pub waited_us: Option<u64>,
}

/// A job that was taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cancelled {
    /// Its number.
    pub job: u64,
    /// Whether because the grant ended that it was on; left out where not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub grant_ended: bool,
}

/// Why a recording ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stop {
    /// As long as was asked for.
    Time,
    /// As much as a trace may hold.
    Full,
    /// Other quotas count from here.
    QuotasChanged,
    /// Models came, went or were changed.
    ModelsChanged,
    /// The server is about to end.
    Draining,
}

/// The last line of a recording that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ErrorLine {
    /// Why.
    pub error: String,
}

/// Why a text is no trace. Lines count from 1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TraceError {
    /// It is not JSON of the form that belongs there.
    #[error("line {line}: {reason}")]
    Malformed {
        /// Which.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A version that is not read here.
    #[error("line 1: this is a trace of version {found}; version {TRACE_VERSION} is read here")]
    Version {
        /// What it says.
        found: u32,
    },
    /// Something that can't have happened.
    #[error("line {line}: {what}")]
    Impossible {
        /// Which.
        line: usize,
        /// What.
        what: Impossible,
    },
    /// It does not end with the line that says so.
    #[error("line {line}: the end is missing: a whole trace ends with a line that has \"stop\"")]
    Truncated {
        /// Where it should be.
        line: usize,
    },
    /// The server gave up recording.
    #[error("line {line}: the recording failed: {reason}")]
    Failed {
        /// Which.
        line: usize,
        /// In the server's words.
        reason: String,
    },
    /// Too long.
    #[error("line {line}: a trace has at most {TRACE_LINES_MAX} lines and {TRACE_BYTES_MAX} bytes")]
    TooLong {
        /// The first that is too many.
        line: usize,
    },
}

/// What can't have happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Impossible {
    /// Time.
    #[error("its time is before that of the line above")]
    Backwards,
    /// A number.
    #[error("its time or one of its numbers is longer than a day")]
    TooLarge,
    /// A job twice.
    #[error("this job came or ended before")]
    Twice,
    /// A job from nowhere.
    #[error("no line above says that this job came")]
    NoSuchJob,
    /// A job without inputs, or with too many.
    #[error("a job has 1 to {ITEMS_MAX} inputs")]
    Items,
    /// Clients.
    #[error("there are more than {CLIENTS_MAX} clients")]
    Clients,
    /// A line too many.
    #[error("there is a line after the last one")]
    AfterStop,
}

/// A trace that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// Its first line.
    pub header: Header,
    /// Clients, by their numbers in the replay.
    pub(super) clients: Vec<String>,
    /// Jobs by arrival.
    pub(super) jobs: Vec<TracedJob>,
    /// What comes from outside, in order.
    pub(super) inputs: Vec<(u64, Input)>,
    /// How long it was recorded, in microseconds.
    pub(super) length_us: u64,
}

/// A job, and its end where it was recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TracedJob {
    pub(super) client: usize,
    pub(super) submitted: Submitted,
    pub(super) ended: Option<Ended>,
}

/// What comes from outside, by the job's place in [`Trace::jobs`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Input {
    Submit(usize),
    Cancel(usize),
    /// Its grant ended.
    Forget(usize),
}

impl Trace {
    /// Reads and checks a whole trace.
    ///
    /// # Errors
    /// What is wrong first, with its line.
    pub fn parse(text: &str) -> Result<Self, TraceError> {
        if text.len() > TRACE_BYTES_MAX {
            let line = text.as_bytes()[..TRACE_BYTES_MAX].iter().filter(|byte| **byte == b'\n').count() + 1;
            return Err(TraceError::TooLong { line });
        }
        let mut lines = text.lines().enumerate().map(|(index, text)| (index + 1, text));
        let (_, first) = lines.next().ok_or(TraceError::Truncated { line: 1 })?;
        let mut reader = Reader { trace: Self::new(header(first)?), ..Reader::default() };
        let mut last = 1;
        for (line, text) in lines {
            if line > TRACE_LINES_MAX {
                return Err(TraceError::TooLong { line });
            }
            let impossible = |what| TraceError::Impossible { line, what };
            reader.take(parse_line(line, text)?).map_err(impossible)?;
            last = line;
        }
        if !reader.stopped {
            return Err(TraceError::Truncated { line: last + 1 });
        }
        Ok(reader.trace)
    }

    fn new(header: Header) -> Self {
        Self { header, clients: Vec::new(), jobs: Vec::new(), inputs: Vec::new(), length_us: 0 }
    }

    /// How long it was recorded, in microseconds.
    pub fn length_us(&self) -> u64 {
        self.length_us
    }

    /// How many jobs came.
    pub fn jobs(&self) -> usize {
        self.jobs.len()
    }
}

/// The version is looked at first: another one may have other fields.
fn header(text: &str) -> Result<Header, TraceError> {
    #[derive(Deserialize)]
    struct Version {
        ringfence_trace: u32,
    }
    let malformed = |error: serde_json::Error| TraceError::Malformed { line: 1, reason: error.to_string() };
    let Version { ringfence_trace: found } = serde_json::from_str(text).map_err(malformed)?;
    if found != TRACE_VERSION {
        return Err(TraceError::Version { found });
    }
    let header: Header = serde_json::from_str(text).map_err(malformed)?;
    let too_large = |model: &TracedModel| model.load_us > TRACE_US_MAX || model.token_ns > TRACE_US_MAX;
    if header.models.values().any(too_large) {
        return Err(TraceError::Impossible { line: 1, what: Impossible::TooLarge });
    }
    Ok(header)
}

fn parse_line(line: usize, text: &str) -> Result<Line, TraceError> {
    serde_json::from_str(text).map_err(|error| match serde_json::from_str::<ErrorLine>(text) {
        Ok(ErrorLine { error: reason }) => TraceError::Failed { line, reason },
        Err(_) => TraceError::Malformed { line, reason: error.to_string() },
    })
}

#[derive(Default)]
struct Reader {
    trace: Trace,
    places: HashMap<u64, usize>,
    clients: HashMap<String, usize>,
    stopped: bool,
}

impl Default for Trace {
    fn default() -> Self {
        Self::new(Header {
            ringfence_trace: TRACE_VERSION,
            models: BTreeMap::new(),
            machine: TracedMachine { memory_bytes: 0, cores: 0 },
            quotas: String::new(),
        })
    }
}

impl Reader {
    fn take(&mut self, Line { t, what }: Line) -> Result<(), Impossible> {
        match () {
            () if self.stopped => return Err(Impossible::AfterStop),
            () if t < self.trace.length_us => return Err(Impossible::Backwards),
            () if t > TRACE_US_MAX => return Err(Impossible::TooLarge),
            () => self.trace.length_us = t,
        }
        match what {
            What::Submit(submitted) => self.submit(t, submitted)?,
            What::End(ended) => self.end(ended)?,
            What::Cancel(Cancelled { job, grant_ended }) => {
                let place = self.place(job)?;
                let input = if grant_ended { Input::Forget(place) } else { Input::Cancel(place) };
                self.trace.inputs.push((t, input));
            }
            What::Stop(_) => self.stopped = true,
        }
        Ok(())
    }

    fn submit(&mut self, t: u64, submitted: Submitted) -> Result<(), Impossible> {
        if submitted.items == 0 || submitted.items > ITEMS_MAX {
            return Err(Impossible::Items);
        }
        if submitted.tokens > TRACE_US_MAX || submitted.deadline_us.is_some_and(|us| us > TRACE_US_MAX) {
            return Err(Impossible::TooLarge);
        }
        let next = self.trace.clients.len();
        let client = *self.clients.entry(submitted.client.clone()).or_insert(next);
        if client == CLIENTS_MAX {
            return Err(Impossible::Clients);
        }
        if client == next {
            self.trace.clients.push(submitted.client.clone());
        }
        let place = self.trace.jobs.len();
        if self.places.insert(submitted.job, place).is_some() {
            return Err(Impossible::Twice);
        }
        self.trace.jobs.push(TracedJob { client, submitted, ended: None });
        self.trace.inputs.push((t, Input::Submit(place)));
        Ok(())
    }

    fn end(&mut self, ended: Ended) -> Result<(), Impossible> {
        let times = [ended.device_us, ended.tokens, ended.waited_us.unwrap_or(0)];
        if times.into_iter().any(|number| number > TRACE_US_MAX) {
            return Err(Impossible::TooLarge);
        }
        let place = self.place(ended.job)?;
        match self.trace.jobs[place].ended.replace(ended) {
            None => Ok(()),
            Some(_) => Err(Impossible::Twice),
        }
    }

    fn place(&self, job: u64) -> Result<usize, Impossible> {
        self.places.get(&job).copied().ok_or(Impossible::NoSuchJob)
    }
}
