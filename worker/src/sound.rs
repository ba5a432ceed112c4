//! A sound as a client sent it, to what a speech model hears: one channel of floats at 16 kHz, piece by piece.
//!
//! WAV, FLAC, MP3 and OGG Vorbis are decoded by a library in Rust. Its panics are caught; what it makes of a stranger's bytes
//! is bounded here.

use crate::models::whisper::mel::RATE;
use crate::package::FileBytes;
use rubato::audioadapter_buffers::direct::SequentialSlice;
use rubato::{Fft, FixedSync, Indexing, Resampler};
use std::io::{Cursor, ErrorKind};
use std::panic::{AssertUnwindSafe, catch_unwind};
use symphonia::core::audio::GenericAudioBufferRef;
use symphonia::core::codecs::audio::{AudioCodecParameters, AudioDecoder, AudioDecoderOptions};
use symphonia::core::common::Limit;
use symphonia::core::errors::Error;
use symphonia::core::formats::probe::Hint;
use symphonia::core::formats::{FormatOptions, FormatReader, TrackType};
use symphonia::core::io::{MediaSourceStream, MediaSourceStreamOptions};
use symphonia::core::meta::MetadataOptions;

/// The longest sound in seconds.
pub const SECONDS_MAX: usize = 2 * 60 * 60;
/// The most channels; they are mixed into one.
pub const CHANNELS_MAX: usize = 8;
/// The lowest rate in samples a second.
pub const RATE_MIN: u32 = 4_000;
/// The highest rate in samples a second.
pub const RATE_MAX: u32 = 192_000;
/// Bytes that decoding takes beside the sound's own, its pieces included. The library's allocations can't be refused one by
/// one, so this much is asked for before it begins.
pub const WORKING_BYTES: u64 = 32 << 20;

/// Samples of a piece, before it is brought to 16 kHz: half a second or more, and less than a block beyond.
const PIECE_SAMPLES: usize = 8_192;
/// A file may have this many packets that can't be decoded, as damaged ones have, but not more than can.
const DAMAGED_MAX: usize = 64;
/// Samples that are brought to another rate together.
const CHUNK: usize = 1024;

/// Why a sound can't be heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SoundError {
    /// It is not in a known format, or damaged beyond use.
    #[error("the file is no WAV, FLAC, MP3 or OGG Vorbis, or it is damaged")]
    Format,
    /// The file ends before the sound does.
    #[error("the file ends before its sound does")]
    Truncated,
    /// It has no sound.
    #[error("the file has no sound")]
    NoAudio,
    /// Its sound is coded in another way.
    #[error("the file's sound is coded in a way that is not known; WAV, FLAC, MP3 and OGG Vorbis are")]
    Codec,
    /// It is too long.
    #[error("the sound is longer than {SECONDS_MAX} seconds")]
    TooLong,
    /// It has too many channels.
    #[error("the sound has more than {CHANNELS_MAX} channels")]
    Channels,
    /// Its rate is out of bounds.
    #[error("the sound's rate is not from {RATE_MIN} to {RATE_MAX} samples a second")]
    Rate,
}

/// A sound while it is decoded.
pub struct Sound {
    format: Box<dyn FormatReader>,
    decoder: Box<dyn AudioDecoder>,
    track: u32,
    rate: u32,
    /// Samples that there should be, where the file says a number that can be.
    expected: Option<u64>,
    /// Samples of each channel so far, by what the packets say, those that could not be decoded included.
    samples: u64,
    /// Samples of each channel that were decoded.
    heard: u64,
    decoded: usize,
    damaged: usize,
    interleaved: Vec<f32>,
    mono: Vec<f32>,
    /// To 16 kHz, where it has another rate.
    converter: Option<Converter>,
    ended: bool,
}

impl std::fmt::Debug for Sound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sound({} samples at {} a second)", self.samples, self.rate)
    }
}

/// What a file says of its sound.
struct Track {
    id: u32,
    rate: u32,
    samples: Option<u64>,
    parameters: AudioCodecParameters,
}

impl Sound {
    /// Finds out what a file's bytes are. Nothing is decoded yet.
    ///
    /// # Errors
    /// They are no sound that is known, or one out of bounds.
    pub fn open(bytes: FileBytes) -> Result<Self, SoundError> {
        catch_unwind(AssertUnwindSafe(|| Self::open_unguarded(bytes))).unwrap_or(Err(SoundError::Format))
    }

