//! The encoder: a window's spectrogram to the keys and values that the decoder listens to, some rows at a time.

use super::{Attention, Inner, JobState, Whisper};
use crate::device::{Activation, Device, DeviceFailure, Seen, Window};
use std::ops::Range;

/// The encoder's weights.
pub(super) struct Encoder<D: Device> {
    pub(super) convolutions: [D::Linear; 2],
    pub(super) positions: D::Table,
    pub(super) layers: Vec<Layer<D>>,
    pub(super) norm: D::Norm,
}

/// A layer's weights.
pub(super) struct Layer<D: Device> {
    pub(super) key_values: D::Linear,
    pub(super) attention: Attention<D>,
    pub(super) inner: Inner<D>,
}

/// Where a window is on its way through the encoder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    /// Positions of the window, as many as its frames make.
    pub(super) positions: usize,
    stage: Stage,
    /// The next row of the stage.
    row: usize,
}

impl Place {
    /// Before the first row of a window.
    pub(super) fn first(positions: usize) -> Self {
        Self { positions, ..Self::default() }
    }
}

/// All rows go through one stage before the next begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    /// The first convolution.
    #[default]
    Frames,
    /// The second, which halves the rows, and the positions.
    Positions,
    /// Keys and values of a layer.
    Keys(usize),
    /// The rest of the layer, which needs all of them.
    Layer(usize),
    /// Keys and values for a layer of the decoder.
    Heard(usize),
    /// All is done.
    Done,
}

const FIRST: Window = Window { stride: 1, padding: 1 };
const SECOND: Window = Window { stride: 2, padding: 1 };

fn stage_rows(stage: Stage, positions: usize) -> usize {
    match stage {
        Stage::Frames => 2 * positions,
        Stage::Positions | Stage::Keys(_) | Stage::Layer(_) | Stage::Heard(_) => positions,
        Stage::Done => 0,
    }
}

impl<D: Device> Whisper<D> {
    /// Takes at most this many rows further; whether the window is through.
    pub(super) fn encode_rows(
        &mut self,
        state: &mut JobState<D>,
        rows: usize,
    ) -> Result<bool, DeviceFailure> {
        let Place { positions, stage, row } = state.place;
        let all = stage_rows(stage, positions);
        let end = all.min(row + rows.max(1));
        self.workspace_mut(end - row);
        match stage {
            Stage::Frames => self.convolve_frames(state, row..end),
            Stage::Positions => self.convolve_positions(state, row..end),
            Stage::Keys(layer) => self.encode_keys(state, layer, row..end),
            Stage::Layer(layer) => self.encode_layer(state, layer, row..end),
            Stage::Heard(layer) => self.keep_heard(state, layer, row..end),
            Stage::Done => return Ok(true),
        }
        // Waits for what was recorded, so that a step's time is its own.
        let workspace = self.workspace.as_ref().expect("reserved");
        self.device.read(&workspace.y, 1, &mut Vec::new())?;
        state.place = if end < all {
            Place { positions, stage, row: end }
        } else {
            Place { positions, stage: self.after(stage), row: 0 }
        };
        Ok(state.place.stage == Stage::Done)
    }

    fn after(&self, stage: Stage) -> Stage {
        match stage {
            Stage::Frames => Stage::Positions,
            Stage::Positions => Stage::Keys(0),
            Stage::Keys(layer) => Stage::Layer(layer),
            Stage::Layer(layer) if layer + 1 < self.config.audio_layers => Stage::Keys(layer + 1),
            Stage::Layer(_) => Stage::Heard(0),
            Stage::Heard(layer) if layer + 1 < self.config.text_layers => Stage::Heard(layer + 1),
            Stage::Heard(_) | Stage::Done => Stage::Done,
        }
    }

