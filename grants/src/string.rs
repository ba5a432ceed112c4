//! The text that a client presents: 32 random bytes, of which the table keeps the SHA-256. Before them stands which run of
//! the server made it, so that one from before a restart is told from a forged one. Nothing in it grants anything.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use std::fmt;

/// Random bytes of one.
pub const SECRET_BYTES: usize = 32;
/// Random bytes of a run's name.
pub(crate) const RUN_BYTES: usize = 6;
const PREFIX: &str = "rfg_";

/// A capability string. It is shown once, to its holder; `Debug` hides it.
#[derive(PartialEq, Eq)]
pub struct CapabilityString(String);

/// Why a text names no grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StringRefusal {
    /// Not of the form.
    #[error("this is no capability string: one is `{PREFIX}` and 51 characters")]
    Malformed,
    /// Made before the server was started.
    #[error("the capability string is from another run of the server; its grants ended with that run")]
    OtherRun,
}

impl CapabilityString {
    pub(crate) fn new(run: [u8; RUN_BYTES], secret: &[u8; SECRET_BYTES]) -> Self {
        let bytes = [&run[..], secret].concat();
        Self(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes)))
    }

    /// The text, to be shown to its holder.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for CapabilityString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CapabilityString({PREFIX}..)")
    }
}

/// The secret's SHA-256.
pub(crate) type SecretHash = [u8; 32];

pub(crate) fn hash_of(secret: &[u8; SECRET_BYTES]) -> SecretHash {
    Sha256::digest(secret).into()
}

/// The hash of the secret in a text of this run.
pub(crate) fn parse(run: [u8; RUN_BYTES], text: &str) -> Result<SecretHash, StringRefusal> {
    let encoded = text.strip_prefix(PREFIX).ok_or(StringRefusal::Malformed)?;
    let bytes = URL_SAFE_NO_PAD.decode(encoded).map_err(|_| StringRefusal::Malformed)?;
    let (of_run, secret) = bytes.split_first_chunk::<RUN_BYTES>().ok_or(StringRefusal::Malformed)?;
    let secret = secret.try_into().map_err(|_| StringRefusal::Malformed)?;
    if *of_run == run { Ok(hash_of(secret)) } else { Err(StringRefusal::OtherRun) }
}
