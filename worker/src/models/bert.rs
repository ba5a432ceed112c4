//! BERT as a sentence embedder: Devlin et al. 2018, pooled as in Reimers and Gurevych 2019.

use super::{Batch, Embedder, Weights, reserve};
use crate::device::{
    Activation, Device, DeviceError, DeviceFailure, LinearWeights, NormWeights, Stored, TableSource, Usage,
};
use crate::memory::{Memory, Refusal, load_refused};
use crate::package::config::BertConfig;
use crate::package::modules::Head;
use ringfence_protocol::LoadError;

/// What a token costs beside its tensors' rows: its id and position, a bound of its sequence, and rounding.
const TOKEN_BYTES: usize = 64;

/// The network on a device.
pub struct Bert<D: Device> {
    device: D,
    config: BertConfig,
    head: Head,
    words: D::Table,
    /// Position embeddings, each with the embedding of token type 0 added.
    positions: D::Table,
    norm: D::Norm,
    layers: Vec<Layer<D>>,
    scratch: D::Scratch,
    buffers: Option<Buffers<D>>,
}

struct Layer<D: Device> {
    /// Queries, keys and values in one product.
    qkv: D::Linear,
    attention_out: D::Linear,
    attention_norm: D::Norm,
    up: D::Linear,
    down: D::Linear,
    norm: D::Norm,
}

/// Activations of one batch.
struct Buffers<D: Device> {
    /// Tokens that there is room for.
    tokens: usize,
    /// Rows that batches wrote since the last [`Embedder::forget`].
    written: usize,
    position_ids: Vec<u32>,
    /// What goes from layer to layer.
    x: D::Tensor,
    /// What is added to it.
    y: D::Tensor,
    qkv: D::Tensor,
    context: D::Tensor,
    inner: D::Tensor,
    pooled: D::Tensor,
    output: Vec<f32>,
}

impl<D: Device> Bert<D> {
    /// Builds the network for sequences of at most `max_tokens` tokens.
    ///
    /// # Errors
    /// A tensor is missing or of another shape, or the weights don't fit in memory.
    pub fn new(
        device: D,
        config: &BertConfig,
        head: Head,
        max_tokens: usize,
        weights: &dyn Weights,
        memory: &dyn Memory,
    ) -> Result<Self, LoadError> {
        let source = Source { device: &device, config, weights, memory };
        device.check(source.weight_bytes(max_tokens), memory).map_err(source.refused())?;
        let words = weights.table("embeddings.word_embeddings.weight", [config.vocabulary, config.hidden])?;
        let words = device.table(config.hidden, words).map_err(source.refused())?;
        let positions = source.positions()?;
        let norm = source.norm("embeddings.LayerNorm")?;
        let layers = (0..config.layers).map(|index| source.layer(index)).collect::<Result<_, _>>()?;
        let scratch = device.scratch(max_tokens, config.head()).map_err(source.refused())?;
        let config = config.clone();
        Ok(Self { device, config, head, words, positions, norm, layers, scratch, buffers: None })
    }

    fn layer(&mut self, index: usize, batch: &Batch) {
        let (device, layer, rows) = (&self.device, &self.layers[index], batch.tokens());
        let b = self.buffers.as_mut().expect("reserved");
        device.linear(&b.x, rows, &layer.qkv, Activation::None, &mut b.qkv);
        device.attention(&b.qkv, batch.starts(), &mut self.scratch, &mut b.context);
        device.linear(&b.context, rows, &layer.attention_out, Activation::None, &mut b.y);
        device.add_norm(&mut b.x, &b.y, rows, &layer.attention_norm);
        device.linear(&b.x, rows, &layer.up, Activation::Gelu, &mut b.inner);
        device.linear(&b.inner, rows, &layer.down, Activation::None, &mut b.y);
        device.add_norm(&mut b.x, &b.y, rows, &layer.norm);
    }

    fn embed_tokens(&mut self, batch: &Batch) {
        let b = self.buffers.as_mut().expect("reserved");
        b.position_ids.clear();
        for span in batch.starts().windows(2) {
            b.position_ids.extend(0..(span[1] - span[0]) as u32);
        }
        self.device.lookup(&self.words, batch.ids(), &mut b.x);
        self.device.lookup(&self.positions, &b.position_ids, &mut b.y);
        self.device.add_norm(&mut b.x, &b.y, batch.tokens(), &self.norm);
    }

    fn pool(&mut self, batch: &Batch) -> Result<(), DeviceFailure> {
        let b = self.buffers.as_mut().expect("reserved");
        self.device.pool(&b.x, batch.starts(), self.head.pooling, &mut b.pooled);
        if self.head.normalize {
            self.device.normalize(&mut b.pooled, batch.sequences());
        }
        b.output.clear();
        self.device.read(&b.pooled, batch.sequences(), &mut b.output)
    }

