//! Which trust file of a home counts, and the floor below which none does.
//!
//! A change of trust is four steps, each durable before the next:
//!
//! ```text
//! 1  trust.next    the new trust file, signed
//! 2  root.pub      only where the root key changes
//! 3  trust.floor   the new version
//! 4  trust.json    trust.next is renamed to it
//! ```
//!
//! After each step exactly one of the two files counts. Before step 2 or 3 it is the old `trust.json`; after it the old
//! file is below the floor or signed by another root, and `trust.next` counts. So a crash between two steps neither
//! stops the home nor lets an older file count.

use crate::keys::PublicKey;
use crate::trust::{Trust, TrustError};

/// The longest `trust.floor` in bytes: the longest number and a line end.
pub const FLOOR_BYTES_MAX: usize = 21;

/// The bytes of a home's trust files.
#[derive(Clone, Copy, Debug)]
pub struct TrustFiles<'a> {
    /// `trust.floor`.
    pub floor: &'a [u8],
    /// `trust.json`.
    pub current: &'a [u8],
    /// `trust.next`, which a change that was cut off leaves.
    pub next: Option<&'a [u8]>,
}

impl TrustFiles<'_> {
    /// The trust file that counts, and the floor.
    ///
    /// # Errors
    /// [`TrustError::FloorInvalid`]; else what is wrong with `trust.json`, where `trust.next` does not count either.
    pub fn newest(&self, root: &PublicKey) -> Result<(Trust, u64), TrustError> {
        let floor = read_floor(self.floor)?;
        let read = |bytes| Trust::verify(bytes, root)?.not_below(floor);
        let newest =
            read(self.current).or_else(|error| self.next.and_then(|next| read(next).ok()).ok_or(error));
        newest.map(|trust| (trust, floor))
    }
}

/// The text of `trust.floor`.
pub fn floor_text(version: u64) -> String {
    format!("{version}\n")
}

/// A version has one text only.
fn read_floor(bytes: &[u8]) -> Result<u64, TrustError> {
    let text = std::str::from_utf8(bytes).map_err(|_| TrustError::FloorInvalid)?;
    let floor = text.trim_end().parse().map_err(|_| TrustError::FloorInvalid)?;
    if floor > 0 && text == floor_text(floor) { Ok(floor) } else { Err(TrustError::FloorInvalid) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_floor_has_one_text_only() {
        for version in [1, 10, u64::MAX] {
            let text = floor_text(version);
            assert!(text.len() <= FLOOR_BYTES_MAX);
            assert_eq!(read_floor(text.as_bytes()), Ok(version));
        }
        for wrong in [
            "",
            "\n",
            "1",
            "0\n",
            "01\n",
            "+1\n",
            "-1\n",
            " 1\n",
            "1 \n",
            "1\n\n",
            "1\r\n",
            "18446744073709551616\n",
        ] {
            assert_eq!(read_floor(wrong.as_bytes()), Err(TrustError::FloorInvalid), "{wrong:?}");
        }
        assert_eq!(read_floor(b"\xff\n"), Err(TrustError::FloorInvalid));
    }
}
