//! The link between the server and `ringfence-audio`: one process for each live capture.
//!
//! ```text
//! audio                               server
//!                             <-  the places     bytes and no message, before anything else: what of the host it is shown
//!   Hello{digest}             ->
//!   Opened{..}                ->                 the device, which does not capture yet; not for a pushed stream
//!   Sealed{layers, key}       ->                 every layer is on; the server checks it in /proc
//!                             <-  Start + sockets   the reader's key, until when, what is done with the sound
//!   Started                   ->                 the reader has shown its key; capture runs from here
//!   Level* Statistics* Notice*  ->               while it runs
//!                             <-  Pause
//!   Paused                    ->                 no sample is taken any more; buffers and the stream's keys are gone
//!                             <-  Resume
//!   Resumed                   ->                 with fresh keys of the stream
//!                             <-  Renew          another end, sooner or later
//!                             <-  Stop
//!   Ended{end}                ->                 the last; at any time after Hello. It waits for the end of the link, shortly
//! ```
//!
//! The program is started as `pulse`, `alsa` or `pushed`, and its first packet says what it is shown ([`audio_places`]).
//! `Start` carries the socket of the encrypted stream ([`crate::stream_pair`]), whose other end goes to the reader, and for
//! a pushed stream the socket that the sound comes from as the second descriptor.
//!
//! Closing the link, or killing the program, ends the capture at once. A message that does not decode or is not legal in
//! its state ends the program without a word on the link: nothing is repaired.

use crate::{ChunkBytes, Layer, Link, StreamPublic};
use serde::{Deserialize, Serialize};

/// The most transforms of one stream.
pub const TRANSFORMS_MAX: usize = 8;
/// The most frames that wait for a slow reader: 5.12 s. Then the oldest are dropped.
pub const AUDIO_RING_FRAMES_MAX: u16 = 256;
/// The most channels of a device or of a pushed stream.
pub const AUDIO_CHANNELS_MAX: u16 = 8;
/// The sample rates that are taken, in Hz. A chunk of each becomes whole frames.
pub const AUDIO_RATES: [u32; 13] =
    [8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 88_200, 96_000, 176_400, 192_000];
/// The fewest that a ring has room for.
pub const AUDIO_RING_FRAMES_MIN: u16 = 4;
/// The longest name of a device in bytes; a longer one is cut.
pub const DEVICE_NAME_BYTES_MAX: usize = 256;
/// The most bytes of a pushed stream that the server has read already.
pub const PUSHED_HEAD_BYTES_MAX: usize = 32 * 1024;
/// Levels come no closer than this, in milliseconds.
pub const LEVEL_MS_MIN: u64 = 100;
/// Statistics come this often, in milliseconds.
pub const STATISTICS_MS: u64 = 1_000;
/// How long the reader may take over its half of the handshake, in milliseconds.
pub const STREAM_HANDSHAKE_MS_MAX: u64 = 5_000;
/// How far a pushed stream at real-time pace may be ahead of it, in milliseconds.
pub const PUSHED_AHEAD_MS_MAX: u64 = 2_000;

/// What an audio program's own memory comes to at most, in bytes: stacks of its threads, one megabyte of the sound
/// server's messages, and room. For the limit under which it is started.
pub const AUDIO_DATA_BYTES_MAX: u64 = 128 << 20;

/// The server's end of an audio program's link.
pub type AudioLink = Link<ToAudio, FromAudio>;
/// The audio program's end.
pub type AudioSideLink = Link<FromAudio, ToAudio>;

/// The first packet on the link: what the program is shown of the host, each part ended by a zero byte. For `pulse` the
/// path of the sound server's socket, the path of its cookie or nothing, and the name of the source or nothing for the
/// default; for `alsa` the name of the device or nothing; for `pushed` nothing but one empty part.
pub fn audio_places(parts: &[&str]) -> Vec<u8> {
    parts.iter().flat_map(|part| part.bytes().chain([0])).collect()
}

/// From the server to an audio program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToAudio {
    /// The first message, once. One descriptor comes along, the stream's socket; for a pushed stream a second, the socket
    /// that the sound comes from.
    Start(CaptureStart),
    /// No further sample is taken; answered by [`FromAudio::Paused`]. Legal after `Started` or `Resumed`.
    Pause,
    /// Goes on after `Pause`; answered by [`FromAudio::Resumed`] when the reader has shaken hands again.
    Resume,
    /// Another end. Legal after `Start`.
    Renew {
        /// As in [`CaptureStart`].
        until_boot_ms: u64,
    },
    /// Ends it; answered by [`FromAudio::Ended`].
    Stop,
}

/// What is captured for whom.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureStart {
    /// The reader's public key, which it made after its own lock-down.
    pub reader: StreamPublic,
    /// No sample is taken after this time of CLOCK_BOOTTIME, in milliseconds.
    pub until_boot_ms: u64,
    /// How many frames may wait for a slow reader, from [`AUDIO_RING_FRAMES_MIN`] to
    /// [`AUDIO_RING_FRAMES_MAX`].
    pub ring_frames: u16,
    /// After so much silence in a row it is told once, in milliseconds; 0 for never.
    pub silence_ms: u32,
    /// What is done to the sound, in this order; at most [`TRANSFORMS_MAX`].
    pub transforms: Vec<Transform>,
    /// What comes over the second descriptor; of a program that was started as `pushed`, and of no other.
    pub pushed: Option<Pushed>,
}

