//! Llamas (Touvron et al. 2023) with grouped queries (Ainslie et al. 2023), with biases where they are Qwen2's, over keys and values in blocks that sequences
//! take and give back.
//!
//! A step takes rows of several sequences: all of a prompt, a piece of one, or the token that was written last. What a
//! sequence has seen is in its blocks; the network keeps nothing else of it.

use super::{Blocks, Generator, Sizes, Weights, reserve};
use crate::device::{
    AttentionShape, CACHE_BLOCK_TOKENS, CacheShape, DecodingDevice, DeviceError, DeviceFailure, NormWeights,
    Sequence, Stored, TextPart, TextWeights, Usage,
};
use crate::memory::{Memory, Refusal, load_refused};
use crate::package::llama::{Llama3Scaling, LlamaConfig};
use ringfence_protocol::LoadError;

const EMBEDDINGS: &str = "model.embed_tokens";

/// Rows of a step that are of one sequence.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// The tokens, at least one.
    pub ids: &'a [u32],
    /// The position of the first.
    pub first: usize,
    /// The sequence's blocks, with room for the last token.
    pub blocks: &'a [u32],
    /// Whether it is to be said what follows the last token.
    pub answers: bool,
}

/// The network on a device.
pub struct Llama<D: DecodingDevice> {
    device: D,
    config: LlamaConfig,
    /// By how much each pair of a head turns from position to position, in radians.
    frequencies: Vec<f64>,
    embeddings: D::Table,
    layers: Vec<Layer<D>>,
    norm: D::Norm,
    output: D::TextLinear,
    /// Of each layer.
    caches: Vec<D::Cache>,
    blocks: usize,
    /// As what keys and values are kept.
    stored: Stored,
    workspace: Option<Workspace<D>>,
}

impl<D: DecodingDevice> std::fmt::Debug for Llama<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Llama({} layers, {} blocks)", self.layers.len(), self.blocks)
    }
}

/// A layer's weights.
struct Layer<D: DecodingDevice> {
    attention_norm: D::Norm,
    /// Queries, keys, values.
    attended: D::TextLinear,
    out: D::TextLinear,
    inner_norm: D::Norm,
    /// Gates, and what goes through them.
    gates: D::TextLinear,
    down: D::TextLinear,
}

/// Activations of one step; they hold nothing from step to step.
struct Workspace<D: DecodingDevice> {
    rows: usize,
    answers: usize,
    /// Rows that steps wrote since the last [`Llama::forget`].
    written: usize,
    positions: Vec<u32>,
    places: Vec<u32>,
    ids: Vec<u32>,
    answering: Vec<u32>,
    x: D::Tensor,
    normed: D::Tensor,
    attended: D::Tensor,
    context: D::Tensor,
    y: D::Tensor,
    gates: D::Tensor,
    inner: D::Tensor,
    /// Rows that are answered.
    last: D::Tensor,
    logits: D::Tensor,
    turns: D::Turns,
    inputs: D::Inputs,
    scores: D::CacheScores,
}

impl<D: DecodingDevice> Llama<D> {
    /// Builds the network, with so many blocks of [`CACHE_BLOCK_TOKENS`] tokens for all sequences together.
    ///
    /// # Errors
    /// A tensor is missing or of another shape, or weights and blocks don't fit in memory.
    pub fn new(
        device: D,
        config: &LlamaConfig,
        weights: &dyn Weights,
        blocks: usize,
        memory: &dyn Memory,
    ) -> Result<Self, LoadError> {
        let source = Source { device: &device, config, weights, memory };
        let kept = source.kept(blocks);
        let cache = device.cache_bytes(kept).saturating_mul(config.layers);
        let bytes = source.bytes()?.saturating_add(cache as u64);
        device.check(bytes, memory).map_err(source.refused())?;
        let layers = (0..config.layers).map(|layer| source.layer(layer)).collect::<Result<_, _>>()?;
        let caches = (0..config.layers).map(|_| device.cache(kept));
        let output = if config.tied { EMBEDDINGS } else { "lm_head" };
        Ok(Self {
            frequencies: frequencies(config),
            embeddings: source.embeddings()?,
            norm: source.norm("model.norm")?,
            output: source.linear(config.hidden, &[(output, config.vocabulary)], false)?,
            caches: caches.collect::<Result<_, _>>().map_err(source.refused())?,
            config: config.clone(),
            layers,
            blocks,
            stored: kept.stored,
            workspace: None,
            device,
        })
    }