    fn allocate(&self, tokens: usize) -> Result<Buffers<D>, DeviceError> {
        let BertConfig { hidden, intermediate, .. } = self.config;
        let tensor = |columns| self.device.tensor(tokens, columns);
        Ok(Buffers {
            tokens,
            written: 0,
            position_ids: reserve(tokens)?,
            x: tensor(hidden)?,
            y: tensor(hidden)?,
            qkv: tensor(3 * hidden)?,
            context: tensor(hidden)?,
            inner: tensor(intermediate)?,
            pooled: tensor(hidden)?,
            output: reserve(tokens * hidden)?,
        })
    }

    /// Bytes of a token's rows on the device.
    fn tensor_bytes(&self) -> usize {
        let BertConfig { hidden, intermediate, .. } = self.config;
        let columns = [hidden, hidden, 3 * hidden, hidden, intermediate, hidden];
        columns.iter().map(|columns| self.device.row_bytes(*columns)).sum()
    }

    /// What it runs on.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// Lets the weights go and keeps the device.
    pub fn into_device(self) -> D {
        self.device
    }
}

impl<D: Device> Embedder for Bert<D> {
    fn dimensions(&self) -> usize {
        self.config.hidden
    }

    fn bytes_per_token(&self) -> u64 {
        (self.tensor_bytes() + self.config.hidden * size_of::<f32>() + TOKEN_BYTES) as u64
    }

    fn reserve(&mut self, tokens: usize, memory: &dyn Memory) -> Result<(), Refusal> {
        if self.buffers.as_ref().is_some_and(|buffers| buffers.tokens >= tokens) {
            return Ok(());
        }
        // The old ones first, so that there is room where they were.
        self.buffers = None;
        let bytes = self.bytes_per_token().saturating_mul(tokens as u64);
        let allocated = self.device.check(bytes, memory).and_then(|()| self.allocate(tokens));
        self.buffers = Some(allocated.map_err(|error| Refusal::new(error, memory))?);
        Ok(())
    }

    fn release(&mut self) {
        self.buffers = None;
    }

    fn usage(&self, memory: &dyn Memory) -> Usage {
        self.device.usage(memory)
    }

    fn restart_peak(&self, memory: &dyn Memory) {
        self.device.restart_peak(memory);
    }

    fn forget(&mut self) {
        let Some(b) = &mut self.buffers else { return };
        for tensor in [&mut b.x, &mut b.y, &mut b.qkv, &mut b.context, &mut b.inner, &mut b.pooled] {
            self.device.clear(tensor, b.written);
        }
        b.written = 0;
    }

    fn embed_while(
        &mut self,
        batch: &Batch,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Option<&[f32]>, DeviceFailure> {
        let b = self.buffers.as_mut().expect("reserved");
        b.written = b.written.max(batch.tokens());
        self.embed_tokens(batch);
        for index in 0..self.layers.len() {
            if !go_on() {
                return Ok(None);
            }
            self.layer(index, batch);
        }
        self.pool(batch)?;
        Ok(Some(&self.buffers.as_ref().expect("reserved").output))
    }
}

/// What the network is built from.
struct Source<'a, D: Device> {
    device: &'a D,
    config: &'a BertConfig,
    weights: &'a dyn Weights,
    memory: &'a dyn Memory,
}

/// Linear layers that read the same input and write their outputs one after another, by the names of their tensors.
struct Linear {
    names: Vec<String>,
    inputs: usize,
    /// Of each.
    outputs: usize,
}

