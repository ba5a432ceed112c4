//! Transcriptions in pieces: OpenAI's server-sent events, sent while the worker still hears the rest.

use super::App;
use super::error::ApiError;
use super::openai::answer_granted;
use super::transcript::{self, DurationUsage, ResponseFormat};
use crate::dispatch::{Answered, JobInput, JobRequest, Piece};
use crate::grants::GrantedFile;
use crate::workers::{Made, Speech};
use axum::body::Body;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper::body::{Bytes, Frame};
use ringfence_protocol::Segment;
use serde::Serialize;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::sync::mpsc;
use utoipa::ToSchema;

/// Pieces that wait for a client that reads slowly; beyond this its job is cancelled.
const PIECES_WAITING_MAX: usize = 256;

/// One event of a transcription with `stream`; its name is its `type`.
#[derive(Debug, Serialize, ToSchema)]
#[serde(tag = "type")]
pub(super) enum TranscriptEvent {
    /// The next of what is said.
    #[serde(rename = "transcript.text.delta")]
    Delta {
        /// To be put behind what came before.
        delta: String,
        /// Where it begins, in seconds. Not in OpenAI's interface.
        start: f64,
        /// Where it ends. Not in OpenAI's interface.
        end: f64,
        /// Of the audio, in seconds. Not in OpenAI's interface.
        duration: f64,
    },
    /// The last, once the audit log has the job.
    #[serde(rename = "transcript.text.done")]
    Done {
        /// What was said.
        text: String,
        /// What was used.
        usage: DurationUsage,
        /// The whole answer in another form than `json` and `text`, where one was asked for. Not in OpenAI's interface.
        #[serde(skip_serializing_if = "Option::is_none")]
        body: Option<String>,
        /// For `GET /jobs/{job}`. Not in OpenAI's interface.
        job: u64,
        /// Where it ran. Not in OpenAI's interface.
        device: String,
        /// The model that was asked for, where another one answered. Not in OpenAI's interface.
        #[serde(skip_serializing_if = "Option::is_none")]
        fallback_from: Option<String>,
    },
}

impl TranscriptEvent {
    fn encode(&self) -> Bytes {
        let name = match self {
            Self::Delta { .. } => "transcript.text.delta",
            Self::Done { .. } => "transcript.text.done",
        };
        let data = serde_json::to_string(self).expect("numbers and texts");
        format!("event: {name}\ndata: {data}\n\n").into()
    }
}

type Answering = Pin<Box<dyn Future<Output = Result<Answered, ApiError>> + Send>>;

/// Answers a job with pieces, from the time that its audio was read to its end: what is wrong before is an answer with a
/// status of its own. Dropped, it takes the job back.
pub(super) async fn answer(
    app: &Arc<App>,
    mut job: JobRequest,
    granted: Option<Arc<GrantedFile>>,
    (format, translated): (ResponseFormat, bool),
) -> Result<Response, ApiError> {
    let (sender, mut pieces) = mpsc::channel(PIECES_WAITING_MAX);
    if let JobInput::Audio { pieces, .. } = &mut job.input {
        *pieces = Some(sender);
    }
    let app = app.clone();
    let mut answering: Answering = Box::pin(async move {
        match granted {
            None => app.dispatcher.answer(job).await,
            Some(file) => answer_granted(&app, job, &file).await,
        }
    });
    let mut stream =
        Pieces { audio_ms: None, told: 0, format, translated, waiting: VecDeque::new(), running: None };
    while stream.audio_ms.is_none() {
        tokio::select! {
            biased;
            Some(piece) = pieces.recv() => stream.take(piece)?,
            answered = &mut answering => {
                stream.end(answered?, &mut pieces)?;
                return Ok(stream.into_response());
            }
        }
    }
    stream.running = Some((pieces, answering));
    Ok(stream.into_response())
}

/// The body.
struct Pieces {
    /// How long the audio is, once that is known.
    audio_ms: Option<u64>,
    /// Segments that were given on.
    told: usize,
    format: ResponseFormat,
    translated: bool,
    waiting: VecDeque<Bytes>,
    /// Until the answer is there.
    running: Option<(mpsc::Receiver<Piece>, Answering)>,
}

impl Pieces {
    fn take(&mut self, piece: Piece) -> Result<(), ApiError> {
        match piece {
            Piece::Begun if self.told > 0 => {
                let message = "the worker died after the first pieces of its answer; ask again";
                return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "interrupted", message));
            }
            Piece::Begun => {}
            Piece::Heard { audio_ms } => self.audio_ms = Some(audio_ms),
            Piece::Segment(segment) => self.tell(&segment),
        }
        Ok(())
    }

    fn tell(&mut self, segment: &Segment) {
        let text = segment.text.as_str();
        // As the whole text, of which these are the pieces, has no space before it.
        let delta = if self.told == 0 { text.trim_start() } else { text };
        let seconds = |millis: u64| millis as f64 / 1e3;
        let event = TranscriptEvent::Delta {
            delta: delta.to_owned(),
            start: seconds(segment.start_ms),
            end: seconds(segment.end_ms),
            duration: seconds(self.audio_ms.unwrap_or_default()),
        };
        self.waiting.push_back(event.encode());
        self.told += 1;
    }

    fn end(&mut self, answered: Answered, pieces: &mut mpsc::Receiver<Piece>) -> Result<(), ApiError> {
        // All of them were sent before the answer.
        while let Ok(piece) = pieces.try_recv() {
            self.take(piece)?;
        }
        let Answered { output, fallback_from, .. } = answered;
        let Made::Speech(speech) = &output.made else {
            return Err(ApiError::internal(&"a transcription without text"));
        };
        let done = TranscriptEvent::Done {
            text: transcript::text(speech),
            usage: DurationUsage::of(speech),
            body: self.body(speech)?,
            job: output.job,
            device: output.device,
            fallback_from,
        };
        self.waiting.push_back(done.encode());
        Ok(())
    }

    fn body(&self, speech: &Speech) -> Result<Option<String>, ApiError> {
        if matches!(self.format, ResponseFormat::Json | ResponseFormat::Text) {
            return Ok(None);
        }
        let body = transcript::body(speech, self.format, self.translated);
        let body = body.map_err(|error| ApiError::internal(&error))?;
        String::from_utf8(body).map(Some).map_err(|error| ApiError::internal(&error))
    }

    /// What comes next, once there is something.
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<(), ApiError>> {
        let Some((pieces, answering)) = &mut self.running else { return Poll::Ready(Ok(())) };
        if let Poll::Ready(Some(piece)) = pieces.poll_recv(context) {
            return Poll::Ready(self.take(piece));
        }
        let answered = ready!(answering.as_mut().poll(context));
        let (mut pieces, _) = self.running.take().expect("it was there");
        Poll::Ready(answered.and_then(|answered| self.end(answered, &mut pieces)))
    }
}

impl hyper::body::Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        loop {
            if let Some(event) = self.waiting.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(event))));
            }
            if self.running.is_none() {
                return Poll::Ready(None);
            }
            if let Err(error) = ready!(self.poll_next(context)) {
                // Gone is the job with it, if it has not ended.
                self.running = None;
                self.waiting.push_back(error.into_event());
            }
        }
    }
}

impl IntoResponse for Pieces {
    fn into_response(self) -> Response {
        let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store")];
        (headers, Body::new(self)).into_response()
    }
}
