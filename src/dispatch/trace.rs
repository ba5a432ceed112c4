//! A recording of what comes and how it ends, for a replay under other quotas. Names and numbers, no contents.

use super::job::Job;
use super::{Dispatcher, SYSTEM, State};
use crate::api::ApiError;
use crate::clock;
use crate::workers::End;
use axum::body::Bytes;
use axum::http::StatusCode;
use ringfence_scheduler::replay::{
    Cancelled, Ended, ErrorLine, Header, Line, Stop, Submitted, TRACE_BYTES_MAX, TRACE_LINES_MAX,
    TRACE_VERSION, TracedMachine, TracedModel, What,
};
use ringfence_scheduler::{JobId, ModelSnapshot, Outcome, Submit, Time};
use serde::Serialize;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Lines that wait for the one who reads them.
const LINES_WAITING_MAX: usize = 16_384;

/// Room that is kept for the last line.
const LAST_BYTES_MAX: usize = 128;

/// A recording that goes on.
pub(super) struct Recording {
    id: u64,
    lines: mpsc::Sender<Bytes>,
    last: Arc<OnceLock<Bytes>>,
    /// Whoever waits for the recording's end sees it go.
    _goes_on: oneshot::Sender<()>,
    began: Time,
    lines_left: usize,
    bytes_left: usize,
}

/// The lines as they are recorded.
pub(crate) struct TraceLines {
    lines: mpsc::Receiver<Bytes>,
    /// Put there by what ends the recording, whether or not there is room for a line.
    last: Arc<OnceLock<Bytes>>,
    over: bool,
}

impl TraceLines {
    /// The next line; `None` after the last.
    pub(crate) fn poll_line(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        match self.lines.poll_recv(context) {
            Poll::Ready(None) if !self.over => {
                self.over = true;
                Poll::Ready(self.last.get().cloned())
            }
            polled => polled,
        }
    }
}

impl Recording {
    /// Sends a line. One that can't be sent ends the recording: the one who reads must not hold anything up.
    fn push(&mut self, what: What) -> Result<(), ()> {
        let line = encoded(&self.line(what));
        if self.lines_left <= 1 || self.bytes_left < line.len() + LAST_BYTES_MAX {
            self.set_last(Stop::Full);
            return Err(());
        }
        self.lines_left -= 1;
        self.bytes_left -= line.len();
        self.lines.try_send(line).map_err(|_| {
            let error = format!("{LINES_WAITING_MAX} lines were not read in time");
            drop(self.last.set(encoded(&ErrorLine { error })));
        })
    }

    fn line(&self, what: What) -> Line {
        Line { t: micros(clock::now().since(self.began)), what }
    }

    fn set_last(&self, why: Stop) {
        drop(self.last.set(encoded(&self.line(What::Stop(why)))));
    }
}

impl Dispatcher {
    /// Records for so long, or until the reader leaves.
    ///
    /// # Errors
    /// Somebody records already, or the server is about to end.
    pub(crate) fn record(self: &Arc<Self>, time: Duration) -> Result<TraceLines, ApiError> {
        let mut state = self.lock();
        if state.draining {
            return Err(ApiError::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "draining",
                "the server is shutting down",
            ));
        }
        if state.recording.is_some() {
            let message = "a trace is being recorded already; one at a time";
            return Err(ApiError::new(StatusCode::CONFLICT, "trace_busy", message));
        }
        let header = encoded(&self.header(&state));
        let (lines, reader) = mpsc::channel(LINES_WAITING_MAX);
        let (goes_on, over) = oneshot::channel();
        let last = Arc::new(OnceLock::new());
        state.recordings += 1;
        let recording = Recording {
            id: state.recordings,
            lines: lines.clone(),
            last: last.clone(),
            _goes_on: goes_on,
            began: clock::now(),
            lines_left: TRACE_LINES_MAX - 1,
            bytes_left: TRACE_BYTES_MAX.saturating_sub(header.len()),
        };
        lines.try_send(header).map_err(|error| ApiError::internal(&error))?;
        let id = recording.id;
        tracing::info!(recording = id, seconds = time.as_secs(), "a trace is recorded");
        state.recording = Some(recording);
        state.record_backlog();
        let dispatcher = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = tokio::time::sleep(time) => {}
                () = lines.closed() => {}
                _ = over => {}
            }
            dispatcher.stop_recording(id);
        });
        Ok(TraceLines { lines: reader, last, over: false })
    }

    fn stop_recording(&self, id: u64) {
        let mut state = self.lock();
        if state.recording.as_ref().is_some_and(|recording| recording.id == id) {
            state.end_recording(Stop::Time);
        }
    }

    fn header(&self, state: &State) -> Header {
        let snapshot = state.scheduler.snapshot();
        let machine = self.machine;
        let of = |now: &ModelSnapshot| {
            let (name, traced) = state.models.traced(now.model)?;
            let load_us = now.load_time.map_or(0, micros);
            let token_ns = now.token_ns.unwrap_or(0);
            Some((name, TracedModel { load_us, token_ns, ready: now.ready, ..traced }))
        };
        Header {
            ringfence_trace: TRACE_VERSION,
            models: snapshot.models.iter().filter_map(of).collect(),
            machine: TracedMachine { memory_bytes: machine.memory_bytes, cores: machine.cores },
            quotas: state.quotas.text.clone(),
        }
    }
}

