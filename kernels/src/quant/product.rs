//! Products of quantised rows with quantised weights.

use super::activations::{Group, Quantised};
use super::kind::GROUP;
use super::linear::{PackedPart, QuantLinear};
use super::tile::{QuantRoutines, QuantTile};
use crate::compute::Shared;
use crate::{Compute, Matrix};
use std::ops::Range;

/// Bytes of quantised inputs that an item works through with one panel: with a panel they fit into a second-level cache.
const BLOCK_BYTES: usize = 256 * 1024;
/// Bytes of weights that an item reads if there are enough of them: long against what it costs to take an item.
const ITEM_BYTES: usize = 128 * 1024;
/// Items that a thread should find, so that none waits long for the last one.
const SHARES: usize = 8;

impl Compute {
    /// For the first `rows` rows: output = input * weights^T + bias, with the input rounded to 8 bits in groups of 32. A
    /// row's result doesn't depend on the other rows.
    ///
    /// # Panics
    /// If the shapes disagree, the weights were packed for another level, or `scratch` has not the room.
    pub fn quant_linear(
        &self,
        input: &Matrix,
        rows: usize,
        weights: &QuantLinear,
        scratch: &mut Quantised,
        output: &mut Matrix,
    ) {
        assert_eq!(weights.isa, self.isa, "packed for this level");
        assert!(rows <= input.rows() && rows <= output.rows(), "{rows} rows");
        assert_eq!((input.columns(), output.columns()), (weights.inputs, weights.outputs), "columns");
        let input = scratch.fill(self, input, rows);
        let routines = self.isa.quant_routines();
        let stride = output.stride();
        let product = Product { routines, input, weights, to: Shared(output.as_mut_ptr()), stride };
        let panels = weights.parts.last().map_or(0, |part| part.panel + panels(routines, part));
        let each = panels_each(weights, panels, self.pool.threads());
        let block = block_rows(routines, weights.inputs, rows);
        let groups = panels.div_ceil(each);
        self.pool.run(groups * rows.div_ceil(block), &|_, item| {
            let (first, panel) = (item / groups * block, item % groups * each);
            for panel in panel..panels.min(panel + each) {
                product.panel(panel, first..rows.min(first + block));
            }
        });
    }
}

fn panels(routines: &QuantRoutines, part: &PackedPart) -> usize {
    part.rows.div_ceil(routines.panel)
}

/// Panels that an item has.
fn panels_each(weights: &QuantLinear, panels: usize, threads: usize) -> usize {
    let bytes = weights.panels.bytes().len() / panels.max(1);
    panels.div_ceil(threads * SHARES).clamp(1, (ITEM_BYTES / bytes.max(1)).max(1))
}

/// Rows that an item works through: whole tiles, as many as [`BLOCK_BYTES`] hold, and blocks of nearly equal height.
fn block_rows(routines: &QuantRoutines, inputs: usize, rows: usize) -> usize {
    let fit = (BLOCK_BYTES / (inputs / GROUP * size_of::<Group>()).max(1)).max(routines.rows);
    let blocks = rows.div_ceil(fit).max(1);
    rows.div_ceil(blocks).next_multiple_of(routines.rows).max(routines.rows)
}

struct Product<'a> {
    routines: &'static QuantRoutines,
    input: &'a [Group],
    weights: &'a QuantLinear,
    to: Shared,
    stride: usize,
}

impl Product<'_> {
    /// One panel's columns of some rows, in tiles of nearly equal height.
    fn panel(&self, panel: usize, rows: Range<usize>) {
        let mut parts = self.weights.parts.iter().rev();
        let part = parts.find(|part| part.panel <= panel && part.rows > 0).expect("a panel is in a part");
        let index = panel - part.panel;
        let tiles = rows.len().div_ceil(self.routines.rows);
        for tile in 0..tiles {
            let from = rows.start + rows.len() * tile / tiles;
            let to = rows.start + rows.len() * (tile + 1) / tiles;
            self.tile(part, index, from..to);
        }
    }

    fn tile(&self, part: &PackedPart, index: usize, rows: Range<usize>) {
        let width = self.routines.panel;
        let groups = self.weights.inputs / GROUP;
        let panel = &self.weights.panels.bytes()[part.begin + index * part.bytes..][..part.bytes];
        let bias = &self.weights.bias.floats()[(part.panel + index) * width..][..width];
        let column = part.output + index * width;
        // SAFETY: the columns are this part's or fewer, and the rows are in the output.
        let output = unsafe { self.to.at(rows.start * self.stride + column) };
        let tile = QuantTile {
            input: self.input[rows.start * groups..rows.end * groups].as_ptr(),
            depth: groups,
            panel: panel.as_ptr(),
            bias: bias.as_ptr(),
            output,
            output_stride: self.stride,
            columns: width.min(part.rows - index * width),
        };
        // SAFETY: the slices hold what a tile reads, no two items share a row and a panel, and the `Isa` witnesses the
        // level.
        unsafe { self.routines.tile(part.kind)(rows.len(), &tile) };
    }
}
