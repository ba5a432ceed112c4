//! Captures as they are shown: to their client, and to the operator.

use ringfence_grants::visible;
use ringfence_protocol::{AudioStatistics, Listened};
use serde::Serialize;
use utoipa::ToSchema;

/// All that somebody may see.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CapturesView {
    /// Counts each start, pause, resume and end; `GET /audio/captures?after=VERSION` waits for the next.
    pub(crate) version: u64,
    /// Those that run, or are about to.
    pub(crate) captures: Vec<CaptureView>,
}

/// One capture.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct CaptureView {
    /// Its number in this run of the server.
    pub(crate) capture: u64,
    /// Whose.
    pub(crate) client: String,
    /// By which grant.
    pub(crate) grant: u64,
    /// For which model.
    pub(crate) model: String,
    /// From where, as it was granted.
    pub(crate) source: String,
    /// The same with everything written out that would hide or reorder characters: for people.
    pub(crate) shown_source: String,
    /// `opening`, `waiting` (for a push), `running`, `paused` or `ending`.
    pub(crate) state: &'static str,
    /// Where sound is taken from now: true from before the first sample until after the last.
    pub(crate) captures_now: bool,
    /// When it was asked for, in milliseconds since 1970.
    pub(crate) asked_ms: u64,
    /// Its end, in milliseconds since 1970.
    pub(crate) until_ms: u64,
    /// Sound that the model heard, in milliseconds.
    pub(crate) audio_ms: u64,
    /// Frames of 20 ms that were made of the source's sound.
    pub(crate) captured: u64,
    /// Frames that were given up, since the worker was slow.
    pub(crate) dropped: u64,
    /// Frames that the source owed and never gave.
    pub(crate) lost: u64,
    /// Frames that the worker missed, by their numbers.
    pub(crate) missing: u64,
    /// How unevenly frames reach the worker (RFC 3550), in microseconds.
    pub(crate) jitter_us: u32,
    /// From the microphone to the worker, in microseconds: the longest of the last second.
    pub(crate) latency_us: u32,
    /// Whether somebody speaks.
    pub(crate) speech: bool,
}

impl CaptureView {
    pub(super) fn new(capture: u64, client: String, model: String, asked_ms: u64) -> Self {
        Self {
            capture,
            client,
            grant: 0,
            model,
            source: String::new(),
            shown_source: String::new(),
            state: "opening",
            captures_now: false,
            asked_ms,
            until_ms: 0,
            audio_ms: 0,
            captured: 0,
            dropped: 0,
            lost: 0,
            missing: 0,
            jitter_us: 0,
            latency_us: 0,
            speech: false,
        }
    }

    pub(super) fn is_of(&mut self, source: &str) {
        self.shown_source = visible(source);
        source.clone_into(&mut self.source);
    }

    /// Takes the capturing program's counts, and counts what is new of them.
    pub(super) fn count(&mut self, now: &AudioStatistics) {
        let frames = |state: &'static str, before: u64, now: u64| {
            metrics::counter!("ringfence_audio_frames_total", "state" => state)
                .increment(now.saturating_sub(before));
        };
        frames("captured", self.captured, now.captured);
        frames("dropped", self.dropped, now.dropped);
        frames("lost", self.lost, now.lost);
        (self.captured, self.dropped, self.lost) = (now.captured, now.dropped, now.lost);
        metrics::histogram!("ringfence_audio_source_jitter_us").record(f64::from(now.jitter_us));
    }

    /// Takes the worker's.
    pub(super) fn listened(&mut self, now: &Listened) {
        let Listened { audio_ms, missing, jitter_us, latency_us, speech, .. } = *now;
        metrics::counter!("ringfence_audio_frames_total", "state" => "missing")
            .increment(missing.saturating_sub(self.missing));
        metrics::counter!("ringfence_audio_heard_ms_total").increment(audio_ms.saturating_sub(self.audio_ms));
        metrics::histogram!("ringfence_audio_jitter_us").record(f64::from(jitter_us));
        metrics::histogram!("ringfence_audio_latency_us").record(f64::from(latency_us));
        (self.audio_ms, self.missing, self.jitter_us) = (audio_ms, missing, jitter_us);
        (self.latency_us, self.speech) = (latency_us, speech);
    }
}