impl State {
    /// What is here already comes at the beginning, or a replay would wait for less.
    fn record_backlog(&mut self) {
        let mut here: Vec<JobId> = self.jobs.keys().copied().collect();
        here.sort_unstable();
        for job in here {
            let Job { submit, asked, received, .. } = &self.jobs[&job];
            let waited = clock::instant().duration_since(*received);
            let (submit, asked) = (submit.clone(), asked.map(|asked| asked.saturating_sub(waited)));
            self.record_submit(&submit, asked);
        }
    }

    /// A job comes: said before the scheduler hears of it, as that may end it.
    pub(super) fn record_submit(&mut self, submit: &Submit, asked: Option<Duration>) {
        let Some(job) = self.jobs.get(&submit.job).filter(|job| self.records(job)) else { return };
        let submitted = Submitted {
            job: submit.job.0,
            client: job.client.clone(),
            model: self.models.name(job.model),
            items: job.expected.items(),
            tokens: submit.tokens,
            tokens_bound: submit.tokens_bound,
            audio_ms: submit.audio_ms,
            deadline_us: asked.map(micros),
        };
        self.push_line(What::Submit(submitted));
    }

    /// A client has left, or the grant has ended that the job is on.
    pub(super) fn record_cancel(&mut self, job: JobId, grant_ended: bool) {
        if self.jobs.get(&job).is_some_and(|job| self.records(job)) {
            self.push_line(What::Cancel(Cancelled { job: job.0, grant_ended }));
        }
    }

    /// A job has ended.
    pub(super) fn record_end(&mut self, job: &Job, outcome: &Outcome) {
        if !self.records(job) {
            return;
        }
        let tokens = match &job.result {
            Some(End::Done { tokens, .. }) => u64::from(*tokens),
            Some(End::Failed(_)) | None => 0,
        };
        let ended = Ended {
            job: job.id.0,
            code: outcome.code().to_owned(),
            device_us: self.scheduler.device_time_of(job.id).map_or(0, micros),
            tokens,
            waited_us: self.scheduler.waited_of(job.id).map(micros),
        };
        self.push_line(What::End(ended));
    }

    /// Ends the recording, if there is one, with the line that says why.
    pub(super) fn end_recording(&mut self, why: Stop) {
        if let Some(recording) = self.recording.take() {
            recording.set_last(why);
        }
    }

    fn records(&self, job: &Job) -> bool {
        self.recording.is_some() && job.client != SYSTEM
    }

    fn push_line(&mut self, what: What) {
        if self.recording.as_mut().is_some_and(|recording| recording.push(what).is_err()) {
            self.recording = None;
        }
    }
}

fn encoded(line: &impl Serialize) -> Bytes {
    let mut text = serde_json::to_vec(line).expect("our lines have string keys only");
    text.push(b'\n');
    Bytes::from(text)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A recording of so many lines, the one who reads it, and how many it took before it ended.
    async fn check(lines_left: usize, bytes_left: usize, lines_max: usize, last: &str) {
        let (lines, reader) = mpsc::channel(3);
        let (goes_on, over) = oneshot::channel();
        let last_line = Arc::new(OnceLock::new());
        let mut recording = Recording {
            id: 1,
            lines,
            last: last_line.clone(),
            _goes_on: goes_on,
            began: clock::now(),
            lines_left,
            bytes_left,
        };
        let mut sent = 0;
        while recording.push(What::Cancel(Cancelled { job: 1, grant_ended: false })).is_ok() {
            sent += 1;
        }
        drop(recording);
        assert!(over.await.is_err(), "whoever waits for the end is told");
        assert_eq!(sent, lines_max);
        let mut reader = TraceLines { lines: reader, last: last_line, over: false };
        let mut read = Vec::new();
        while let Some(line) = std::future::poll_fn(|context| reader.poll_line(context)).await {
            read.push(String::from_utf8(line.to_vec()).unwrap());
        }
        assert_eq!(read.len(), sent + 1);
        assert!(read[0].contains("cancel") && read[sent].contains(last), "{read:?}");
    }

    #[tokio::test]
    async fn a_reader_that_is_too_slow_or_a_trace_that_is_full_ends_with_a_line_that_says_so() {
        let slow = format!("{{\"error\":\"{LINES_WAITING_MAX} lines were not read in time\"}}");
        check(100, 10_000, 3, &slow).await;
        check(3, 10_000, 2, "\"stop\":\"full\"").await;
        check(100, LAST_BYTES_MAX + 50, 1, "\"stop\":\"full\"").await;
    }
}
