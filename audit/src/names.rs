//! The map from masks to names, beside the log and sealed, for the owner's own reading. A record is the mask, a length
//! in 16 bits, and the name under XChaCha20-Poly1305. The nonce is a part of the mask, which is another for each name.

use crate::files::{Files, FilesExt};
use crate::keys::Keys;
use crate::mask::Masked;
use crate::tree::Hash;
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use std::collections::{HashMap, HashSet};
use std::io;

/// The file, below the audit folder.
pub(crate) const NAMES: &str = "names";
/// Bytes of a name; longer ones are masked and not kept.
pub const NAME_BYTES_MAX: usize = 8_192;
/// Bytes of the map; what is named after that is masked and not kept.
pub const NAMES_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Mask and length.
const HEAD_BYTES: usize = 34;
const NONCE_BYTES: usize = 24;
const SEAL_BYTES: usize = 16;

/// The map while the log is written: which masks it has, and records that are not on the disk yet.
pub(crate) struct Names {
    known: HashSet<Hash>,
    bytes: usize,
    waiting: Vec<u8>,
    /// New names that found no room.
    left_out: u64,
}

impl Names {
    /// Reads the masks, and drops a record that is not whole.
    pub(crate) fn open(files: &mut impl Files) -> io::Result<Self> {
        let found = files.read(NAMES, NAMES_BYTES_MAX)?;
        let bytes = found.as_deref().unwrap_or_default();
        let mut known = HashSet::new();
        let mut rest = bytes;
        while let Some((mask, _, after)) = split(rest) {
            known.insert(mask);
            rest = after;
        }
        let whole = bytes.len() - rest.len();
        if found.is_none() || !rest.is_empty() {
            files.replace(NAMES, &bytes[..whole])?;
        }
        // A killed process may have written names that did not reach the disk; they are not written again.
        files.sync(NAMES)?;
        Ok(Self { known, bytes: whole, waiting: Vec::new(), left_out: 0 })
    }

    /// Masks a name and keeps it, where there is room.
    pub(crate) fn mask(&mut self, plain: &str, keys: &Keys) -> Masked {
        let masked = keys.masks.mask(plain);
        let record_bytes = HEAD_BYTES + plain.len() + SEAL_BYTES;
        let room = self.bytes + self.waiting.len() + record_bytes <= NAMES_BYTES_MAX;
        if plain.len() > NAME_BYTES_MAX || self.known.contains(&masked.0) {
            return masked;
        }
        if !room {
            self.left_out += 1;
        } else {
            self.known.insert(masked.0);
            let sealed =
                cipher(keys).encrypt(nonce(&masked.0), Payload { msg: plain.as_bytes(), aad: &masked.0 });
            let sealed = sealed.expect("a name is far below what one nonce may seal");
            let length = u16::try_from(sealed.len()).expect("a name is at most 8 KiB long");
            self.waiting.extend(masked.0);
            self.waiting.extend(length.to_be_bytes());
            self.waiting.extend(sealed);
        }
        masked
    }

    /// Names that found no room since the log was opened, counted each time.
    pub(crate) fn left_out(&self) -> u64 {
        self.left_out
    }

    /// Forgets the names that have none of these masks. All names are on the disk.
    pub(crate) fn retain(&mut self, kept: &HashSet<Hash>, files: &mut impl Files) -> io::Result<()> {
        let bytes = files.read(NAMES, NAMES_BYTES_MAX)?.unwrap_or_default();
        let (mut left, mut rest) = (Vec::new(), bytes.as_slice());
        while let Some((mask, _, after)) = split(rest) {
            if kept.contains(&mask) {
                left.extend_from_slice(&rest[..rest.len() - after.len()]);
            }
            rest = after;
        }
        files.replace(NAMES, &left)?;
        self.known.retain(|mask| kept.contains(mask));
        self.bytes = left.len();
        Ok(())
    }

    /// Brings new names to the disk.
    pub(crate) fn commit(&mut self, files: &mut impl Files) -> io::Result<()> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        files.append(NAMES, &self.waiting)?;
        files.sync(NAMES)?;
        self.bytes += self.waiting.len();
        self.waiting.clear();
        Ok(())
    }
}

/// What masks stand for.
#[derive(Clone, Debug, Default)]
pub struct NameMap {
    names: HashMap<Hash, String>,
}

impl NameMap {
    /// Opens the map beside a log. Records that were changed are left out.
    ///
    /// # Errors
    /// The system's.
    pub fn read(files: &impl Files, keys: &Keys) -> io::Result<Self> {
        let bytes = files.read(NAMES, NAMES_BYTES_MAX)?.unwrap_or_default();
        let (mut names, mut rest) = (HashMap::new(), bytes.as_slice());
        while let Some((mask, sealed, after)) = split(rest) {
            rest = after;
            let opened = cipher(keys).decrypt(nonce(&mask), Payload { msg: sealed, aad: &mask });
            let plain = opened.ok().and_then(|plain| String::from_utf8(plain).ok());
            if let Some(plain) = plain.filter(|plain| keys.masks.mask(plain).0 == mask) {
                names.insert(mask, plain);
            }
        }
        Ok(Self { names })
    }

    /// The name behind a mask, if it is known.
    pub fn name(&self, masked: &Masked) -> Option<&str> {
        self.names.get(&masked.0).map(String::as_str)
    }
}

/// The first record, mask and sealed name, and what follows it.
fn split(bytes: &[u8]) -> Option<(Hash, &[u8], &[u8])> {
    let (mask, rest) = bytes.split_first_chunk()?;
    let (length, rest) = rest.split_first_chunk()?;
    let (sealed, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
    Some((*mask, sealed, rest))
}

fn cipher(keys: &Keys) -> XChaCha20Poly1305 {
    XChaCha20Poly1305::new((&*keys.seal).into())
}

fn nonce(mask: &Hash) -> &XNonce {
    XNonce::from_slice(&mask[..NONCE_BYTES])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::Folder;
    use crate::keys::KEYS_BYTES;

    #[test]
    fn names_are_sealed_kept_once_and_survive_a_torn_end() {
        let folder = tempfile::tempdir().unwrap();
        let mut files = Folder::open(folder.path()).unwrap();
        let keys = Keys::generate(&[3; KEYS_BYTES]);
        let mut names = Names::open(&mut files).unwrap();
        let masked = ["notes", "/home/anna/a.txt", "notes"].map(|name| names.mask(name, &keys));
        let long = names.mask(&"x".repeat(NAME_BYTES_MAX + 1), &keys);
        names.commit(&mut files).unwrap();
        let path = folder.path().join(NAMES);
        let whole = std::fs::read(&path).unwrap();
        assert!(!whole.windows(4).any(|bytes| bytes == b"anna"));
        let map = NameMap::read(&files, &keys).unwrap();
        assert_eq!(map.names.len(), 2);
        assert_eq!((map.name(&masked[0]), map.name(&masked[1])), (Some("notes"), Some("/home/anna/a.txt")));
        assert_eq!(map.name(&long), None);
        let other = Keys::generate(&[4; KEYS_BYTES]);
        assert_eq!(NameMap::read(&files, &other).unwrap().names.len(), 0);
        std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        let mut names = Names::open(&mut files).unwrap();
        assert_eq!(names.known.len(), 1);
        names.mask("/home/anna/a.txt", &keys);
        names.commit(&mut files).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), whole);
    }
}
