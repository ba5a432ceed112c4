//! Granted files read and written by the client itself: their bytes, as they are.

use super::App;
use super::body::BODY_TIME_MAX;
use super::error::ApiError;
use super::identity::Caller;
use crate::grants::{Holder, Transfer};
use axum::Json;
use axum::body::Body;
use axum::extract::{Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use hyper::body::{Bytes, Frame, SizeHint};
use ringfence_protocol::{FILE_STEP_BYTES_MAX, WRITE_BYTES_MAX};
use serde::{Deserialize, Serialize};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::sync::mpsc;
use utoipa::ToSchema;

/// Steps that wait for a client that reads slowly.
const STEPS_WAITING_MAX: usize = 2;
/// What the capability string comes in: a body may be the file's.
const CAPABILITY: &str = "ringfence-capability";

/// Query of the file's routes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileQuery {
    /// Below the grant's own path; without it that itself, where it is a file.
    #[serde(default)]
    path: String,
}

/// `GET /grants/file?path=PATH`: a granted file's bytes, or the range of them that the header `Range` names.
#[utoipa::path(get, path = "/grants/file",
    params(("path" = Option<String>, Query, description = "below the grant's own path"),
           ("Ringfence-Capability" = String, Header, description = "of a grant to read, for the client itself"),
           ("Range" = Option<String>, Header, description = "bytes=FIRST-LAST or bytes=FIRST-")),
    responses((status = 200, body = Vec<u8>, content_type = "application/octet-stream"),
              (status = 206, body = Vec<u8>, content_type = "application/octet-stream"),
              (status = "4XX", body = super::error::ErrorBody), (status = "5XX", body = super::error::ErrorBody)))]
pub(super) async fn read(
    State(app): State<Arc<App>>,
    caller: Caller,
    headers: HeaderMap,
    query: Result<Query<FileQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, ApiError> {
    let path = path_of(query)?;
    let range = Range::of(&headers)?;
    let holder = Holder::new(&caller.who, &caller.client, capability(&headers)?, None);
    let most = range.map_or(u64::MAX, |range| range.last.map_or(u64::MAX, |last| last - range.first + 1));
    let file = app.grants.read_for_client(&holder, &path, most).await?;
    let size = file.size;
    let (first, end) = match range {
        None => (0, size),
        Some(Range { first, .. }) if first >= size => {
            file.finish().await;
            return Err(range_invalid(&format!("the file has {size} bytes")));
        }
        Some(Range { first, last }) => (first, last.map_or(size, |last| size.min(last + 1))),
    };
    let body = Body::new(Steps::of(file, first, end));
    let mut response = ([(header::CONTENT_TYPE, "application/octet-stream")], body).into_response();
    if range.is_some() {
        let value = format!("bytes {first}-{}/{size}", end - 1);
        let value =
            value.try_into().map_err(|error: header::InvalidHeaderValue| ApiError::internal(&error))?;
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        response.headers_mut().insert(header::CONTENT_RANGE, value);
    }
    Ok(response)
}

/// Answer of `PUT /grants/file`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Written {
    /// The file's length.
    bytes: u64,
}

/// `PUT /grants/file?path=PATH`: the body becomes the file, whole and durably or not at all. Its folder must be there.
#[utoipa::path(put, path = "/grants/file", request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    params(("path" = Option<String>, Query, description = "below the grant's own path"),
           ("Ringfence-Capability" = String, Header, description = "of a grant to write")),
    responses((status = 200, body = Written),
              (status = "4XX", body = super::error::ErrorBody), (status = "5XX", body = super::error::ErrorBody)))]
pub(super) async fn write(
    State(app): State<Arc<App>>,
    caller: Caller,
    query: Result<Query<FileQuery>, axum::extract::rejection::QueryRejection>,
    request: Request,
) -> Result<Json<Written>, ApiError> {
    let path = path_of(query)?;
    let capability = capability(request.headers())?.to_owned();
    let holder = Holder::new(&caller.who, &caller.client, &capability, None);
    let mut body = request.into_body();
    // An empty file is a use as well.
    let most = hyper::body::Body::size_hint(&body).exact().unwrap_or(WRITE_BYTES_MAX).max(1);
    let mut file = app.grants.write_for_client(&holder, &path, most).await?;
    let written = take(&mut body, &mut file).await;
    file.finish().await;
    Ok(Json(Written { bytes: written? }))
}

/// The body into the file, in whole steps; its length.
async fn take(body: &mut Body, file: &mut Transfer) -> Result<u64, ApiError> {
    let (mut step, mut at) = (Vec::with_capacity(FILE_STEP_BYTES_MAX), 0);
    while let Some(bytes) = next_bytes(body).await? {
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(FILE_STEP_BYTES_MAX - step.len()));
            step.extend_from_slice(now);
            rest = later;
            if step.len() == FILE_STEP_BYTES_MAX {
                file.write(at, &step).await?;
                at += step.len() as u64;
                step.clear();
            }
        }
    }
    if !step.is_empty() {
        file.write(at, &step).await?;
    }
    file.commit().await
}

