//! What a client is told of its capture while it runs: server-sent events, bounded, for one reader.

use axum::body::Body;
use hyper::body::{Bytes, Frame};
use ringfence_protocol::Segment;
use serde::Serialize;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use tokio::sync::Notify;
use utoipa::ToSchema;

/// Events that wait for a client that reads slowly. A level or a partial text takes the place of the one before it; beyond
/// this the capture ends.
pub(crate) const EVENTS_WAITING_MAX: usize = 256;

/// One event; its name is the event's, its fields are the data.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum CaptureEvent {
    /// Everything is ready for a pushed stream, which is waited for.
    Waiting {
        /// Its number: where the stream is pushed to.
        capture: u64,
        /// For how long, in milliseconds.
        for_ms: u64,
    },
    /// Sound is captured from here on.
    Started {
        /// Its number.
        capture: u64,
        /// The job's.
        job: u64,
        /// `pulse_audio`, `alsa` or `pushed`.
        host: &'static str,
        /// The device's name, as that interface has it.
        device: Option<String>,
        /// Samples a second of the source.
        rate: u32,
        /// Its channels.
        channels: u16,
        /// Its end, in milliseconds since 1970, unless it is renewed.
        until_ms: u64,
    },
    /// How loud it is, in parts of full scale, which is 32767.
    Level {
        /// Root of the mean square.
        rms: u16,
        /// The largest.
        peak: u16,
    },
    /// What is being said, instead of the one before it.
    Partial {
        /// Where the phrase begins, in milliseconds of the stream.
        start_ms: u64,
        /// As far as it was heard.
        text: String,
    },
    /// What was said, for good.
    Final {
        /// From 0.
        sequence: u32,
        /// Where it begins, in milliseconds of the stream.
        start_ms: u64,
        /// Where it ends.
        end_ms: u64,
        /// What was said.
        text: String,
        /// Mean logarithm of its tokens' probabilities.
        avg_logprob: f32,
        /// How likely it is that nothing was said.
        no_speech_prob: f32,
    },
    /// Something that ends nothing.
    Notice {
        /// `only_silence` or `sound_again`.
        code: &'static str,
        /// How long it has been silent, in milliseconds.
        ms: Option<u64>,
    },
    /// No sound is captured for now.
    Paused,
    /// It is again.
    Resumed,
    /// It ends at another time.
    Renewed {
        /// In milliseconds since 1970.
        until_ms: u64,
    },
    /// The last.
    Ended {
        /// `stopped`, `finished`, `expired`, `revoked`, `client_gone`, `reader_slow`, `too_long`, `server_stopping` or `failed`.
        reason: &'static str,
        /// Where it failed, the code of the error.
        code: Option<&'static str>,
        /// Where it failed, what to do.
        advice: Option<String>,
        /// Sound that the model heard, in milliseconds.
        audio_ms: u64,
        /// Frames of 20 ms that were given up, since the worker was slow.
        dropped: u64,
        /// Frames that the source owed and never gave.
        lost: u64,
        /// All final texts.
        text: String,
    },
}

impl CaptureEvent {
    /// A final text with its number.
    pub(super) fn of(sequence: u32, segment: &Segment) -> Self {
        let Segment { start_ms, end_ms, avg_logprob, no_speech_prob, .. } = *segment;
        Self::Final { sequence, start_ms, end_ms, text: segment.text.clone(), avg_logprob, no_speech_prob }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Waiting { .. } => "waiting",
            Self::Started { .. } => "started",
            Self::Level { .. } => "level",
            Self::Partial { .. } => "partial",
            Self::Final { .. } => "final",
            Self::Notice { .. } => "notice",
            Self::Paused => "paused",
            Self::Resumed => "resumed",
            Self::Renewed { .. } => "renewed",
            Self::Ended { .. } => "ended",
        }
    }

    /// Whether a later event takes its place while it waits: one of its kind, and for what is being said also the last word
    /// on it.
    fn is_replaced_by(&self, later: &Self) -> bool {
        match (self, later) {
            (Self::Level { .. }, Self::Level { .. })
            | (Self::Partial { .. }, Self::Partial { .. } | Self::Final { .. } | Self::Ended { .. }) => true,
            (_, _) => false,
        }
    }

    /// As server-sent events are written: JSON has no end of a line in it.
    fn encode(&self) -> Bytes {
        let data = serde_json::to_string(self).expect("names, texts and finite numbers");
        format!("event: {}\ndata: {data}\n\n", self.name()).into()
    }
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<CaptureEvent>,
    /// Nothing will come any more.
    over: bool,
    /// Nobody reads any more.
    gone: bool,
    reader: Option<Waker>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    left: Notify,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics with this lock")
    }
}

