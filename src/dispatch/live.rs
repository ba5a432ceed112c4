//! Live jobs: they run for as long as somebody listens, and say what they hear as they go.

use super::abandon::Waiting;
use super::job::LiveInput;
use super::{Dispatcher, JobInput, JobRequest, Output, Purpose, State};
use crate::api::ApiError;
use crate::audit::{AuditError, Lane, Who};
use crate::grants::GrantEnd;
use crate::packages::{DETECTOR, Package};
use crate::workers::Said;
use axum::http::StatusCode;
use ringfence_audit::{Event as Entry, Word};
use ringfence_protocol::{StreamPublic, TranscribeOptions};
use ringfence_scheduler::{Event, JobId};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::Instant;
use tokio::sync::{mpsc, oneshot};

/// What a live job has said and its capture has not taken yet. Partial texts and counts beyond it are left out; a final text
/// beyond it ends the job.
const SAID_MAX: usize = 256;

/// A live job. Dropped before its end, the job is taken back; where its grant has ended, its worker forgets it at once.
pub(crate) struct Listening {
    /// Its number.
    pub(crate) job: u64,
    /// What its worker says.
    said: mpsc::Receiver<Said>,
    answer: oneshot::Receiver<Result<Output, ApiError>>,
    waiting: Option<Waiting>,
}

/// What comes of a live job.
pub(crate) enum Heard {
    /// Its worker says something.
    Said(Said),
    /// It has ended; nothing more comes.
    End(Result<(), ApiError>),
}

impl Listening {
    /// The next that comes of it; nobody asks again after its end.
    pub(crate) async fn next(&mut self) -> Heard {
        // All of what is said was sent before the answer, by whoever sends both.
        tokio::select! {
            biased;
            Some(said) = self.said.recv() => Heard::Said(said),
            answer = &mut self.answer => Heard::End(self.ended(answer)),
        }
    }

    fn ended(
        &mut self,
        answer: Result<Result<Output, ApiError>, oneshot::error::RecvError>,
    ) -> Result<(), ApiError> {
        if let Some(waiting) = self.waiting.take() {
            waiting.answered();
        }
        match answer {
            Ok(answer) => answer.map(drop),
            Err(_) => Err(ApiError::internal(&"a live job ended without an answer")),
        }
    }
}

/// Whom a live job is for, and what it hears.
pub(crate) struct Listen {
    /// NAME or `uid:N`.
    pub(crate) client: String,
    pub(crate) who: Who,
    pub(crate) model: String,
    pub(crate) received: Instant,
    pub(crate) options: TranscribeOptions,
    /// The key of the program that captures.
    pub(crate) audio: StreamPublic,
    /// The reader's end of the stream.
    pub(crate) socket: OwnedFd,
    /// Of the grant that it is on.
    pub(crate) grant: GrantEnd,
}

impl Listening {
    /// Puts it under another grant, whose end is its own from now on.
    pub(crate) fn renew(&mut self, grant: GrantEnd) {
        if let Some(waiting) = &mut self.waiting {
            waiting.renew(grant);
        }
    }
}

impl Dispatcher {
    /// Gives a worker a stream to hear. It is not listened to before its key has come.
    pub(crate) async fn listen(self: &Arc<Self>, listen: Listen) -> Result<Listening, ApiError> {
        let detector = self.detector().await?;
        let Listen { client, who, model, received, options, audio, socket, grant } = listen;
        let place = Some(self.audit.place(Lane::Job).await?);
        let (to, said) = mpsc::channel(SAID_MAX);
        let socket = Arc::new(Mutex::new(Some(socket)));
        let request = JobRequest {
            client,
            request_id: who.request.clone().unwrap_or_default(),
            who,
            model,
            input: JobInput::Live(LiveInput { options, audio, socket, said: to, detector }),
            received,
            deadline: None,
            dimensions: None,
            purpose: Purpose::Client,
        };
        let (job, answer) = self.submit(request, place)?;
        let waiting = Some(Waiting::new(self.clone(), job, Some(grant)));
        Ok(Listening { job: job.0, said, answer, waiting })
    }

    /// The voice detector, verified as every package is.
    async fn detector(self: &Arc<Self>) -> Result<Arc<Package>, ApiError> {
        // As any reading of packages: what a change of trust has let go is not put back by a verification from before it.
        let _reading = self.reading.lock().await;
        if let Some(detector) = &self.lock().detector {
            return Ok(detector.clone());
        }
        let packages = self.packages.clone();
        let loaded = tokio::task::spawn_blocking(move || packages.load_detector()).await;
        let loaded = loaded.map_err(|error| ApiError::internal(&error))?;
        let package = loaded.map_err(|error| detector_missing(&error.to_string()))?;
        self.record_detector(&package).await?;
        let package = Arc::new(package);
        self.lock().detector = Some(package.clone());
        Ok(package)
    }

    async fn record_detector(&self, package: &Package) -> Result<(), AuditError> {
        self.record_trust().await?;
        let (digest, signer) = (Word::lossy(&package.digest), Word::lossy(&package.signer));
        let model = Word::lossy(DETECTOR);
        self.audit.record(&Who::server(), move |_| Entry::ModelLoaded { model, digest, signer }).await
    }

    /// A live job's worker has said something.
    pub(super) fn live_said(self: &Arc<Self>, state: &mut State, job: JobId, said: Said) {
        if let Said::Listened(listened) = &said {
            self.step(state, Event::Listened { job, audio_ms: listened.audio_ms });
        }
        let must_arrive = matches!(said, Said::Listens(_) | Said::Final(_));
        let live = state.jobs.get(&job).and_then(|job| job.input.live());
        let told = live.is_none_or(|live| live.said.try_send(said).is_ok());
        if !told && must_arrive {
            self.step(state, Event::Cancel { job });
        }
    }
}

fn detector_missing(why: &str) -> ApiError {
    let message = format!(
        "live sound is cut into phrases by the package `{DETECTOR}`, which can't be used: {why}; add it with `ringfence model \
         add {DETECTOR}`"
    );
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "detector_missing", message)
}
