//! Live sound: a client starts, pauses, renews and stops captures, pushes sound of its own, and reads what was said as it is
//! said.

use super::App;
use super::audio::options;
use super::body::{JsonBody, NoBody};
use super::error::ApiError;
use super::identity::{Caller, Viewer};
use super::query::{query, wait};
use crate::capture::{CaptureEvent, CaptureRequest, CaptureView, CapturesView, PushSocket};
use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use hyper::upgrade;
use ringfence_grants::Transform;
use ringfence_protocol::{
    AUDIO_CHANNELS_MAX, AUDIO_RATES, ChunkBytes, Framing, Pace, Pushed, SampleEncoding, TRANSFORMS_MAX,
};
use serde::Deserialize;
use std::sync::Arc;
use utoipa::ToSchema;

/// The longest silence that can be asked about, in milliseconds.
const SILENCE_MS_MAX: u32 = 15 * 60 * 1_000;

/// Body of `POST /audio/captures`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CaptureBody {
    /// Of a grant of kind `audio_capture`; each start is a use of it.
    capability: String,
    /// The model that hears: the one that the grant is for.
    model: String,
    /// What is spoken (`en`), where the client knows.
    #[serde(default)]
    language: Option<String>,
    /// What was said before, or how things are spelled.
    #[serde(default)]
    prompt: Option<String>,
    /// Into English.
    #[serde(default)]
    translate: bool,
    /// What is done to the sound before the model hears it, in this order, after what the operator wants: `{"high_pass":
    /// {"hz": 80}}`, `"gain_control"`, `"obfuscate"`, `{"decimate": {"factor": 2}}`.
    #[serde(default)]
    #[schema(value_type = Vec<Object>)]
    transforms: Vec<Transform>,
    /// After so much silence in a row a notice comes, in milliseconds; 0 for none.
    #[serde(default)]
    silence_ms: u32,
    /// For a grant of `pushed`: what the client's own sound looks like.
    #[serde(default)]
    pushed: Option<PushedBody>,
}

/// Sound that the client sends itself: samples without any header, channels interleaved.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PushedBody {
    /// `s16le` or `f32le`.
    encoding: Encoding,
    /// Samples a second.
    rate: u32,
    /// From 1 to 8; they are averaged.
    channels: u16,
    /// `real_time` or `buffered`.
    pace: PaceBody,
    /// `websocket`, `chunked` or `plain`.
    framing: FramingBody,
}

#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Encoding {
    S16le,
    F32le,
}

#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum PaceBody {
    RealTime,
    Buffered,
}

#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum FramingBody {
    Websocket,
    Chunked,
    Plain,
}

impl PushedBody {
    fn checked(&self) -> Result<Pushed, ApiError> {
        if !AUDIO_RATES.contains(&self.rate) || !(1..=AUDIO_CHANNELS_MAX).contains(&self.channels) {
            let message =
                format!("pushed sound has 1 to {AUDIO_CHANNELS_MAX} channels at one of {AUDIO_RATES:?} Hz");
            return Err(ApiError::invalid("audio_bad_format", "pushed", message));
        }
        Ok(Pushed {
            framing: match self.framing {
                FramingBody::Websocket => Framing::WebSocket,
                FramingBody::Chunked => Framing::HttpChunks,
                FramingBody::Plain => Framing::Plain,
            },
            encoding: match self.encoding {
                Encoding::S16le => SampleEncoding::S16Le,
                Encoding::F32le => SampleEncoding::F32Le,
            },
            rate: self.rate,
            channels: self.channels,
            pace: match self.pace {
                PaceBody::RealTime => Pace::RealTime,
                PaceBody::Buffered => Pace::Buffered,
            },
            head: ChunkBytes(Vec::new()),
        })
    }
}

/// `POST /audio/captures`: opens the granted source and captures it, or waits for its push. What is said comes as it is said,
/// as server-sent events; closing the connection ends the capture.
#[utoipa::path(post, path = "/audio/captures", request_body = CaptureBody,
    responses((status = 200, body = CaptureEvent, content_type = "text/event-stream"),
              (status = "4XX", body = super::error::ErrorBody), (status = "5XX", body = super::error::ErrorBody)))]
pub(super) async fn start(
    State(app): State<Arc<App>>,
    caller: Caller,
    JsonBody { value, received }: JsonBody<CaptureBody>,
) -> Result<Response, ApiError> {
    let CaptureBody { capability, model, language, prompt, translate, transforms, silence_ms, pushed } =
        value;
    if transforms.len() > TRANSFORMS_MAX || !transforms.iter().all(|one| one.is_legal()) {
        let message = format!(
            "at most {TRANSFORMS_MAX} transforms; a high-pass is from 20 to 2000 Hz, decimation by 2 or 4"
        );
        return Err(ApiError::invalid("transforms_invalid", "transforms", message));
    }
    if silence_ms > SILENCE_MS_MAX {
        let message = format!("silence_ms is at most {SILENCE_MS_MAX}");
        return Err(ApiError::invalid("option_invalid", "silence_ms", message));
    }
    let options = options(translate, language, prompt, None)?;
    let pushed = pushed.as_ref().map(PushedBody::checked).transpose()?;
    let Caller { client, who } = caller;
    let request =
        CaptureRequest { who, client, capability, model, options, transforms, silence_ms, pushed, received };
    let events = app.captures.start(request).await?;
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store")];
    Ok((headers, events.into_body()).into_response())
}