    /// As [`Llama::new`], with room for steps of these sizes and as many blocks as the lease has room for beside that, at
    /// most those that all sequences can fill.
    ///
    /// # Errors
    /// As there, or there is no room for one block.
    pub fn within_lease(
        device: D,
        config: &LlamaConfig,
        weights: &dyn Weights,
        sizes: Sizes,
        memory: &dyn Memory,
    ) -> Result<Self, LoadError> {
        let (rows, answers) = (sizes.step_tokens, sizes.slots);
        let source = Source { device: &device, config, weights, memory };
        let weight_bytes = source.bytes()?;
        let bytes = |blocks: usize| {
            let cache = (device.cache_bytes(source.kept(blocks)) as u64).saturating_mul(config.layers as u64);
            let working = workspace_bytes(&device, config, blocks, rows, answers);
            let jobs = JOBS_BYTES.saturating_add((answers * config.vocabulary * BYTES_PER_LOGIT) as u64);
            weight_bytes.saturating_add(cache).saturating_add(working).saturating_add(jobs)
        };
        let all = sizes.max_tokens.div_ceil(CACHE_BLOCK_TOKENS).saturating_mul(answers).max(1);
        let fits = |blocks: usize| device.check(bytes(blocks), memory).is_ok();
        let blocks = if fits(all) { all } else { most(all, fits) };
        if blocks == 0 {
            device.check(bytes(1), memory).map_err(source.refused())?;
        }
        let mut model = Self::new(device, config, weights, blocks, memory)?;
        model.reserve(rows, answers, memory).map_err(load_refused)?;
        Ok(model)
    }

    /// Lets the weights go and keeps the device.
    pub fn into_device(self) -> D {
        self.device
    }

    /// Upper bound of the bytes that [`Llama::reserve`] takes.
    pub fn bytes(&self, rows: usize, answers: usize) -> u64 {
        workspace_bytes(&self.device, &self.config, self.blocks, rows, answers)
    }

    /// Makes room for steps of so many rows, of which so many are answered, or fewer.
    ///
    /// # Errors
    /// There is none. What there was before may be gone, and comes back with fewer rows.
    pub fn reserve(&mut self, rows: usize, answers: usize, memory: &dyn Memory) -> Result<(), Refusal> {
        if self.workspace.as_ref().is_some_and(|w| w.rows >= rows && w.answers >= answers) {
            return Ok(());
        }
        // The old one first, so that there is room where it was.
        self.workspace = None;
        let bytes = self.bytes(rows, answers);
        let allocated = self.device.check(bytes, memory).and_then(|()| self.allocate(rows, answers));
        self.workspace = Some(allocated.map_err(|error| Refusal::new(error, memory))?);
        Ok(())
    }

    /// Gives back what [`Llama::reserve`] took.
    pub fn release(&mut self) {
        self.workspace = None;
    }

