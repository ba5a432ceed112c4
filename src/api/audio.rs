//! The OpenAI-compatible routes of speech: transcriptions and translations. Audio goes into sealed memory as it comes, or
//! straight from a granted file into the worker; nothing of it is looked at here.

use super::answered::stamped;
use super::body::JsonBody;
use super::error::ApiError;
use super::identity::Caller;
use super::openai::{answer_granted, deadline};
use super::transcript::{self, ResponseFormat, Transcription};
use super::transcript_events::{TranscriptEvent, TranscriptEvents};
use super::{App, pieces};
use crate::clock;
use crate::dispatch::{AudioSource, JobInput, JobRequest, Purpose, seal};
use crate::grants::{GrantedFile, Holder};
use crate::workers::Made;
use axum::extract::multipart::{Field, MultipartError};
use axum::extract::{FromRequest, Multipart, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use ringfence_protocol::{AUDIO_BYTES_MAX, LANGUAGE_BYTES_MAX, PROMPT_BYTES_MAX, TranscribeOptions};
use rustix::fs::{MemfdFlags, memfd_create};
use serde::Deserialize;
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, SemaphorePermit};
use utoipa::ToSchema;

/// Longest model name in a request.
const MODEL_NAME_BYTES_MAX: usize = 128;
/// A form's body: the file, and room for the other fields.
pub(super) const FORM_BYTES_MAX: usize = AUDIO_BYTES_MAX + 64 * 1024;
/// The longest of the other fields.
const FIELD_BYTES_MAX: usize = 8 * 1024;
/// The most fields.
const FIELDS_MAX: usize = 32;
/// Uploads that are in memory at a time, from their first byte to their answer.
const UPLOADS_MAX: usize = 16;
/// How long a client may take to send its form.
pub(super) const FORM_TIME_MAX: Duration = Duration::from_secs(120);

static UPLOADS: Semaphore = Semaphore::const_new(UPLOADS_MAX);

/// A granted file: `{"grant": CAPABILITY, "path": PATH}`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct GrantedAudio {
    /// The capability string of a grant of the file or of a folder that it is in.
    grant: String,
    /// Below that folder; empty for a grant of the file itself.
    #[serde(default)]
    path: String,
}

/// Body of `POST /v1/audio/transcriptions` and `/translations` as JSON, where the audio is a granted file. Uploads come as
/// `multipart/form-data` with the same fields, and the audio's bytes in `file`. Fields that are not listed are ignored, as
/// OpenAI clients send several.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct AudioRequest {
    /// A model's name.
    model: String,
    /// The audio: WAV, FLAC, MP3 or OGG.
    file: GrantedAudio,
    /// What is spoken (`en`), where the client knows; of transcriptions only.
    #[serde(default)]
    language: Option<String>,
    /// What was said before, or how things are spelled.
    #[serde(default)]
    prompt: Option<String>,
    /// `json` (default), `text`, `srt`, `verbose_json` or `vtt`.
    #[serde(default)]
    response_format: ResponseFormat,
    /// From 0 to 1; without it as low as gives a good text.
    #[serde(default)]
    temperature: Option<f32>,
    /// Whether pieces come as they are found, as server-sent events.
    #[serde(default)]
    stream: bool,
    /// As the header `Ringfence-Deadline`, which wins. Not in OpenAI's interface.
    #[serde(default)]
    ringfence_deadline_ms: Option<u64>,
}

/// `POST /v1/audio/transcriptions`
#[utoipa::path(post, path = "/v1/audio/transcriptions",
    request_body(content((AudioRequest = "application/json"), (AudioRequest = "multipart/form-data"))),
    params(("Ringfence-Deadline" = Option<u64>, Header, description = "milliseconds from receipt until the answer is worthless")),
    responses((status = 200, content((Transcription = "application/json"), (TranscriptEvent = "text/event-stream"))),
              (status = "4XX", body = super::error::ErrorBody),
              (status = "5XX", body = super::error::ErrorBody)))]
pub(super) async fn transcriptions(
    State(app): State<Arc<App>>,
    caller: Caller,
    headers: HeaderMap,
    asked: Asked,
) -> Result<Response, ApiError> {
    answer(&app, caller, &headers, asked, false).await
}

