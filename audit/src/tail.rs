//! The log's last entries, before they fill a bundle: one file, to which a commit appends. It begins with the index of
//! its first entry; a record is an entry as in a bundle and the first bytes of its hash, so that a write that was cut
//! off is seen.

use crate::tiles::{ENTRY_BYTES_MAX, encode_entry, split_entry};
use crate::tree::{Hash, TILE_WIDTH, leaf_hash};

/// The file, below the log's folder.
pub(crate) const TAIL: &str = "pending";
/// Entries that may wait for a bundle: a checkpoint comes far before.
pub const TAIL_ENTRIES_MAX: usize = 4_096;
/// Bytes of them, and of what is appended in one commit.
pub const TAIL_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Bytes of the file: a commit may add as much as is there.
pub(crate) const TAIL_FILE_BYTES_MAX: usize = 2 * TAIL_BYTES_MAX + ENTRY_BYTES_MAX;
/// Bytes of a hash that stand after an entry.
const CHECK_BYTES: usize = 8;

/// What the file holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tail {
    /// The index of the first entry.
    pub base: u64,
    /// The whole entries and their hashes.
    pub entries: Vec<(Vec<u8>, Hash)>,
    /// Bytes after them that are no whole record.
    pub torn_bytes: usize,
}

/// The file before its first record.
pub(crate) fn encode_head(base: u64) -> Vec<u8> {
    base.to_be_bytes().to_vec()
}

/// Appends a record.
pub(crate) fn encode_record(tail: &mut Vec<u8>, entry: &[u8], hash: &Hash) {
    encode_entry(tail, entry);
    tail.extend(&hash[..CHECK_BYTES]);
}

impl Tail {
    /// Reads the file; `None` where it does not even begin like one.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (base, mut rest) = bytes.split_first_chunk()?;
        let base = u64::from_be_bytes(*base);
        let mut entries = Vec::new();
        while let Some((entry, after)) = split_entry(rest) {
            let hash = leaf_hash(entry);
            let Some(after) = after.strip_prefix(&hash[..CHECK_BYTES]) else { break };
            entries.push((entry.to_vec(), hash));
            rest = after;
        }
        let aligned = base.is_multiple_of(TILE_WIDTH as u64) && base <= u64::MAX / 2;
        aligned.then_some(Self { base, entries, torn_bytes: rest.len() })
    }

    /// The file without what is torn.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = encode_head(self.base);
        for (entry, hash) in &self.entries {
            encode_record(&mut bytes, entry, hash);
        }
        bytes
    }

    /// Entries of the log, these included.
    pub(crate) fn size(&self) -> u64 {
        self.base + self.entries.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_cut_leaves_whole_entries(
            entries in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..8), cut in 0_usize..400, base in 0..1_u64 << 40,
        ) {
            let entries: Vec<_> = entries.into_iter().map(|entry| (entry.clone(), leaf_hash(&entry))).collect();
            let tail = Tail { base: base << 8, entries, torn_bytes: 0 };
            let bytes = tail.encode();
            prop_assert_eq!(Tail::decode(&bytes), Some(tail.clone()));
            let cut = cut.min(bytes.len());
            match Tail::decode(&bytes[..cut]) {
                None => prop_assert!(cut < 8),
                Some(found) => {
                    prop_assert!(tail.entries.starts_with(&found.entries));
                    prop_assert_eq!(found.encode().len() + found.torn_bytes, cut);
                }
            }
        }

        #[test]
        fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Some(tail) = Tail::decode(&bytes) {
                prop_assert_eq!(tail.encode().len() + tail.torn_bytes, bytes.len());
            }
        }
    }
}