/// What is done to the sound, at 16 kHz, before it leaves the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Transform {
    /// Takes away what lies below this frequency in Hz, from 20 to 2000: rumble and hum.
    HighPass {
        /// The corner, 3 dB down.
        hz: u16,
    },
    /// Brings speech to one loudness.
    GainControl,
    /// Changes the sound of the voice by a McAdams coefficient that is drawn for each stream. It is obfuscation: who knows
    /// the method and the voice still recognises most speakers.
    Obfuscate,
    /// Leaves no more than a sampling rate of 16 kHz divided by this holds, 2 or 4, in frames of the same length.
    Decimate {
        /// By how much.
        factor: u8,
    },
}

/// A stream that somebody pushes: samples without any header, channels interleaved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pushed {
    /// What is around its bytes on the socket.
    pub framing: Framing,
    /// How one sample is written.
    pub encoding: SampleEncoding,
    /// Samples a second of each channel: one of [`AUDIO_RATES`].
    pub rate: u32,
    /// From 1 to [`AUDIO_CHANNELS_MAX`]; they are averaged.
    pub channels: u16,
    /// How fast it may come.
    pub pace: Pace,
    /// What the server has read already; at most [`PUSHED_HEAD_BYTES_MAX`].
    pub head: ChunkBytes,
}

/// What is around a pushed stream's bytes. The program reads the socket and never writes to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Framing {
    /// Nothing; the stream ends where the sender shuts its side.
    Plain,
    /// The body of an HTTP request in chunks; the last chunk is its end.
    HttpChunks,
    /// Frames of a WebSocket client, binary ones; a close is its end. Pings are not answered.
    WebSocket,
}

/// How one pushed sample is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SampleEncoding {
    /// Two bytes, signed, little end first.
    S16Le,
    /// Four bytes, IEEE 754, little end first; full scale is 1. What is no finite number ends the stream.
    F32Le,
}

/// How fast a pushed stream may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Pace {
    /// As a microphone gives it. More than [`PUSHED_AHEAD_MS_MAX`] ahead of the clock ends it, and frames for which a slow
    /// reader has no room are dropped, oldest first.
    RealTime,
    /// As fast as the reader takes it. Nothing is dropped; the sender waits.
    Buffered,
}

/// From an audio program to the server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromAudio {
    /// The first message.
    Hello {
        /// [`crate::DIGEST`] of its build.
        digest: String,
    },
    /// What was opened. It does not capture yet.
    Opened {
        /// By which interface.
        host: AudioHost,
        /// The device's name, as that interface has it; at most [`DEVICE_NAME_BYTES_MAX`] bytes.
        device: String,
        /// Its samples a second.
        rate: u32,
        /// Its channels.
        channels: u16,
    },
    /// Every layer is on.
    Sealed {
        /// In the order in which they were applied.
        layers: Vec<Layer>,
        /// Landlock's ABI on this kernel.
        landlock_abi: u32,
        /// The public half of the key that it made after that.
        key: StreamPublic,
    },
    /// Capture runs.
    Started,
    /// No sample is taken any more.
    Paused,
    /// Capture runs again.
    Resumed,
    /// How loud it is, before any transform; no more often than [`LEVEL_MS_MIN`].
    Level(Level),
    /// Every [`STATISTICS_MS`] while it runs, and once before `Ended`.
    Statistics(AudioStatistics),
    /// Something that ends nothing.
    Notice(Notice),
    /// The capture has ended. Nothing of it is left in the program.
    Ended {
        /// Why.
        end: CaptureEnd,
    },
}

/// An interface to microphones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum AudioHost {
    /// PulseAudio's own protocol, which PipeWire speaks too.
    PulseAudio,
    /// The kernel's devices.
    Alsa,
}

/// Loudness since the last message of this kind, in parts of full scale, which is 32767.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Level {
    /// Root of the mean square.
    pub rms: u16,
    /// The largest.
    pub peak: u16,
}

/// Counts since `Start`, in frames of 20 ms, and times in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AudioStatistics {
    /// Made of what was captured.
    pub captured: u64,
    /// Handed to the reader's socket.
    pub sent: u64,
    /// Given up for newer ones, since the reader was slow.
    pub dropped: u64,
    /// That the source owed by the clock and never gave.
    pub lost: u64,
    /// How unevenly the source's chunks came (RFC 3550, section 6.4.1).
    pub jitter_us: u32,
    /// From the capture of the newest sample of a frame until that frame was handed over: the last one's.
    pub delay_us: u32,
}

/// Something that ends nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Notice {
    /// Nothing but silence for so long, in milliseconds. Said once until there is sound again.
    OnlySilence {
        /// How long.
        ms: u64,
    },
    /// There is sound again.
    SoundAgain,
}