/// `POST /v1/audio/translations`: into English.
#[utoipa::path(post, path = "/v1/audio/translations",
    request_body(content((AudioRequest = "application/json"), (AudioRequest = "multipart/form-data"))),
    params(("Ringfence-Deadline" = Option<u64>, Header, description = "milliseconds from receipt until the answer is worthless")),
    responses((status = 200, content((Transcription = "application/json"), (TranscriptEvent = "text/event-stream"))),
              (status = "4XX", body = super::error::ErrorBody),
              (status = "5XX", body = super::error::ErrorBody)))]
pub(super) async fn translations(
    State(app): State<Arc<App>>,
    caller: Caller,
    headers: HeaderMap,
    asked: Asked,
) -> Result<Response, ApiError> {
    answer(&app, caller, &headers, asked, true).await
}

async fn answer(
    app: &Arc<App>,
    caller: Caller,
    headers: &HeaderMap,
    asked: Asked,
    translate: bool,
) -> Result<Response, ApiError> {
    let Asked { model, audio, language, prompt, format, temperature, stream, deadline_ms, received } = asked;
    let deadline = deadline(headers, deadline_ms)?;
    if model.len() > MODEL_NAME_BYTES_MAX {
        return Err(ApiError::model_unknown(&model));
    }
    let language = language.filter(|_| !translate);
    let options = options(translate, language, prompt, temperature)?;
    let (source, granted, _place) = match audio {
        AudioField::Uploaded { memfd, bytes, place } => {
            (AudioSource::Sealed { memfd, bytes }, None, Some(place))
        }
        AudioField::Granted(GrantedAudio { grant, path }) => {
            let holder = Holder::new(&caller.who, &caller.client, &grant, Some(model.clone()));
            let file: Arc<GrantedFile> = app.grants.read(&holder, &path, AUDIO_BYTES_MAX as u64).await?;
            (AudioSource::Granted(file.clone()), Some(file), None)
        }
    };
    let job = JobRequest {
        client: caller.client,
        request_id: caller.who.request.clone().unwrap_or_default(),
        who: caller.who,
        model,
        input: JobInput::Audio { options, source, pieces: None },
        received,
        deadline,
        dimensions: None,
        purpose: Purpose::Client,
    };
    if stream {
        return pieces::answer(app, job, granted, TranscriptEvents::new(format, translate)).await;
    }
    let answered = match granted {
        None => app.dispatcher.answer(job).await?,
        Some(file) => answer_granted(app, job, &file).await?,
    };
    let Made::Speech(speech) = &answered.output.made else {
        return Err(ApiError::internal(&"a transcription without text"));
    };
    let body = transcript::body(speech, format, translate).map_err(|error| ApiError::internal(&error))?;
    stamped(([("content-type", format.content_type())], body).into_response(), &answered, received)
}

pub(super) fn options(
    translate: bool,
    language: Option<String>,
    prompt: Option<String>,
    temperature: Option<f32>,
) -> Result<TranscribeOptions, ApiError> {
    let wrong =
        |param: &'static str, message: String| Err(ApiError::invalid("option_invalid", param, message));
    if temperature.is_some_and(|temperature| !(0.0..=1.0).contains(&temperature)) {
        return wrong("temperature", "temperature is from 0 to 1".to_owned());
    }
    if prompt.as_ref().is_some_and(|prompt| prompt.len() > PROMPT_BYTES_MAX) {
        return wrong("prompt", format!("a prompt has at most {PROMPT_BYTES_MAX} bytes"));
    }
    let is_name = |name: &str| {
        (2..=LANGUAGE_BYTES_MAX).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_lowercase())
    };
    // Forms send empty fields where nothing was chosen.
    let language = language.filter(|language| !language.is_empty());
    if language.as_ref().is_some_and(|language| !is_name(language)) {
        return wrong(
            "language",
            "a language is a code of two or three small letters, such as en".to_owned(),
        );
    }
    Ok(TranscribeOptions {
        translate,
        language,
        prompt: prompt.filter(|prompt| !prompt.is_empty()),
        temperature,
    })
}

