//! The operator's route that records what comes, for a replay under other quotas.

use super::App;
use super::error::ApiError;
use crate::dispatch::TraceLines;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, Uri};
use axum::response::{IntoResponse, Response};
use hyper::body::Frame;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

/// The longest recording, in seconds.
const SECONDS_MAX: u64 = 3_600;

/// `GET /trace`: JSON lines while they happen, until the time is over or the reader leaves.
#[utoipa::path(get, path = "/trace",
    params(("seconds" = u64, Query, description = "how long to record: 1 to 3600")),
    responses((status = 200, body = String, content_type = "application/x-ndjson"),
              (status = "4XX", body = super::error::ErrorBody), (status = 503, body = super::error::ErrorBody)))]
pub(super) async fn record(State(app): State<Arc<App>>, uri: Uri) -> Result<Response, ApiError> {
    let lines = app.dispatcher.record(seconds(uri.query().unwrap_or(""))?)?;
    let mut response = Body::new(Lines(lines)).into_response();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    Ok(response)
}

fn seconds(query: &str) -> Result<Duration, ApiError> {
    let number = query.strip_prefix("seconds=").and_then(|text| text.parse().ok());
    match number {
        Some(seconds @ 1..=SECONDS_MAX) => Ok(Duration::from_secs(seconds)),
        Some(_) | None => Err(ApiError::invalid(
            "seconds_invalid",
            "seconds",
            format!("say how long: GET /trace?seconds=N, from 1 to {SECONDS_MAX}"),
        )),
    }
}

/// The lines as a body.
struct Lines(TraceLines);

impl hyper::body::Body for Lines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_line(context).map(|line| line.map(|line| Ok(Frame::data(line))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_from_a_second_to_an_hour() {
        assert_eq!(seconds("seconds=1").ok(), Some(Duration::from_secs(1)));
        assert_eq!(seconds("seconds=3600").ok(), Some(Duration::from_secs(3_600)));
        for wrong in
            ["", "seconds=", "seconds=0", "seconds=3601", "seconds=-1", "seconds=1&seconds=2", "second=1"]
        {
            assert_eq!(seconds(wrong).err().map(|error| error.code()), Some("seconds_invalid"), "{wrong}");
        }
    }
}
