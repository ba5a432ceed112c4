//! What was said, in the forms that clients ask for.

use crate::workers::Speech;
use ringfence_protocol::Segment;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The forms of OpenAI's interface.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum ResponseFormat {
    /// `{"text": ...}`.
    #[default]
    Json,
    /// The text alone.
    Text,
    /// SubRip subtitles.
    Srt,
    /// JSON with language, duration and segments.
    VerboseJson,
    /// WebVTT subtitles.
    Vtt,
}

impl ResponseFormat {
    /// From a form's field.
    pub(super) fn parse(text: &str) -> Option<Self> {
        serde_json::from_value(serde_json::Value::String(text.to_owned())).ok()
    }

    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::Json | Self::VerboseJson => "application/json",
            Self::Text | Self::Srt => "text/plain; charset=utf-8",
            Self::Vtt => "text/vtt; charset=utf-8",
        }
    }
}

/// Answer in the form `json`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Transcription {
    /// What was said.
    text: String,
    /// What was used.
    usage: DurationUsage,
}

/// What a transcription used.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct DurationUsage {
    /// Always `duration`.
    #[serde(rename = "type")]
    kind: &'static str,
    /// Of the audio, rounded up.
    seconds: u64,
}

impl DurationUsage {
    pub(super) fn of(speech: &Speech) -> Self {
        Self { kind: "duration", seconds: speech.audio_ms.div_ceil(1_000) }
    }
}

/// Answer in the form `verbose_json`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct VerboseTranscription<'a> {
    /// `transcribe` or `translate`.
    task: &'static str,
    /// What was spoken, as the model names it.
    language: &'a str,
    /// Of the audio, in seconds.
    duration: f64,
    /// What was said.
    text: String,
    /// The same in pieces.
    segments: Vec<VerboseSegment<'a>>,
    /// What was used.
    usage: DurationUsage,
}

/// A piece of what was said.
#[derive(Debug, Serialize, ToSchema)]
struct VerboseSegment<'a> {
    /// From 0.
    id: usize,
    /// Where its window begins, in frames of 10 ms.
    seek: u64,
    /// In seconds.
    start: f64,
    /// In seconds.
    end: f64,
    /// What was said.
    text: &'a str,
    /// Its tokens.
    tokens: &'a [u32],
    /// At which it was sampled.
    temperature: f32,
    /// Mean logarithm of its tokens' probabilities.
    avg_logprob: f32,
    /// High where the model repeats itself.
    compression_ratio: f32,
    /// How likely it is that nothing was said.
    no_speech_prob: f32,
}

/// The body of an answer.
pub(super) fn body(speech: &Speech, format: ResponseFormat, translated: bool) -> serde_json::Result<Vec<u8>> {
    let usage = DurationUsage::of(speech);
    match format {
        ResponseFormat::Json => serde_json::to_vec(&Transcription { text: text(speech), usage }),
        ResponseFormat::Text => Ok((text(speech) + "\n").into_bytes()),
        ResponseFormat::Srt => Ok(subtitles(speech, "", ",", true).into_bytes()),
        ResponseFormat::Vtt => Ok(subtitles(speech, "WEBVTT\n\n", ".", false).into_bytes()),
        ResponseFormat::VerboseJson => serde_json::to_vec(&VerboseTranscription {
            task: if translated { "translate" } else { "transcribe" },
            language: &speech.language,
            duration: seconds(speech.audio_ms),
            text: text(speech),
            segments: speech.segments.iter().enumerate().map(verbose).collect(),
            usage,
        }),
    }
}

/// All that was said.
pub(super) fn text(speech: &Speech) -> String {
    let text: String = speech.segments.iter().map(|segment| segment.text.as_str()).collect();
    text.trim().to_owned()
}

fn verbose((id, segment): (usize, &Segment)) -> VerboseSegment<'_> {
    VerboseSegment {
        id,
        seek: segment.seek_ms / 10,
        start: seconds(segment.start_ms),
        end: seconds(segment.end_ms),
        text: &segment.text,
        tokens: &segment.tokens,
        temperature: segment.temperature,
        avg_logprob: segment.avg_logprob,
        compression_ratio: segment.compression_ratio,
        no_speech_prob: segment.no_speech_prob,
    }
}

fn seconds(millis: u64) -> f64 {
    millis as f64 / 1e3
}

/// Cues, each with its number where the form has them.
fn subtitles(speech: &Speech, head: &str, point: &str, numbered: bool) -> String {
    let mut page = head.to_owned();
    for (at, segment) in speech.segments.iter().enumerate() {
        if numbered {
            page += &format!("{}\n", at + 1);
        }
        let (start, end) = (clock(segment.start_ms, point), clock(segment.end_ms, point));
        // An arrow in a text would look like another cue's times, an empty line like its end.
        let text = segment.text.trim().replace("-->", "->").replace('\n', " ");
        page += &format!("{start} --> {end}\n{text}\n\n");
    }
    page
}

fn clock(millis: u64, point: &str) -> String {
    let (hours, minutes, seconds) = (millis / 3_600_000, millis / 60_000 % 60, millis / 1_000 % 60);
    format!("{hours:02}:{minutes:02}:{seconds:02}{point}{:03}", millis % 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn speech() -> Speech {
        let segment = |start_ms, end_ms, text: &str| Segment {
            seek_ms: 0,
            start_ms,
            end_ms,
            text: text.to_owned(),
            tokens: vec![7],
            temperature: 0.0,
            avg_logprob: -0.25,
            compression_ratio: 1.5,
            no_speech_prob: 0.125,
        };
        let segments =
            vec![segment(0, 1_500, " Hello there."), segment(3_723_004, 3_724_000, " A --> b.\nc")];
        Speech::new(3_724_100, "en".to_owned(), segments)
    }

    fn page(format: ResponseFormat) -> String {
        String::from_utf8(body(&speech(), format, false).unwrap()).unwrap()
    }

    #[test]
    fn every_form_is_as_its_readers_expect_it() {
        assert_eq!(page(ResponseFormat::Text), "Hello there. A --> b.\nc\n");
        assert_eq!(
            page(ResponseFormat::Srt),
            "1\n00:00:00,000 --> 00:00:01,500\nHello there.\n\n2\n01:02:03,004 --> 01:02:04,000\nA -> b. c\n\n"
        );
        assert_eq!(
            page(ResponseFormat::Vtt),
            "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nHello there.\n\n01:02:03.004 --> 01:02:04.000\nA -> b. c\n\n"
        );
        let json: serde_json::Value = serde_json::from_str(&page(ResponseFormat::VerboseJson)).unwrap();
        assert_eq!(json["duration"], 3_724.1);
        assert_eq!(
            (&json["segments"][1]["id"], &json["segments"][1]["start"]),
            (&1.into(), &3_723.004.into())
        );
        assert_eq!(json["segments"][0]["text"], " Hello there.");
        let json: serde_json::Value = serde_json::from_str(&page(ResponseFormat::Json)).unwrap();
        assert_eq!(
            (&json["text"], &json["usage"]["seconds"]),
            (&"Hello there. A --> b.\nc".into(), &3_725.into())
        );
        for (name, format) in [("verbose_json", Some(ResponseFormat::VerboseJson)), ("xml", None)] {
            assert_eq!(ResponseFormat::parse(name), format);
        }
    }
}