/// A request, whichever way it came.
pub(super) struct Asked {
    model: String,
    audio: AudioField,
    language: Option<String>,
    prompt: Option<String>,
    format: ResponseFormat,
    temperature: Option<f32>,
    stream: bool,
    deadline_ms: Option<u64>,
    received: Instant,
}

enum AudioField {
    /// In sealed memory, for as long as the place is held.
    Uploaded {
        memfd: Arc<OwnedFd>,
        bytes: u64,
        place: SemaphorePermit<'static>,
    },
    Granted(GrantedAudio),
}

impl<S: Send + Sync> FromRequest<S> for Asked {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let received = clock::instant();
        let kind = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        if kind.is_some_and(|kind| kind.trim_start().to_ascii_lowercase().starts_with("multipart/form-data"))
        {
            let place = upload_place()?;
            let form = Multipart::from_request(request, state)
                .await
                .map_err(|error| malformed(&error.body_text()))?;
            return match tokio::time::timeout(FORM_TIME_MAX, Form::read(form)).await {
                Ok(form) => form?.asked(received, place),
                Err(_) => Err(ApiError::new(
                    StatusCode::REQUEST_TIMEOUT,
                    "request_timeout",
                    format!("the form did not arrive within {} s", FORM_TIME_MAX.as_secs()),
                )),
            };
        }
        let JsonBody { value, received } = JsonBody::<AudioRequest>::from_request(request, state).await?;
        let AudioRequest {
            model,
            file,
            language,
            prompt,
            response_format: format,
            temperature,
            stream,
            ringfence_deadline_ms: deadline_ms,
        } = value;
        let audio = AudioField::Granted(file);
        Ok(Self { model, audio, language, prompt, format, temperature, stream, deadline_ms, received })
    }
}

/// The fields of a form as they came.
#[derive(Default)]
struct Form {
    file: Option<(Arc<OwnedFd>, u64)>,
    model: Option<String>,
    language: Option<String>,
    prompt: Option<String>,
    response_format: Option<String>,
    temperature: Option<String>,
    stream: Option<String>,
    deadline_ms: Option<String>,
}

impl Form {
    async fn read(mut multipart: Multipart) -> Result<Self, ApiError> {
        let mut form = Self::default();
        for _ in 0..FIELDS_MAX {
            let Some(field) = multipart.next_field().await.map_err(|error| of_form(&error))? else {
                return Ok(form);
            };
            let name = field.name().unwrap_or_default().to_owned();
            let place = match name.as_str() {
                "file" if form.file.is_some() => return Err(malformed("it has two files")),
                "file" => {
                    form.file = Some(sealed(field).await?);
                    continue;
                }
                "model" => &mut form.model,
                "language" => &mut form.language,
                "prompt" => &mut form.prompt,
                "response_format" => &mut form.response_format,
                "temperature" => &mut form.temperature,
                "stream" => &mut form.stream,
                "ringfence_deadline_ms" => &mut form.deadline_ms,
                "timestamp_granularities[]" => {
                    if text(field, &name).await? != "segment" {
                        let message = "times are of segments, not of words";
                        return Err(ApiError::invalid("option_invalid", "timestamp_granularities", message));
                    }
                    continue;
                }
                _ => {
                    text(field, &name).await?;
                    continue;
                }
            };
            *place = Some(text(field, &name).await?);
        }
        Err(malformed(&format!("it has more than {FIELDS_MAX} fields")))
    }