    fn convolve_frames(&mut self, state: &mut JobState<D>, rows: Range<usize>) {
        let w = self.workspace.as_mut().expect("reserved");
        let (device, count) = (&self.device, rows.len());
        device.unfold(&state.mel, 2 * state.place.positions, FIRST, rows.clone(), &mut w.unfolded_mel);
        device.linear(&w.unfolded_mel, count, &self.encoder.convolutions[0], Activation::Gelu, &mut w.y);
        device.put(&mut state.convolved, rows, &w.y);
    }

    fn convolve_positions(&mut self, state: &mut JobState<D>, rows: Range<usize>) {
        let w = self.workspace.as_mut().expect("reserved");
        let (device, count) = (&self.device, rows.len());
        device.unfold(&state.convolved, 2 * state.place.positions, SECOND, rows.clone(), &mut w.unfolded);
        device.linear(&w.unfolded, count, &self.encoder.convolutions[1], Activation::Gelu, &mut w.y);
        device.put(&mut state.x, rows.clone(), &w.y);
        w.positions.clear();
        w.positions.extend(rows.start as u32..rows.end as u32);
        device.lookup(&self.encoder.positions, &w.positions, &mut w.y);
        device.add(&mut state.x, rows, &w.y);
    }

    fn encode_keys(&mut self, state: &mut JobState<D>, layer: usize, rows: Range<usize>) {
        let w = self.workspace.as_mut().expect("reserved");
        let (device, count, first) = (&self.device, rows.len(), rows.start);
        let layer = &self.encoder.layers[layer];
        device.norm(&state.x, rows, &layer.attention.norm, &mut w.normed);
        device.linear(&w.normed, count, &layer.key_values, Activation::None, &mut w.key_values);
        device.append(&w.key_values, count, &mut state.audio, first);
    }

    fn encode_layer(&mut self, state: &mut JobState<D>, layer: usize, rows: Range<usize>) {
        let w = self.workspace.as_mut().expect("reserved");
        let (device, count) = (&self.device, rows.len());
        let Layer { attention, inner, .. } = &self.encoder.layers[layer];
        let seen = Seen::All(state.place.positions);
        device.norm(&state.x, rows.clone(), &attention.norm, &mut w.normed);
        device.linear(&w.normed, count, &attention.query, Activation::None, &mut w.query);
        device.attend(&w.query, count, &state.audio, seen, &mut self.scores, &mut w.context);
        device.linear(&w.context, count, &attention.out, Activation::None, &mut w.y);
        device.add(&mut state.x, rows.clone(), &w.y);
        device.norm(&state.x, rows.clone(), &inner.norm, &mut w.normed);
        device.linear(&w.normed, count, &inner.up, Activation::Gelu, &mut w.inner);
        device.linear(&w.inner, count, &inner.down, Activation::None, &mut w.y);
        device.add(&mut state.x, rows, &w.y);
    }

    fn keep_heard(&mut self, state: &mut JobState<D>, layer: usize, rows: Range<usize>) {
        let w = self.workspace.as_mut().expect("reserved");
        let (device, count, first) = (&self.device, rows.len(), rows.start);
        let key_values = &self.decoder.layers[layer].heard_key_values;
        device.norm(&state.x, rows, &self.encoder.norm, &mut w.normed);
        device.linear(&w.normed, count, key_values, Activation::None, &mut w.key_values);
        device.append(&w.key_values, count, &mut state.heard[layer], first);
    }

    /// What the encoder made of a window, a row for each position: for tests.
    ///
    /// # Errors
    /// The device failed.
    #[doc(hidden)]
    pub fn encoded(&mut self, state: &mut crate::models::State) -> Result<Vec<f32>, DeviceFailure>
    where
        D: 'static,
    {
        let state = super::job_state::<D>(state);
        let positions = state.place.positions;
        self.workspace_mut(positions);
        let w = self.workspace.as_mut().expect("reserved");
        self.device.norm(&state.x, 0..positions, &self.encoder.norm, &mut w.normed);
        let mut floats = Vec::new();
        self.device.read(&w.normed, positions, &mut floats)?;
        Ok(floats)
    }
}
