//! Transcriptions in pieces, as OpenAI's server-sent events.

use super::error::ApiError;
use super::pieces::Telling;
use super::transcript::{self, DurationUsage, ResponseFormat};
use crate::dispatch::{Answered, Piece};
use crate::workers::{Made, Speech};
use hyper::body::Bytes;
use ringfence_protocol::Segment;
use serde::Serialize;
use std::collections::VecDeque;
use utoipa::ToSchema;

/// One event of a transcription with `stream`; its name is its `type`.
#[derive(Debug, Serialize, ToSchema)]
#[serde(tag = "type")]
pub(super) enum TranscriptEvent {
    /// The next of what is said.
    #[serde(rename = "transcript.text.delta")]
    Delta {
        /// To be put behind what came before.
        delta: String,
        /// Where it begins, in seconds. Not in OpenAI's interface.
        start: f64,
        /// Where it ends. Not in OpenAI's interface.
        end: f64,
        /// Of the audio, in seconds. Not in OpenAI's interface.
        duration: f64,
    },
    /// The last, once the audit log has the job.
    #[serde(rename = "transcript.text.done")]
    Done {
        /// What was said.
        text: String,
        /// What was used.
        usage: DurationUsage,
        /// The whole answer in another form than `json` and `text`, where one was asked for. Not in OpenAI's interface.
        #[serde(skip_serializing_if = "Option::is_none")]
        body: Option<String>,
        /// For `GET /jobs/{job}`. Not in OpenAI's interface.
        job: u64,
        /// Where it ran. Not in OpenAI's interface.
        device: String,
        /// The model that was asked for, where another one answered. Not in OpenAI's interface.
        #[serde(skip_serializing_if = "Option::is_none")]
        fallback_from: Option<String>,
    },
}

impl TranscriptEvent {
    fn encode(&self) -> Bytes {
        let name = match self {
            Self::Delta { .. } => "transcript.text.delta",
            Self::Done { .. } => "transcript.text.done",
        };
        let data = serde_json::to_string(self).expect("numbers and texts");
        format!("event: {name}\ndata: {data}\n\n").into()
    }
}

/// How a transcription is told.
pub(super) struct TranscriptEvents {
    /// How long the audio is, once that is known.
    audio_ms: Option<u64>,
    /// Whether some of it was told.
    told: bool,
    format: ResponseFormat,
    translated: bool,
}

impl TranscriptEvents {
    /// Nothing yet, of an answer in this form.
    pub(super) fn new(format: ResponseFormat, translated: bool) -> Self {
        Self { audio_ms: None, told: false, format, translated }
    }

    fn delta(&mut self, segment: &Segment) -> Bytes {
        let text = segment.text.as_str();
        // As the whole text, of which these are the pieces, has no space before it.
        let delta = if std::mem::replace(&mut self.told, true) { text } else { text.trim_start() };
        let seconds = |millis: u64| millis as f64 / 1e3;
        let event = TranscriptEvent::Delta {
            delta: delta.to_owned(),
            start: seconds(segment.start_ms),
            end: seconds(segment.end_ms),
            duration: seconds(self.audio_ms.unwrap_or_default()),
        };
        event.encode()
    }

    fn body(&self, speech: &Speech) -> Result<Option<String>, ApiError> {
        if matches!(self.format, ResponseFormat::Json | ResponseFormat::Text) {
            return Ok(None);
        }
        let body = transcript::body(speech, self.format, self.translated);
        let body = body.map_err(|error| ApiError::internal(&error))?;
        String::from_utf8(body).map(Some).map_err(|error| ApiError::internal(&error))
    }
}

impl Telling for TranscriptEvents {
    fn has_begun(&self) -> bool {
        self.audio_ms.is_some()
    }

    fn take(&mut self, piece: Piece, events: &mut VecDeque<Bytes>) -> Result<(), ApiError> {
        match piece {
            Piece::Begun => {}
            Piece::Heard { audio_ms } => self.audio_ms = Some(audio_ms),
            Piece::Segment(segment) => events.push_back(self.delta(&segment)),
            Piece::Prompted { .. } | Piece::Text(_) => {
                return Err(ApiError::internal(&"an answer instead of a transcription"));
            }
        }
        Ok(())
    }

    fn end(&mut self, answered: Answered, events: &mut VecDeque<Bytes>) -> Result<(), ApiError> {
        let Answered { output, fallback_from, .. } = answered;
        let Made::Speech(speech) = &output.made else {
            return Err(ApiError::internal(&"a transcription without text"));
        };
        let done = TranscriptEvent::Done {
            text: transcript::text(speech),
            usage: DurationUsage::of(speech),
            body: self.body(speech)?,
            job: output.job,
            device: output.device,
            fallback_from,
        };
        events.push_back(done.encode());
        Ok(())
    }
}
