//! Kernels that look at a row as a whole: normalisations, softmax, the largest element.

use crate::buffers::{Matrix, Words};
use crate::device::Gpu;
use crate::error::GpuError;
use crate::gate::Buffer;
use crate::pipelines::{Kernel, Parameters};
use std::ops::Range;

/// Scale, and shift where there is one, of a normalisation.
#[derive(Debug)]
pub struct NormWeights {
    columns: usize,
    epsilon: f32,
    weight: Buffer,
    bias: Option<Buffer>,
}

impl Gpu {
    /// Takes the weights of a layer normalisation, or of an RMS normalisation, which has no bias. `epsilon` is added to
    /// the variance, or the mean square.
    ///
    /// # Errors
    /// No memory.
    ///
    /// # Panics
    /// If weight and bias differ in length.
    pub fn norm_weights(
        &self,
        weight: &[f32],
        bias: Option<&[f32]>,
        epsilon: f32,
    ) -> Result<NormWeights, GpuError> {
        assert!(bias.is_none_or(|bias| bias.len() == weight.len()), "one bias for each weight");
        let take = |floats: &[f32]| {
            let buffer = self.buffer(self.bindable(4 * floats.len() as u64)?)?;
            self.upload_floats(&buffer, 0, floats);
            Ok(buffer)
        };
        let (weight_buffer, bias) = (take(weight)?, bias.map(take).transpose()?);
        Ok(NormWeights { columns: weight.len(), epsilon, weight: weight_buffer, bias })
    }

    /// x = norm(x + added), for the first `rows` rows.
    ///
    /// # Panics
    /// If the shapes disagree, or the weights have no bias.
    pub fn add_layer_norm(&self, x: &mut Matrix, added: &Matrix, rows: usize, weights: &NormWeights) {
        assert!(rows <= x.rows() && rows <= added.rows(), "{rows} rows");
        assert!(x.columns() == weights.columns && added.columns() == weights.columns, "columns");
        let bias = weights.bias.as_ref().expect("a layer normalisation has a bias");
        let parameters = Parameters::new(&[rows, weights.columns]).float(weights.epsilon);
        let buffers = [x.buffer.raw(), added.buffer.raw(), weights.weight.raw(), bias.raw()];
        self.dispatch(Kernel::LayerNorm, &buffers, &parameters, rows as u64);
    }

    /// to[i] = norm of row `rows.start + i` of the input.
    ///
    /// # Panics
    /// If the shapes disagree, or the weights have no bias.
    pub fn layer_norm(&self, input: &Matrix, rows: Range<usize>, weights: &NormWeights, to: &mut Matrix) {
        assert!(
            rows.start <= rows.end && rows.end <= input.rows() && rows.len() <= to.rows(),
            "rows {rows:?}"
        );
        assert!(input.columns() == weights.columns && to.columns() == weights.columns, "columns");
        let bias = weights.bias.as_ref().expect("a layer normalisation has a bias");
        let parameters = Parameters::new(&[rows.len(), weights.columns]).float(weights.epsilon);
        let parameters = parameters.word(u32::try_from(rows.start).expect("rows are counted in 32 bits"));
        let buffers = [input.buffer.raw(), to.buffer.raw(), weights.weight.raw(), bias.raw()];
        self.dispatch(Kernel::LayerNormTo, &buffers, &parameters, rows.len() as u64);
    }

    /// to = input / sqrt(mean of squares + epsilon) * weight, for the first `rows` rows.
    ///
    /// # Panics
    /// If the shapes disagree.
    pub fn rms_norm(&self, input: &Matrix, rows: usize, weights: &NormWeights, to: &mut Matrix) {
        assert!(rows <= input.rows() && rows <= to.rows(), "{rows} rows");
        assert!(input.columns() == weights.columns && to.columns() == weights.columns, "columns");
        let parameters = Parameters::new(&[rows, weights.columns]).float(weights.epsilon);
        let buffers = [input.buffer.raw(), weights.weight.raw(), to.buffer.raw()];
        self.dispatch(Kernel::RmsNorm, &buffers, &parameters, rows as u64);
    }

    /// Scales the first `rows` rows to length 1; what is shorter than 1e-12 is divided by that instead.
    ///
    /// # Panics
    /// If there are fewer rows.
    pub fn normalize(&self, x: &mut Matrix, rows: usize) {
        assert!(rows <= x.rows(), "{rows} rows");
        let parameters = Parameters::new(&[rows, x.columns()]);
        self.dispatch(Kernel::Normalize, &[x.buffer.raw()], &parameters, rows as u64);
    }

    /// Each of the first `rows` rows becomes its softmax, after all elements are multiplied with `scale`, which is
    /// positive.
    ///
    /// # Panics
    /// If there are fewer rows, or the scale is not positive.
    pub fn softmax(&self, x: &mut Matrix, rows: usize, scale: f32) {
        assert!(rows <= x.rows() && scale > 0.0, "{rows} rows");
        let parameters = Parameters::new(&[rows, x.columns()]).float(scale);
        self.dispatch(Kernel::Softmax, &[x.buffer.raw()], &parameters, rows as u64);
    }

    /// `to[i]` = the first column that has the largest element of row i; columns that hold no number don't count.
    ///
    /// # Panics
    /// If there are fewer rows or places, or no columns.
    pub fn argmax(&self, x: &Matrix, rows: usize, to: &mut Words) {
        assert!(rows <= x.rows() && rows <= to.count(), "{rows} rows");
        assert!(rows == 0 || x.columns() > 0, "there is a column");
        let parameters = Parameters::new(&[rows, x.columns()]);
        self.dispatch(Kernel::Argmax, &[x.buffer.raw(), to.buffer.raw()], &parameters, rows as u64);
    }
}
