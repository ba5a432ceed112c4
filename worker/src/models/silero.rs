//! Silero's voice activity detection, version 6 for 16 kHz: how likely it is that somebody speaks, 32 ms at a time.
//!
//! ```text
//! 64 samples of the look before, 512 new ones, 64 more by reflection
//!   -> magnitudes of four windows -> four convolutions, each cut off at 0 -> an LSTM cell -> a weighted sum -> a probability
//! ```
//! <https://github.com/snakers4/silero-vad>. It is small beside what a speech model does: it runs on the caller's thread, on
//! the CPU, whatever device the model is on.

use super::{PackageWeights, Weights};
use crate::memory::{Memory, Refusal, load_error, load_refused};
use crate::package::Files;
use crate::package::silero::{
    CHANNELS, CHUNK, CONTEXT, FREQUENCIES, GATES, HIDDEN, HOP, KERNEL, PADDING, STRIDES, SileroConfig, WINDOW,
};
use ringfence_kernels::{
    Activation, Compute, Isa, Matrix, OutOfMemory, PackedLinear, Part, Pool, Window as Walk,
};
use ringfence_protocol::LoadError;
use zeroize::Zeroize;

/// Windows of a look.
const WINDOWS: usize = (CONTEXT + CHUNK + PADDING - WINDOW) / HOP + 1;
/// Upper bound of what the network takes: its weights, as they are read and as they are packed.
const BYTES: u64 = 8 << 20;

/// The network.
pub struct Silero {
    compute: Compute,
    transform: PackedLinear,
    convolutions: Vec<Convolution>,
    /// What comes in and what went out before, to all gates.
    cell: PackedLinear,
    output: Vec<f32>,
    bias: f32,
    work: Work,
}

/// One of the convolutions, with what it reads and what it makes.
struct Convolution {
    weights: PackedLinear,
    walk: Walk,
    /// Steps of its results.
    steps: usize,
    unfolded: Matrix,
    made: Matrix,
}

/// What a look leaves behind and nothing reads.
struct Work {
    windows: Matrix,
    spectrum: Matrix,
    magnitudes: Matrix,
    inputs: Matrix,
    gates: Matrix,
}

/// What one sound's looks have from each other; overwritten when it is dropped.
pub struct SileroState {
    context: [f32; CONTEXT],
    hidden: [f32; HIDDEN],
    cell: [f32; HIDDEN],
}

impl Default for SileroState {
    fn default() -> Self {
        Self { context: [0.0; CONTEXT], hidden: [0.0; HIDDEN], cell: [0.0; HIDDEN] }
    }
}

impl Drop for SileroState {
    fn drop(&mut self) {
        self.context.zeroize();
        self.hidden.zeroize();
        self.cell.zeroize();
    }
}

impl std::fmt::Debug for Silero {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Silero")
    }
}

impl std::fmt::Debug for SileroState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SileroState")
    }
}

impl Silero {
    /// Reads a package.
    ///
    /// # Errors
    /// It is another network's, a tensor is missing or of another shape, or there is no memory.
    pub fn read(files: &Files, memory: &dyn Memory) -> Result<Self, LoadError> {
        SileroConfig::check(files)?;
        memory.check(BYTES).map_err(load_error)?;
        let source = Source { weights: &PackageWeights::read(files, memory)?, isa: Isa::detect(), memory };
        // A pool of the caller's thread alone starts none.
        let pool = Pool::new(1).map_err(|_| source.full(OutOfMemory { bytes: 0 }))?;
        let mut steps = WINDOWS;
        let convolutions = (0..STRIDES.len()).map(|layer| {
            let stride = STRIDES[layer];
            steps = steps.div_ceil(stride);
            source.convolution(layer, steps)
        });
        let matrix = |rows, columns| source.matrix(rows, columns);
        Ok(Self {
            compute: Compute::new(source.isa, pool),
            transform: source.linear("stft.basis", &[2 * FREQUENCIES, 1, WINDOW], &[0.0; 2 * FREQUENCIES])?,
            convolutions: convolutions.collect::<Result<_, _>>()?,
            cell: source.cell()?,
            output: source.weights.floats("decoder.weight", &[1, HIDDEN, 1])?,
            bias: source.weights.floats("decoder.bias", &[1])?.iter().sum(),
            work: Work {
                windows: matrix(WINDOWS, WINDOW)?,
                spectrum: matrix(WINDOWS, 2 * FREQUENCIES)?,
                magnitudes: matrix(WINDOWS, FREQUENCIES)?,
                inputs: matrix(1, 2 * HIDDEN)?,
                gates: matrix(1, GATES * HIDDEN)?,
            },
        })
    }

    /// How likely it is that somebody speaks in the next [`CHUNK`] samples, from -1 to 1, of the sound that the state is of.
    /// No number where the weights are none.
    ///
    /// # Panics
    /// If there are more or fewer.
    pub fn look(&mut self, state: &mut SileroState, samples: &[f32]) -> f32 {
        assert_eq!(samples.len(), CHUNK, "samples of a look");
        self.transform(state, samples);
        let mut x = &self.work.magnitudes;
        let mut steps = WINDOWS;
        for Convolution { weights, walk, steps: results, unfolded, made } in &mut self.convolutions {
            self.compute.unfold(x, steps, *walk, 0..*results, unfolded);
            self.compute.linear(unfolded, *results, weights, Activation::None, made);
            (0..*results).for_each(|row| rectify(made.row_mut(row)));
            (x, steps) = (made, *results);
        }
        let (new, old) = self.work.inputs.row_mut(0).split_at_mut(HIDDEN);
        new.copy_from_slice(x.row(0));
        old.copy_from_slice(&state.hidden);
        self.compute.linear(&self.work.inputs, 1, &self.cell, Activation::None, &mut self.work.gates);
        recur(state, self.work.gates.row(0));
        let products = state.hidden.iter().zip(&self.output).map(|(x, weight)| x.max(0.0) * weight);
        sigmoid(products.sum::<f32>() + self.bias)
    }

