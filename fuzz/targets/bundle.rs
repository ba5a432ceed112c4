//! A signature bundle before anything is known of it; none that was not signed may hold.
#![no_main]
use ringfence_models::{Bundle, PackageName, PublicKey, Trust, TrustedKey};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(bundle) = Bundle::parse(bytes) else { return };
    let key = TrustedKey {
        public: PublicKey::of(&ringfence_fuzz::key()),
        models: vec![ringfence_models::Glob::new("*").unwrap()],
        not_before: 0,
        not_after: u64::MAX,
    };
    let trust =
        Trust { version: 1, expires: u64::MAX, keys: vec![key], revoked_keys: vec![], revoked_digests: vec![] };
    assert!(bundle.verify(&PackageName::new("tiny").unwrap(), &trust, 1).is_err());
});
