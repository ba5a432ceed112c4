//! What stands for the program that captures, and for a voice detector: a network of Silero's shape that hears one tone.
#![allow(dead_code, clippy::unwrap_used, reason = "helpers of tests; each test program uses its part")]

use candle_core::{Device, Tensor};
use ringfence_protocol::{
    FRAME_BYTES, FRAME_SAMPLES, FRAME_US, FromWorker, STREAM_PACKET_BYTES_MAX, StreamError, StreamKey,
    StreamOpening, StreamPublic, StreamSender, TranscribeOptions, WorkerLink, frame_samples, receive_packet,
    send_packet, stream_pair, write_frame_head,
};
use ringfence_protocol::{Start, ToWorker};
use rustix::time::{ClockId, clock_gettime};
use std::collections::{BTreeMap, HashMap};
use std::f64::consts::TAU;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

/// What a job of speech is told by a test that cares for nothing.
pub(crate) fn plain() -> TranscribeOptions {
    TranscribeOptions { translate: false, language: None, prompt: None, temperature: None }
}

pub(crate) fn boot_us() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1_000
}

/// The capturing program's end of a stream.
pub(crate) struct Audio {
    pub(crate) socket: OwnedFd,
    pub(crate) key: StreamKey,
    sender: Option<StreamSender>,
    pub(crate) sequence: u64,
}

impl Audio {
    /// With the reader's end.
    pub(crate) fn pair() -> (Self, OwnedFd) {
        let (socket, reader) = stream_pair().unwrap();
        (Self { socket, key: StreamKey::generate().unwrap(), sender: None, sequence: 0 }, reader)
    }

    /// Asks the worker to listen.
    pub(crate) fn listen(link: &WorkerLink, slot: u32, domain: u64, options: TranscribeOptions) -> Self {
        let (audio, reader) = Self::pair();
        let message = ToWorker::Listen { slot, domain, weight: 1, options, audio: audio.key.public() };
        link.send(&message, &[reader.as_fd()]).unwrap();
        audio
    }

    /// Shakes hands with the one that has this key.
    pub(crate) fn open(&mut self, reader: StreamPublic) {
        let (opening, packet) = StreamOpening::begin(&self.key, reader).unwrap();
        self.send(&packet);
        let mut packet = [0; STREAM_PACKET_BYTES_MAX];
        let length = loop {
            match receive_packet(&self.socket, &mut packet) {
                Ok(length) => break length,
                Err(StreamError::WouldBlock) => std::thread::sleep(Duration::from_millis(1)),
                Err(error) => panic!("{error}"),
            }
        };
        self.sender = Some(opening.finish(&packet[..length]).unwrap());
    }