/// Why a capture has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum CaptureEnd {
    /// The server said so.
    Asked,
    /// Its time is over.
    Expired,
    /// The pushed stream came to its end, and all of it is with the reader.
    Finished,
    /// It could not be gone on with.
    Failed(AudioError),
}

/// Why there is no sound, or no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
pub enum AudioError {
    /// No microphone, or none of this name.
    #[error("there is no such input device")]
    NoDevice,
    /// Somebody else has it.
    #[error("the input device is in use")]
    DeviceBusy,
    /// It was unplugged or removed.
    #[error("the input device is gone")]
    DeviceVanished,
    /// The sound server does not run, or has ended.
    #[error("the sound server is not there")]
    ServerGone,
    /// The system or the sound server says no.
    #[error("the system denies the input device to this user")]
    Denied,
    /// A rate, a number of channels or an encoding that is not taken, samples that are no numbers, or another framing.
    #[error("the sound has a format that is not taken")]
    BadFormat,
    /// A pushed stream ended inside a sample, or without its end where the framing has one.
    #[error("the stream was cut off")]
    Truncated,
    /// A pushed stream came faster than its pace allows.
    #[error("the sound comes faster than it may")]
    TooFast,
    /// The stream's reader closed it, or answered the handshake wrongly or not in time.
    #[error("the reader of the stream is gone")]
    ReaderGone,
    /// The sound's interface failed in another way.
    #[error("the sound interface failed")]
    Interface,
}

impl AudioError {
    /// Every one.
    pub const ALL: [AudioError; 10] = [
        AudioError::NoDevice,
        AudioError::DeviceBusy,
        AudioError::DeviceVanished,
        AudioError::ServerGone,
        AudioError::Denied,
        AudioError::BadFormat,
        AudioError::Truncated,
        AudioError::TooFast,
        AudioError::ReaderGone,
        AudioError::Interface,
    ];

    /// A name that stays the same.
    pub fn code(self) -> &'static str {
        match self {
            AudioError::NoDevice => "audio_no_device",
            AudioError::DeviceBusy => "audio_device_busy",
            AudioError::DeviceVanished => "audio_device_vanished",
            AudioError::ServerGone => "audio_server_gone",
            AudioError::Denied => "audio_denied",
            AudioError::BadFormat => "audio_bad_format",
            AudioError::Truncated => "audio_truncated",
            AudioError::TooFast => "audio_too_fast",
            AudioError::ReaderGone => "audio_reader_gone",
            AudioError::Interface => "audio_interface_failed",
        }
    }

    /// What to do about it.
    pub fn advice(self) -> &'static str {
        match self {
            AudioError::NoDevice => {
                "plug a microphone in, or name one that `pactl list short sources` or `arecord -L` shows"
            }
            AudioError::DeviceBusy => {
                "end the program that uses the microphone, or go through a sound server, which shares it"
            }
            AudioError::DeviceVanished => "plug the microphone in again and start anew",
            AudioError::ServerGone => {
                "start PulseAudio or PipeWire (`systemctl --user start pipewire-pulse`) and start anew"
            }
            AudioError::Denied => {
                "put the user into the group `audio`, or let it read the sound server's socket and cookie"
            }
            AudioError::BadFormat => {
                "send one to eight channels of s16le or f32le at a common rate, such as 16000 or 48000 Hz"
            }
            AudioError::Truncated => "send the stream again, whole samples to its end",
            AudioError::TooFast => "send at the pace of the clock, or ask for a buffered stream",
            AudioError::ReaderGone => "start anew; the job's own answer says why it ended",
            AudioError::Interface => "look at the sound server's own log, and start anew",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_longest_messages_fit() {
        let pushed = Pushed {
            framing: Framing::WebSocket,
            encoding: SampleEncoding::F32Le,
            rate: u32::MAX,
            channels: u16::MAX,
            pace: Pace::Buffered,
            head: ChunkBytes(vec![255; PUSHED_HEAD_BYTES_MAX]),
        };
        let start = ToAudio::Start(CaptureStart {
            reader: StreamPublic([255; 32]),
            until_boot_ms: u64::MAX,
            ring_frames: u16::MAX,
            silence_ms: u32::MAX,
            transforms: vec![Transform::HighPass { hz: u16::MAX }; TRANSFORMS_MAX],
            pushed: Some(pushed),
        });
        let bytes = postcard::to_stdvec(&start).expect("plain values encode");
        assert!(bytes.len() < crate::MESSAGE_BYTES_MAX, "{}", bytes.len());
    }

    #[test]
    fn each_error_has_a_code_of_its_own_and_says_what_to_do() {
        let codes: BTreeSet<_> = AudioError::ALL.iter().map(|error| error.code()).collect();
        assert_eq!(codes.len(), AudioError::ALL.len());
        assert!(AudioError::ALL.iter().all(|error| error.advice().len() > 20));
    }

    #[test]
    fn places_are_parts_that_end_with_a_zero_byte() {
        assert_eq!(audio_places(&["/run/pulse", "", "mic"]), b"/run/pulse\0\0mic\0");
        assert_eq!(audio_places(&[""]), b"\0");
    }
}
