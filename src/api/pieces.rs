//! Answers in pieces: server-sent events, sent while the worker still makes the rest.

use super::App;
use super::error::ApiError;
use super::openai::answer_granted;
use crate::dispatch::{Answered, JobInput, JobRequest, Piece};
use crate::grants::GrantedFile;
use axum::body::Body;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper::body::{Bytes, Frame};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::sync::mpsc;

/// Pieces that wait for a client that reads slowly; beyond this its job is cancelled.
const PIECES_WAITING_MAX: usize = 256;

/// How one interface writes the pieces of a job down.
pub(super) trait Telling: Send + Unpin + 'static {
    /// Whether enough is known to answer with a status: what is wrong before is an answer with a status of its own.
    fn has_begun(&self) -> bool;

    /// Events for what a worker says, if it is worth any.
    ///
    /// # Errors
    /// It is no piece of such a job.
    fn take(&mut self, piece: Piece, events: &mut VecDeque<Bytes>) -> Result<(), ApiError>;

    /// Events for the end.
    ///
    /// # Errors
    /// It is no end of such a job.
    fn end(&mut self, answered: Answered, events: &mut VecDeque<Bytes>) -> Result<(), ApiError>;
}

type Answering = Pin<Box<dyn Future<Output = Result<Answered, ApiError>> + Send>>;

/// Answers a job with pieces, from the time that it has begun. Dropped, it takes the job back.
pub(super) async fn answer(
    app: &Arc<App>,
    mut job: JobRequest,
    granted: Option<Arc<GrantedFile>>,
    telling: impl Telling,
) -> Result<Response, ApiError> {
    let (sender, mut pieces) = mpsc::channel(PIECES_WAITING_MAX);
    if let JobInput::Audio { pieces, .. } | JobInput::Generate { pieces, .. } = &mut job.input {
        *pieces = Some(sender);
    }
    let app = app.clone();
    let mut answering: Answering = Box::pin(async move {
        match granted {
            None => app.dispatcher.answer(job).await,
            Some(file) => answer_granted(&app, job, &file).await,
        }
    });
    let mut stream = Pieces { telling, told: false, waiting: VecDeque::new(), running: None };
    while !stream.telling.has_begun() {
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
struct Pieces<T> {
    telling: T,
    /// Whether some of the answer was given on.
    told: bool,
    waiting: VecDeque<Bytes>,
    /// Until the answer is there.
    running: Option<(mpsc::Receiver<Piece>, Answering)>,
}

impl<T: Telling> Pieces<T> {
    fn take(&mut self, piece: Piece) -> Result<(), ApiError> {
        match piece {
            Piece::Begun if self.told => {
                let message = "the worker died after the first pieces of its answer; ask again";
                Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "interrupted", message))
            }
            Piece::Begun => Ok(()),
            piece @ (Piece::Heard { .. } | Piece::Prompted { .. }) => {
                self.telling.take(piece, &mut self.waiting)
            }
            piece @ (Piece::Segment(_) | Piece::Text(_)) => {
                self.told = true;
                self.telling.take(piece, &mut self.waiting)
            }
        }
    }

    fn end(&mut self, answered: Answered, pieces: &mut mpsc::Receiver<Piece>) -> Result<(), ApiError> {
        // All of them were sent before the answer.
        while let Ok(piece) = pieces.try_recv() {
            self.take(piece)?;
        }
        self.telling.end(answered, &mut self.waiting)
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

impl<T: Telling> hyper::body::Body for Pieces<T> {
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

impl<T: Telling> IntoResponse for Pieces<T> {
    fn into_response(self) -> Response {
        let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store")];
        (headers, Body::new(self)).into_response()
    }
}