    fn asked(self, received: Instant, place: SemaphorePermit<'static>) -> Result<Asked, ApiError> {
        let missing = |name: &'static str| {
            ApiError::invalid("field_missing", name, format!("the form has no `{name}`"))
        };
        let wrong =
            |name: &'static str, message: &str| ApiError::invalid("option_invalid", name, message.to_owned());
        let (memfd, bytes) = self.file.ok_or_else(|| missing("file"))?;
        let model = self.model.ok_or_else(|| missing("model"))?;
        let format = self.response_format.filter(|format| !format.is_empty()).map_or(
            Ok(ResponseFormat::Json),
            |format| {
                let forms = "response_format is json, text, srt, verbose_json or vtt";
                ResponseFormat::parse(&format).ok_or_else(|| wrong("response_format", forms))
            },
        )?;
        let number =
            |text: String| text.parse::<f32>().map_err(|_| wrong("temperature", "temperature is a number"));
        let temperature = self.temperature.map(number).transpose()?;
        let stream = match self.stream.as_deref() {
            None | Some("" | "false" | "False" | "0") => false,
            Some("true" | "True" | "1") => true,
            Some(_) => return Err(wrong("stream", "stream is true or false")),
        };
        let millis = |text: String| {
            text.parse().map_err(|_| wrong("ringfence_deadline_ms", "it is a number of milliseconds"))
        };
        let deadline_ms = self.deadline_ms.map(millis).transpose()?;
        let audio = AudioField::Uploaded { memfd, bytes, place };
        let (language, prompt) = (self.language, self.prompt);
        Ok(Asked { model, audio, language, prompt, format, temperature, stream, deadline_ms, received })
    }
}

/// A place among the uploads, for as long as it is kept.
pub(super) fn upload_place() -> Result<SemaphorePermit<'static>, ApiError> {
    UPLOADS.try_acquire().map_err(|_| busy())
}

/// The bytes of a file that came as a whole, in memory that nobody changes any more; `name` is what the request calls it.
pub(super) fn sealed_bytes(name: &str, bytes: &[u8]) -> Result<AudioSource, ApiError> {
    let internal = |error: &dyn std::fmt::Display| ApiError::internal(&error.to_string());
    if bytes.len() > AUDIO_BYTES_MAX {
        return Err(too_large());
    }
    if bytes.is_empty() {
        return Err(ApiError::invalid("input_empty", name, format!("{name} is empty")));
    }
    let memfd = memfd_create("audio", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
        .map_err(|error| internal(&error))?;
    let mut file = File::from(memfd);
    file.write_all(bytes).map_err(|error| internal(&error))?;
    let memfd = seal(file).map_err(|error| internal(&error))?;
    Ok(AudioSource::Sealed { memfd, bytes: bytes.len() as u64 })
}

/// A file's bytes, in memory that nobody changes any more.
async fn sealed(mut field: Field<'_>) -> Result<(Arc<OwnedFd>, u64), ApiError> {
    let internal = |error: &dyn std::fmt::Display| ApiError::internal(&error.to_string());
    let memfd = memfd_create("audio", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
        .map_err(|error| internal(&error))?;
    let mut file = File::from(memfd);
    let mut bytes = 0;
    while let Some(chunk) = field.chunk().await.map_err(|error| of_form(&error))? {
        bytes += chunk.len();
        if bytes > AUDIO_BYTES_MAX {
            return Err(too_large());
        }
        file.write_all(&chunk).map_err(|error| internal(&error))?;
    }
    if bytes == 0 {
        return Err(ApiError::invalid("input_empty", "file", "the file is empty"));
    }
    Ok((seal(file).map_err(|error| internal(&error))?, bytes as u64))
}

async fn text(mut field: Field<'_>, name: &str) -> Result<String, ApiError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = field.chunk().await.map_err(|error| of_form(&error))? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > FIELD_BYTES_MAX {
            return Err(malformed(&format!("a field has more than {FIELD_BYTES_MAX} bytes")));
        }
    }
    String::from_utf8(bytes)
        .map_err(|_| malformed(&format!("the field {} is not UTF-8", name.escape_debug())))
}

fn of_form(error: &MultipartError) -> ApiError {
    if error.status() == StatusCode::PAYLOAD_TOO_LARGE { too_large() } else { malformed(&error.body_text()) }
}

fn malformed(why: &str) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, "invalid_form", format!("the form is not as expected: {why}"))
}

fn busy() -> ApiError {
    let message = "too many uploads are under way; try again, or grant the file";
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "uploads_busy", message)
}

fn too_large() -> ApiError {
    let message = format!(
        "an audio file has at most {AUDIO_BYTES_MAX} bytes; send a compressed one, or less at a time"
    );
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
}