    fn open_unguarded(bytes: FileBytes) -> Result<Self, SoundError> {
        let source =
            MediaSourceStream::new(Box::new(Cursor::new(Bytes(bytes))), MediaSourceStreamOptions::default());
        // Pictures and texts are left out.
        let nothing = MetadataOptions::default()
            .limit_tag_bytes(Limit::Maximum(0))
            .limit_visual_bytes(Limit::Maximum(0));
        let probe = symphonia::default::get_probe();
        let format = probe.probe(&Hint::new(), source, FormatOptions::default(), nothing);
        let format = format.map_err(|error| failure(&error))?;
        let Track { id, rate, samples, parameters } = track(&*format)?;
        let codecs = symphonia::default::get_codecs();
        let decoder = codecs.make_audio_decoder(&parameters, &AudioDecoderOptions::default());
        let decoder = decoder.map_err(|error| match error {
            Error::Unsupported(_) => SoundError::Codec,
            other => failure(&other),
        })?;
        Ok(Self {
            format,
            decoder,
            track: id,
            rate,
            expected: samples.filter(|samples| *samples <= samples_max(rate)),
            samples: 0,
            heard: 0,
            decoded: 0,
            damaged: 0,
            interleaved: Vec::new(),
            mono: Vec::new(),
            converter: Converter::new(rate)?,
            ended: false,
        })
    }

    /// Seconds that the file says it has, which may be wrong.
    pub fn seconds(&self) -> Option<f64> {
        self.expected.map(|samples| samples as f64 / f64::from(self.rate))
    }

    /// Appends the next piece, about half a second, at 16 kHz; whether there may be more.
    ///
    /// # Errors
    /// It is damaged, ends too early or goes on too long. Nothing of worth follows.
    pub fn read(&mut self, to: &mut Vec<f32>) -> Result<bool, SoundError> {
        let read = catch_unwind(AssertUnwindSafe(|| self.read_unguarded(to)));
        read.unwrap_or(Err(SoundError::Format)).inspect_err(|_| self.ended = true)
    }

    fn read_unguarded(&mut self, to: &mut Vec<f32>) -> Result<bool, SoundError> {
        self.mono.clear();
        while !self.ended && self.mono.len() < PIECE_SAMPLES {
            self.read_packet()?;
        }
        match &mut self.converter {
            None => to.extend_from_slice(&self.mono),
            Some(converter) => converter.convert(&self.mono, self.ended, to)?,
        }
        Ok(!self.ended)
    }