/// The end that tells. Nothing comes any more once it is dropped.
#[derive(Debug)]
pub(super) struct Feed(Arc<Shared>);

/// The end that is read, as the body of a response.
#[derive(Debug)]
pub(crate) struct Reader(Arc<Shared>);

/// The reader has as much waiting as may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slow;

/// Both ends.
pub(super) fn feed() -> (Feed, Reader) {
    let shared = Arc::<Shared>::default();
    (Feed(shared.clone()), Reader(shared))
}

impl Feed {
    /// Tells one more. The last one always finds room.
    pub(super) fn tell(&self, event: CaptureEvent) -> Result<(), Slow> {
        let mut state = self.0.state();
        state.waiting.retain(|waiting| !waiting.is_replaced_by(&event));
        let is_last = matches!(event, CaptureEvent::Ended { .. });
        if state.waiting.len() >= EVENTS_WAITING_MAX && !is_last {
            return Err(Slow);
        }
        state.waiting.push_back(event);
        if let Some(reader) = state.reader.take() {
            reader.wake();
        }
        Ok(())
    }

    /// Returns when nobody reads any more.
    pub(super) async fn gone(&self) {
        loop {
            let left = self.0.left.notified();
            if self.0.state().gone {
                return;
            }
            left.await;
        }
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.over = true;
        if let Some(reader) = state.reader.take() {
            reader.wake();
        }
    }
}

impl Reader {
    /// As a body.
    pub(crate) fn into_body(self) -> Body {
        Body::new(self)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.state().gone = true;
        self.0.left.notify_one();
    }
}

impl hyper::body::Body for Reader {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let mut state = self.0.state();
        match state.waiting.pop_front() {
            Some(event) => Poll::Ready(Some(Ok(Frame::data(event.encode())))),
            None if state.over => Poll::Ready(None),
            None => {
                state.reader = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partial(text: &str) -> CaptureEvent {
        CaptureEvent::Partial { start_ms: 0, text: text.to_owned() }
    }

    fn said(sequence: u32) -> CaptureEvent {
        let (start_ms, end_ms, text) = (0, 1, "said\n".to_owned());
        CaptureEvent::Final { sequence, start_ms, end_ms, text, avg_logprob: 0.0, no_speech_prob: 0.0 }
    }

    fn waiting(reader: &Reader) -> Vec<CaptureEvent> {
        reader.0.state().waiting.iter().cloned().collect()
    }

    #[test]
    fn a_slow_reader_loses_what_is_outdated_and_never_what_was_said() {
        let (feed, reader) = feed();
        let level = |peak| CaptureEvent::Level { rms: 1, peak };
        for event in [level(1), partial("a"), level(2), partial("a b"), said(0), level(3), partial("c")] {
            feed.tell(event).unwrap();
        }
        assert_eq!(waiting(&reader), [said(0), level(3), partial("c")]);
    }

    #[test]
    fn a_reader_that_does_not_read_ends_the_capture_and_hears_why() {
        let (feed, reader) = feed();
        let told = (0..).take_while(|sequence| feed.tell(said(*sequence)).is_ok()).count();
        assert_eq!(told, EVENTS_WAITING_MAX);
        let (code, advice, text) = (None, None, String::new());
        let ended = CaptureEvent::Ended {
            reason: "reader_slow",
            code,
            advice,
            audio_ms: 0,
            dropped: 0,
            lost: 0,
            text,
        };
        assert_eq!(feed.tell(ended.clone()), Ok(()));
        assert_eq!(waiting(&reader).last(), Some(&ended));
    }

    #[test]
    fn an_event_is_one_line_of_json_whatever_was_said() {
        let text = String::from_utf8(said(7).encode().to_vec()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!((lines.len(), lines[0], lines[2]), (3, "event: final", ""));
        let data: serde_json::Value = serde_json::from_str(lines[1].strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!((&data["sequence"], &data["text"]), (&7.into(), &"said\n".into()));
    }
}
