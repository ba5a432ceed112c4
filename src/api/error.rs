//! Errors on the wire: one stable code each, sorted by who is to blame.

use crate::oom::Rung;
use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper::body::Bytes;
use ringfence_protocol::{AudioFault, JobError, StreamFault};
use serde::Serialize;
use std::time::Duration;
use utoipa::ToSchema;

/// The JSON body of every error, in the form that OpenAI clients read.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct ErrorBody {
    /// What went wrong.
    pub(crate) error: ErrorDetail,
}

/// One error.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct ErrorDetail {
    /// What happened and what to do, for people.
    pub(crate) message: String,
    /// The family, as OpenAI names them.
    #[serde(rename = "type")]
    pub(crate) family: &'static str,
    /// Stable, for programs.
    pub(crate) code: &'static str,
    /// The field of the request that is meant.
    pub(crate) param: Option<String>,
    /// What stopped the job, where it is over for want of memory. Not in OpenAI's interface.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) rung: Option<Rung>,
}

/// An error that ends a request.
#[derive(Debug, Clone)]
pub(crate) struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
    param: Option<String>,
    retry_after: Option<Duration>,
    retry_exact: bool,
    job: Option<u64>,
    rung: Option<Rung>,
    recorded: bool,
}

/// Left with a response for the audit log: what was refused, where no entry of its own says it.
#[derive(Clone, Copy, Debug)]
pub(super) struct RefusedWith(pub(super) &'static str);

impl ApiError {
    /// An error with its status, stable code and message.
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            message: message.into(),
            param: None,
            retry_after: None,
            retry_exact: false,
            job: None,
            rung: None,
            recorded: false,
        }
    }

    /// The request's body or a field of it is wrong.
    pub(crate) fn invalid(code: &'static str, param: &str, message: impl Into<String>) -> Self {
        Self { param: Some(param.to_owned()), ..Self::new(StatusCode::BAD_REQUEST, code, message) }
    }

    /// Our own fault; the cause goes to the log, not to the client.
    pub(crate) fn internal(cause: &dyn std::fmt::Display) -> Self {
        tracing::error!(cause = %cause, "internal error");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the server failed; its log has the cause")
    }

    /// No such model for this client.
    pub(crate) fn model_unknown(name: &str) -> Self {
        let name: String = name.chars().take(64).collect();
        Self {
            param: Some("model".to_owned()),
            ..Self::new(
                StatusCode::NOT_FOUND,
                "model_unknown",
                format!("there is no model {name:?}; GET /v1/models lists them"),
            )
        }
    }

    /// When to try again.
    pub(crate) fn retry_after(self, after: Option<Duration>) -> Self {
        Self { retry_after: after, ..self }
    }

    /// The time is exact if the client does nothing else meanwhile; else it is an estimate.
    pub(crate) fn retry_is_exact(self) -> Self {
        Self { retry_exact: true, ..self }
    }

    /// The answer is this job's.
    pub(crate) fn of_job(self, job: u64) -> Self {
        Self { job: Some(job), ..self }
    }

    /// What stopped the job for want of memory, if something did.
    pub(crate) fn stopped_on(self, rung: Option<Rung>) -> Self {
        Self { rung, ..self }
    }

    /// The audit log has it in an entry of its own, so it is no refusal to be counted.
    pub(crate) fn recorded(self) -> Self {
        Self { recorded: true, ..self }
    }

    /// What happened and what to do.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// The stable code.
    pub(crate) fn code(&self) -> &'static str {
        self.code
    }

    fn family(&self) -> &'static str {
        match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_client_error() => "invalid_request_error",
            _ => "server_error",
        }
    }

    /// The body, which is counted.
    fn counted(&self) -> ErrorBody {
        metrics::counter!("ringfence_errors_total", "code" => self.code).increment(1);
        ErrorBody {
            error: ErrorDetail {
                family: self.family(),
                message: self.message.clone(),
                code: self.code,
                param: self.param.clone(),
                rung: self.rung,
            },
        }
    }

    /// As the last of an answer's server-sent events, with the status that the answer would have had.
    pub(super) fn into_event(self) -> Bytes {
        let ErrorBody { error } = self.counted();
        let data = serde_json::json!({ "error": error, "status": self.status.as_u16() });
        format!("event: error\ndata: {data}\n\n").into()
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = self.counted();
        let detail = body.error.clone();
        let mut response = (self.status, Json(body)).into_response();
        // For those who say it in another form.
        response.extensions_mut().insert(detail);
        if !self.recorded {
            response.extensions_mut().insert(RefusedWith(self.code));
        }
        let headers = response.headers_mut();
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        let may_retry =
            self.status == StatusCode::TOO_MANY_REQUESTS || self.status == StatusCode::SERVICE_UNAVAILABLE;
        if let Some(job) = self.job {
            headers.insert("ringfence-job", HeaderValue::from(job));
        }
        if may_retry {
            let after = self.retry_after.unwrap_or(RETRY_AFTER_DEFAULT);
            // Upwards, or the next try would come a moment too early.
            let millis = u64::try_from(after.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX).max(1);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(millis.div_ceil(1000)));
            headers.insert("retry-after-ms", HeaderValue::from(millis));
            let kind = if self.retry_exact { "exact" } else { "estimate" };
            headers.insert("ringfence-retry", HeaderValue::from_static(kind));
        }
        response
    }
}

