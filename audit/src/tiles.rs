//! The files of the log: their names, and bundles of entries.

use crate::tree::{Hash, TILE_WIDTH};

/// Bytes of an entry: its length is written in 16 bits.
pub const ENTRY_BYTES_MAX: usize = 65_535;
/// Bytes of a bundle of entries.
pub(crate) const BUNDLE_BYTES_MAX: usize = TILE_WIDTH * (2 + ENTRY_BYTES_MAX);
/// Bytes of a tile of hashes.
pub(crate) const TILE_BYTES_MAX: usize = TILE_WIDTH * 32;

/// Where a tile of hashes lies, below the log's folder.
pub(crate) fn tile_name(level: u8, number: u64, width: usize) -> String {
    name(&level.to_string(), number, width)
}

/// Where a bundle of entries lies, below the log's folder.
pub(crate) fn bundle_name(number: u64, width: usize) -> String {
    name("entries", number, width)
}

/// Groups of three digits, all but the last after an x; partial ones say how wide they are.
fn name(kind: &str, number: u64, width: usize) -> String {
    let mut path = format!("{:03}", number % 1_000);
    let mut rest = number / 1_000;
    while rest > 0 {
        path = format!("x{:03}/{path}", rest % 1_000);
        rest /= 1_000;
    }
    let partial = if width < TILE_WIDTH { format!(".p/{width}") } else { String::new() };
    format!("tile/{kind}/{path}{partial}")
}

/// What is wrong with the bytes of a tile or bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormError {
    /// It ends too early.
    #[error("is cut off after {whole} whole items of {expected}")]
    CutOff {
        /// Items before the end.
        whole: usize,
        /// How many there should be.
        expected: usize,
    },
    /// It goes on after the last item.
    #[error("goes on for {bytes} bytes after its last item")]
    TooLong {
        /// Bytes that belong to nothing.
        bytes: usize,
    },
}

/// One entry of a bundle.
pub(crate) fn encode_entry(bundle: &mut Vec<u8>, entry: &[u8]) {
    let length = u16::try_from(entry.len()).expect("an entry is at most 65,535 bytes long");
    bundle.extend(length.to_be_bytes());
    bundle.extend(entry);
}

/// The first entry of a bundle, and what follows it.
pub(crate) fn split_entry(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))
}

/// The entries of a bundle of so many.
///
/// # Errors
/// [`FormError`] for fewer and for anything after them.
pub fn decode_bundle(mut bytes: &[u8], width: usize) -> Result<Vec<&[u8]>, FormError> {
    let mut entries = Vec::with_capacity(width.min(TILE_WIDTH));
    while entries.len() < width {
        let cut_off = FormError::CutOff { whole: entries.len(), expected: width };
        let (entry, rest) = split_entry(bytes).ok_or(cut_off)?;
        entries.push(entry);
        bytes = rest;
    }
    if bytes.is_empty() { Ok(entries) } else { Err(FormError::TooLong { bytes: bytes.len() }) }
}

/// The hashes of a tile of so many.
pub(crate) fn decode_tile(bytes: &[u8], width: usize) -> Result<Vec<Hash>, FormError> {
    let (hashes, _) = bytes.as_chunks::<32>();
    if hashes.len() < width {
        return Err(FormError::CutOff { whole: hashes.len(), expected: width });
    }
    match bytes.len() - width * 32 {
        0 => Ok(hashes.to_vec()),
        bytes => Err(FormError::TooLong { bytes }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_specification() {
        assert_eq!(tile_name(0, 0, 256), "tile/0/000");
        assert_eq!(tile_name(2, 1_234_067, 256), "tile/2/x001/x234/067");
        assert_eq!(tile_name(1, 5, 3), "tile/1/005.p/3");
        assert_eq!(bundle_name(1_000, 255), "tile/entries/x001/000.p/255");
    }

    #[test]
    fn a_bundle_is_its_entries_and_nothing_else() {
        let mut bundle = Vec::new();
        for entry in [&b"a"[..], b"", b"ccc"] {
            encode_entry(&mut bundle, entry);
        }
        assert_eq!(decode_bundle(&bundle, 3).unwrap(), [&b"a"[..], b"", b"ccc"]);
        assert_eq!(decode_bundle(&bundle, 2), Err(FormError::TooLong { bytes: 5 }));
        assert_eq!(decode_bundle(&bundle[..9], 3), Err(FormError::CutOff { whole: 2, expected: 3 }));
    }
}