impl<D: Device> Source<'_, D> {
    /// Bytes of the weights on the device, less what is rounded; before anything is allocated.
    fn weight_bytes(&self, max_tokens: usize) -> u64 {
        let BertConfig { hidden, layers, positions, .. } = *self.config;
        let bytes = |linear: &Linear| {
            let count = linear.names.len().saturating_mul(linear.inputs).saturating_mul(linear.outputs);
            count.saturating_mul(self.device.weight_bytes(self.stored(linear)))
        };
        let linears = (0..layers).flat_map(|index| self.linears(index));
        let linears = linears.map(|linear| bytes(&linear)).fold(0, usize::saturating_add);
        let positions = positions.saturating_mul(hidden).saturating_mul(size_of::<f32>());
        let scratch = self.device.scratch_bytes(max_tokens, self.config.head());
        linears.saturating_add(positions).saturating_add(scratch) as u64
    }

    /// The linear layers of a layer: query, key and value together, attention's output, up, down.
    fn linears(&self, index: usize) -> [Linear; 4] {
        let BertConfig { hidden, intermediate, .. } = *self.config;
        let linear = |parts: &[&str], inputs, outputs| {
            let names = parts.iter().map(|part| format!("encoder.layer.{index}.{part}")).collect();
            Linear { names, inputs, outputs }
        };
        [
            linear(&["attention.self.query", "attention.self.key", "attention.self.value"], hidden, hidden),
            linear(&["attention.output.dense"], hidden, hidden),
            linear(&["intermediate.dense"], hidden, intermediate),
            linear(&["output.dense"], intermediate, hidden),
        ]
    }

    /// As halves only if all parts are, since a device keeps them together.
    fn stored(&self, linear: &Linear) -> Stored {
        let half = |name: &String| self.weights.stored(&format!("{name}.weight")) == Some(Stored::F16);
        if linear.names.iter().all(half) { Stored::F16 } else { Stored::F32 }
    }

    fn refused(&self) -> impl Fn(DeviceError) -> LoadError + use<'_, D> {
        |error| load_refused(Refusal::new(error, self.memory))
    }

    fn positions(&self) -> Result<D::Table, LoadError> {
        let BertConfig { hidden, positions, types, .. } = *self.config;
        let mut rows = self.weights.floats("embeddings.position_embeddings.weight", &[positions, hidden])?;
        let types = self.weights.floats("embeddings.token_type_embeddings.weight", &[types, hidden])?;
        for row in rows.chunks_exact_mut(hidden) {
            row.iter_mut().zip(&types).for_each(|(x, y)| *x += y);
        }
        self.device.table(hidden, TableSource::Floats(rows)).map_err(self.refused())
    }

    fn layer(&self, index: usize) -> Result<Layer<D>, LoadError> {
        let name = |part: &str| format!("encoder.layer.{index}.{part}");
        let [qkv, attention_out, up, down] = self.linears(index);
        Ok(Layer {
            qkv: self.linear(&qkv)?,
            attention_out: self.linear(&attention_out)?,
            attention_norm: self.norm(&name("attention.output.LayerNorm"))?,
            up: self.linear(&up)?,
            down: self.linear(&down)?,
            norm: self.norm(&name("output.LayerNorm"))?,
        })
    }

    fn linear(&self, linear: &Linear) -> Result<D::Linear, LoadError> {
        let Linear { names, inputs, outputs } = linear;
        let part = |name: &String| -> Result<LinearWeights, LoadError> {
            Ok(LinearWeights {
                weight: self.weights.floats(&format!("{name}.weight"), &[*outputs, *inputs])?,
                bias: self.weights.floats(&format!("{name}.bias"), &[*outputs])?,
            })
        };
        let parts = names.iter().map(part).collect::<Result<Vec<_>, _>>()?;
        self.device.linear_weights(*inputs, &parts, self.stored(linear)).map_err(self.refused())
    }

    fn norm(&self, name: &str) -> Result<D::Norm, LoadError> {
        let floats = |part: &str| self.weights.floats(&format!("{name}.{part}"), &[self.config.hidden]);
        let (weight, bias) = (floats("weight")?, floats("bias")?);
        let weights = NormWeights { weight, bias, epsilon: self.config.epsilon };
        self.device.norm_weights(weights).map_err(self.refused())
    }
}

#[cfg(feature = "wgpu")]
#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Wgpu;
    use crate::memory::Lease;
    use crate::models::RandomWeights;
    use crate::package::modules::Pooling;
    use ringfence_gpu::{Adapters, Gpu};

    fn model() -> Bert<Wgpu> {
        let gpu = Gpu::open(Adapters::list().unwrap().all().last().unwrap(), 64 << 20).unwrap();
        let config = BertConfig {
            hidden: 32,
            intermediate: 64,
            layers: 2,
            heads: 4,
            positions: 64,
            types: 2,
            vocabulary: 99,
            epsilon: 1e-12,
        };
        let head = Head { pooling: Pooling::Mean, normalize: true, max_tokens: None };
        Bert::new(Wgpu::new(gpu), &config, head, 64, &RandomWeights, &Lease).unwrap()
    }

    /// Floats of each tensor that are not zero.
    fn residue(model: &Bert<Wgpu>) -> Vec<usize> {
        let b = model.buffers.as_ref().unwrap();
        let count = |tensor| {
            let mut floats = Vec::new();
            model.device.read(tensor, b.tokens, &mut floats).unwrap();
            floats.iter().filter(|float| **float != 0.0).count()
        };
        [&b.x, &b.y, &b.qkv, &b.context, &b.inner, &b.pooled].map(count).to_vec()
    }

    #[test]
    fn nothing_of_one_domain_is_left_on_the_device_for_the_next() {
        let mut model = model();
        model.reserve(100, &Lease).unwrap();
        // The longest in the middle: what it left is below what the last one wrote over.
        for lengths in [&[5][..], &[40, 33], &[7]] {
            let mut batch = Batch::default();
            lengths.iter().for_each(|length| batch.push(&vec![7; *length]));
            model.embed(&batch).unwrap();
        }
        assert!(residue(&model).iter().all(|floats| *floats > 0), "there is something to overwrite");
        model.forget();
        assert_eq!(residue(&model), [0; 6]);
    }
}