    /// Waits where the reader is slow.
    pub(crate) fn send(&self, packet: &[u8]) {
        while let Err(error) = send_packet(&self.socket, packet) {
            assert!(matches!(error, StreamError::WouldBlock), "{error}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn sealed(
        &mut self,
        seal: impl Fn(&mut StreamSender, &mut [u8; STREAM_PACKET_BYTES_MAX]) -> usize,
    ) -> Vec<u8> {
        let mut packet = [0; STREAM_PACKET_BYTES_MAX];
        let length = seal(self.sender.as_mut().unwrap(), &mut packet);
        packet[..length].to_vec()
    }

    pub(crate) fn frame(&mut self, samples: &[i16]) -> Vec<u8> {
        let mut frame = [0; FRAME_BYTES];
        write_frame_head(&mut frame, self.sequence, boot_us());
        for (place, sample) in frame_samples(&mut frame).chunks_exact_mut(2).zip(samples) {
            place.copy_from_slice(&sample.to_le_bytes());
        }
        self.sequence += 1;
        self.sealed(|sender, packet| sender.seal_frame(&frame, packet))
    }

    /// Frame by frame, as fast as the reader takes them.
    pub(crate) fn push(&mut self, samples: &[i16]) {
        for samples in samples.chunks(FRAME_SAMPLES) {
            let packet = self.frame(samples);
            self.send(&packet);
        }
    }

    /// In real time; when each frame's last sample was due.
    #[expect(clippy::disallowed_methods, reason = "sound comes by the clock")]
    pub(crate) fn play(&mut self, samples: &[i16]) -> Instant {
        let begin = Instant::now();
        for (at, samples) in (1..).zip(samples.chunks(FRAME_SAMPLES)) {
            let due = begin + Duration::from_micros(FRAME_US) * at;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            let packet = self.frame(samples);
            self.send(&packet);
        }
        begin
    }

    pub(crate) fn pause(&mut self) {
        let packet = self.sealed(StreamSender::seal_pause);
        self.send(&packet);
        self.sender = None;
    }

    pub(crate) fn end(&mut self) {
        let packet = self.sealed(StreamSender::seal_end);
        self.send(&packet);
    }
}

/// A worker's start for a model of speech, with steps as the server asks for them.
pub(crate) fn start(base: &Start) -> Start {
    Start {
        architecture: ringfence_protocol::Architecture::Whisper,
        step_tokens: 512,
        slots: 8,
        step_us: 20_000,
        ..base.clone()
    }
}

/// A tone that the detector of [`detector`] takes for speech, half of the full scale.
pub(crate) fn tone(ms: usize) -> Vec<i16> {
    (0..16 * ms).map(|at| ((at as f64 * TAU / 16.0).sin() * 16_000.0) as i16).collect()
}

pub(crate) fn silence(ms: usize) -> Vec<i16> {
    vec![0; 16 * ms]
}

const FREQUENCIES: usize = 129;
const HIDDEN: usize = 128;

/// A package whose network says how much there is of 1 kHz.
pub(crate) fn detector() -> BTreeMap<String, Vec<u8>> {
    let config = serde_json::json!({
        "model_type": "silero-vad", "sample_rate": 16_000, "chunk_samples": 512, "context_samples": 64,
        "padding_samples": 64, "window_samples": 256, "hop_samples": 128, "encoder_strides": [1, 2, 2, 1],
        "hidden_size": HIDDEN,
    });
    let mut all: HashMap<String, Tensor> = HashMap::new();
    let mut add = |name: &str, shape: &[usize], set: &[(usize, f32)]| {
        let mut floats = vec![0.0_f32; shape.iter().product()];
        set.iter().for_each(|(place, float)| floats[*place] = *float);
        all.insert(name.to_owned(), Tensor::from_vec(floats, shape, &Device::Cpu).unwrap());
    };
    let bin = 16;
    let wave = |row: usize, phase: f64| {
        let turn = TAU * bin as f64 / 256.0;
        (0..256).map(move |at| (row * 256 + at, (turn * at as f64 + phase).cos() as f32))
    };
    let basis: Vec<(usize, f32)> = wave(bin, 0.0).chain(wave(FREQUENCIES + bin, -TAU / 4.0)).collect();
    add("stft.basis", &[2 * FREQUENCIES, 1, 256], &basis);
    for (layer, (inputs, outputs)) in
        [(FREQUENCIES, 128), (128, 64), (64, 64), (64, HIDDEN)].into_iter().enumerate()
    {
        let channel = if layer == 0 { bin } else { 0 };
        add(&format!("encoder.{layer}.weight"), &[outputs, inputs, 3], &[(3 * channel + 1, 1.0)]);
        add(&format!("encoder.{layer}.bias"), &[outputs], &[]);
    }
    let gate = |gate: usize| gate * HIDDEN;
    add("lstm.weight_ih", &[4 * HIDDEN, HIDDEN], &[(gate(2) * HIDDEN, 0.1)]);
    add("lstm.weight_hh", &[4 * HIDDEN, HIDDEN], &[]);
    add("lstm.bias_ih", &[4 * HIDDEN], &[(gate(0), 10.0), (gate(1), -10.0), (gate(3), 10.0)]);
    add("lstm.bias_hh", &[4 * HIDDEN], &[]);
    add("decoder.weight", &[1, HIDDEN, 1], &[(0, 20.0)]);
    add("decoder.bias", &[1], &[(0, -7.0)]);
    BTreeMap::from([
        ("config.json".to_owned(), config.to_string().into_bytes()),
        ("model.safetensors".to_owned(), safetensors::serialize(&all, None).unwrap()),
    ])
}

/// What of a slot's messages is of its stream: not its steps.
pub(crate) fn slot_of(message: &FromWorker) -> Option<u32> {
    match message {
        FromWorker::Listens { slot, .. }
        | FromWorker::Partial { slot, .. }
        | FromWorker::Listened { slot, .. }
        | FromWorker::Segment { slot, .. }
        | FromWorker::Heard { slot, .. }
        | FromWorker::Done { slot, .. }
        | FromWorker::Failed { slot, .. } => Some(*slot),
        _ => None,
    }
}
