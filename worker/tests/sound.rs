//! Sounds in each format: what is heard of them, and that no bytes make the decoders panic or go on for ever.
//!
//! `tests/data/sound` holds half a second of a 440 Hz tone at half of the full scale, made once from sox's WAV by flac 1.4
//! (mono, 22,050 Hz), lame 3.100 (the same, which does not say how long it is, so that the encoder's silence stays; and
//! stereo at 44,100 Hz with tags, which say it) and oggenc 1.4 (stereo at 44,100 Hz).
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use proptest::prelude::*;
use ringfence_worker::package::FileBytes;
use ringfence_worker::sound::{CHANNELS_MAX, RATE_MAX, RATE_MIN, SECONDS_MAX, Sound, SoundError};
use std::f64::consts::TAU;
use std::sync::Arc;

fn stored(name: &str) -> Vec<u8> {
    std::fs::read(format!("{}/tests/data/sound/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

const STORED: [&str; 4] = ["tone.flac", "tone.mp3", "tagged.mp3", "tone.ogg"];

/// What a WAV is made of.
#[derive(Clone, Copy)]
struct Wav {
    /// 1 for whole numbers, 3 for floats.
    code: u16,
    bits: u16,
    channels: u16,
    rate: u32,
}

const PLAIN: Wav = Wav { code: 1, bits: 16, channels: 1, rate: 16_000 };

impl Wav {
    fn file(self, data: &[u8]) -> Vec<u8> {
        let Wav { code, bits, channels, rate } = self;
        let block = channels.wrapping_mul(bits / 8);
        let mut file = b"RIFF".to_vec();
        file.extend((36 + data.len() as u32).to_le_bytes());
        file.extend(b"WAVEfmt \x10\0\0\0");
        file.extend([code.to_le_bytes(), channels.to_le_bytes()].concat());
        file.extend([rate.to_le_bytes(), rate.wrapping_mul(block.into()).to_le_bytes()].concat());
        file.extend([block.to_le_bytes(), bits.to_le_bytes()].concat());
        file.extend(b"data");
        file.extend((data.len() as u32).to_le_bytes());
        file.extend(data);
        file
    }

    /// The tone in every channel, for so many samples.
    fn tone(self, samples: usize) -> Vec<u8> {
        let sample = |at: usize| 0.5 * (TAU * 440.0 * at as f64 / f64::from(self.rate)).sin();
        let encode = |sample: f64| match (self.code, self.bits) {
            (1, 8) => vec![(sample * 127.0 + 128.0) as u8],
            (1, 16) => ((sample * 32767.0) as i16).to_le_bytes().to_vec(),
            (1, 24) => ((sample * 8_388_607.0) as i32).to_le_bytes()[..3].to_vec(),
            (1, 32) => ((sample * 2_147_483_647.0) as i32).to_le_bytes().to_vec(),
            (3, 32) => (sample as f32).to_le_bytes().to_vec(),
            (3, 64) => sample.to_le_bytes().to_vec(),
            other => panic!("{other:?}"),
        };
        let data: Vec<u8> =
            (0..samples).flat_map(|at| encode(sample(at)).repeat(self.channels.into())).collect();
        self.file(&data)
    }
}

fn hear(bytes: Vec<u8>) -> Result<Vec<f32>, SoundError> {
    let mut sound = Sound::open(Arc::new(bytes) as FileBytes)?;
    let mut samples = Vec::new();
    let mut pieces = 0;
    while sound.read(&mut samples)? {
        pieces += 1;
        // A piece is bounded.
        assert!(samples.len() <= pieces * 40_000, "{pieces} pieces have {} samples", samples.len());
    }
    assert!(!sound.read(&mut samples).unwrap_or(false), "it stays at its end");
    Ok(samples)
}

/// How strong a tone is in the middle of some samples, and all the rest.
fn strength(samples: &[f32], hertz: f64) -> (f64, f64) {
    let middle = &samples[samples.len() / 4..samples.len() * 3 / 4];
    let project = |wave: fn(f64) -> f64| {
        let product = |(at, x): (usize, &f32)| f64::from(*x) * wave(TAU * hertz * at as f64 / 16_000.0);
        middle.iter().enumerate().map(product).sum::<f64>() * 2.0 / middle.len() as f64
    };
    let power = middle.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / middle.len() as f64;
    let strength = project(f64::sin).hypot(project(f64::cos));
    (strength, (power - strength.powi(2) / 2.0).abs().sqrt())
}

#[track_caller]
fn is_tone(samples: &[f32], seconds: f64, what: &str) {
    let expected = seconds * 16_000.0;
    assert!((samples.len() as f64 - expected).abs() <= 400.0, "{what}: {} samples", samples.len());
    let (tone, rest) = strength(samples, 440.0);
    // What is coded at a loss is a little quieter.
    assert!((tone - 0.5).abs() < 0.03 && rest < 0.02, "{what}: a tone of {tone}, and {rest}");
}

#[test]
fn stored_sounds_are_heard() {
    for name in STORED {
        let seconds = if name == "tone.mp3" { 0.5747 } else { 0.5 };
        is_tone(&hear(stored(name)).unwrap(), seconds, name);
    }
}

#[test]
fn every_form_of_wav_is_heard() {
    for (code, bits) in [(1, 8), (1, 16), (1, 24), (1, 32), (3, 32), (3, 64)] {
        for channels in [1, 2, CHANNELS_MAX as u16] {
            let wav = Wav { code, bits, channels, ..PLAIN };
            is_tone(&hear(wav.tone(8000)).unwrap(), 0.5, &format!("{code} {bits} {channels}"));
        }
    }
}

#[test]
fn rates_are_converted_without_delay() {
    for rate in [RATE_MIN, 8000, 11_025, 22_050, 44_100, 44_101, 48_000, 96_000, RATE_MAX] {
        let wav = Wav { rate, ..PLAIN };
        let samples = hear(wav.tone(rate as usize)).unwrap();
        assert_eq!(samples.len(), 16_000, "{rate}");
        is_tone(&samples, 1.0, &format!("{rate}"));
        // It is in step with the tone that it was made from.
        let product = |(at, x): (usize, &f32)| f64::from(*x) * (TAU * 440.0 * at as f64 / 16_000.0).sin();
        let in_step: f64 =
            samples[4000..12_000].iter().enumerate().map(|(at, x)| product((at + 4000, x))).sum();
        assert!((in_step / 4000.0 - 0.5).abs() < 0.02, "{rate}: {}", in_step / 4000.0);
    }
}

#[test]
fn samples_of_16_khz_are_untouched() {
    let numbers: Vec<i16> = (0..5000).map(|i| (i * 7919 % 65_536 - 32_768) as i16).collect();
    let data: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
    let expected: Vec<f32> = numbers.iter().map(|n| f32::from(*n) / 32_768.0).collect();
    assert!(hear(PLAIN.file(&data)).unwrap() == expected);
}

#[test]
fn what_is_no_number_is_silence() {
    let data: Vec<u8> = [f32::NAN, 0.25, f32::INFINITY, -0.5].iter().flat_map(|x| x.to_le_bytes()).collect();
    let wav = Wav { code: 3, bits: 32, ..PLAIN };
    assert_eq!(hear(wav.file(&data)).unwrap(), [0.0, 0.25, 0.0, -0.5]);
}

#[test]
fn refusals_are_told_apart() {
    let cut = |bytes: Vec<u8>| bytes[..bytes.len() / 2].to_vec();
    for (what, bytes, error) in [
        ("nothing", vec![], SoundError::Format),
        ("a text", b"This is no sound at all, but a text. ".repeat(100), SoundError::Format),
        ("a picture", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".repeat(50), SoundError::Format),
        ("half a WAV", cut(PLAIN.tone(8000)), SoundError::Truncated),
        ("half a FLAC", cut(stored("tone.flac")), SoundError::Truncated),
        ("half an MP3", cut(stored("tagged.mp3")), SoundError::Truncated),
        ("many channels", Wav { channels: 9, ..PLAIN }.tone(100), SoundError::Channels),
        ("a low rate", Wav { rate: RATE_MIN - 1, ..PLAIN }.tone(100), SoundError::Rate),
        ("a high rate", Wav { rate: RATE_MAX + 1, ..PLAIN }.tone(100), SoundError::Rate),
        ("a WAV of another code", Wav { code: 0x55, ..PLAIN }.file(&[0; 1000]), SoundError::Format),
    ] {
        assert_eq!(hear(bytes).err(), Some(error), "{what}");
    }
}

#[test]
fn a_sound_that_is_too_long_is_refused_while_it_is_read() {
    let data = vec![128; (SECONDS_MAX + 2) * 16_000];
    let file = Wav { bits: 8, ..PLAIN }.file(&data);
    let mut sound = Sound::open(Arc::new(file) as FileBytes).unwrap();
    let (mut piece, mut samples) = (Vec::new(), 0);
    let error = loop {
        piece.clear();
        match sound.read(&mut piece) {
            Ok(more) => assert!(more, "it ends"),
            Err(error) => break error,
        }
        samples += piece.len();
    };
    assert_eq!(error, SoundError::TooLong);
    assert!((SECONDS_MAX - 1..=SECONDS_MAX).contains(&(samples / 16_000)), "{samples} samples");
}

/// Who writes a WAV into a pipe doesn't know its length.
#[test]
fn a_length_that_cannot_be_is_no_length() {
    for length in [u32::MAX, 0x7fff_ffff] {
        let mut file = PLAIN.tone(8000);
        file[4..8].copy_from_slice(&length.saturating_add(36).to_le_bytes());
        file[40..44].copy_from_slice(&length.to_le_bytes());
        let samples = hear(file).unwrap();
        assert!(samples.len() > 6000, "{length:#x}: {} samples", samples.len());
    }
}

fn all() -> Vec<Vec<u8>> {
    let stereo = Wav { channels: 2, rate: 44_100, ..PLAIN };
    STORED.iter().map(|name| stored(name)).chain([stereo.tone(2000)]).collect()
}

#[test]
fn no_cut_file_is_more_than_refused() {
    for file in all() {
        let step = (file.len() / 200).max(1);
        for length in (0..file.len()).step_by(step).chain(0..200.min(file.len())) {
            let _ = hear(file[..length].to_vec());
        }
    }
}

/// This many cases, unless PROPTEST_CASES says how many.
fn config(cases: u32) -> ProptestConfig {
    let default = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    if std::env::var_os("PROPTEST_CASES").is_some() { default } else { ProptestConfig { cases, ..default } }
}

proptest! {
    #![proptest_config(config(256))]

    #[test]
    fn no_changed_file_is_more_than_refused(
        which in 0usize..5, changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        head: bool,
    ) {
        let mut file = all().swap_remove(which);
        for (at, byte) in changes {
            let length = if head { file.len().min(300) } else { file.len() };
            let at = at.index(length);
            file[at] = byte;
        }
        let _ = hear(file);
    }
}
