//! The operations: each checks its shapes and records one kernel, or one for each part of split weights.

pub(crate) mod attend;
pub(crate) mod attention;
pub(crate) mod conv;
pub(crate) mod elements;
pub(crate) mod linear;
pub(crate) mod lookup;
pub(crate) mod pool;
pub(crate) mod rows;

/// Lanes of most kernels' workgroups.
const LANES: usize = 64;

/// Workgroups for so many elements of one lane each.
fn groups_for(elements: usize) -> u64 {
    elements.div_ceil(LANES) as u64
}
