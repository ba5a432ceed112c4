//! Whisper: Radford et al. 2022, decoded as openai/whisper does.
//!
//! ```text
//! mel            sound to spectrogram                          transcription   windows, segments, fallback
//! source         weights of a package to a device              attempt, rules  one window's text, token by token
//! encoder        a window's spectrogram to keys and values     vocabulary      special tokens, texts
//! decoder        tokens to logits
//! ```

mod attempt;
mod decoder;
mod encoder;
pub mod mel;
mod rules;
mod source;
pub mod transcription;
pub mod vocabulary;

#[cfg(test)]
#[path = "../../tests/support/whisper.rs"]
mod tiny;

use super::{State, Transcriber, Weights};
use crate::device::{Device, DeviceError, DeviceFailure, Usage};
use crate::memory::{Memory, Refusal};
use crate::package::whisper::WhisperConfig;
use decoder::Decoder;
use encoder::{Encoder, Place};
use ringfence_protocol::LoadError;
use source::Source;

/// Rows that a convolution's result is made of.
const KERNEL: usize = 3;

/// The network on a device.
pub struct Whisper<D: Device> {
    device: D,
    config: WhisperConfig,
    encoder: Encoder<D>,
    decoder: Decoder<D>,
    /// Working memory of attention.
    scores: D::Scores,
    workspace: Option<Workspace<D>>,
}

/// Attention of one kind: who asks, and what becomes of the answers. Keys and values are elsewhere.
struct Attention<D: Device> {
    norm: D::Norm,
    query: D::Linear,
    out: D::Linear,
}

/// The feed-forward part of a layer.
struct Inner<D: Device> {
    norm: D::Norm,
    up: D::Linear,
    down: D::Linear,
}

/// Activations of one step; they hold nothing from step to step.
struct Workspace<D: Device> {
    /// Rows that there is room for.
    rows: usize,
    /// Rows that steps wrote since the last [`Transcriber::forget`].
    written: usize,
    positions: Vec<u32>,
    /// Tokens between the decoder's layers.
    x: D::Tensor,
    /// What is normalised, and what is asked of it.
    normed: D::Tensor,
    query: D::Tensor,
    key_values: D::Tensor,
    context: D::Tensor,
    /// What is added to what goes from layer to layer.
    y: D::Tensor,
    inner: D::Tensor,
    unfolded_mel: D::Tensor,
    unfolded: D::Tensor,
    logits: D::Tensor,
}

/// What a job has on the device.
struct JobState<D: Device> {
    place: Place,
    mel: D::Tensor,
    /// After the first convolution.
    convolved: D::Tensor,
    /// What goes from layer to layer of the encoder.
    x: D::Tensor,
    /// Of the encoder's layer that is at work.
    audio: D::KeyValues,
    /// Of the sound, for each layer of the decoder.
    heard: Vec<D::KeyValues>,
    /// Of the text so far, for each layer of the decoder.
    said: Vec<D::KeyValues>,
}

impl<D: Device> Whisper<D> {
    /// Builds the network.
    ///
    /// # Errors
    /// A tensor is missing or of another shape, or the weights don't fit in memory.
    pub fn new(
        device: D,
        config: &WhisperConfig,
        weights: &dyn Weights,
        memory: &dyn Memory,
    ) -> Result<Self, LoadError> {
        let source = Source { device: &device, config, weights, memory };
        device.check(source.bytes(), memory).map_err(source.refused())?;
        let encoder = source.encoder()?;
        let decoder = source.decoder()?;
        let scores = device.scores(config.audio_positions.max(config.text_positions));
        let scores = scores.map_err(source.refused())?;
        Ok(Self { config: config.clone(), encoder, decoder, scores, workspace: None, device })
    }

    /// What it runs on.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// Lets the weights go and keeps the device.
    pub fn into_device(self) -> D {
        self.device
    }

    /// Columns of the workspace's tensors that have a row for each row of work.
    fn columns(&self) -> [usize; 9] {
        let WhisperConfig { state, mels, .. } = self.config;
        [state, state, state, 2 * state, state, state, self.config.inner(), KERNEL * mels, KERNEL * state]
    }

    fn allocate(&self, rows: usize) -> Result<Workspace<D>, DeviceError> {
        let tensor = |columns| self.device.tensor(rows, columns);
        let [x, normed, query, key_values, context, y, inner, unfolded_mel, unfolded] = self.columns();
        Ok(Workspace {
            rows,
            written: 0,
            positions: super::reserve(rows)?,
            x: tensor(x)?,
            normed: tensor(normed)?,
            query: tensor(query)?,
            key_values: tensor(key_values)?,
            context: tensor(context)?,
            y: tensor(y)?,
            inner: tensor(inner)?,
            unfolded_mel: tensor(unfolded_mel)?,
            unfolded: tensor(unfolded)?,
            logits: self.device.tensor(1, self.config.vocabulary)?,
        })
    }

