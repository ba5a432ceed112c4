//! Convolution along time.

use crate::Activation;
use crate::buffers::Matrix;
use crate::device::Gpu;
use crate::error::GpuError;
use crate::gate::Buffer;
use crate::kernels::groups_for;
use crate::pipelines::{Kernel, Parameters};
use std::ops::Range;

/// How a convolution walks over its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Convolution {
    /// Steps from one result to the next; at least 1.
    pub stride: usize,
    /// Steps of zeros before the input and after it.
    pub padding: usize,
}

/// Weights `outputs x channels x kernel`, and a bias for each output.
#[derive(Debug)]
pub struct ConvWeights {
    channels: usize,
    outputs: usize,
    kernel: usize,
    weights: Buffer,
    bias: Buffer,
}

impl ConvWeights {
    /// Steps of the result for an input of so many; none if the kernel does not fit in.
    ///
    /// # Panics
    /// If the stride is 0.
    pub fn steps(&self, input: usize, how: Convolution) -> usize {
        assert!(how.stride > 0, "a stride of nothing");
        (input + 2 * how.padding).checked_sub(self.kernel).map_or(0, |last| last / how.stride + 1)
    }
}

impl Gpu {
    /// Takes weights in PyTorch's order: for each output, for each channel, the kernel's taps.
    ///
    /// # Errors
    /// No memory, or they are more than a shader can reach.
    ///
    /// # Panics
    /// If they aren't as many as the biases times `channels` times `kernel`, or there is no tap.
    pub fn conv_weights(
        &self,
        channels: usize,
        kernel: usize,
        weights: &[f32],
        bias: &[f32],
    ) -> Result<ConvWeights, GpuError> {
        let outputs = bias.len();
        assert!(kernel > 0 && weights.len() == outputs * channels * kernel, "outputs x channels x kernel");
        // Channels innermost, as in the input: neighbours are read together.
        let at = |i: usize| {
            let (output, tap, channel) = (i / (kernel * channels), i / channels % kernel, i % channels);
            weights[(output * channels + channel) * kernel + tap]
        };
        let turned: Vec<f32> = (0..weights.len()).map(at).collect();
        let own = self.buffer(self.bindable(4 * turned.len() as u64)?)?;
        let bias_buffer = self.buffer(4 * outputs as u64)?;
        self.upload_floats(&own, 0, &turned);
        self.upload_floats(&bias_buffer, 0, bias);
        Ok(ConvWeights { channels, outputs, kernel, weights: own, bias: bias_buffer })
    }

    /// to = activation(convolution of the first `steps` rows of `input`): a row for each step of the result, whose count
    /// is returned.
    ///
    /// # Panics
    /// If the shapes disagree.
    pub fn conv1d(
        &self,
        input: &Matrix,
        steps: usize,
        weights: &ConvWeights,
        how: Convolution,
        activation: Activation,
        to: &mut Matrix,
    ) -> usize {
        let ConvWeights { channels, outputs, kernel, .. } = *weights;
        let made = weights.steps(steps, how);
        assert!(steps <= input.rows() && made <= to.rows(), "{made} of {steps} steps");
        assert_eq!((input.columns(), to.columns()), (channels, outputs), "columns");
        let numbers = [made, steps, channels, outputs, kernel, how.stride, how.padding];
        let parameters = Parameters::new(&numbers).word(activation.word());
        let buffers = [input.buffer.raw(), weights.weights.raw(), weights.bias.raw(), to.buffer.raw()];
        self.dispatch(Kernel::Conv1d, &buffers, &parameters, groups_for(made * outputs));
        made
    }

    /// What a convolution multiplies with its weights: to[i] = the rows of the first `steps` of `input` that result
    /// `results.start + i` is made of, as many as fit into a row of `to`, one after another, with zeros where there are none.
    ///
    /// # Panics
    /// If the shapes disagree.
    pub fn unfold(
        &self,
        input: &Matrix,
        steps: usize,
        how: Convolution,
        results: Range<usize>,
        to: &mut Matrix,
    ) {
        let channels = input.columns();
        assert!(steps <= input.rows() && results.len() <= to.rows(), "{results:?} of {steps} steps");
        assert!(channels > 0 && to.columns().is_multiple_of(channels) && how.stride > 0, "whole rows");
        let kernel = to.columns() / channels;
        let numbers = [results.len(), steps, channels, results.start, kernel, how.stride, how.padding];
        let buffers = [input.buffer.raw(), to.buffer.raw()];
        let groups = groups_for(results.len() * to.columns());
        self.dispatch(Kernel::Unfold, &buffers, &Parameters::new(&numbers), groups);
    }
}