    /// The magnitudes of each window's frequencies.
    fn transform(&mut self, state: &mut SileroState, samples: &[f32]) {
        let mut whole = [0.0; CONTEXT + CHUNK + PADDING];
        whole[..CONTEXT].copy_from_slice(&state.context);
        whole[CONTEXT..CONTEXT + CHUNK].copy_from_slice(samples);
        state.context.copy_from_slice(&samples[CHUNK - CONTEXT..]);
        let (known, reflected) = whole.split_at_mut(CONTEXT + CHUNK);
        for (place, sample) in reflected.iter_mut().zip(known.iter().rev().skip(1)) {
            *place = *sample;
        }
        let Work { windows, spectrum, magnitudes, .. } = &mut self.work;
        for at in 0..WINDOWS {
            windows.row_mut(at).copy_from_slice(&whole[at * HOP..][..WINDOW]);
        }
        whole.zeroize();
        self.compute.linear(windows, WINDOWS, &self.transform, Activation::None, spectrum);
        for at in 0..WINDOWS {
            let (cosines, sines) = spectrum.row(at).split_at(FREQUENCIES);
            for (place, (x, y)) in magnitudes.row_mut(at).iter_mut().zip(cosines.iter().zip(sines)) {
                *place = (x * x + y * y).sqrt();
            }
        }
    }
}

fn rectify(row: &mut [f32]) {
    row.iter_mut().for_each(|x| *x = x.max(0.0));
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

fn recur(state: &mut SileroState, gates: &[f32]) {
    let [input, forget, new, output] = [0, 1, 2, 3].map(|gate| &gates[gate * HIDDEN..][..HIDDEN]);
    for at in 0..HIDDEN {
        let kept = sigmoid(forget[at]) * state.cell[at];
        state.cell[at] = kept + sigmoid(input[at]) * new[at].tanh();
        state.hidden[at] = sigmoid(output[at]) * state.cell[at].tanh();
    }
}

/// What the network is built from.
struct Source<'a> {
    weights: &'a PackageWeights<'a>,
    isa: Isa,
    memory: &'a dyn Memory,
}

impl Source<'_> {
    fn full(&self, refused: OutOfMemory) -> LoadError {
        load_refused(Refusal::Denied(self.memory.denied(refused)))
    }

    fn matrix(&self, rows: usize, columns: usize) -> Result<Matrix, LoadError> {
        Matrix::zeroed(rows, columns).map_err(|refused| self.full(refused))
    }

    fn pack(&self, inputs: usize, weight: &[f32], bias: &[f32]) -> Result<PackedLinear, LoadError> {
        PackedLinear::pack(self.isa, inputs, &[Part { weight, bias }]).map_err(|refused| self.full(refused))
    }

    fn linear(&self, name: &str, shape: &[usize], bias: &[f32]) -> Result<PackedLinear, LoadError> {
        self.pack(shape[1..].iter().product(), &self.weights.floats(name, shape)?, bias)
    }

    /// As a linear layer over the steps that a result is made of, each step's channels together.
    fn convolution(&self, layer: usize, steps: usize) -> Result<Convolution, LoadError> {
        let (channels, outputs) = (CHANNELS[layer], CHANNELS[layer + 1]);
        let name = |part: &str| format!("encoder.{layer}.{part}");
        let taps = self.weights.floats(&name("weight"), &[outputs, channels, KERNEL])?;
        let bias = self.weights.floats(&name("bias"), &[outputs])?;
        let row = |output: &[f32]| -> Vec<f32> {
            (0..KERNEL).flat_map(|tap| output[tap..].iter().step_by(KERNEL).copied()).collect()
        };
        let weight: Vec<f32> = taps.chunks_exact(channels * KERNEL).flat_map(row).collect();
        Ok(Convolution {
            weights: self.pack(channels * KERNEL, &weight, &bias)?,
            walk: Walk { stride: STRIDES[layer], padding: 1 },
            steps,
            unfolded: self.matrix(steps, channels * KERNEL)?,
            made: self.matrix(steps, outputs)?,
        })
    }

    fn cell(&self) -> Result<PackedLinear, LoadError> {
        let floats = |side: &str| {
            let weight = self.weights.floats(&format!("lstm.weight_{side}"), &[GATES * HIDDEN, HIDDEN])?;
            Ok((weight, self.weights.floats(&format!("lstm.bias_{side}"), &[GATES * HIDDEN])?))
        };
        let ((new, new_bias), (old, old_bias)) = (floats("ih")?, floats("hh")?);
        let rows = new.chunks_exact(HIDDEN).zip(old.chunks_exact(HIDDEN));
        let weight: Vec<f32> = rows.flat_map(|(new, old)| [new, old].concat()).collect();
        let bias: Vec<f32> = new_bias.iter().zip(&old_bias).map(|(x, y)| x + y).collect();
        self.pack(2 * HIDDEN, &weight, &bias)
    }
}
