//! The trust file: as it lies on disk, and its content behind a signature that holds.
#![no_main]
use ringfence_models::{PublicKey, Trust};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let root = PublicKey::of(&ringfence_fuzz::key());
    assert!(Trust::verify(bytes, &root).is_err());
    let kind = "application/vnd.ringfence.trust+json";
    let signed = ringfence_fuzz::envelope(kind, &root.id().to_string(), bytes);
    let _ = Trust::verify(signed.to_string().as_bytes(), &root);
});
