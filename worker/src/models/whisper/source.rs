//! The weights of a package, by the names that Hugging Face's layout gives them, onto a device.

use super::decoder::{self, Decoder};
use super::encoder::{self, Encoder};
use super::{Attention, Inner, KERNEL};
use crate::device::{Device, DeviceError, LinearWeights, NormWeights, Stored};
use crate::memory::{Memory, Refusal, load_refused};
use crate::models::Weights;
use crate::package::whisper::WhisperConfig;
use ringfence_protocol::LoadError;

/// Added to the variance in layer normalisation.
const EPSILON: f32 = 1e-5;
/// The tokens' embeddings, which are the weights of the output as well.
const EMBEDDINGS: &str = "model.decoder.embed_tokens";

/// What the network is built from.
pub(super) struct Source<'a, D: Device> {
    pub(super) device: &'a D,
    pub(super) config: &'a WhisperConfig,
    pub(super) weights: &'a dyn Weights,
    pub(super) memory: &'a dyn Memory,
}

/// A linear layer by the names of its parts, whose outputs follow one another.
struct Linear<'a> {
    names: &'a [&'a str],
    inputs: usize,
    /// Of each part.
    outputs: usize,
    /// Whether each part has a bias.
    biased: &'a [bool],
    rows: Rows,
}

/// How many rows a layer is multiplied with at a time.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rows {
    /// As many as a window has.
    Many,
    /// A token, most of the time.
    Few,
}

