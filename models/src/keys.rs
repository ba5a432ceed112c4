//! Public ed25519 keys and their ids.

use crate::digest::Digest;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{DecodePublicKey, EncodePublicKey};
use ed25519_dalek::{Signature, SigningKey, VerifyingKey};
use std::fmt;

/// A public key that is no small-order point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

/// What names a key: SHA-256 over the text of its PEM (SubjectPublicKeyInfo), as the bundle's hint has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(Digest);

/// A key that can't be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The text is no PEM of an ed25519 public key.
    #[error("not the PEM text of an ed25519 public key")]
    NotPem,
    /// Not 32 bytes in base64, or no point of the curve.
    #[error("not an ed25519 public key")]
    NotAKey,
    /// A point of small order: signatures that anybody can make would hold under it.
    #[error("a weak key: a point of small order")]
    Weak,
}

impl PublicKey {
    /// The public half of a key.
    pub fn of(key: &SigningKey) -> Self {
        Self(key.verifying_key())
    }

    /// From PEM text (SubjectPublicKeyInfo).
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        Self::strong(VerifyingKey::from_public_key_pem(text).map_err(|_| KeyError::NotPem)?)
    }

    /// From the base64 of its 32 bytes.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn from_base64(text: &str) -> Result<Self, KeyError> {
        let bytes = STANDARD.decode(text).map_err(|_| KeyError::NotAKey)?;
        let bytes: [u8; 32] = bytes.try_into().map_err(|_| KeyError::NotAKey)?;
        Self::strong(VerifyingKey::from_bytes(&bytes).map_err(|_| KeyError::NotAKey)?)
    }

    /// As PEM text, with `\n` at the end of each line.
    pub fn to_pem(&self) -> String {
        self.0.to_public_key_pem(LineEnding::LF).expect("32 bytes have an encoding")
    }

    /// The base64 of its 32 bytes.
    pub fn to_base64(&self) -> String {
        STANDARD.encode(self.0.as_bytes())
    }

    /// Its name.
    pub fn id(&self) -> KeyId {
        KeyId(Digest::of(self.to_pem().as_bytes()))
    }

    /// Whether the signature over `message` holds: canonical, and no part of it of small order.
    pub(crate) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        Signature::from_slice(signature)
            .is_ok_and(|signature| self.0.verify_strict(message, &signature).is_ok())
    }

    fn strong(key: VerifyingKey) -> Result<Self, KeyError> {
        if key.is_weak() { Err(KeyError::Weak) } else { Ok(Self(key)) }
    }
}

impl KeyId {
    /// From 64 lower-case hexadecimal digits.
    ///
    /// # Errors
    /// [`crate::DigestError`] for anything else.
    pub fn from_hex(text: &str) -> Result<Self, crate::DigestError> {
        Digest::from_hex(text).map(Self)
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_its_texts() {
        let key = PublicKey::of(&SigningKey::from_bytes(&[7; 32]));
        assert_eq!(PublicKey::from_pem(&key.to_pem()), Ok(key));
        assert_eq!(PublicKey::from_base64(&key.to_base64()), Ok(key));
        assert_eq!(key.id(), KeyId(Digest::of(key.to_pem().as_bytes())));
    }

    #[test]
    fn keys_of_small_order_are_refused() {
        // y = 1 (the identity), y = -1 (order 2), y = 0 (order 4), and a point of order 8.
        let order_8 = [
            0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef, 0x98, 0xf0,
            0xd5, 0xdf, 0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88, 0x6d, 0x53, 0xfc, 0x05,
        ];
        let mut identity = [0; 32];
        identity[0] = 1;
        let mut minus_one = [0xff; 32];
        (minus_one[0], minus_one[31]) = (0xec, 0x7f);
        for weak in [identity, minus_one, [0; 32], order_8] {
            assert_eq!(PublicKey::from_base64(&STANDARD.encode(weak)), Err(KeyError::Weak), "{weak:02x?}");
        }
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let mut off_curve = [0; 32];
        off_curve[0] = 2;
        for wrong in [STANDARD.encode(off_curve), STANDARD.encode([1; 31]), "?".to_owned(), String::new()] {
            assert_eq!(PublicKey::from_base64(&wrong), Err(KeyError::NotAKey), "{wrong}");
        }
        assert_eq!(PublicKey::from_pem("-----BEGIN PUBLIC KEY-----"), Err(KeyError::NotPem));
    }
}
