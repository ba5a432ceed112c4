//! What clients hear where no sound is captured, or no more.

use super::program::Fault;
use crate::api::ApiError;
use axum::http::StatusCode;
use ringfence_protocol::AudioError;

/// No sound, and what to do about it.
pub(crate) fn no_sound(error: AudioError) -> ApiError {
    let status = match error {
        AudioError::NoDevice => StatusCode::NOT_FOUND,
        AudioError::DeviceBusy => StatusCode::CONFLICT,
        AudioError::Denied => StatusCode::FORBIDDEN,
        AudioError::BadFormat | AudioError::Truncated | AudioError::TooFast => StatusCode::BAD_REQUEST,
        AudioError::DeviceVanished
        | AudioError::ServerGone
        | AudioError::ReaderGone
        | AudioError::Interface => StatusCode::SERVICE_UNAVAILABLE,
    };
    ApiError::new(status, error.code(), format!("{error}: {}", error.advice()))
}

/// The program that captures is not there, or not what it must be.
pub(super) fn not_started(fault: &Fault) -> ApiError {
    tracing::error!(%fault, "a program that captures sound");
    let message = "the program that captures sound failed; the server's log says why";
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "audio_program_failed", message)
}

/// No such capture, or another's.
pub(super) fn unknown() -> ApiError {
    ApiError::new(
        StatusCode::NOT_FOUND,
        "capture_unknown",
        "there is no such capture of yours, or it has ended",
    )
}

/// As many as may be.
pub(super) fn busy(most: usize) -> ApiError {
    let message = format!("{most} captures run already, as many as may; end one");
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "captures_full", message)
}

/// A worker could not take the stream in time.
pub(super) fn not_heard() -> ApiError {
    let message = "no worker of this model can hear one more stream now; try again, or end one";
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "listeners_full", message)
}

/// The client did not push what it wanted to.
pub(super) fn no_push() -> ApiError {
    let message = "the sound was not pushed in time; send it to GET /audio/captures/N/push";
    ApiError::new(StatusCode::REQUEST_TIMEOUT, "push_missing", message)
}

/// Who asked for it has left, or it was ended before it began.
pub(super) fn given_up() -> ApiError {
    ApiError::new(StatusCode::CONFLICT, "capture_ended", "the capture was ended before it began")
}

/// The grant has ended before the first sample.
pub(super) fn revoked() -> ApiError {
    ApiError::new(StatusCode::FORBIDDEN, "grant_revoked", "the grant has ended")
}

/// The source and how the client wants to send sound don't go together.
pub(super) fn pushed_or_not(source_is_pushed: bool) -> ApiError {
    let message = if source_is_pushed {
        "the grant is for pushed sound: say in `pushed` what it looks like"
    } else {
        "the grant is for a microphone: leave `pushed` out"
    };
    ApiError::invalid("pushed_invalid", "pushed", message)
}

/// In which state a capture is not paused or resumed.
pub(super) fn not_now(state: &'static str) -> ApiError {
    let message = format!("the capture is {state} now");
    ApiError::new(StatusCode::CONFLICT, "capture_state", message)
}
