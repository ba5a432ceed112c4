//! The Merkle tree of RFC 6962: its hashes, and a head that grows by leaves and hands out its full tiles.

use sha2::{Digest, Sha256};

/// SHA-256 of an entry or of two hashes.
pub type Hash = [u8; 32];

/// Hashes in a full tile, and entries in a full bundle.
pub const TILE_WIDTH: usize = 256;
/// The same as a shift: a tile of level L covers `1 << (TILE_BITS * (L + 1))` entries.
pub(crate) const TILE_BITS: u32 = 8;
/// Levels of tiles that entries counted in 64 bits can have.
pub(crate) const LEVELS_MAX: usize = 8;

/// The hash of one entry.
pub fn leaf_hash(entry: &[u8]) -> Hash {
    Sha256::new_with_prefix([0]).chain_update(entry).finalize().into()
}

/// The hash of two subtrees.
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    let mut bytes = [1; 65];
    bytes[1..33].copy_from_slice(left);
    bytes[33..].copy_from_slice(right);
    Sha256::digest(bytes).into()
}

/// The hash of no entries.
pub(crate) fn empty_root() -> Hash {
    Sha256::digest([]).into()
}

/// The hash of a tree over these subtrees, each of one size but the last, which may be smaller.
pub(crate) fn tree_hash(hashes: &[Hash]) -> Hash {
    match hashes {
        [] => empty_root(),
        [one] => *one,
        _ => {
            let (left, right) = hashes.split_at(hashes.len().next_power_of_two() / 2);
            node_hash(&tree_hash(left), &tree_hash(right))
        }
    }
}

/// A full tile: its level, its number in the level, its hashes.
pub(crate) type Tile = (u8, u64, Vec<Hash>);

/// What has to be known of a tree to append to it: of each level, the hashes of its last, partial tile.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tree {
    size: u64,
    levels: Vec<Vec<Hash>>,
}

impl Tree {
    /// The head of a tree of `size` entries from its full tiles, which `tile` reads, and the leaves of its last bundle.
    pub(crate) fn load<E>(
        size: u64,
        last: Vec<Hash>,
        mut tile: impl FnMut(u8, u64) -> Result<Vec<Hash>, E>,
    ) -> Result<Self, E> {
        assert_eq!(last.len() as u64, size % TILE_WIDTH as u64, "the last bundle is what full tiles leave");
        let mut levels = vec![last];
        for below in 0_u8.. {
            let tiles = size >> (TILE_BITS * (u32::from(below) + 1));
            if tiles == 0 {
                break;
            }
            let first = tiles - tiles % TILE_WIDTH as u64;
            let roots = (first..tiles).map(|number| tile(below, number).map(|hashes| tree_hash(&hashes)));
            levels.push(roots.collect::<Result<_, E>>()?);
        }
        Ok(Self { size, levels })
    }

    /// Entries.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Appends a leaf; tiles that it fills go to `full`.
    pub(crate) fn push(&mut self, leaf: Hash, mut full: impl FnMut(Tile)) {
        self.size += 1;
        let mut carry = leaf;
        for level in 0..LEVELS_MAX {
            if self.levels.len() == level {
                self.levels.push(Vec::with_capacity(TILE_WIDTH));
            }
            let hashes = &mut self.levels[level];
            hashes.push(carry);
            if hashes.len() < TILE_WIDTH {
                return;
            }
            let hashes = std::mem::take(hashes);
            carry = tree_hash(&hashes);
            let number = (self.size >> (TILE_BITS * (level as u32 + 1))) - 1;
            full((u8::try_from(level).expect("there are eight levels"), number, hashes));
        }
    }

    /// The hash of the whole.
    pub(crate) fn root(&self) -> Hash {
        let mut lower: Option<Hash> = None;
        for level in &self.levels {
            let hashes: Vec<Hash> = level.iter().copied().chain(lower).collect();
            lower = (!hashes.is_empty()).then(|| tree_hash(&hashes));
        }
        lower.unwrap_or_else(empty_root)
    }

    /// The partial tiles, by level.
    pub(crate) fn partial(&self) -> impl Iterator<Item = (u8, u64, &[Hash])> {
        let with_hashes = self.levels.iter().enumerate().filter(|(_, hashes)| !hashes.is_empty());
        with_hashes.map(|(level, hashes)| {
            let number = self.size >> (TILE_BITS * (level as u32 + 1));
            (u8::try_from(level).expect("there are eight levels"), number, hashes.as_slice())
        })
    }
}

/// Lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes all");
        text
    })
}

/// The 32 bytes that 64 lower-case hex digits say.
pub(crate) fn unhex(text: &str) -> Option<[u8; 32]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; 32];
    if text.len() != 64 {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn a_tree_by_tiles_is_the_tree_of_its_leaves_and_loads_at_every_size() {
        let (mut tree, mut leaves, mut tiles) = (Tree::default(), Vec::new(), HashMap::<_, Vec<Hash>>::new());
        for index in 0..70_000_u32 {
            if index % 997 == 0 || [255, 256, 257, 65_535, 65_536].contains(&index) {
                assert_eq!(tree.root(), tree_hash(&leaves), "{index}");
                let last = leaves[leaves.len() - leaves.len() % 256..].to_vec();
                let read = |level, number| Ok::<_, ()>(tiles[&(level, number)].clone());
                let loaded = Tree::load(tree.size(), last, read).unwrap();
                assert_eq!((loaded.root(), loaded.size()), (tree.root(), tree.size()), "{index}");
            }
            let leaf = leaf_hash(&index.to_be_bytes());
            leaves.push(leaf);
            tree.push(leaf, |(level, number, hashes)| {
                assert!(tiles.insert((level, number), hashes).is_none());
            });
        }
        assert_eq!((tiles.len(), tree.partial().count()), (273 + 1, 3));
    }
}
