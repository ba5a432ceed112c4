//! JSON bodies: bounded in bytes and time, refused with a typed error.

use super::error::ApiError;
use crate::clock;
use axum::extract::{FromRequest, Request};
use axum::http::{StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use std::time::{Duration, Instant};

/// The largest request body in bytes.
pub(super) const BODY_BYTES_MAX: usize = 4 * 1024 * 1024;

/// How long a client may take to send its body.
pub(super) const BODY_TIME_MAX: Duration = Duration::from_secs(30);

/// A parsed body with the time at which its request's head had been read.
pub(super) struct JsonBody<T> {
    pub(super) value: T,
    pub(super) received: Instant,
}

impl<T: DeserializeOwned, S: Sync> FromRequest<S> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _state: &S) -> Result<Self, ApiError> {
        let received = clock::instant();
        require_json(&request)?;
        let bytes = read(request, BODY_BYTES_MAX).await?;
        Ok(Self { value: parse(&bytes)?, received })
    }
}

/// The JSON of a body.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let at = error.valid_up_to();
        let message = format!("the body is not UTF-8 at byte {at}");
        ApiError::new(StatusCode::BAD_REQUEST, "invalid_utf8", message)
    })?;
    serde_json::from_str(text).map_err(|error| malformed(&error))
}

/// Of a route that takes nothing: no body, or `{}`. It is read all the same, so that a client that writes it late gets its
/// answer and no broken pipe.
pub(super) struct NoBody;

/// What an empty object may take with white space around it.
pub(super) const NO_BODY_BYTES_MAX: usize = 1024;

impl<S: Sync> FromRequest<S> for NoBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, _state: &S) -> Result<Self, ApiError> {
        let bytes = read(request, NO_BODY_BYTES_MAX).await?;
        match bytes.trim_ascii() {
            b"" | b"{}" => Ok(Self),
            _ => Err(ApiError::new(
                StatusCode::BAD_REQUEST,
                "invalid_request",
                "this route takes no body, or an empty object",
            )),
        }
    }
}

fn require_json(request: &Request) -> Result<(), ApiError> {
    let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = content_type.and_then(|value| value.split(';').next()).map(str::trim);
    if essence.is_some_and(|essence| essence.eq_ignore_ascii_case("application/json")) {
        return Ok(());
    }
    Err(ApiError::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "content_type_unsupported",
        "send the body as JSON, with content-type: application/json",
    ))
}

/// The bytes of a body, at most `max`.
pub(super) async fn read(request: Request, max: usize) -> Result<Vec<u8>, ApiError> {
    read_within(request, max, BODY_TIME_MAX).await
}

/// The same of a body that may take longer to arrive.
pub(super) async fn read_within(request: Request, max: usize, time: Duration) -> Result<Vec<u8>, ApiError> {
    let announced =
        request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if announced.is_some_and(|bytes: u64| bytes > max as u64) {
        return Err(too_large(max));
    }
    let body = Limited::new(request.into_body(), max);
    match tokio::time::timeout(time, body.collect()).await {
        Err(_) => Err(ApiError::new(
            StatusCode::REQUEST_TIMEOUT,
            "request_timeout",
            format!("the body did not arrive within {} s", time.as_secs()),
        )),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large(max)),
        Ok(Err(_)) => Err(ApiError::new(StatusCode::BAD_REQUEST, "body_incomplete", "the body ended early")),
        Ok(Ok(body)) => Ok(body.to_bytes().into()),
    }
}

fn too_large(max: usize) -> ApiError {
    ApiError::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        "body_too_large",
        format!("a body of this route has at most {max} bytes; send less at a time"),
    )
}

fn malformed(error: &serde_json::Error) -> ApiError {
    let code = match error.classify() {
        serde_json::error::Category::Data => "invalid_request",
        serde_json::error::Category::Syntax
        | serde_json::error::Category::Eof
        | serde_json::error::Category::Io => "invalid_json",
    };
    ApiError::new(StatusCode::BAD_REQUEST, code, format!("the body is not as expected: {error}"))
}