    fn read_packet(&mut self) -> Result<(), SoundError> {
        let packet = match self.format.next_packet() {
            Ok(Some(packet)) => packet,
            Ok(None) => return self.end(),
            Err(Error::IoError(error)) if error.kind() == ErrorKind::UnexpectedEof => return self.end(),
            // Another sound begins behind the first one.
            Err(Error::ResetRequired) => return self.end(),
            Err(error) => return Err(failure(&error)),
        };
        if packet.track_id != self.track {
            return Ok(());
        }
        self.samples = self.samples.saturating_add(packet.dur.get());
        match self.decoder.decode(&packet) {
            Ok(buffer) => {
                check(&buffer, self.rate)?;
                mix(&buffer, &mut self.interleaved, &mut self.mono);
                self.decoded += 1;
                self.heard += buffer.frames() as u64;
            }
            Err(Error::DecodeError(_) | Error::IoError(_)) => self.damaged += 1,
            Err(error) => return Err(failure(&error)),
        }
        if self.samples.max(self.heard) > samples_max(self.rate) {
            return Err(SoundError::TooLong);
        }
        if self.damaged > DAMAGED_MAX.min(self.decoded + 1) {
            return Err(SoundError::Format);
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), SoundError> {
        self.ended = true;
        match self.expected {
            Some(expected) if self.samples < expected => Err(SoundError::Truncated),
            _ if self.decoded == 0 && self.damaged > 0 => Err(SoundError::Format),
            _ => Ok(()),
        }
    }
}

/// Samples of the longest sound.
fn samples_max(rate: u32) -> u64 {
    u64::from(rate) * SECONDS_MAX as u64
}

fn track(format: &dyn FormatReader) -> Result<Track, SoundError> {
    let track = format.default_track(TrackType::Audio).or_else(|| format.first_track(TrackType::Audio));
    let track = track.ok_or(SoundError::NoAudio)?;
    let parameters = track.codec_params.as_ref().and_then(|parameters| parameters.audio());
    let parameters = parameters.ok_or(SoundError::Codec)?;
    // Before a decoder makes room for them.
    let rate = parameters.sample_rate.ok_or(SoundError::Codec)?;
    if !(RATE_MIN..=RATE_MAX).contains(&rate) {
        return Err(SoundError::Rate);
    }
    if parameters.channels.as_ref().is_some_and(|channels| channels.count() > CHANNELS_MAX) {
        return Err(SoundError::Channels);
    }
    Ok(Track { id: track.id, rate, samples: track.num_frames, parameters: parameters.clone() })
}

fn failure(error: &Error) -> SoundError {
    match error {
        Error::IoError(error) if error.kind() == ErrorKind::UnexpectedEof => SoundError::Truncated,
        _ => SoundError::Format,
    }
}

/// What was decoded is what the file said.
fn check(buffer: &GenericAudioBufferRef<'_>, rate: u32) -> Result<(), SoundError> {
    if buffer.spec().rate() != rate {
        return Err(SoundError::Rate);
    }
    if buffer.spec().channels().count() > CHANNELS_MAX {
        return Err(SoundError::Channels);
    }
    Ok(())
}

/// Appends the mean of all channels. What is no number is silence.
fn mix(buffer: &GenericAudioBufferRef<'_>, interleaved: &mut Vec<f32>, mono: &mut Vec<f32>) {
    let channels = buffer.spec().channels().count();
    if channels == 0 {
        return;
    }
    buffer.copy_to_vec_interleaved(interleaved);
    let mean = |all: &[f32]| all.iter().sum::<f32>() / channels as f32;
    let finite = |sample: f32| if sample.is_finite() { sample } else { 0.0 };
    mono.extend(interleaved.chunks_exact(channels).map(mean).map(finite));
}

/// Brings a sound to 16 kHz.
struct Converter {
    fft: Fft<f32>,
    rate: u64,
    waiting: Vec<f32>,
    output: Vec<f32>,
    /// Samples taken and given.
    taken: u64,
    given: u64,
    /// What it gives first is the silence before the sound.
    skip: usize,
}

impl Converter {
    fn new(rate: u32) -> Result<Option<Self>, SoundError> {
        if rate as usize == RATE {
            return Ok(None);
        }
        let fft = Fft::new(rate as usize, RATE, CHUNK, 1, FixedSync::Input).map_err(|_| SoundError::Rate)?;
        Ok(Some(Self {
            output: vec![0.0; fft.output_frames_max()],
            skip: fft.output_delay(),
            fft,
            rate: u64::from(rate),
            waiting: Vec::new(),
            taken: 0,
            given: 0,
        }))
    }

    fn convert(&mut self, samples: &[f32], ended: bool, to: &mut Vec<f32>) -> Result<(), SoundError> {
        self.waiting.extend_from_slice(samples);
        self.taken += samples.len() as u64;
        let mut at = 0;
        while at + self.fft.input_frames_next() <= self.waiting.len() {
            at += self.chunk(at, None, to)?;
        }
        self.waiting.drain(..at);
        if ended {
            let all = (self.taken * RATE as u64).div_ceil(self.rate);
            while self.given < all {
                let rest = self.waiting.len();
                self.chunk(0, Some(rest), to)?;
                self.waiting.clear();
            }
            to.truncate(to.len() - (self.given - all) as usize);
            self.given = all;
        }
        Ok(())
    }

    /// Converts a chunk, silence after the first `partial` samples, and says how many were taken.
    fn chunk(&mut self, at: usize, partial: Option<usize>, to: &mut Vec<f32>) -> Result<usize, SoundError> {
        let (waiting, places) = (self.waiting.len(), self.output.len());
        let input = SequentialSlice::new(&self.waiting[..], 1, waiting).map_err(|_| SoundError::Format)?;
        let mut output =
            SequentialSlice::new_mut(&mut self.output[..], 1, places).map_err(|_| SoundError::Format)?;
        let mut indexing = Indexing::new().input_offset(at);
        indexing.partial_len = partial;
        let converted = self.fft.process_into_buffer(&input, &mut output, Some(&indexing));
        let (taken, given) = converted.map_err(|_| SoundError::Format)?;
        let first = self.skip.min(given);
        self.skip -= first;
        to.extend_from_slice(&self.output[first..given]);
        self.given += (given - first) as u64;
        Ok(taken)
    }
}

/// The file's bytes where they are, not a copy.
struct Bytes(FileBytes);

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}
