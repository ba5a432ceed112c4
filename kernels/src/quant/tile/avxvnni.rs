//! 4 rows by 16 columns, by the instruction for products of bytes on registers of 32 bytes (AVX-VNNI).

use super::kinds::{kinds, vnni};
use super::registers256::*;
use super::{GROUPS, Group, QuantRoutines, QuantTile, quantise};
use crate::tile::by_rows;
use std::arch::x86_64::{
    _mm256_and_si256 as and, _mm256_dpbusd_avx_epi32 as add_products, _mm256_set1_epi8 as set_byte,
    _mm256_set1_epi32 as set_integer, _mm256_srli_epi32 as shift,
};

pub(crate) static ROUTINES: QuantRoutines = QuantRoutines {
    panel: PANEL,
    lanes: LANES,
    rows: 4,
    flipped: 0x80,
    quantise: quantise::avx2::quantise,
    q8_0,
    q4_0,
    q4_1,
    q4_k,
};

kinds!("avx2,fma,f16c,avxvnni", [1 2 3 4]);
vnni!("avx2,fma,f16c,avxvnni");
