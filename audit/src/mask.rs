//! What stands in an entry: masked names of people's things, and words of ours.

use crate::keys::Secret;
use crate::tree::{Hash, hex, unhex};
use hmac::{Hmac, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

/// What a masked name begins with.
const PREFIX: &str = "hmac:";
/// Bytes of a word.
pub const WORD_BYTES_MAX: usize = 128;

/// The installation's masking key.
#[derive(Clone)]
pub struct Masks(pub(crate) Secret);

impl Masks {
    /// The mask of a client's name, a path, a reason or a file name.
    pub fn mask(&self, plain: &str) -> Masked {
        let mac = Hmac::<Sha256>::new_from_slice(&*self.0).expect("HMAC takes a key of any length");
        Masked(mac.chain_update(plain).finalize().into_bytes().into())
    }
}

/// Names the use of [`Masks::digest_key`], so that no other key comes from the masking key by the same way.
const DIGEST_CONTEXT: &str = "ringfence 2026 digests of what was served under a grant";

impl Masks {
    /// The key of BLAKE3 for what is served under grants. Who serves it needs this key, and never the masking key.
    pub fn digest_key(&self) -> [u8; 32] {
        blake3::derive_key(DIGEST_CONTEXT, &*self.0)
    }

    /// The digest, under that key, of all that a reader gives.
    ///
    /// # Errors
    /// The reader's.
    pub fn digest(&self, reader: impl std::io::Read) -> std::io::Result<Word> {
        let mut hasher = blake3::Hasher::new_keyed(&self.digest_key());
        hasher.update_reader(reader)?;
        Ok(Word::of_digest(hasher.finalize().as_bytes()))
    }
}

impl std::fmt::Debug for Masks {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Masks")
    }
}

/// `hmac:` and the HMAC-SHA-256 of a text in hex: equal where the texts are, and no way back without the key.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Masked(pub(crate) Hash);

impl From<Masked> for String {
    fn from(masked: Masked) -> Self {
        masked.to_string()
    }
}

impl std::fmt::Display for Masked {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{PREFIX}{}", hex(&self.0))
    }
}

impl TryFrom<String> for Masked {
    type Error = NoWord;

    fn try_from(text: String) -> Result<Self, NoWord> {
        text.strip_prefix(PREFIX).and_then(unhex).map(Self).ok_or(NoWord)
    }
}

/// A name, number or code of ours: letters, digits and `. _ : + -`, so that no path and no sentence gets into the log
/// in clear by mistake.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Word(String);

/// A text is no [`Word`], or no [`Masked`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not 1 to {WORD_BYTES_MAX} of a-z A-Z 0-9 . _ : + -")]
pub struct NoWord;

impl Word {
    /// Takes such a text.
    ///
    /// # Errors
    /// [`NoWord`].
    pub fn new(text: impl Into<String>) -> Result<Self, NoWord> {
        let text = text.into();
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"._:+-".contains(&byte);
        let length = (1..=WORD_BYTES_MAX).contains(&text.len());
        if length && text.bytes().all(legal) { Ok(Self(text)) } else { Err(NoWord) }
    }

    /// Takes any text: what a word can't have becomes `_`, and what is too long is cut off.
    pub fn lossy(text: &str) -> Self {
        let legal = |c: char| if c.is_ascii_alphanumeric() || "._:+-".contains(c) { c } else { '_' };
        let text: String = text.chars().take(WORD_BYTES_MAX).map(legal).collect();
        if text.is_empty() { Self("_".to_owned()) } else { Self(text) }
    }

    /// A keyed BLAKE3: `blake3:` and 64 hexadecimal digits.
    pub fn of_digest(digest: &[u8; 32]) -> Self {
        Self(format!("blake3:{}", hex(digest)))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for Word {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl From<Word> for String {
    fn from(word: Word) -> Self {
        word.0
    }
}

impl TryFrom<String> for Word {
    type Error = NoWord;

    fn try_from(text: String) -> Result<Self, NoWord> {
        Self::new(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_is_hmac_sha_256() {
        // RFC 4231, test case 2, whose key of four bytes is padded with zeros like any short key.
        let mut key = [0; 32];
        key[..4].copy_from_slice(b"Jefe");
        let masked = Masks(Secret::new(key)).mask("what do ya want for nothing?");
        let expected = "hmac:5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        assert_eq!(masked.to_string(), expected);
        assert_eq!(Masked::try_from(expected.to_owned()), Ok(masked));
        for wrong in ["", "hmac:", "hmac:5BDC", &expected[1..], &expected.to_uppercase()] {
            assert_eq!(Masked::try_from(wrong.to_owned()), Err(NoWord), "{wrong}");
        }
    }

    #[test]
    fn a_digest_is_of_the_contents_and_of_the_installation() {
        let masks = |byte| Masks(Secret::new([byte; 32]));
        let digest = |masks: &Masks, contents: &[u8]| masks.digest(contents).unwrap();
        let same = Word::of_digest(blake3::keyed_hash(&masks(1).digest_key(), b"contents").as_bytes());
        assert_eq!(digest(&masks(1), b"contents"), same);
        assert_ne!(digest(&masks(1), b"content"), same);
        assert_ne!(digest(&masks(2), b"contents"), same);
        assert_eq!(Word::new(same.as_str()), Ok(same.clone()));
    }

    #[test]
    fn a_word_holds_no_path_and_no_sentence() {
        for wrong in ["", "/home/anna", "two words", "a\nb", "ä", &"a".repeat(129)] {
            assert_eq!(Word::new(wrong), Err(NoWord), "{wrong}");
            assert!(Word::new(Word::lossy(wrong).as_str()).is_ok(), "{wrong}");
        }
        assert_eq!(
            Word::new("whisper-tiny.en").map(|word| word.to_string()),
            Ok("whisper-tiny.en".to_owned())
        );
    }
}