    fn open_state(&self) -> Result<JobState<D>, DeviceError> {
        let WhisperConfig { mels, state, audio_positions, audio_heads, text_positions, text_heads, .. } =
            self.config;
        let (device, frames, layers) = (&self.device, self.config.frames(), self.config.text_layers);
        let kept = |tokens, heads: usize| device.key_values(tokens, heads, state / heads);
        let each = |tokens| (0..layers).map(|_| kept(tokens, text_heads)).collect::<Result<_, _>>();
        Ok(JobState {
            place: Place::default(),
            mel: device.tensor(frames, mels)?,
            convolved: device.tensor(frames, state)?,
            x: device.tensor(audio_positions, state)?,
            audio: kept(audio_positions, audio_heads)?,
            heard: each(audio_positions)?,
            said: each(text_positions)?,
        })
    }

    fn workspace_mut(&mut self, rows: usize) -> &mut Workspace<D> {
        let workspace = self.workspace.as_mut().expect("reserved");
        assert!(rows <= workspace.rows, "room for {rows} rows was made");
        workspace.written = workspace.written.max(rows);
        workspace
    }
}

/// What [`Transcriber::open`] of the same model made.
fn job_state<D: Device + 'static>(state: &mut State) -> &mut JobState<D> {
    state.0.downcast_mut().expect("a state is used with the model that made it")
}

impl<D: Device + 'static> Transcriber for Whisper<D> {
    fn config(&self) -> &WhisperConfig {
        &self.config
    }

    fn bytes_per_row(&self) -> u64 {
        let tensors: usize = self.columns().iter().map(|columns| self.device.row_bytes(*columns)).sum();
        (tensors + size_of::<u32>()) as u64
    }

    fn bytes_per_job(&self) -> u64 {
        let WhisperConfig { mels, state, audio_positions, audio_heads, text_positions, text_heads, .. } =
            self.config;
        let (device, frames, layers) = (&self.device, self.config.frames(), self.config.text_layers);
        let tensor = |rows: usize, columns| rows * device.row_bytes(columns);
        let kept = |tokens, heads: usize| device.key_values_bytes(tokens, heads, state / heads);
        let heard = kept(audio_positions, text_heads) + kept(text_positions, text_heads);
        let tensors = tensor(frames, mels) + tensor(frames, state) + tensor(audio_positions, state);
        (tensors + kept(audio_positions, audio_heads) + layers * heard) as u64
    }

    fn host_bytes_per_job(&self) -> u64 {
        let floats = 2 * self.config.vocabulary + self.config.frames() * self.config.mels;
        (floats * size_of::<f32>()) as u64
    }

    fn reserve(&mut self, rows: usize, memory: &dyn Memory) -> Result<(), Refusal> {
        if self.workspace.as_ref().is_some_and(|workspace| workspace.rows >= rows) {
            return Ok(());
        }
        // The old one first, so that there is room where it was.
        self.workspace = None;
        let logits = self.device.row_bytes(self.config.vocabulary) as u64;
        let bytes = self.bytes_per_row().saturating_mul(rows as u64).saturating_add(logits);
        let allocated = self.device.check(bytes, memory).and_then(|()| self.allocate(rows));
        self.workspace = Some(allocated.map_err(|error| Refusal::new(error, memory))?);
        Ok(())
    }

    fn release(&mut self) {
        self.workspace = None;
    }

    fn usage(&self, memory: &dyn Memory) -> Usage {
        self.device.usage(memory)
    }

    fn restart_peak(&self, memory: &dyn Memory) {
        self.device.restart_peak(memory);
    }

    fn forget(&mut self) {
        let Some(w) = &mut self.workspace else { return };
        let tensors = [
            &mut w.x,
            &mut w.normed,
            &mut w.query,
            &mut w.key_values,
            &mut w.context,
            &mut w.y,
            &mut w.inner,
            &mut w.unfolded_mel,
            &mut w.unfolded,
        ];
        for tensor in tensors {
            self.device.clear(tensor, w.written);
        }
        self.device.clear(&mut w.logits, 1);
        w.written = 0;
    }

    fn open(&self, memory: &dyn Memory) -> Result<State, Refusal> {
        memory.check(self.host_bytes_per_job()).map_err(Refusal::Denied)?;
        let opened = self.device.check(self.bytes_per_job(), memory).and_then(|()| self.open_state());
        Ok(State(Box::new(opened.map_err(|error| Refusal::new(error, memory))?)))
    }

    fn hear(&mut self, state: &mut State, mel: &[f32]) {
        let state = job_state::<D>(state);
        let positions = mel.len() / self.config.mels / 2;
        assert_eq!(mel.len(), 2 * positions * self.config.mels, "whole positions");
        assert!((1..=self.config.audio_positions).contains(&positions), "a window of {positions} positions");
        self.device.write(mel, &mut state.mel);
        state.place = Place::first(positions);
    }

    fn encode(&mut self, state: &mut State, rows: usize) -> Result<bool, DeviceFailure> {
        self.encode_rows(job_state(state), rows)
    }

    fn decode(
        &mut self,
        state: &mut State,
        ids: &[u32],
        at: usize,
        logits: Option<&mut Vec<f32>>,
    ) -> Result<(), DeviceFailure> {
        self.decode_ids(job_state(state), ids, at, logits)
    }
}
