//! Keys of both kinds, and their ids.

use crate::digest::Digest;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{DecodePrivateKey, DecodePublicKey, EncodePublicKey};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use p256::ecdsa::signature::Verifier;
use std::fmt;

/// A public key: ed25519 that is no small-order point, or P-256.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicKey(Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Ed25519(VerifyingKey),
    P256(p256::ecdsa::VerifyingKey),
}

/// How a key signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// Ed25519 (RFC 8032), verified strictly: canonical, no part of it of small order.
    Ed25519,
    /// ECDSA over P-256 with SHA-256 (FIPS 186-5); signatures in DER.
    EcdsaP256Sha256,
}

/// What names a key: SHA-256 over the text of its PEM (SubjectPublicKeyInfo), as the bundle's hint has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(Digest);

/// A private P-256 key, for bundles that other programs verify.
pub struct P256SigningKey(p256::ecdsa::SigningKey);

/// A private key of either kind.
pub trait SignBytes {
    /// Its public half.
    fn public(&self) -> PublicKey;

    /// A signature over these bytes, as bundles carry it.
    fn sign_bytes(&self, bytes: &[u8]) -> Vec<u8>;
}

/// A key that can't be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The text is no PEM of a key of one of our kinds.
    #[error("not the PEM text of an ed25519 or P-256 key")]
    NotPem,
    /// Not the bytes of such a key in base64, or no point of its curve.
    #[error("not an ed25519 or P-256 public key")]
    NotAKey,
    /// A point of small order: signatures that anybody can make would hold under it.
    #[error("a weak key: a point of small order")]
    Weak,
}

impl Algorithm {
    /// As the trust file has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ed25519 => "ed25519",
            Self::EcdsaP256Sha256 => "ecdsa-p256-sha256",
        }
    }

    /// The algorithm of this name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Ed25519, Self::EcdsaP256Sha256].into_iter().find(|algorithm| algorithm.name() == name)
    }
}

impl PublicKey {
    /// The public half of an ed25519 key.
    pub fn of(key: &SigningKey) -> Self {
        Self(Kind::Ed25519(key.verifying_key()))
    }

    /// From PEM text (SubjectPublicKeyInfo).
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        match VerifyingKey::from_public_key_pem(text) {
            Ok(key) => Self::strong(key),
            Err(_) => {
                let key =
                    p256::ecdsa::VerifyingKey::from_public_key_pem(text).map_err(|_| KeyError::NotPem)?;
                Ok(Self(Kind::P256(key)))
            }
        }
    }

    /// From base64: 32 bytes of ed25519, or the 65 of an uncompressed point (SEC 1) of P-256. No other form is taken, so
    /// that one key has one text.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn from_base64(algorithm: Algorithm, text: &str) -> Result<Self, KeyError> {
        let bytes = STANDARD.decode(text).map_err(|_| KeyError::NotAKey)?;
        match algorithm {
            Algorithm::Ed25519 => {
                let bytes: [u8; 32] = bytes.try_into().map_err(|_| KeyError::NotAKey)?;
                Self::strong(VerifyingKey::from_bytes(&bytes).map_err(|_| KeyError::NotAKey)?)
            }
            Algorithm::EcdsaP256Sha256 => {
                let is_uncompressed = bytes.len() == 65 && bytes[0] == 4;
                let key = p256::ecdsa::VerifyingKey::from_sec1_bytes(&bytes).ok().filter(|_| is_uncompressed);
                key.map(|key| Self(Kind::P256(key))).ok_or(KeyError::NotAKey)
            }
        }
    }

    /// As PEM text, with `\n` at the end of each line.
    pub fn to_pem(&self) -> String {
        let pem = match &self.0 {
            Kind::Ed25519(key) => key.to_public_key_pem(LineEnding::LF),
            Kind::P256(key) => key.to_public_key_pem(LineEnding::LF),
        };
        pem.expect("a point has an encoding")
    }

    /// In base64, as [`Self::from_base64`] takes it.
    pub fn to_base64(&self) -> String {
        match &self.0 {
            Kind::Ed25519(key) => STANDARD.encode(key.as_bytes()),
            Kind::P256(key) => STANDARD.encode(key.to_encoded_point(false).as_bytes()),
        }
    }

    /// How its signatures are made.
    pub fn algorithm(&self) -> Algorithm {
        match self.0 {
            Kind::Ed25519(_) => Algorithm::Ed25519,
            Kind::P256(_) => Algorithm::EcdsaP256Sha256,
        }
    }

    /// Its name.
    pub fn id(&self) -> KeyId {
        KeyId(Digest::of(self.to_pem().as_bytes()))
    }

    /// Whether the signature over `message` holds. Which algorithm it is says the key alone.
    ///
    /// Both values of s that ECDSA allows are taken, as every other verifier of P-256 does: a signature identifies
    /// nothing here, so that a second one for the same statement changes nothing.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        match &self.0 {
            Kind::Ed25519(key) => Signature::from_slice(signature)
                .is_ok_and(|signature| key.verify_strict(message, &signature).is_ok()),
            Kind::P256(key) => p256::ecdsa::Signature::from_der(signature)
                .is_ok_and(|signature| key.verify(message, &signature).is_ok()),
        }
    }

    fn strong(key: VerifyingKey) -> Result<Self, KeyError> {
        if key.is_weak() { Err(KeyError::Weak) } else { Ok(Self(Kind::Ed25519(key))) }
    }
}