/// `GET /audio/captures?after=VERSION&wait_ms=N`: one's own, the operator's all; at once, or as soon as one has begun, ended
/// or been paused.
#[utoipa::path(get, path = "/audio/captures",
    params(("after" = Option<u64>, Query, description = "the version that is known"),
           ("wait_ms" = Option<u64>, Query, description = "how long to wait for another: 0 to 60000")),
    responses((status = 200, body = CapturesView), (status = 400, body = super::error::ErrorBody)))]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    Viewer(viewer): Viewer,
    uri: Uri,
) -> Result<Json<CapturesView>, ApiError> {
    let [after, wait_ms] = query(&uri, ["after", "wait_ms"])?;
    Ok(Json(app.captures.list(viewer.as_deref(), after, wait(wait_ms)?).await))
}

/// `POST /audio/captures/{capture}/pause`: after the answer no sample is taken until it is resumed.
#[utoipa::path(post, path = "/audio/captures/{capture}/pause", params(("capture" = u64, Path)),
    responses((status = 200, body = CaptureView), (status = "4XX", body = super::error::ErrorBody)))]
pub(super) async fn pause(
    State(app): State<Arc<App>>,
    Viewer(viewer): Viewer,
    Path(capture): Path<String>,
    NoBody: NoBody,
) -> Result<Json<CaptureView>, ApiError> {
    app.captures.pause(number(&capture), viewer.as_deref()).await.map(Json)
}

/// `POST /audio/captures/{capture}/resume`
#[utoipa::path(post, path = "/audio/captures/{capture}/resume", params(("capture" = u64, Path)),
    responses((status = 200, body = CaptureView), (status = "4XX", body = super::error::ErrorBody)))]
pub(super) async fn resume(
    State(app): State<Arc<App>>,
    Viewer(viewer): Viewer,
    Path(capture): Path<String>,
    NoBody: NoBody,
) -> Result<Json<CaptureView>, ApiError> {
    app.captures.resume(number(&capture), viewer.as_deref()).await.map(Json)
}

/// `POST /audio/captures/{capture}/stop`: after the answer no sample is taken any more; what was said still becomes text.
#[utoipa::path(post, path = "/audio/captures/{capture}/stop", params(("capture" = u64, Path)),
    responses((status = 200, body = CaptureView), (status = "4XX", body = super::error::ErrorBody)))]
pub(super) async fn stop(
    State(app): State<Arc<App>>,
    Viewer(viewer): Viewer,
    Path(capture): Path<String>,
    NoBody: NoBody,
) -> Result<Json<CaptureView>, ApiError> {
    app.captures.stop(number(&capture), viewer.as_deref()).await.map(Json)
}

/// Body of `POST /audio/captures/{capture}/renew`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RenewBody {
    /// Of another grant for the same source and model.
    capability: String,
}

/// `POST /audio/captures/{capture}/renew`: it goes on under another grant, with whose end it ends from then on.
#[utoipa::path(post, path = "/audio/captures/{capture}/renew", params(("capture" = u64, Path)), request_body = RenewBody,
    responses((status = 200, body = CaptureView), (status = "4XX", body = super::error::ErrorBody)))]
pub(super) async fn renew(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(capture): Path<String>,
    JsonBody { value, .. }: JsonBody<RenewBody>,
) -> Result<Json<CaptureView>, ApiError> {
    let RenewBody { capability } = value;
    app.captures.renew(number(&capture), &caller.who, &caller.client, &capability).await.map(Json)
}

/// `GET /audio/captures/{capture}/push`: upgrades the connection, over which the client's sound comes from then on: frames of a
/// WebSocket, or samples plain or in HTTP chunks with `Upgrade: ringfence-pcm`. The program that captures gets the
/// connection; nothing is ever written to it.
#[utoipa::path(get, path = "/audio/captures/{capture}/push", params(("capture" = u64, Path),
        ("Upgrade" = String, Header, description = "websocket, or ringfence-pcm")),
    responses((status = 101, description = "sound is expected"), (status = "4XX", body = super::error::ErrorBody)))]
pub(super) async fn push(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(capture): Path<String>,
    mut request: Request,
) -> Result<Response, ApiError> {
    let (headers, to) = app.captures.pushes(number(&capture), &caller.client, request.headers())?;
    let upgrading = upgrade::on(&mut request);
    tokio::spawn(async move {
        let taken = match upgrading.await {
            Ok(upgraded) => PushSocket::take(upgraded).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match taken {
            // A capture that has ended meanwhile closes the connection.
            Ok(socket) => drop(to.send(socket)),
            Err(error) => tracing::warn!(error, "a push did not come"),
        }
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().extend(headers);
    Ok(response)
}

/// One that is no number is nobody's.
fn number(capture: &str) -> u64 {
    capture.parse().unwrap_or(0)
}