    /// Takes each run's tokens, and gives the logits of what follows the last one of those that are answered, one after
    /// another.
    ///
    /// # Errors
    /// The device failed.
    ///
    /// # Panics
    /// If there is no token, or no room for them was made, or a token, position or block is none.
    pub fn step(&mut self, runs: &[Run<'_>], logits: &mut Vec<f32>) -> Result<(), DeviceFailure> {
        self.step_while(runs, logits, &mut || true).map(|_| ())
    }

    /// As [`Llama::step`], as long as it is to go on, which is asked before each layer; whether it went to the end. Where it
    /// did not, the blocks have nothing that counts in the places of these tokens.
    ///
    /// # Errors
    /// The device failed.
    ///
    /// # Panics
    /// As there.
    pub fn step_while(
        &mut self,
        runs: &[Run<'_>],
        logits: &mut Vec<f32>,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<bool, DeviceFailure> {
        let rows = self.place(runs);
        let sequences = sequences(runs);
        let w = self.workspace.as_mut().expect("reserved");
        let device = &self.device;
        device.lookup(&self.embeddings, &w.ids, &mut w.x);
        device.set_turns(&mut w.turns, &w.positions, &self.frequencies);
        let LlamaConfig { heads, key_heads, head, .. } = self.config;
        let (queries, keys) = (heads * head, key_heads * head);
        for (layer, cache) in self.layers.iter().zip(&mut self.caches) {
            if !go_on() {
                return Ok(false);
            }
            device.rms_norm(&w.x, rows, &layer.attention_norm, &mut w.normed);
            device.text_linear(&w.normed, rows, &layer.attended, &mut w.inputs, &mut w.attended);
            device.rotate(&mut w.attended, rows, 0..queries + keys, head, &w.turns);
            device.keep(&w.attended, queries..queries + 2 * keys, &w.places, cache);
            device.attend_kept(&w.attended, &sequences, cache, &mut w.scores, &mut w.context);
            device.text_linear(&w.context, rows, &layer.out, &mut w.inputs, &mut w.y);
            device.add(&mut w.x, 0..rows, &w.y);
            device.rms_norm(&w.x, rows, &layer.inner_norm, &mut w.normed);
            device.text_linear(&w.normed, rows, &layer.gates, &mut w.inputs, &mut w.gates);
            device.gate(&w.gates, rows, &mut w.inner);
            device.text_linear(&w.inner, rows, &layer.down, &mut w.inputs, &mut w.y);
            device.add(&mut w.x, 0..rows, &w.y);
        }
        logits.clear();
        let answers = w.answering.len();
        if answers == 0 {
            return Ok(true);
        }
        device.select(&w.x, &w.answering, &mut w.last);
        device.rms_norm(&w.last, answers, &self.norm, &mut w.normed);
        device.text_linear(&w.normed, answers, &self.output, &mut w.inputs, &mut w.logits);
        device.read(&w.logits, answers, logits).map(|()| true)
    }

    /// Writes down which token each row is, and where it belongs; how many there are.
    fn place(&mut self, runs: &[Run<'_>]) -> usize {
        let w = self.workspace.as_mut().expect("reserved");
        for numbers in [&mut w.ids, &mut w.positions, &mut w.places, &mut w.answering] {
            numbers.clear();
        }
        let rows: usize = runs.iter().map(|run| run.ids.len()).sum();
        let answers = runs.iter().filter(|run| run.answers).count();
        assert!(
            rows <= w.rows && answers <= w.answers,
            "room for {rows} rows and {answers} answers was made"
        );
        for run in runs {
            assert!(!run.ids.is_empty() && run.first + run.ids.len() <= self.config.positions, "positions");
            for (at, id) in (run.first..).zip(run.ids) {
                assert!((*id as usize) < self.config.vocabulary, "token {id}");
                let block = run.blocks[at / CACHE_BLOCK_TOKENS];
                assert!((block as usize) < self.blocks, "block {block}");
                w.ids.push(*id);
                w.positions.push(at as u32);
                w.places.push(block * CACHE_BLOCK_TOKENS as u32 + (at % CACHE_BLOCK_TOKENS) as u32);
            }
            if run.answers {
                w.answering.push(w.ids.len() as u32 - 1);
            }
        }
        w.written = w.written.max(rows);
        rows
    }

    fn allocate(&self, rows: usize, answers: usize) -> Result<Workspace<D>, DeviceError> {
        let tensor = |columns| self.device.tensor(rows.max(answers), columns);
        let [x, normed, attended, context, y, gates, inner] = columns(&self.config);
        Ok(Workspace {
            rows,
            answers,
            written: 0,
            positions: reserve(rows)?,
            places: reserve(rows)?,
            ids: reserve(rows)?,
            answering: reserve(answers)?,
            x: tensor(x)?,
            normed: tensor(normed)?,
            attended: tensor(attended)?,
            context: tensor(context)?,
            y: tensor(y)?,
            gates: tensor(gates)?,
            inner: tensor(inner)?,
            last: self.device.tensor(answers, self.config.hidden)?,
            logits: self.device.tensor(answers, self.config.vocabulary)?,
            turns: self.device.turns(rows, self.config.head)?,
            inputs: self.device.inputs(rows.max(answers), widest(&self.config))?,
            scores: self.device.cache_scores(attention_shape(&self.config, self.blocks, rows))?,
        })
    }
}

impl<D: DecodingDevice> Generator for Llama<D> {
    fn config(&self) -> &LlamaConfig {
        &self.config
    }

    fn blocks(&self) -> usize {
        self.blocks
    }

    fn block_bytes(&self) -> u64 {
        let LlamaConfig { layers, key_heads, head, .. } = self.config;
        let shape = CacheShape { blocks: 1, key_heads, head, stored: self.stored };
        (self.device.cache_bytes(shape) * layers) as u64
    }

    fn usage(&self, memory: &dyn Memory) -> Usage {
        self.device.usage(memory)
    }

    fn forget(&mut self) {
        let Some(w) = &mut self.workspace else { return };
        let tensors =
            [&mut w.x, &mut w.normed, &mut w.attended, &mut w.context, &mut w.y, &mut w.gates, &mut w.inner];
        for tensor in tensors {
            self.device.clear(tensor, w.written);
        }
        for tensor in [&mut w.last, &mut w.logits] {
            self.device.clear(tensor, w.answers);
        }
        w.written = 0;
    }

    fn copy(&mut self, from: u32, to: u32) {
        for cache in &mut self.caches {
            self.device.copy_block(from, to, cache);
        }
    }

    fn wipe(&mut self, blocks: &[u32]) {
        for cache in &mut self.caches {
            blocks.iter().for_each(|block| self.device.wipe_block(*block, cache));
        }
    }

    fn step_while(
        &mut self,
        runs: &[Run<'_>],
        logits: &mut Vec<f32>,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<bool, DeviceFailure> {
        Llama::step_while(self, runs, logits, go_on)
    }
}

/// Room in a lease for jobs' inputs and schemas, and for what else is counted against it while they run.
const JOBS_BYTES: u64 = 32 * 1024 * 1024;
/// What choosing a token takes for each that could be chosen: logits twice, and candidates with their numbers.
const BYTES_PER_LOGIT: usize = 16;

/// The largest number up to `most` for which this is so, where it is so for all below one for which it is; 0 for none.
fn most(most: usize, is_so: impl Fn(usize) -> bool) -> usize {
    let (mut least, mut beyond) = (0, most + 1);
    while least + 1 < beyond {
        let middle = least + (beyond - least) / 2;
        if is_so(middle) {
            least = middle;
        } else {
            beyond = middle;
        }
    }
    least
}

fn workspace_bytes<D: DecodingDevice>(
    device: &D,
    config: &LlamaConfig,
    blocks: usize,
    rows: usize,
    answers: usize,
) -> u64 {
    let row: usize = columns(config).iter().map(|columns| device.row_bytes(*columns)).sum();
    let numbers = 3 * size_of::<u32>();
    let answer = device.row_bytes(config.hidden) + device.row_bytes(config.vocabulary) + size_of::<u32>();
    let working = device.turns_bytes(rows, config.head)
        + device.inputs_bytes(rows.max(answers), widest(config))
        + device.cache_scores_bytes(attention_shape(config, blocks, rows));
    (rows.max(answers) * (row + numbers) + answers * answer + working) as u64
}

/// Columns of the tensors that have a row for each row of a step.
fn columns(config: &LlamaConfig) -> [usize; 7] {
    let LlamaConfig { hidden, intermediate, heads, key_heads, head, .. } = *config;
    let queries = heads * head;
    [hidden, hidden, queries + 2 * key_heads * head, queries, hidden, 2 * intermediate, intermediate]
}

/// The most inputs of a product.
fn widest(config: &LlamaConfig) -> usize {
    config.hidden.max(config.intermediate).max(config.heads * config.head)
}

fn attention_shape(config: &LlamaConfig, blocks: usize, rows: usize) -> AttentionShape {
    let LlamaConfig { heads, key_heads, head, positions, .. } = *config;
    let tokens = positions.min(blocks.saturating_mul(CACHE_BLOCK_TOKENS));
    AttentionShape { rows, tokens, group: heads / key_heads, head }
}

fn sequences<'a>(runs: &[Run<'a>]) -> Vec<Sequence<'a>> {
    let mut row = 0;
    let of = |run: &Run<'a>| {
        let rows = row..row + run.ids.len();
        row = rows.end;
        Sequence { rows, first: run.first, blocks: run.blocks }
    };
    runs.iter().map(of).collect()
}

/// How fast the pairs of a head turn.
fn frequencies(config: &LlamaConfig) -> Vec<f64> {
    let theta = f64::from(config.rope_theta);
    let of = |pair: usize| theta.powf(-2.0 * pair as f64 / config.head as f64);
    let stretched = |frequency: f64| config.rope_scaling.map_or(frequency, |by| stretch(frequency, by));
    (0..config.head / 2).map(of).map(stretched).collect()
}

/// Llama 3.1's: low frequencies are divided, high ones stay, those between are between.
fn stretch(frequency: f64, by: Llama3Scaling) -> f64 {
    let (low, high) = (f64::from(by.low_freq_factor), f64::from(by.high_freq_factor));
    let turns = by.original_max_position_embeddings as f64 * frequency / (2.0 * std::f64::consts::PI);
    let stays = ((turns - low) / (high - low)).clamp(0.0, 1.0);
    frequency * (stays + (1.0 - stays) / f64::from(by.factor))
}

/// What the network is built from.
struct Source<'a, D: DecodingDevice> {
    device: &'a D,
    config: &'a LlamaConfig,
    weights: &'a dyn Weights,
    memory: &'a dyn Memory,
}

impl<D: DecodingDevice> Source<'_, D> {
    fn refused(&self) -> impl Fn(DeviceError) -> LoadError + use<'_, D> {
        |error| load_refused(Refusal::new(error, self.memory))
    }

    /// Bytes of the weights on the device, before anything is allocated.
    fn bytes(&self) -> Result<u64, LoadError> {
        let mut bytes = self.part_bytes(
            self.config.hidden,
            &[(if self.config.tied { EMBEDDINGS } else { "lm_head" }, self.config.vocabulary)],
        )?;
        for layer in 0..self.config.layers {
            for (inputs, parts) in self.products(layer) {
                let parts: Vec<(&str, usize)> =
                    parts.iter().map(|(name, rows)| (name.as_str(), *rows)).collect();
                bytes = bytes.saturating_add(self.part_bytes(inputs, &parts)?);
            }
        }
        Ok(bytes as u64)
    }

    fn part_bytes(&self, inputs: usize, parts: &[(&str, usize)]) -> Result<usize, LoadError> {
        let mut shapes = Vec::with_capacity(parts.len());
        for (name, rows) in parts {
            let tensor = format!("{name}.weight");
            let kind = self.weights.blocks(&tensor, [*rows, inputs])?.map(|blocks| blocks.kind);
            shapes.push((kind, self.weights.stored(&tensor).unwrap_or(Stored::F32), *rows));
        }
        if !shapes.iter().all(|(kind, ..)| kind.is_some()) {
            shapes.iter_mut().for_each(|(kind, ..)| *kind = None);
        }
        Ok(self.device.text_weight_bytes(inputs, &shapes))
    }

    /// The products of a layer: inputs, and the parts by name with their outputs.
    fn products(&self, layer: usize) -> [(usize, Vec<(String, usize)>); 4] {
        let LlamaConfig { hidden, intermediate, heads, key_heads, head, .. } = *self.config;
        let (queries, keys) = (heads * head, key_heads * head);
        let named = |parts: &[(&str, usize)]| {
            parts.iter().map(|(part, rows)| (format!("model.layers.{layer}.{part}"), *rows)).collect()
        };
        [
            (
                hidden,
                named(&[
                    ("self_attn.q_proj", queries),
                    ("self_attn.k_proj", keys),
                    ("self_attn.v_proj", keys),
                ]),
            ),
            (queries, named(&[("self_attn.o_proj", hidden)])),
            (hidden, named(&[("mlp.gate_proj", intermediate), ("mlp.up_proj", intermediate)])),
            (intermediate, named(&[("mlp.down_proj", hidden)])),
        ]
    }

    /// Keys and values are kept as exactly as the weights that make them.
    fn kept(&self, blocks: usize) -> CacheShape {
        let stored = self.weights.stored("model.layers.0.self_attn.k_proj.weight").unwrap_or(Stored::F16);
        CacheShape { blocks, key_heads: self.config.key_heads, head: self.config.head, stored }
    }

    fn layer(&self, layer: usize) -> Result<Layer<D>, LoadError> {
        let [attended, out, gates, down] = self.products(layer);
        let linear = |(inputs, parts): (usize, Vec<(String, usize)>)| {
            let parts: Vec<(&str, usize)> = parts.iter().map(|(name, rows)| (name.as_str(), *rows)).collect();
            self.linear(inputs, &parts, false)
        };
        let (inputs, parts) = attended;
        let parts: Vec<(&str, usize)> = parts.iter().map(|(name, rows)| (name.as_str(), *rows)).collect();
        Ok(Layer {
            attention_norm: self.norm(&format!("model.layers.{layer}.input_layernorm"))?,
            attended: self.linear(inputs, &parts, self.config.biases)?,
            out: linear(out)?,
            inner_norm: self.norm(&format!("model.layers.{layer}.post_attention_layernorm"))?,
            gates: linear(gates)?,
            down: linear(down)?,
        })
    }

    fn norm(&self, name: &str) -> Result<D::Norm, LoadError> {
        let weight = self.weights.floats(&format!("{name}.weight"), &[self.config.hidden])?;
        let weights = NormWeights { weight, bias: Vec::new(), epsilon: self.config.epsilon };
        self.device.norm_weights(weights).map_err(self.refused())
    }

    fn embeddings(&self) -> Result<D::Table, LoadError> {
        let shape = [self.config.vocabulary, self.config.hidden];
        let name = format!("{EMBEDDINGS}.weight");
        let table = match self.weights.blocks(&name, shape)? {
            Some(Blocks { kind, file, bytes }) => {
                self.device.block_table(self.config.hidden, kind, file, bytes)
            }
            None => self.device.table(self.config.hidden, self.weights.table(&name, shape)?),
        };
        table.map_err(self.refused())
    }

    /// A product whose parts stay in blocks if all of them are in blocks.
    fn linear(
        &self,
        inputs: usize,
        parts: &[(&str, usize)],
        biases: bool,
    ) -> Result<D::TextLinear, LoadError> {
        let mut blocks = Vec::with_capacity(parts.len());
        for (name, rows) in parts {
            blocks.push(self.weights.blocks(&format!("{name}.weight"), [*rows, inputs])?);
        }
        let all = blocks.iter().all(Option::is_some);
        let mut taken = Vec::with_capacity(parts.len());
        for ((name, rows), blocks) in parts.iter().zip(&blocks) {
            let weights = match blocks {
                Some(Blocks { kind, file, bytes }) if all => TextWeights::Blocks(*kind, &file[bytes.clone()]),
                _ => self.floats(&format!("{name}.weight"), *rows, inputs)?,
            };
            let bias =
                if biases { Some(self.weights.floats(&format!("{name}.bias"), &[*rows])?) } else { None };
            taken.push(TextPart { rows: *rows, weights, bias });
        }
        self.device.text_weights(inputs, taken).map_err(self.refused())
    }

    fn floats(&self, name: &str, rows: usize, inputs: usize) -> Result<TextWeights<'static>, LoadError> {
        let stored = self.weights.stored(name).unwrap_or(Stored::F32);
        Ok(TextWeights::Floats(self.weights.floats(name, &[rows, inputs])?, stored))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn low_frequencies_are_stretched_as_in_llama_3_1() {
        let by = Llama3Scaling {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        };
        for (frequency, expected) in [(1.0, 1.0), (1e-5, 1.25e-6)] {
            assert_eq!(stretch(frequency, by), expected);
        }
        // Half way between one turn and four: 2.5 turns.
        let middle = 2.5 * 2.0 * std::f64::consts::PI / 8192.0;
        assert!((stretch(middle, by) / middle - (0.5 + 0.5 / 8.0)).abs() < 1e-12);
    }
}