impl P256SigningKey {
    /// From PEM text without a passphrase: PKCS#8, or SEC 1 as OpenSSL writes it.
    ///
    /// # Errors
    /// [`KeyError::NotPem`].
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        let key = p256::SecretKey::from_pkcs8_pem(text).or_else(|_| p256::SecretKey::from_sec1_pem(text));
        Ok(Self(key.map_err(|_| KeyError::NotPem)?.into()))
    }
}

impl std::fmt::Debug for P256SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "P256SigningKey({})", self.public().id())
    }
}

impl SignBytes for SigningKey {
    fn public(&self) -> PublicKey {
        PublicKey::of(self)
    }

    fn sign_bytes(&self, bytes: &[u8]) -> Vec<u8> {
        self.sign(bytes).to_bytes().to_vec()
    }
}

impl SignBytes for P256SigningKey {
    fn public(&self) -> PublicKey {
        PublicKey(Kind::P256(*self.0.verifying_key()))
    }

    fn sign_bytes(&self, bytes: &[u8]) -> Vec<u8> {
        let signature: p256::ecdsa::Signature = self.0.sign(bytes);
        signature.to_der().as_bytes().to_vec()
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
        assert_eq!(PublicKey::from_base64(Algorithm::Ed25519, &key.to_base64()), Ok(key));
        assert_eq!(key.id(), KeyId(Digest::of(key.to_pem().as_bytes())));
    }

    #[test]
    fn a_p256_key_survives_its_texts_and_signs() {
        assert!(P256SigningKey::from_pem("-----BEGIN EC PRIVATE KEY-----").is_err());
        let key = P256SigningKey(p256::ecdsa::SigningKey::from_slice(&[7; 32]).unwrap());
        let public = key.public();
        assert_eq!(PublicKey::from_pem(&public.to_pem()), Ok(public));
        assert_eq!(PublicKey::from_base64(Algorithm::EcdsaP256Sha256, &public.to_base64()), Ok(public));
        assert!(public.verifies(b"bytes", &key.sign_bytes(b"bytes")));
        assert!(!public.verifies(b"other", &key.sign_bytes(b"bytes")));
        // A compressed point is the same key in another text.
        let Kind::P256(point) = public.0 else { panic!("{public:?}") };
        let compressed = STANDARD.encode(point.to_encoded_point(true).as_bytes());
        assert_eq!(PublicKey::from_base64(Algorithm::EcdsaP256Sha256, &compressed), Err(KeyError::NotAKey));
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
            assert_eq!(
                PublicKey::from_base64(Algorithm::Ed25519, &STANDARD.encode(weak)),
                Err(KeyError::Weak),
                "{weak:02x?}"
            );
        }
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let mut off_curve = [0; 32];
        off_curve[0] = 2;
        for wrong in [STANDARD.encode(off_curve), STANDARD.encode([1; 31]), "?".to_owned(), String::new()] {
            assert_eq!(PublicKey::from_base64(Algorithm::Ed25519, &wrong), Err(KeyError::NotAKey), "{wrong}");
        }
        assert_eq!(PublicKey::from_pem("-----BEGIN PUBLIC KEY-----"), Err(KeyError::NotPem));
    }
}
