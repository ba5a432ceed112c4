//! Which instructions the kernels use: what this CPU has, or less.

use crate::half;
use crate::quant::{self, tile::QuantRoutines};
use crate::rows;
use crate::tile::{self, Tile};

/// A level of instructions that this CPU has been seen to have. Only [`Isa::detect`] and [`Isa::available`] make one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(Level);

/// The levels that there are kernels for, best last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Plain Rust: any x86-64.
    Scalar,
    /// AVX2, FMA and F16C.
    Avx2,
    /// The same with instructions for products of bytes (AVX-VNNI).
    Avx2Vnni,
    /// AVX-512 Foundation.
    Avx512,
    /// AVX-512 Foundation with its instructions for products of bytes (VNNI).
    Avx512Vnni,
}

impl Isa {
    /// The best level of this CPU.
    pub fn detect() -> Self {
        *Self::available().last().expect("there is always the scalar level")
    }

    /// Every level of this CPU, best last.
    pub fn available() -> Vec<Self> {
        let avx2 = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        let avx512 = avx2 && is_x86_feature_detected!("avx512f");
        let avx2_vnni = avx2 && is_x86_feature_detected!("avxvnni");
        let avx512_vnni = avx512 && is_x86_feature_detected!("avx512vnni");
        let mut levels = vec![Self(Level::Scalar)];
        levels.extend(avx2.then_some(Self(Level::Avx2)));
        levels.extend(avx2_vnni.then_some(Self(Level::Avx2Vnni)));
        levels.extend(avx512.then_some(Self(Level::Avx512)));
        levels.extend(avx512_vnni.then_some(Self(Level::Avx512Vnni)));
        levels
    }

    /// Which one this is.
    pub fn level(self) -> Level {
        self.0
    }

    pub(crate) fn routines(self) -> &'static Routines {
        match self.0 {
            Level::Scalar => &SCALAR,
            Level::Avx2 | Level::Avx2Vnni => &AVX2,
            Level::Avx512 | Level::Avx512Vnni => &AVX512,
        }
    }

    pub(crate) fn quant_routines(self) -> &'static QuantRoutines {
        match self.0 {
            Level::Scalar => &quant::tile::scalar::ROUTINES,
            // Products of bytes in 64-byte registers need more than the foundation.
            Level::Avx2 | Level::Avx512 => &quant::tile::avx2::ROUTINES,
            Level::Avx2Vnni => &quant::tile::avxvnni::ROUTINES,
            Level::Avx512Vnni => &quant::tile::avx512vnni::ROUTINES,
        }
    }
}

/// The kernels of one level. Calling one is safe only on a CPU that has the level, which an [`Isa`] witnesses.
pub(crate) struct Routines {
    /// Columns that a tile computes: the width of a packed panel.
    pub(crate) panel: usize,
    /// The most rows of a tile.
    pub(crate) tile_rows: usize,
    /// Computes this many rows of one panel.
    pub(crate) tile: unsafe fn(usize, &Tile),
    /// The same over a panel of halves.
    pub(crate) half_tile: unsafe fn(usize, &Tile<u16>),
    pub(crate) gelu: unsafe fn(&mut [f32]),
    pub(crate) softmax: unsafe fn(&mut [f32], f32),
    pub(crate) add_norm: unsafe fn(&mut [f32], &[f32], rows::Norm<'_>),
    pub(crate) norm: unsafe fn(&mut [f32], rows::Norm<'_>),
    /// Input, weight, epsilon, result.
    pub(crate) rms_norm: unsafe fn(&[f32], &[f32], f32, &mut [f32]),
    /// Gates and then as many other values; result.
    pub(crate) gate: unsafe fn(&[f32], &mut [f32]),
    /// Heads; a head's cosines and sines.
    pub(crate) rotate: unsafe fn(&mut [f32], &[f32]),
    pub(crate) softmax_part: unsafe fn(&mut [f32]) -> rows::Weight,
    pub(crate) join: unsafe fn(&mut [f32], rows::Weight, &[f32], rows::Weight) -> rows::Weight,
    /// Singles to as many halves.
    pub(crate) narrow: unsafe fn(&[f32], &mut [u16]),
}

/// The table of one level, given its modules.
macro_rules! routines {
    ($tile:ident, $rows:ident, $half:ident) => {
        Routines {
            panel: tile::$tile::PANEL,
            tile_rows: tile::$tile::ROWS,
            tile: tile::$tile::tile,
            half_tile: tile::$tile::half_tile,
            gelu: rows::$rows::gelu,
            softmax: rows::$rows::softmax,
            add_norm: rows::$rows::add_norm,
            norm: rows::$rows::norm,
            rms_norm: rows::$rows::rms_norm,
            gate: rows::$rows::gate,
            rotate: rows::$rows::rotate,
            softmax_part: rows::$rows::softmax_part,
            join: rows::$rows::join,
            narrow: half::$half::narrow,
        }
    };
}

static SCALAR: Routines = routines!(scalar, scalar, scalar);
static AVX2: Routines = routines!(avx2, avx2, f16c);
static AVX512: Routines = routines!(avx512, avx512, f16c);
