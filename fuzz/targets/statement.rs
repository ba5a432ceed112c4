//! What stands in a bundle, behind a signature that holds.
#![no_main]
use ringfence_models::{Bundle, PackageName, PublicKey, Trust, TrustedKey};

libfuzzer_sys::fuzz_target!(|payload: &[u8]| {
    let public = PublicKey::of(&ringfence_fuzz::key());
    let bundle = serde_json::json!({
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": { "publicKey": { "hint": public.id().to_string() }, "tlogEntries": [] },
        "dsseEnvelope": ringfence_fuzz::envelope("application/vnd.in-toto+json", "", payload),
    });
    let Ok(bundle) = Bundle::parse(bundle.to_string().as_bytes()) else { return };
    let models = vec![ringfence_models::Glob::new("*").unwrap()];
    let key = TrustedKey { public, models, not_before: 0, not_after: u64::MAX };
    let trust =
        Trust { version: 1, expires: u64::MAX, keys: vec![key], revoked_keys: vec![], revoked_digests: vec![] };
    let _ = bundle.verify(&PackageName::new("tiny").unwrap(), &trust, 1);
});
