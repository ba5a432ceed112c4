//! A signature bundle: as it lies on disk, where nothing that was not signed may hold, and its statement behind a signature
//! that does.
use crate::support;
use ringfence_models::{Bundle, Glob, PackageName, PublicKey, Trust, TrustedKey};

/// One run.
pub(crate) fn run(bytes: &[u8]) {
    let public = PublicKey::of(&support::key());
    let hint = public.id().to_string();
    let key =
        TrustedKey { public, models: vec![Glob::new("*").unwrap()], not_before: 0, not_after: u64::MAX };
    let trust = Trust {
        version: 1,
        expires: u64::MAX,
        keys: vec![key],
        revoked_keys: vec![],
        revoked_digests: vec![],
    };
    let name = PackageName::new("silero-vad").unwrap();
    if let Ok(bundle) = Bundle::parse(bytes) {
        assert!(bundle.verify(&name, &trust, 1).is_err());
    }
    let signed = serde_json::json!({
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": { "publicKey": { "hint": hint }, "tlogEntries": [] },
        "dsseEnvelope": support::envelope("application/vnd.in-toto+json", "", bytes),
    });
    if let Ok(bundle) = Bundle::parse(signed.to_string().as_bytes()) {
        let _ = bundle.verify(&name, &trust, 1);
    }
}
