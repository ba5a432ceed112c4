//! Floats aligned to cache lines, allocated without aborting when there is no room.

/// Floats in a cache line.
const LINE: usize = 16;

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; LINE]);

/// An allocation was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfMemory {
    /// Its size in bytes.
    pub bytes: usize,
}

impl std::fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "an allocation of {} bytes was refused", self.bytes)
    }
}

impl std::error::Error for OutOfMemory {}

/// Floats that start at a cache line.
pub(crate) struct Buffer {
    lines: Vec<Line>,
}

impl Buffer {
    pub(crate) fn zeroed(floats: usize) -> Result<Self, OutOfMemory> {
        let count = floats.div_ceil(LINE);
        let mut lines = Vec::new();
        let refused = |_| OutOfMemory { bytes: Self::bytes_of(floats) };
        lines.try_reserve_exact(count).map_err(refused)?;
        lines.resize(count, Line([0.0; LINE]));
        Ok(Self { lines })
    }

    /// Bytes that [`Buffer::zeroed`] asks for.
    pub(crate) fn bytes_of(floats: usize) -> usize {
        floats.div_ceil(LINE).saturating_mul(size_of::<Line>())
    }

    pub(crate) fn floats(&self) -> &[f32] {
        // SAFETY: a `Line` is LINE floats without padding (size 64, repr(C)), and the vector holds `len` of them.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.lines.len() * LINE) }
    }

    /// The same bytes as halves, two for each float.
    pub(crate) fn halves(&self) -> &[u16] {
        // SAFETY: any bits are a half, and a float is as long as two and aligned for them.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.lines.len() * LINE * 2) }
    }

    pub(crate) fn halves_mut(&mut self) -> &mut [u16] {
        // SAFETY: as in `halves`, and `self` is borrowed mutably; any bits are a float.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.lines.len() * LINE * 2) }
    }

    /// The same as bytes, four for each float.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: a float is four initialised bytes.
        unsafe {
            std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.lines.len() * size_of::<Line>())
        }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and `self` is borrowed mutably; any bits are a float.
        unsafe {
            std::slice::from_raw_parts_mut(
                self.lines.as_mut_ptr().cast(),
                self.lines.len() * size_of::<Line>(),
            )
        }
    }

    pub(crate) fn floats_mut(&mut self) -> &mut [f32] {
        // SAFETY: as in `floats`, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.lines.len() * LINE) }
    }
}

/// A row-major matrix of f32. Each row starts at a cache line.
pub struct Matrix {
    buffer: Buffer,
    rows: usize,
    columns: usize,
    stride: usize,
}

impl std::fmt::Debug for Matrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Matrix({}x{})", self.rows, self.columns)
    }
}

impl Matrix {
    /// Zeros. Fails when the allocator refuses.
    pub fn zeroed(rows: usize, columns: usize) -> Result<Self, OutOfMemory> {
        let stride = stride(columns);
        let floats = rows.checked_mul(stride).ok_or(OutOfMemory { bytes: usize::MAX })?;
        Ok(Self { buffer: Buffer::zeroed(floats)?, rows, columns, stride })
    }

    /// Bytes that [`Matrix::zeroed`] asks for.
    pub fn bytes(rows: usize, columns: usize) -> usize {
        rows.saturating_mul(stride(columns)).saturating_mul(size_of::<f32>())
    }

    /// How many rows there is room for.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Floats in a row.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// One row.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row(&self, row: usize) -> &[f32] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        &self.buffer.floats()[row * self.stride..][..self.columns]
    }

    /// One row, to write.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row_mut(&mut self, row: usize) -> &mut [f32] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        &mut self.buffer.floats_mut()[row * self.stride..][..self.columns]
    }

    /// Floats from one row to the next.
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    pub(crate) fn as_ptr(&self) -> *const f32 {
        self.buffer.floats().as_ptr()
    }

    pub(crate) fn as_mut_ptr(&mut self) -> *mut f32 {
        self.buffer.floats_mut().as_mut_ptr()
    }
}

/// An odd number of cache lines, so that the same column of neighbouring rows falls into different cache sets.
fn stride(columns: usize) -> usize {
    (columns.div_ceil(LINE) | 1) * LINE
}