async fn next_bytes(body: &mut Body) -> Result<Option<Bytes>, ApiError> {
    let incomplete = || ApiError::new(StatusCode::BAD_REQUEST, "body_incomplete", "the body ended early");
    match tokio::time::timeout(BODY_TIME_MAX, body.frame()).await {
        Err(_) => {
            Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", "the body stopped coming"))
        }
        Ok(None) => Ok(None),
        Ok(Some(Err(_))) => Err(incomplete()),
        Ok(Some(Ok(frame))) => Ok(Some(frame.into_data().unwrap_or_default())),
    }
}

fn path_of(
    query: Result<Query<FileQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<String, ApiError> {
    let wrong =
        |_| ApiError::invalid("query_invalid", "query", "the query has `path`, once, and nothing else");
    query.map(|Query(FileQuery { path })| path).map_err(wrong)
}

fn capability(headers: &HeaderMap) -> Result<&str, ApiError> {
    let missing = || {
        let message = format!("send the capability string of a grant in the header `{CAPABILITY}`");
        ApiError::new(StatusCode::UNAUTHORIZED, "capability_missing", message)
    };
    headers.get(CAPABILITY).and_then(|value| value.to_str().ok()).ok_or_else(missing)
}

/// One range of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    first: u64,
    last: Option<u64>,
}

impl Range {
    fn of(headers: &HeaderMap) -> Result<Option<Self>, ApiError> {
        let Some(value) = headers.get(header::RANGE) else { return Ok(None) };
        let wrong = || range_invalid("the range is bytes=FIRST-LAST or bytes=FIRST-");
        let range = value.to_str().ok().and_then(Self::parse);
        range.map(Some).ok_or_else(wrong)
    }

    fn parse(text: &str) -> Option<Self> {
        let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
        let first = first.parse().ok()?;
        let last = if last.is_empty() { None } else { Some(last.parse().ok()?) };
        last.is_none_or(|last: u64| last >= first && last < u64::MAX).then_some(Self { first, last })
    }
}

fn range_invalid(message: &str) -> ApiError {
    ApiError::new(StatusCode::RANGE_NOT_SATISFIABLE, "range_invalid", message.to_owned())
}

/// A file's bytes on their way to a client: an end of the grant ends them early, which the client sees by their number.
struct Steps {
    steps: mpsc::Receiver<io::Result<Bytes>>,
    left: u64,
}

impl Steps {
    fn of(file: Transfer, first: u64, end: u64) -> Self {
        let (sender, steps) = mpsc::channel(STEPS_WAITING_MAX);
        tokio::spawn(pump(file, first, end, sender));
        Self { steps, left: end - first }
    }
}

async fn pump(mut file: Transfer, mut at: u64, end: u64, to: mpsc::Sender<io::Result<Bytes>>) {
    while at < end {
        let step = match file.read(at, end - at).await {
            Ok(bytes) if bytes.is_empty() => Err(io::Error::other("the file became shorter")),
            Ok(bytes) => Ok(Bytes::from(bytes)),
            Err(error) => Err(io::Error::other(error.code())),
        };
        at += step.as_ref().map_or(0, |bytes| bytes.len() as u64);
        if step.is_err() || at >= end {
            // What was used is counted before the client has the last of it, and may give the grant back.
            file.finish().await;
            drop(tokio::time::timeout(BODY_TIME_MAX, to.send(step)).await);
            return;
        }
        // A client that takes nothing for so long, or has left, gets no more.
        if !matches!(tokio::time::timeout(BODY_TIME_MAX, to.send(step)).await, Ok(Ok(()))) {
            break;
        }
    }
    file.finish().await;
}

impl hyper::body::Body for Steps {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let step = std::task::ready!(self.steps.poll_recv(context));
        if let Some(Ok(bytes)) = &step {
            self.left = self.left.saturating_sub(bytes.len() as u64);
        }
        Poll::Ready(step.map(|step| step.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_one_of_bytes() {
        let range = |first, last| Some(Range { first, last });
        assert_eq!(Range::parse("bytes=0-0"), range(0, Some(0)));
        assert_eq!(Range::parse("bytes=5-"), range(5, None));
        for wrong in [
            "bytes=-5",
            "bytes=5-4",
            "bytes=1-2,4-5",
            "lines=1-2",
            "bytes=a-b",
            "bytes=1-18446744073709551615",
        ] {
            assert_eq!(Range::parse(wrong), None, "{wrong}");
        }
    }
}
