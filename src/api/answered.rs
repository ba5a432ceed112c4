//! What the answers about finished jobs have in common, whatever their bodies: which job it was, where it ran, what it took,
//! and whether another model answered than the one that was asked.

use super::error::ApiError;
use super::openai::with_fallback;
use super::timing;
use crate::clock;
use crate::dispatch::Answered;
use axum::http::HeaderValue;
use axum::response::Response;
use std::time::Instant;

/// Puts the headers on an answer to a request that was received then.
pub(super) fn stamped(
    mut response: Response,
    answered: &Answered,
    received: Instant,
) -> Result<Response, ApiError> {
    let output = &answered.output;
    let stamps = timing::header(clock::instant().duration_since(received), output);
    let text = |text: &str| HeaderValue::from_str(text).map_err(|error| ApiError::internal(&error));
    let headers = response.headers_mut();
    headers.insert("server-timing", text(&stamps)?);
    headers.insert("ringfence-job", HeaderValue::from(output.job));
    headers.insert("ringfence-device", text(&output.device)?);
    with_fallback(response, answered.fallback_from.as_deref())
}
