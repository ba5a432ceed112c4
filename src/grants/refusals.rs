//! What clients hear where a grant is not given, not decided, not used or not served: the table's and the file service's
//! refusals with their status.

use super::{GuardError, Holder};
use crate::api::ApiError;
use axum::http::StatusCode;
use ringfence_grants::{AskRefusal, DecideRefusal, NarrowRefusal, Refusal};
use std::time::Duration;

/// No such grant, or another's.
pub(crate) fn unknown() -> ApiError {
    ApiError::new(
        StatusCode::NOT_FOUND,
        "grant_unknown",
        "there is no such grant of yours, or it is long over",
    )
}

pub(super) fn asked(refusal: &AskRefusal) -> ApiError {
    let message = refusal.to_string();
    match refusal {
        AskRefusal::Path(_) | AskRefusal::WholeDisk => ApiError::invalid("path_invalid", "path", message),
        AskRefusal::Source(_) => ApiError::invalid("source_invalid", "path", message),
        AskRefusal::SoundWithoutModel => ApiError::invalid("grant_invalid", "model", message),
        AskRefusal::NotOfSound(field) => ApiError::invalid("grant_invalid", field, message),
        AskRefusal::Text(field) | AskRefusal::Range(field, _) => {
            ApiError::invalid("grant_invalid", field, message)
        }
        AskRefusal::TooManyPending(_) => {
            ApiError::new(StatusCode::TOO_MANY_REQUESTS, "grants_pending", message)
                .retry_after(Some(Duration::from_millis(ringfence_grants::QUESTION_EVERY_MS)))
        }
        AskRefusal::TooOften { retry_ms } => {
            ApiError::new(StatusCode::TOO_MANY_REQUESTS, "grants_too_often", message)
                .retry_after(Some(Duration::from_millis(*retry_ms)))
        }
        AskRefusal::Full(_) => ApiError::new(StatusCode::CONFLICT, "grants_full", message),
        AskRefusal::Rule => ApiError::new(StatusCode::FORBIDDEN, "grant_denied_by_rule", message),
    }
}

pub(super) fn decided(refusal: DecideRefusal) -> ApiError {
    let (status, code) = match refusal {
        DecideRefusal::Unknown => (StatusCode::NOT_FOUND, "grant_unknown"),
        DecideRefusal::NotPending => (StatusCode::CONFLICT, "grant_not_pending"),
        DecideRefusal::NotShown => (StatusCode::CONFLICT, "grant_not_shown"),
        DecideRefusal::SelfApproval => (StatusCode::FORBIDDEN, "operator_proof_needed"),
        DecideRefusal::Lifetime => (StatusCode::BAD_REQUEST, "lifetime_invalid"),
    };
    ApiError::new(status, code, refusal.to_string())
}

/// A use that the table refuses, which the operator hears of too.
pub(super) fn refused_to(holder: &Holder<'_>, refusal: Refusal) -> ApiError {
    tracing::info!(client = holder.client, code = refusal.code(), "a use of a grant is refused");
    metrics::counter!("ringfence_grant_refusals_total", "code" => refusal.code()).increment(1);
    refused(refusal)
}

/// A use that the table refuses.
pub(super) fn refused(refusal: Refusal) -> ApiError {
    let status = match refusal {
        Refusal::String(_) | Refusal::Unknown => StatusCode::UNAUTHORIZED,
        Refusal::Path(_) => StatusCode::BAD_REQUEST,
        Refusal::WrongHolder
        | Refusal::WrongAudience
        | Refusal::Expired
        | Refusal::Revoked
        | Refusal::UsedUp
        | Refusal::OutOfScope
        | Refusal::ClockTurnedBack => StatusCode::FORBIDDEN,
    };
    ApiError::new(status, refusal.code(), refusal.to_string())
}

/// What the file service can't or won't do.
pub(super) fn guarded(error: &GuardError) -> ApiError {
    let (status, code) = match error {
        GuardError::Root(_) => (StatusCode::UNPROCESSABLE_ENTITY, "path_refused"),
        GuardError::Start(_) => (StatusCode::SERVICE_UNAVAILABLE, "file_service_failed"),
        GuardError::File(_) => (StatusCode::UNPROCESSABLE_ENTITY, "file_refused"),
        GuardError::Ended => (StatusCode::FORBIDDEN, "grant_revoked"),
        GuardError::Busy => (StatusCode::SERVICE_UNAVAILABLE, "file_service_busy"),
    };
    ApiError::new(status, code, error.to_string())
}

/// A grant of less that can't be made.
pub(super) fn narrowed(refusal: NarrowRefusal) -> ApiError {
    match refusal {
        NarrowRefusal::Use(refusal) => refused(refusal),
        NarrowRefusal::Wider(field) => {
            ApiError::invalid("grant_wider", field, NarrowRefusal::Wider(field).to_string())
        }
        refusal @ (NarrowRefusal::TooDeep | NarrowRefusal::Full(_)) => {
            ApiError::new(StatusCode::CONFLICT, "grants_full", refusal.to_string())
        }
    }
}
