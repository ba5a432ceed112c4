//! The trust file: whose signature counts for which packages, signed by the root key.
//!
//! `trust.json` is a DSSE envelope whose `keyid` is the root key's id and whose payload is
//! `{version, expires, keys:[{id, alg, pub, models:[glob], not_before, not_after}], revoked_keys, revoked_digests}`.
//! Times are Unix seconds, `pub` is the base64 of the key's 32 bytes, ids and digests are hexadecimal.

use crate::digest::Digest;
use crate::dsse::{self, Envelope};
use crate::json::{self, Fault, Field, FieldError, Fields};
use crate::keys::{Algorithm, KeyError, KeyId, PublicKey};
use crate::name::PackageName;
use crate::refusal::Refusal;
use ed25519_dalek::SigningKey;
use serde::Serialize;

/// The longest trust file in bytes.
pub const TRUST_BYTES_MAX: usize = 1024 * 1024;

const PAYLOAD_TYPE: &str = "application/vnd.ringfence.trust+json";
const KEYS_MAX: usize = 1024;
const GLOBS_MAX: usize = 64;
const GLOB_BYTES_MAX: usize = 128;
const REVOKED_MAX: usize = 4096;

/// Whose signature counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trust {
    /// 1 for the first; each change counts up.
    pub version: u64,
    /// Unix seconds from which on the whole file says nothing.
    pub expires: u64,
    /// The keys that may sign.
    pub keys: Vec<TrustedKey>,
    /// Keys that may not sign any more, listed or not.
    pub revoked_keys: Vec<KeyId>,
    /// Packages that are not run any more, whoever signed them.
    pub revoked_digests: Vec<Digest>,
}

/// A key that may sign packages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustedKey {
    /// The key.
    pub public: PublicKey,
    /// Names of the packages that it may sign.
    pub models: Vec<Glob>,
    /// First Unix second at which its signatures count.
    pub not_before: u64,
    /// First Unix second at which they count no more.
    pub not_after: u64,
}

/// A pattern of package names in which `*` stands for any run of characters, none included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob(String);

/// Why a trust file is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// Not of our form.
    #[error("malformed: {0}")]
    Malformed(#[from] FieldError),
    /// Signed by another root key than the pinned one.
    #[error("signed by another root key than the one in root.pub")]
    WrongRoot,
    /// The signature does not hold.
    #[error("the root key's signature does not hold")]
    SignatureInvalid,
    /// A listed key can't be used.
    #[error("keys[{index}].pub: {error}")]
    Key {
        /// Its place in `keys`.
        index: usize,
        /// What is wrong with it.
        error: KeyError,
    },
    /// An older file was put back.
    #[error(
        "version {version} is older than version {floor}, which was in force already: an older trust file was put back"
    )]
    RolledBack {
        /// Of the file.
        version: u64,
        /// The highest that was in force.
        floor: u64,
    },
    /// The floor's text is none.
    #[error("trust.floor holds no version, so nobody knows how new trust.json must be")]
    FloorInvalid,
}

impl Trust {
    /// Reads a trust file that the root key has signed.
    ///
    /// # Errors
    /// [`TrustError`]. Whether it has expired is asked when a package is verified.
    pub fn verify(bytes: &[u8], root: &PublicKey) -> Result<Self, TrustError> {
        let envelope = Envelope::read(json::parse(bytes, TRUST_BYTES_MAX)?, PAYLOAD_TYPE)?;
        if envelope.keyid(|keyid| KeyId::from_hex(keyid).ok())? != root.id() {
            return Err(TrustError::WrongRoot);
        }
        let payload = envelope.verify(root).ok_or(TrustError::SignatureInvalid)?;
        read(json::parse(payload, TRUST_BYTES_MAX)?)
    }

    /// The text of the trust file, signed by the root key.
    pub fn sign(&self, root: &SigningKey) -> String {
        let payload = serde_json::to_string(&TrustJson::new(self)).expect("texts and numbers encode");
        let keyid = PublicKey::of(root).id().to_string();
        let envelope = dsse::sign(PAYLOAD_TYPE, payload.as_bytes(), &keyid, root);
        serde_json::to_string(&envelope).expect("texts encode")
    }

    /// This trust file, if it is as new as the newest that was in force.
    ///
    /// # Errors
    /// [`TrustError::RolledBack`].
    pub fn not_below(self, floor: u64) -> Result<Self, TrustError> {
        let version = self.version;
        if version < floor { Err(TrustError::RolledBack { version, floor }) } else { Ok(self) }
    }

    /// The key of this id, if it may sign packages of this name at `now` (Unix seconds).
    pub(crate) fn signer(&self, id: KeyId, name: &PackageName, now: u64) -> Result<&PublicKey, Refusal> {
        if now >= self.expires {
            return Err(Refusal::TrustExpired(self.expires));
        }
        if self.revoked_keys.contains(&id) {
            return Err(Refusal::KeyRevoked(id));
        }
        let known = self.keys.iter().find(|key| key.public.id() == id);
        let key = known.ok_or(Refusal::UnknownSigner(id))?;
        if !key.models.iter().any(|glob| glob.matches(name.as_str())) {
            return Err(Refusal::OutOfScope(id));
        }
        if now < key.not_before {
            return Err(Refusal::NotYetValid { signer: id, not_before: key.not_before });
        }
        if now >= key.not_after {
            return Err(Refusal::Expired { signer: id, not_after: key.not_after });
        }
        Ok(&key.public)
    }