/// What a client is told when nothing better is known.
const RETRY_AFTER_DEFAULT: Duration = Duration::from_secs(1);

impl From<&JobError> for ApiError {
    fn from(error: &JobError) -> Self {
        let message = error.to_string();
        match error {
            JobError::InputTooLong { .. } => Self::invalid(
                "input_too_long",
                "input",
                format!("{message}; shorten it or send \"truncate\": true"),
            ),
            JobError::InputEmpty { .. } => Self::invalid("input_empty", "input", message),
            JobError::TokenUnknown { .. } => Self::invalid("token_unknown", "input", message),
            JobError::Tokenizer { .. } => Self::invalid("input_not_tokenizable", "input", message),
            JobError::OutOfMemory { .. } => {
                Self::new(StatusCode::INSUFFICIENT_STORAGE, "out_of_memory", message)
            }
            JobError::NotFinite { .. } => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "output_not_finite", message)
            }
            JobError::InputRefused { .. } => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, "file_refused", message)
            }
            JobError::InputUnavailable => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "input_unavailable", message)
            }
            JobError::InputTooLarge { .. } | JobError::PassagesTooMany { .. } => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, "input_too_large", message)
            }
            JobError::InputNotText { .. } => Self::invalid("input_not_text", "input", message),
            JobError::AudioRefused { fault: AudioFault::TooLong } => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, "input_too_large", message)
            }
            JobError::AudioRefused { fault: AudioFault::Truncated } => {
                Self::invalid("audio_truncated", "file", message)
            }
            JobError::AudioRefused { .. } => Self::invalid("audio_unsupported", "file", message),
            JobError::StreamRefused { fault: StreamFault::NoDetector } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "detector_missing", message)
            }
            JobError::StreamRefused { fault: StreamFault::Busy } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "listeners_full", message)
            }
            JobError::StreamRefused { fault: StreamFault::Forged | StreamFault::CutOff } => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "stream_cut_off", message)
            }
            JobError::LanguageUnknown { .. } => Self::invalid("language_unknown", "language", message),
            JobError::ContextTooLong { .. } => Self::invalid("context_length_exceeded", "messages", message),
            JobError::Template { .. } => Self::invalid("template_refused", "messages", message),
            JobError::Schema { .. } => Self::invalid("schema_refused", "response_format", message),
            JobError::Cancelled => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "cancelled", message),
        }
    }
}
