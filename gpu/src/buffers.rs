//! What kernels work on: matrices of f32 and lists of words, and how they change hands.

use crate::device::Gpu;
use crate::error::GpuError;
use crate::gate::Buffer;

/// Floats that are turned into bytes at a time on their way to the device.
const FLOATS_AT_A_TIME: usize = 64 * 1024;

/// A row-major matrix of f32, without gaps.
#[derive(Debug)]
pub struct Matrix {
    pub(crate) buffer: Buffer,
    rows: usize,
    columns: usize,
}

/// A list of 32-bit numbers: token ids, positions, spans.
#[derive(Debug)]
pub struct Words {
    pub(crate) buffer: Buffer,
    count: usize,
}

impl Matrix {
    /// How many rows there is room for.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Floats in a row.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Bytes that [`Gpu::matrix`] asks for.
    pub fn bytes(rows: usize, columns: usize) -> u64 {
        (rows as u64).saturating_mul(columns as u64).saturating_mul(4)
    }
}

impl Words {
    /// How many there is room for.
    pub fn count(&self) -> usize {
        self.count
    }
}

impl Gpu {
    /// Zeros.
    ///
    /// # Errors
    /// They don't fit into the lease, the driver has no room, or a shader can't reach so much at once.
    pub fn matrix(&self, rows: usize, columns: usize) -> Result<Matrix, GpuError> {
        let bytes = self.bindable(Matrix::bytes(rows, columns))?;
        Ok(Matrix { buffer: self.buffer(bytes)?, rows, columns })
    }

    /// Zeros.
    ///
    /// # Errors
    /// As for [`Gpu::matrix`].
    pub fn words(&self, count: usize) -> Result<Words, GpuError> {
        let bytes = self.bindable((count as u64).saturating_mul(4))?;
        Ok(Words { buffer: self.buffer(bytes)?, count })
    }

    /// Bytes of the largest buffer that a kernel can be given: the kernels count elements in 31 bits.
    pub(crate) fn bindable_max(&self) -> u64 {
        self.binding_bytes_max().min(4 * i32::MAX as u64)
    }

    /// The same number of bytes, if a kernel can be given so many.
    pub(crate) fn bindable(&self, bytes: u64) -> Result<u64, GpuError> {
        let limit = self.bindable_max();
        if bytes <= limit { Ok(bytes) } else { Err(GpuError::TooLarge { bytes, limit }) }
    }

    /// Records zeros over the first `rows` rows: what is done before a matrix changes hands.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn clear(&self, matrix: &mut Matrix, rows: usize) {
        assert!(rows <= matrix.rows, "{rows} of {} rows", matrix.rows);
        self.clear_bytes(&matrix.buffer, Matrix::bytes(rows, matrix.columns));
    }

    /// Records zeros over the first `count` numbers.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn clear_numbers(&self, words: &mut Words, count: usize) {
        assert!(count <= words.count, "{count} of {} words", words.count);
        self.clear_bytes(&words.buffer, 4 * count as u64);
    }

    /// Records a copy of floats to the first rows of a matrix. A failure is the device's loss; the next read says so.
    ///
    /// # Panics
    /// If they are no whole rows, or more than there are.
    pub fn upload(&self, to: &Matrix, floats: &[f32]) {
        assert!(floats.len() <= to.rows * to.columns, "{} floats", floats.len());
        assert!(floats.is_empty() || floats.len().is_multiple_of(to.columns), "whole rows");
        self.upload_floats(&to.buffer, 0, floats);
    }

    /// Records a copy: row `at + i` of `to` = from[i], for the first `rows` rows.
    ///
    /// # Panics
    /// If the shapes disagree.
    pub fn put(&self, to: &mut Matrix, at: usize, from: &Matrix, rows: usize) {
        assert!(at + rows <= to.rows && rows <= from.rows, "{rows} rows at {at}");
        assert_eq!(to.columns, from.columns, "columns");
        let bytes = |rows: usize| Matrix::bytes(rows, to.columns);
        self.copy_bytes(&from.buffer, &to.buffer, bytes(at), bytes(rows));
    }

    /// Records a copy of numbers to the start of a list.
    ///
    /// # Panics
    /// If they are more than there is room for.
    pub fn upload_numbers(&self, to: &Words, numbers: &[u32]) {
        assert!(numbers.len() <= to.count, "{} numbers", numbers.len());
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        self.upload_bytes(&to.buffer, 0, &bytes);
    }

    /// Records a copy of floats, a part at a time so that no second copy of them is held.
    pub(crate) fn upload_floats(&self, to: &Buffer, offset: u64, floats: &[f32]) {
        let mut bytes = Vec::new();
        for (index, part) in floats.chunks(FLOATS_AT_A_TIME).enumerate() {
            bytes.clear();
            bytes.extend(part.iter().flat_map(|float| float.to_le_bytes()));
            self.upload_bytes(to, offset + (index * FLOATS_AT_A_TIME * 4) as u64, &bytes);
        }
    }
}
