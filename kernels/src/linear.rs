//! Products with weights that are packed once: out = activation(in * weights^T + bias).

use crate::buffer::Buffer;
use crate::compute::Shared;
use crate::half::narrow;
use crate::isa::Routines;
use crate::tile::Tile;
use crate::{Compute, Isa, Matrix, OutOfMemory};

/// Bytes of input that an item works through with one panel: with a panel it fits into a second-level cache.
const BLOCK_BYTES: usize = 384 * 1024;

/// What happens to each element after the product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    None,
    /// x times the standard normal distribution at x.
    Gelu,
}

/// Weights of one linear layer, or of one of several that share their input: `outputs x inputs`, row-major, and a bias.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// Row-major, one row for each output.
    pub weight: &'a [f32],
    /// One for each output.
    pub bias: &'a [f32],
}

/// Weights in the order in which the tiles of one level read them.
pub struct PackedLinear {
    isa: Isa,
    inputs: usize,
    outputs: usize,
    numbers: Numbers,
    panels: Buffer,
    bias: Buffer,
}

/// How packed weights are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numbers {
    /// As they are.
    Singles,
    /// As the nearest halves: where the weights are read once for few rows, half of their bytes is half of the time.
    Halves,
}

impl Numbers {
    /// Bytes of a weight.
    pub fn bytes(self) -> usize {
        match self {
            Self::Singles => 4,
            Self::Halves => 2,
        }
    }

    /// Floats of a buffer for so many weights.
    pub(crate) fn floats(self, weights: usize) -> usize {
        weights.saturating_mul(self.bytes()).div_ceil(size_of::<f32>())
    }
}

impl std::fmt::Debug for PackedLinear {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PackedLinear({} -> {})", self.inputs, self.outputs)
    }
}

impl PackedLinear {
    /// Packs layers that read the same input, their outputs one after another.
    ///
    /// # Errors
    /// No memory for the packed copy.
    ///
    /// # Panics
    /// If a part's weights aren't `bias.len() x inputs`.
    pub fn pack(isa: Isa, inputs: usize, parts: &[Part<'_>]) -> Result<Self, OutOfMemory> {
        Self::pack_as(Numbers::Singles, isa, inputs, parts)
    }

    /// As [`PackedLinear::pack`], kept in another way.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Panics
    /// As there.
    pub fn pack_as(
        numbers: Numbers,
        isa: Isa,
        inputs: usize,
        parts: &[Part<'_>],
    ) -> Result<Self, OutOfMemory> {
        let outputs = parts.iter().map(|part| part.bias.len()).sum::<usize>();
        let panel = isa.routines().panel;
        let padded = outputs.next_multiple_of(panel);
        let mut packed = Self {
            isa,
            inputs,
            outputs,
            numbers,
            panels: Buffer::zeroed(numbers.floats(padded.saturating_mul(inputs)))?,
            bias: Buffer::zeroed(padded)?,
        };
        let mut first = 0;
        for part in parts {
            packed.place(panel, first, *part);
            first += part.bias.len();
        }
        Ok(packed)
    }

    /// Bytes that [`PackedLinear::pack`] asks for.
    pub fn bytes(isa: Isa, inputs: usize, outputs: usize) -> usize {
        let padded = outputs.next_multiple_of(isa.routines().panel);
        padded.saturating_mul(inputs.saturating_add(1)).saturating_mul(size_of::<f32>())
    }

    /// Width of the input.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Width of the output.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    fn place(&mut self, panel: usize, first: usize, part: Part<'_>) {
        let inputs = self.inputs;
        assert_eq!(part.weight.len(), part.bias.len() * inputs, "weights are outputs x inputs");
        self.bias.floats_mut()[first..][..part.bias.len()].copy_from_slice(part.bias);
        if inputs == 0 {
            return;
        }
        for (row, weights) in part.weight.chunks_exact(inputs).enumerate() {
            let (index, lane) = ((first + row) / panel, (first + row) % panel);
            let places = index * panel * inputs..(index + 1) * panel * inputs;
            match self.numbers {
                Numbers::Singles => {
                    let columns = self.panels.floats_mut()[places].chunks_exact_mut(panel);
                    columns.zip(weights).for_each(|(column, weight)| column[lane] = *weight);
                }
                Numbers::Halves => {
                    let columns = self.panels.halves_mut()[places].chunks_exact_mut(panel);
                    columns.zip(weights).for_each(|(column, weight)| column[lane] = narrow(*weight));
                }
            }
        }
    }
}

impl Compute {
    /// For the first `rows` rows: output = activation(input * weights^T + bias).
    ///
    /// # Panics
    /// If the shapes disagree, or the weights were packed for another level.
    pub fn linear(
        &self,
        input: &Matrix,
        rows: usize,
        weights: &PackedLinear,
        activation: Activation,
        output: &mut Matrix,
    ) {
        assert_eq!(weights.isa, self.isa, "packed for this level");
        assert!(rows <= input.rows() && rows <= output.rows(), "{rows} rows");
        assert_eq!((input.columns(), output.columns()), (weights.inputs, weights.outputs), "columns");
        let routines = self.isa.routines();
        let panels = weights.outputs.div_ceil(routines.panel);
        let block = block_rows(routines, input.stride(), rows);
        let to = Shared(output.as_mut_ptr());
        let product = Product { routines, input, weights, activation, to, stride: output.stride() };
        self.pool.run(panels * rows.div_ceil(block), &|_, item| {
            let first = item / panels * block;
            product.panel(item % panels, first, rows.min(first + block));
        });
    }
}

/// Rows that an item works through: whole tiles, as many as [`BLOCK_BYTES`] hold.
fn block_rows(routines: &Routines, stride: usize, rows: usize) -> usize {
    let fit = BLOCK_BYTES / size_of::<f32>() / stride.max(1);
    fit.clamp(routines.tile_rows, rows.max(routines.tile_rows))
}

struct Product<'a> {
    routines: &'static Routines,
    input: &'a Matrix,
    weights: &'a PackedLinear,
    activation: Activation,
    to: Shared,
    stride: usize,
}

