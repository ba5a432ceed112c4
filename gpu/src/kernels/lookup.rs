//! Rows that are looked up by number.

use crate::Stored;
use crate::buffers::{Matrix, Words};
use crate::device::Gpu;
use crate::error::GpuError;
use crate::gate::Buffer;
use crate::kernels::groups_for;
use crate::pipelines::{Kernel, Parameters};

/// Rows of one width, split over buffers where a shader can't reach all of them.
#[derive(Debug)]
pub struct Table {
    rows: usize,
    columns: usize,
    stored: Stored,
    parts: Vec<Part>,
}

/// Some of the rows.
#[derive(Debug)]
struct Part {
    first: usize,
    rows: usize,
    buffer: Buffer,
}

impl Table {
    /// How many rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Numbers in a row.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Buffers that the rows are split over.
    pub fn parts(&self) -> usize {
        self.parts.len()
    }
}

impl Gpu {
    /// Takes rows of little-endian numbers, as they are in a file.
    ///
    /// # Errors
    /// No memory, or two rows are more than a shader can reach.
    ///
    /// # Panics
    /// If the bytes are no whole rows, or there are no columns.
    pub fn table(&self, columns: usize, bytes: &[u8], stored: Stored) -> Result<Table, GpuError> {
        let row = columns * stored.bytes();
        assert!(row > 0 && bytes.len().is_multiple_of(row), "whole rows of {columns}");
        let rows = bytes.len() / row;
        self.bindable(2 * row as u64)?;
        // An even number of rows, so that each part begins at a whole word.
        let most = usize::try_from(self.bindable_max() / row as u64).expect("rows of one buffer") & !1;
        let mut parts = Vec::new();
        for first in (0..rows).step_by(most) {
            let rows = most.min(rows - first);
            let buffer = self.buffer((rows * row) as u64)?;
            self.upload_ragged(&buffer, &bytes[first * row..][..rows * row]);
            parts.push(Part { first, rows, buffer });
        }
        Ok(Table { rows, columns, stored, parts })
    }

    /// Copies bytes whose last word may be half of one.
    fn upload_ragged(&self, to: &Buffer, bytes: &[u8]) {
        let (whole, rest) = bytes.split_at(bytes.len() & !3);
        self.upload_bytes(to, 0, whole);
        if !rest.is_empty() {
            let mut word = [0; 4];
            word[..rest.len()].copy_from_slice(rest);
            self.upload_bytes(to, whole.len() as u64, &word);
        }
    }

    /// `to[i] = table[ids[i]]`. The ids go by way of `words`, which has room for them.
    ///
    /// # Panics
    /// If there is no such row, or no room.
    pub fn lookup(&self, table: &Table, ids: &[u32], words: &mut Words, to: &mut Matrix) {
        assert!(ids.iter().all(|id| (*id as usize) < table.rows), "ids below {}", table.rows);
        assert!(ids.len() <= to.rows() && to.columns() == table.columns, "{} ids", ids.len());
        self.upload_numbers(words, ids);
        let kernel = match table.stored {
            Stored::F32 => Kernel::LookupF32,
            Stored::F16 => Kernel::LookupF16,
        };
        let count = ids.len() * table.columns;
        for part in &table.parts {
            let parameters = Parameters::new(&[count, table.columns, part.first, part.first + part.rows]);
            let buffers = [part.buffer.raw(), words.buffer.raw(), to.buffer.raw()];
            self.dispatch(kernel, &buffers, &parameters, groups_for(count));
        }
    }
}
