//! The decoder: some tokens, after those before them, to the logits of the next.

use super::{Attention, Inner, JobState, Whisper};
use crate::device::{Activation, Device, DeviceFailure, Seen};

/// The decoder's weights.
pub(super) struct Decoder<D: Device> {
    pub(super) embeddings: D::Table,
    pub(super) positions: D::Table,
    pub(super) layers: Vec<Layer<D>>,
    pub(super) norm: D::Norm,
    /// The embeddings once more, in the order of a product.
    pub(super) output: D::Linear,
}

/// A layer's weights.
pub(super) struct Layer<D: Device> {
    pub(super) said_key_values: D::Linear,
    pub(super) said: Attention<D>,
    /// Used where the window is encoded, once for all its tokens.
    pub(super) heard_key_values: D::Linear,
    pub(super) heard: Attention<D>,
    pub(super) inner: Inner<D>,
}

impl<D: Device> Whisper<D> {
    /// Takes the tokens from position `at` on, and gives the logits of what follows the last one, if asked.
    pub(super) fn decode_ids(
        &mut self,
        state: &mut JobState<D>,
        ids: &[u32],
        at: usize,
        logits: Option<&mut Vec<f32>>,
    ) -> Result<(), DeviceFailure> {
        let count = ids.len();
        assert!(count > 0 && at + count <= self.config.text_positions, "{count} tokens at {at}");
        let w = self.workspace_mut(count);
        w.positions.clear();
        w.positions.extend(at as u32..(at + count) as u32);
        let w = self.workspace.as_mut().expect("reserved");
        self.device.lookup(&self.decoder.embeddings, ids, &mut w.x);
        self.device.lookup(&self.decoder.positions, &w.positions, &mut w.y);
        self.device.add(&mut w.x, 0..count, &w.y);
        for layer in 0..self.decoder.layers.len() {
            self.decode_layer(state, layer, count, at);
        }
        match logits {
            Some(logits) => self.logits(count - 1, logits),
            None => Ok(()),
        }
    }

    fn decode_layer(&mut self, state: &mut JobState<D>, index: usize, count: usize, at: usize) {
        let w = self.workspace.as_mut().expect("reserved");
        let device = &self.device;
        let Layer { said_key_values, said, heard, inner, .. } = &self.decoder.layers[index];
        device.norm(&w.x, 0..count, &said.norm, &mut w.normed);
        device.linear(&w.normed, count, said_key_values, Activation::None, &mut w.key_values);
        device.append(&w.key_values, count, &mut state.said[index], at);
        for (attention, memory, seen) in [
            (said, &state.said[index], Seen::Before(at)),
            (heard, &state.heard[index], Seen::All(state.place.positions)),
        ] {
            device.norm(&w.x, 0..count, &attention.norm, &mut w.normed);
            device.linear(&w.normed, count, &attention.query, Activation::None, &mut w.query);
            device.attend(&w.query, count, memory, seen, &mut self.scores, &mut w.context);
            device.linear(&w.context, count, &attention.out, Activation::None, &mut w.y);
            device.add(&mut w.x, 0..count, &w.y);
        }
        device.norm(&w.x, 0..count, &inner.norm, &mut w.normed);
        device.linear(&w.normed, count, &inner.up, Activation::Gelu, &mut w.inner);
        device.linear(&w.inner, count, &inner.down, Activation::None, &mut w.y);
        device.add(&mut w.x, 0..count, &w.y);
    }

    fn logits(&mut self, row: usize, logits: &mut Vec<f32>) -> Result<(), DeviceFailure> {
        let w = self.workspace.as_mut().expect("reserved");
        self.device.norm(&w.x, row..row + 1, &self.decoder.norm, &mut w.normed);
        self.device.linear(&w.normed, 1, &self.decoder.output, Activation::None, &mut w.logits);
        logits.clear();
        self.device.read(&w.logits, 1, logits)
    }
}