impl Product<'_> {
    /// One panel's columns of some rows, in tiles of nearly equal height.
    fn panel(&self, panel: usize, first: usize, end: usize) {
        let tiles = (end - first).div_ceil(self.routines.tile_rows);
        for tile in 0..tiles {
            let from = first + (end - first) * tile / tiles;
            let to = first + (end - first) * (tile + 1) / tiles;
            self.tile(panel, from, to - from);
        }
    }

    fn tile(&self, panel: usize, row: usize, rows: usize) {
        let Routines { panel: width, .. } = *self.routines;
        let columns = width.min(self.weights.outputs - panel * width);
        let first = panel * width * self.weights.inputs;
        // SAFETY: rows and columns are within the matrices (`linear` compared their shapes), the packed panels are
        // padded to whole panels, no two items share a row and a panel, and the `Isa` witnesses the level.
        unsafe {
            let output = self.to.at(row * self.stride + panel * width);
            let panels = &self.weights.panels;
            match self.weights.numbers {
                Numbers::Singles => {
                    let panels = panels.floats().as_ptr().add(first);
                    (self.routines.tile)(rows, &self.over(panels, panel, row, output));
                }
                Numbers::Halves => {
                    let panels = panels.halves().as_ptr().add(first);
                    (self.routines.half_tile)(rows, &self.over(panels, panel, row, output));
                }
            }
            match self.activation {
                Activation::None => {}
                Activation::Gelu => {
                    for r in 0..rows {
                        let row = std::slice::from_raw_parts_mut(output.add(r * self.stride), columns);
                        (self.routines.gelu)(row);
                    }
                }
            }
        }
    }

    /// What a tile reads and writes.
    ///
    /// # Safety
    /// As in [`Product::tile`].
    unsafe fn over<P>(&self, numbers: *const P, panel: usize, row: usize, output: *mut f32) -> Tile<P> {
        let Routines { panel: width, .. } = *self.routines;
        // SAFETY: the caller's promise.
        unsafe {
            Tile {
                input: self.input.as_ptr().add(row * self.input.stride()),
                input_stride: self.input.stride(),
                depth: self.weights.inputs,
                panel: numbers,
                bias: self.weights.bias.floats().as_ptr().add(panel * width),
                bias_stride: 0,
                output,
                output_stride: self.stride,
                columns: width.min(self.weights.outputs - panel * width),
            }
        }
    }
}