impl<D: Device> Source<'_, D> {
    pub(super) fn refused(&self) -> impl Fn(DeviceError) -> LoadError + use<'_, D> {
        |error| load_refused(Refusal::new(error, self.memory))
    }

    /// Bytes of the weights on the device, less what is rounded; before anything is allocated.
    pub(super) fn bytes(&self) -> u64 {
        let WhisperConfig { state, mels, audio_layers, text_layers, vocabulary, .. } = *self.config;
        let stored = |name: &str| self.stored(&[name.to_owned()]);
        let whole = |name: &str| self.device.weight_bytes(stored(name));
        let streamed = |name: &str| self.device.streamed_weight_bytes(stored(name));
        // In units of a projection: 4 for each attention, 8 for the feed-forward part. The decoder's keys and values of what
        // is heard are made for a whole window.
        let square = |count: usize| count.saturating_mul(state * state);
        let layers = [
            square(12 * audio_layers).saturating_mul(whole("model.encoder.layers.0.fc1")),
            square(2 * text_layers).saturating_mul(whole("model.decoder.layers.0.encoder_attn.k_proj")),
            square(14 * text_layers).saturating_mul(streamed("model.decoder.layers.0.fc1")),
        ];
        let layers = layers.into_iter().fold(0, usize::saturating_add);
        let convolutions = KERNEL * state * (mels + state) * whole("model.encoder.conv1");
        let output = vocabulary * state * streamed(EMBEDDINGS);
        let scores = self.device.scores_bytes(self.config.audio_positions.max(self.config.text_positions));
        layers.saturating_add(convolutions).saturating_add(output).saturating_add(scores) as u64
    }

    pub(super) fn encoder(&self) -> Result<Encoder<D>, LoadError> {
        let WhisperConfig { state, mels, audio_positions, audio_layers, .. } = *self.config;
        let positions = "model.encoder.embed_positions.weight";
        Ok(Encoder {
            convolutions: [
                self.convolution("model.encoder.conv1", mels, state)?,
                self.convolution("model.encoder.conv2", state, state)?,
            ],
            positions: self.table(positions, [audio_positions, state])?,
            layers: (0..audio_layers).map(|layer| self.encoder_layer(layer)).collect::<Result<_, _>>()?,
            norm: self.norm("model.encoder.layer_norm")?,
        })
    }

    fn encoder_layer(&self, layer: usize) -> Result<encoder::Layer<D>, LoadError> {
        let prefix = format!("model.encoder.layers.{layer}");
        Ok(encoder::Layer {
            key_values: self.key_values(&format!("{prefix}.self_attn"), Rows::Many)?,
            attention: self.attention(&prefix, "self_attn", Rows::Many)?,
            inner: self.inner(&prefix, Rows::Many)?,
        })
    }

    pub(super) fn decoder(&self) -> Result<Decoder<D>, LoadError> {
        let WhisperConfig { state, text_positions, text_layers, vocabulary, .. } = *self.config;
        Ok(Decoder {
            embeddings: self.table(&format!("{EMBEDDINGS}.weight"), [vocabulary, state])?,
            positions: self.table("model.decoder.embed_positions.weight", [text_positions, state])?,
            layers: (0..text_layers).map(|layer| self.decoder_layer(layer)).collect::<Result<_, _>>()?,
            norm: self.norm("model.decoder.layer_norm")?,
            output: self.linear(&Linear {
                names: &[EMBEDDINGS],
                inputs: state,
                outputs: vocabulary,
                biased: &[false],
                rows: Rows::Few,
            })?,
        })
    }

    fn decoder_layer(&self, layer: usize) -> Result<decoder::Layer<D>, LoadError> {
        let prefix = format!("model.decoder.layers.{layer}");
        Ok(decoder::Layer {
            said_key_values: self.key_values(&format!("{prefix}.self_attn"), Rows::Few)?,
            said: self.attention(&prefix, "self_attn", Rows::Few)?,
            heard_key_values: self.key_values(&format!("{prefix}.encoder_attn"), Rows::Many)?,
            heard: self.attention(&prefix, "encoder_attn", Rows::Few)?,
            inner: self.inner(&prefix, Rows::Few)?,
        })
    }

    fn attention(&self, prefix: &str, name: &str, rows: Rows) -> Result<Attention<D>, LoadError> {
        Ok(Attention {
            norm: self.norm(&format!("{prefix}.{name}_layer_norm"))?,
            query: self.square(&[&format!("{prefix}.{name}.q_proj")], &[true], rows)?,
            out: self.square(&[&format!("{prefix}.{name}.out_proj")], &[true], rows)?,
        })
    }

    /// Whisper's keys have no bias: it would change nothing, since all scores of a query would rise alike.
    fn key_values(&self, prefix: &str, rows: Rows) -> Result<D::Linear, LoadError> {
        let parts = ["k_proj", "v_proj"].map(|part| format!("{prefix}.{part}"));
        self.square(&[&parts[0], &parts[1]], &[false, true], rows)
    }

    fn square(&self, names: &[&str], biased: &[bool], rows: Rows) -> Result<D::Linear, LoadError> {
        let state = self.config.state;
        self.linear(&Linear { names, inputs: state, outputs: state, biased, rows })
    }

    fn inner(&self, prefix: &str, rows: Rows) -> Result<Inner<D>, LoadError> {
        let (state, inner) = (self.config.state, self.config.inner());
        let linear = |name: &str, inputs, outputs| {
            let name = format!("{prefix}.{name}");
            self.linear(&Linear { names: &[&name], inputs, outputs, biased: &[true], rows })
        };
        Ok(Inner {
            norm: self.norm(&format!("{prefix}.final_layer_norm"))?,
            up: linear("fc1", state, inner)?,
            down: linear("fc2", inner, state)?,
        })
    }

    fn linear(&self, linear: &Linear<'_>) -> Result<D::Linear, LoadError> {
        let parts = linear.names.iter().zip(linear.biased);
        let parts = parts.map(|(name, biased)| self.part(linear, name, *biased));
        let parts = parts.collect::<Result<Vec<_>, _>>()?;
        let names: Vec<String> = linear.names.iter().map(|name| (*name).to_owned()).collect();
        let stored = self.stored(&names);
        let taken = match linear.rows {
            Rows::Many => self.device.linear_weights(linear.inputs, &parts, stored),
            Rows::Few => self.device.streamed_weights(linear.inputs, &parts, stored),
        };
        taken.map_err(self.refused())
    }

    fn part(&self, linear: &Linear<'_>, name: &str, biased: bool) -> Result<LinearWeights, LoadError> {
        let Linear { inputs, outputs, .. } = *linear;
        let weight = self.weights.floats(&format!("{name}.weight"), &[outputs, inputs])?;
        let bias = if biased {
            self.weights.floats(&format!("{name}.bias"), &[outputs])?
        } else {
            vec![0.0; outputs]
        };
        Ok(LinearWeights { weight, bias })
    }

    /// A convolution as a linear layer over the rows that a result is made of: each row's channels together.
    fn convolution(&self, name: &str, channels: usize, outputs: usize) -> Result<D::Linear, LoadError> {
        let taps = self.weights.floats(&format!("{name}.weight"), &[outputs, channels, KERNEL])?;
        let bias = self.weights.floats(&format!("{name}.bias"), &[outputs])?;
        let mut weight = Vec::new();
        let refused = |_| DeviceError::Host(crate::device::OutOfMemory { bytes: size_of_val(&taps[..]) });
        weight.try_reserve_exact(taps.len()).map_err(refused).map_err(self.refused())?;
        for output in taps.chunks_exact(channels * KERNEL) {
            weight.extend((0..KERNEL).flat_map(|tap| output[tap..].iter().step_by(KERNEL)));
        }
        let stored = self.stored(&[name.to_owned()]);
        let parts = [LinearWeights { weight, bias }];
        self.device.linear_weights(channels * KERNEL, &parts, stored).map_err(self.refused())
    }

    fn norm(&self, name: &str) -> Result<D::Norm, LoadError> {
        let floats = |part: &str| self.weights.floats(&format!("{name}.{part}"), &[self.config.state]);
        let (weight, bias) = (floats("weight")?, floats("bias")?);
        let weights = NormWeights { weight, bias, epsilon: EPSILON };
        self.device.norm_weights(weights).map_err(self.refused())
    }

    fn table(&self, name: &str, shape: [usize; 2]) -> Result<D::Table, LoadError> {
        let rows = self.weights.table(name, shape)?;
        self.device.table(shape[1], rows).map_err(self.refused())
    }

    /// As halves only if all parts are, since a device keeps them together.
    fn stored(&self, names: &[String]) -> Stored {
        let half = |name: &String| self.weights.stored(&format!("{name}.weight")) == Some(Stored::F16);
        if names.iter().all(half) { Stored::F16 } else { Stored::F32 }
    }
}