    /// Whether the package of this digest is not to be run any more.
    pub(crate) fn revokes(&self, digest: Digest) -> bool {
        self.revoked_digests.contains(&digest)
    }
}

impl Glob {
    /// Takes a pattern of the characters of package names and `*`.
    ///
    /// # Errors
    /// [`Fault::WrongValue`] for anything else, [`Fault::TooLong`] above 128 bytes.
    pub fn new(text: &str) -> Result<Self, Fault> {
        let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-*".contains(&byte);
        if text.len() > GLOB_BYTES_MAX {
            return Err(Fault::TooLong);
        }
        if text.is_empty() || !text.bytes().all(legal) {
            return Err(Fault::WrongValue);
        }
        Ok(Self(text.to_owned()))
    }

    /// The pattern as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the name is one of those meant.
    pub fn matches(&self, name: &str) -> bool {
        let mut parts = self.0.split('*');
        let first = parts.next().expect("a split has a first part");
        let Some(mut rest) = name.strip_prefix(first) else { return false };
        let Some(last) = parts.next_back() else { return rest.is_empty() };
        // Taking the earliest place of each part leaves the most for the parts after it.
        for part in parts {
            match rest.find(part) {
                Some(at) => rest = &rest[at + part.len()..],
                None => return false,
            }
        }
        rest.ends_with(last)
    }
}

fn read(mut fields: Fields) -> Result<Trust, TrustError> {
    let version = fields.count("version")?;
    let expires = fields.count("expires")?;
    let keys = fields.list("keys", KEYS_MAX)?;
    let revoked_keys = read_list(fields.list("revoked_keys", REVOKED_MAX)?, KeyId::from_hex)?;
    let revoked_digests = read_list(fields.list("revoked_digests", REVOKED_MAX)?, Digest::from_hex)?;
    fields.end()?;
    let keys =
        keys.into_iter().enumerate().map(|(index, key)| read_key(index, key)).collect::<Result<_, _>>()?;
    Ok(Trust { version, expires, keys, revoked_keys, revoked_digests })
}

fn read_key(index: usize, field: Field) -> Result<TrustedKey, TrustError> {
    let mut fields = field.object()?;
    let id_field = fields.take("id")?;
    let algorithm = fields.read("alg", |name| Algorithm::named(name).ok_or(()))?;
    let public = PublicKey::from_base64(algorithm, fields.take("pub")?.text(TRUST_BYTES_MAX)?)
        .map_err(|error| TrustError::Key { index, error })?;
    // An id that is not the key's own could pass one key off as another.
    if id_field.text(TRUST_BYTES_MAX)? != public.id().to_string() {
        return Err(id_field.fault(Fault::WrongValue).into());
    }
    let models = read_list(fields.list("models", GLOBS_MAX)?, Glob::new)?;
    let (not_before, not_after) = (fields.count("not_before")?, fields.count("not_after")?);
    fields.end()?;
    Ok(TrustedKey { public, models, not_before, not_after })
}

fn read_list<T, E>(list: Vec<Field>, read: impl Fn(&str) -> Result<T, E>) -> Result<Vec<T>, FieldError> {
    let entry =
        |field: &Field| read(field.text(TRUST_BYTES_MAX)?).map_err(|_| field.fault(Fault::WrongValue));
    list.iter().map(entry).collect()
}

#[derive(Serialize)]
struct TrustJson {
    version: u64,
    expires: u64,
    keys: Vec<TrustedKeyJson>,
    revoked_keys: Vec<String>,
    revoked_digests: Vec<String>,
}

#[derive(Serialize)]
struct TrustedKeyJson {
    id: String,
    alg: &'static str,
    r#pub: String,
    models: Vec<String>,
    not_before: u64,
    not_after: u64,
}

impl TrustJson {
    fn new(trust: &Trust) -> Self {
        let key = |key: &TrustedKey| TrustedKeyJson {
            id: key.public.id().to_string(),
            alg: key.public.algorithm().name(),
            r#pub: key.public.to_base64(),
            models: key.models.iter().map(|glob| glob.0.clone()).collect(),
            not_before: key.not_before,
            not_after: key.not_after,
        };
        Self {
            version: trust.version,
            expires: trust.expires,
            keys: trust.keys.iter().map(key).collect(),
            revoked_keys: trust.revoked_keys.iter().map(KeyId::to_string).collect(),
            revoked_digests: trust.revoked_digests.iter().map(Digest::to_string).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_run_of_characters() {
        let check = |glob: &str, name: &str, expected| {
            assert_eq!(Glob::new(glob).unwrap().matches(name), expected, "{glob} {name}");
        };
        check("*", "minilm", true);
        check("minilm", "minilm", true);
        check("minilm", "minilm2", false);
        check("mini*", "minilm", true);
        check("mini*", "mini", true);
        check("*lm", "minilm", true);
        check("*lm", "minilm2", false);
        check("m*i*m", "minilm", true);
        check("m*i*m", "mim", true);
        check("m*i*m", "mm", false);
        check("ab*ba", "aba", false);
        check("a**b", "ab", true);
        for wrong in ["", "A", "a/b", "a?", "[a]", &"a".repeat(129)] {
            assert!(Glob::new(wrong).is_err(), "{wrong}");
        }
    }
}
