//! Blocks in the order in which the tiles of one level read them.

use super::kind::{BlockKind, GROUP, group_nibbles, group_scale};
use super::tile::QuantRoutines;
use crate::buffer::Buffer;
use crate::{Isa, OutOfMemory};

/// Where a part's panels and biases begin.
const LINE: usize = 64;
/// Weights of an output that are next to each other.
const STEP: usize = 4;

/// Weights of one linear layer, or of one of several that share their input: `rows x inputs`.
#[derive(Clone, Copy, Debug)]
pub struct QuantPart<'a> {
    /// How the weights are kept.
    pub kind: BlockKind,
    /// Outputs.
    pub rows: usize,
    /// The blocks of an output one after another, then those of the next.
    pub blocks: &'a [u8],
    /// One for each output, or none.
    pub bias: Option<&'a [f32]>,
}

/// Quantised weights in panels.
///
/// A panel has the blocks of so many outputs, all first ones, all second ones. Of a block it has the outputs' scales, their
/// minimums if there are any, and then, for the lanes of one register after the other, first weights 0 to 3 of each lane,
/// then 4 to 7. Nibbles have weight i + 16 above weight i. Of a super-block it has scales and minimums, then for each group
/// the outputs' scales, their minimums, and the weights.
pub struct QuantLinear {
    pub(super) isa: Isa,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) parts: Vec<PackedPart>,
    pub(super) panels: Buffer,
    pub(super) bias: Buffer,
}

/// The panels of one part.
pub(super) struct PackedPart {
    pub(super) kind: BlockKind,
    pub(super) rows: usize,
    /// The number of the first output.
    pub(super) output: usize,
    /// The number of the first panel, over all parts.
    pub(super) panel: usize,
    /// The byte where it begins.
    pub(super) begin: usize,
    /// Bytes of a panel.
    pub(super) bytes: usize,
}

impl std::fmt::Debug for QuantLinear {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "QuantLinear({} -> {})", self.inputs, self.outputs)
    }
}

impl QuantLinear {
    /// Packs layers that read the same input, their outputs one after another.
    ///
    /// # Errors
    /// No memory for the packed copy.
    ///
    /// # Panics
    /// If the inputs aren't whole blocks, or a part's blocks or biases are not as many as its rows need.
    pub fn pack(isa: Isa, inputs: usize, parts: &[QuantPart<'_>]) -> Result<Self, OutOfMemory> {
        let routines = isa.quant_routines();
        let shapes: Vec<(BlockKind, usize)> = parts.iter().map(|part| (part.kind, part.rows)).collect();
        let (packed, bytes, panels) = places(routines, inputs, &shapes);
        let mut linear = Self {
            isa,
            inputs,
            outputs: parts.iter().map(|part| part.rows).sum(),
            parts: packed,
            panels: Buffer::zeroed(bytes / size_of::<f32>())?,
            bias: Buffer::zeroed(panels.saturating_mul(routines.panel))?,
        };
        for (index, part) in parts.iter().enumerate() {
            linear.place(routines, index, *part);
        }
        Ok(linear)
    }

    /// Bytes that [`QuantLinear::pack`] asks for, given the kind and the rows of each part.
    pub fn bytes(isa: Isa, inputs: usize, parts: &[(BlockKind, usize)]) -> usize {
        let routines = isa.quant_routines();
        let (_, bytes, panels) = places(routines, inputs, parts);
        bytes.saturating_add(Buffer::bytes_of(panels.saturating_mul(routines.panel)))
    }

    /// Width of the input.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Width of the output.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    fn place(&mut self, routines: &QuantRoutines, index: usize, part: QuantPart<'_>) {
        let QuantPart { kind, rows, blocks, bias } = part;
        let PackedPart { panel, begin, bytes, .. } = self.parts[index];
        assert!(self.inputs.is_multiple_of(kind.weights()), "{} inputs in whole blocks", self.inputs);
        let in_row = self.inputs / kind.weights();
        assert_eq!(blocks.len(), rows * in_row * kind.bytes(), "blocks of {rows} rows");
        if let Some(bias) = bias {
            assert_eq!(bias.len(), rows, "one bias for each row");
            self.bias.floats_mut()[panel * routines.panel..][..rows].copy_from_slice(bias);
        }
        let block_bytes = kind.packed_bytes() * routines.panel;
        for (number, block) in blocks.chunks_exact(kind.bytes()).enumerate() {
            let (row, column) = (number / in_row, number % in_row);
            let place = begin + row / routines.panel * bytes + column * block_bytes;
            let to = &mut self.panels.bytes_mut()[place..][..block_bytes];
            Lane { routines, lane: row % routines.panel }.place(kind, block, to);
        }
    }
}

/// Where the parts are, the bytes of their panels and how many these are.
fn places(
    routines: &QuantRoutines,
    inputs: usize,
    parts: &[(BlockKind, usize)],
) -> (Vec<PackedPart>, usize, usize) {
    let (mut packed, mut output, mut panel, mut begin) = (Vec::new(), 0, 0, 0usize);
    for (kind, rows) in parts {
        let block_bytes = kind.packed_bytes() * routines.panel;
        let bytes = (inputs / kind.weights()).saturating_mul(block_bytes);
        packed.push(PackedPart { kind: *kind, rows: *rows, output, panel, begin, bytes });
        let panels = rows.div_ceil(routines.panel);
        output += rows;
        panel += panels;
        let end = begin.saturating_add(bytes.saturating_mul(panels));
        begin = end.checked_next_multiple_of(LINE).unwrap_or(usize::MAX);
    }
    (packed, begin, panel)
}

/// One output's place in a panel.
struct Lane<'a> {
    routines: &'a QuantRoutines,
    lane: usize,
}

impl Lane<'_> {
    /// Puts a block of this output among the others'.
    fn place(&self, kind: BlockKind, block: &[u8], to: &mut [u8]) {
        let panel = self.routines.panel;
        match kind {
            BlockKind::Q8_0 => {
                self.half(&block[..2], to);
                let quants: [u8; GROUP] = std::array::from_fn(|i| block[2 + i] ^ self.routines.flipped);
                self.quants(&quants, &mut to[2 * panel..]);
            }
            BlockKind::Q4_0 => {
                self.half(&block[..2], to);
                self.quants(&block[2..], &mut to[2 * panel..]);
            }
            BlockKind::Q4_1 => {
                self.half(&block[..2], to);
                self.half(&block[2..4], &mut to[2 * panel..]);
                self.quants(&block[4..], &mut to[4 * panel..]);
            }
            BlockKind::Q4K => {
                let (halves, groups) = to.split_at_mut(4 * panel);
                self.half(&block[..2], halves);
                self.half(&block[2..4], &mut halves[2 * panel..]);
                for (group, to) in groups.chunks_exact_mut((2 + GROUP / 2) * panel).enumerate() {
                    let [scale, minimum] = group_scale(block, group);
                    (to[self.lane], to[panel + self.lane]) = (scale, minimum);
                    self.quants(&group_nibbles(block, group), &mut to[2 * panel..]);
                }
            }
        }
    }

    fn half(&self, half: &[u8], to: &mut [u8]) {
        to[2 * self.lane..][..2].copy_from_slice(half);
    }

    fn quants(&self, quants: &[u8], to: &mut [u8]) {
        let lanes = self.routines.lanes;
        let register = lanes * STEP;
        let first = self.lane / lanes * lanes * quants.len() + self.lane % lanes * STEP;
        for (step, four) in quants.chunks_exact(STEP).enumerate() {
            to[first + step * register..][..STEP].copy_from_slice(four);
        }
    }
}
