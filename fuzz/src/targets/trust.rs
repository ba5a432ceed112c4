//! The trust file: as it lies on disk, and its content behind a signature that holds.
use crate::support;
use ringfence_models::{PublicKey, Trust};

/// One run.
pub(crate) fn run(bytes: &[u8]) {
    let root = PublicKey::of(&support::key());
    assert!(Trust::verify(bytes, &root).is_err());
    let kind = "application/vnd.ringfence.trust+json";
    let signed = support::envelope(kind, &root.id().to_string(), bytes);
    let _ = Trust::verify(signed.to_string().as_bytes(), &root);
}
