//! The innermost product: a few rows of the input times one panel of packed columns, all sums in registers.

pub(crate) mod avx2;
pub(crate) mod avx512;
pub(crate) mod scalar;

/// The widest panel of any level; partial panels are padded with zeros up to the level's own width.
pub(crate) const PANEL_MAX: usize = 32;

/// What a tile reads and writes. With R the number of rows and P the panel's width, a call touches
/// `input[r * input_stride + k]`, `panel[k * P + p]`, `bias[r * bias_stride + p]` and writes `output[r * output_stride + c]`
/// for r < R, k < depth, p < P, c < columns <= P. The panel's numbers are f32, or halves as their bits.
pub(crate) struct Tile<P = f32> {
    pub(crate) input: *const f32,
    pub(crate) input_stride: usize,
    pub(crate) depth: usize,
    pub(crate) panel: *const P,
    pub(crate) bias: *const f32,
    /// 0 where all rows have the same bias; with the output's own place as bias, a tile adds to it.
    pub(crate) bias_stride: usize,
    pub(crate) output: *mut f32,
    pub(crate) output_stride: usize,
    pub(crate) columns: usize,
}

/// Calls `$tile::<R>` for the number of rows.
macro_rules! by_rows {
    ($tile:ident, $rows:expr, $t:expr, [$($r:literal)*]) => {
        match $rows {
            $($r => $tile::<$r>($t),)*
            rows => panic!("a tile of {rows} rows"),
        }
    };
}
pub(crate) use by_rows;
