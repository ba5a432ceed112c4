//! The log's three keys: one signs checkpoints, one masks names, one seals the map from masks to names.

use crate::checkpoint::PublicKey;
use crate::files::{Files, FilesExt};
use crate::mask::Masks;
use crate::tree::{hex, unhex};
use ed25519_dalek::SigningKey;
use std::io;
use zeroize::Zeroizing;

/// Random bytes that new keys are made of.
pub const KEYS_BYTES: usize = 96;
/// Bytes of a key's file: 64 digits and a line end.
const FILE_BYTES: usize = 65;

/// Where each key lies, below the audit folder.
const FILES: [&str; 3] = ["keys/audit", "keys/mask", "keys/seal"];

/// The keys of one installation.
pub struct Keys {
    pub(crate) audit: SigningKey,
    pub(crate) masks: Masks,
    pub(crate) seal: Secret,
}

/// A symmetric key, wiped when dropped.
pub(crate) type Secret = Zeroizing<[u8; 32]>;

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// A file can't be read or written.
    #[error("{file}: {source}")]
    Io {
        /// Below the audit folder.
        file: &'static str,
        /// From the system.
        source: io::Error,
    },
    /// A file has not the form of a key.
    #[error("{0} is not a key of 64 hexadecimal digits")]
    Form(&'static str),
    /// A key of a log that exists is gone; a new one would not fit it.
    #[error("{0} is missing, but there is a log")]
    Missing(&'static str),
}

impl Keys {
    /// New ones from random bytes.
    pub fn generate(random: &[u8; KEYS_BYTES]) -> Self {
        let part = |number: usize| {
            let bytes = &random[number * 32..][..32];
            <[u8; 32]>::try_from(bytes).expect("a third of 96 bytes")
        };
        Self::from_parts(&[part(0), part(1), part(2)])
    }

    fn from_parts([audit, mask, seal]: &[[u8; 32]; 3]) -> Self {
        Self {
            audit: SigningKey::from_bytes(audit),
            masks: Masks(Secret::new(*mask)),
            seal: Secret::new(*seal),
        }
    }

    /// The texts of the three files: audit, mask, seal.
    pub fn encode(&self) -> [Zeroizing<String>; 3] {
        let text = |key: &[u8; 32]| Zeroizing::new(hex(key) + "\n");
        [text(self.audit.as_bytes()), text(&self.masks.0), text(&self.seal)]
    }

    /// From those texts.
    ///
    /// # Errors
    /// [`KeysError::Form`].
    pub fn decode(texts: [&[u8]; 3]) -> Result<Self, KeysError> {
        let mut parts = Zeroizing::new([[0; 32]; 3]);
        for ((part, text), file) in parts.iter_mut().zip(texts).zip(FILES) {
            let text = std::str::from_utf8(text).ok().and_then(|text| text.strip_suffix('\n'));
            *part = text.and_then(unhex).ok_or(KeysError::Form(file))?;
        }
        Ok(Self::from_parts(&parts))
    }

    /// Reads them from their files.
    ///
    /// # Errors
    /// [`KeysError`].
    pub fn read(files: &impl Files) -> Result<Self, KeysError> {
        let mut texts = FILES.map(|_| Zeroizing::new(Vec::new()));
        for (text, file) in texts.iter_mut().zip(FILES) {
            let read = files.read(file, FILE_BYTES).map_err(|source| KeysError::Io { file, source })?;
            *text = Zeroizing::new(read.ok_or(KeysError::Missing(file))?);
        }
        Self::decode(texts.each_ref().map(|text| text.as_slice()))
    }

    /// Reads them, or makes them where there is no log yet.
    ///
    /// # Errors
    /// [`KeysError`]; [`KeysError::Missing`] where there is a log, but not all of its keys.
    pub fn read_or_make(files: &mut impl Files, random: &[u8; KEYS_BYTES]) -> Result<Self, KeysError> {
        match Self::read(files) {
            Err(KeysError::Missing(_)) => {}
            read => return read,
        }
        let missing = FILES[0];
        let log = files.read(crate::log::CHECKPOINT, crate::checkpoint::CHECKPOINT_BYTES_MAX);
        match log {
            Ok(None) => {}
            Ok(Some(_)) => return Err(KeysError::Missing(missing)),
            Err(source) => return Err(KeysError::Io { file: missing, source }),
        }
        let keys = Self::generate(random);
        for (file, text) in FILES.into_iter().zip(keys.encode()) {
            files.replace(file, text.as_bytes()).map_err(|source| KeysError::Io { file, source })?;
        }
        Ok(keys)
    }

    /// By which a third party checks the log.
    pub fn public(&self) -> PublicKey {
        PublicKey::of(&self.audit)
    }

    /// By which names are masked.
    pub fn masks(&self) -> &Masks {
        &self.masks
    }
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Keys of {}", self.public().origin())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_their_files_and_are_not_made_anew_beside_a_log() {
        let folder = tempfile::tempdir().unwrap();
        let mut files = crate::files::Folder::open(folder.path()).unwrap();
        let made = Keys::read_or_make(&mut files, &std::array::from_fn(|index| index as u8)).unwrap();
        let read = Keys::read_or_make(&mut files, &[1; KEYS_BYTES]).unwrap();
        assert_eq!(read.encode(), made.encode());
        files.replace(crate::log::CHECKPOINT, b"one").unwrap();
        std::fs::remove_file(folder.path().join("keys/seal")).unwrap();
        let made = Keys::read_or_make(&mut files, &[1; KEYS_BYTES]);
        assert!(matches!(made, Err(KeysError::Missing(_))), "{made:?}");
        std::fs::write(folder.path().join("keys/seal"), "0").unwrap();
        assert!(matches!(Keys::read(&files), Err(KeysError::Form("keys/seal"))));
    }
}
