//! P-256: bundles for other programs, and other people's folders under their own bundles.

use crate::fixture::{Fixture, NOW, name};
use ringfence_models::{
    Bundle, Digest, DraftError, Glob, Hasher, KeyId, P256SigningKey, PublicKey, Refusal, SignBytes,
    TrustedKey,
};
use std::collections::BTreeMap;
use std::fs;

/// Made by `openssl ecparam -name prime256v1 -genkey` for this test.
const KEY: &str = include_str!("../data/p256.pem");
/// A folder of three files, signed with that key by model-signing 1.1.1 (`--no-ignore-git-paths`).
const FOREIGN: &[u8] = include_bytes!("../data/p256.sig");
const FOREIGN_FILES: [(&str, &str); 3] =
    [("1_Pooling/config.json", "hi\n"), ("config.json", "{}\n"), ("model.safetensors", "w\n")];

fn key() -> P256SigningKey {
    P256SigningKey::from_pem(KEY).unwrap()
}

fn trusted(public: PublicKey, models: &str) -> TrustedKey {
    TrustedKey { public, models: vec![Glob::new(models).unwrap()], not_before: 0, not_after: NOW + 1 }
}

fn found(files: &[(&str, &str)]) -> BTreeMap<String, Digest> {
    let digest = |text: &str| {
        let mut hasher = Hasher::default();
        hasher.update(text.as_bytes());
        hasher.finish()
    };
    files.iter().map(|(name, text)| ((*name).to_owned(), digest(text))).collect()
}

fn judged(fixture: &Fixture, bytes: &[u8], files: &[(&str, &str)]) -> Result<KeyId, Refusal> {
    Bundle::parse(bytes).unwrap().verify_foreign(&name(), &fixture.trust, NOW, &found(files))
}

#[test]
fn a_folder_that_python_signed_holds_under_its_own_bundle() {
    let mut fixture = Fixture::new();
    let id = key().public().id();
    assert_eq!(judged(&fixture, FOREIGN, &FOREIGN_FILES), Err(Refusal::UnknownSigner(id)));
    fixture.trust.keys.push(trusted(key().public(), "other"));
    assert_eq!(judged(&fixture, FOREIGN, &FOREIGN_FILES), Err(Refusal::OutOfScope(id)));
    fixture.trust.keys.push(trusted(key().public(), "*"));
    fixture.trust.keys.remove(1);
    assert_eq!(judged(&fixture, FOREIGN, &FOREIGN_FILES), Ok(id));
    let [first, second, _] = FOREIGN_FILES;
    let missing = Refusal::FileMissing("model.safetensors".to_owned());
    assert_eq!(judged(&fixture, FOREIGN, &[first, second]), Err(missing));
    let more = [&FOREIGN_FILES[..], &[("model.py", "import os")]].concat();
    assert_eq!(judged(&fixture, FOREIGN, &more), Err(Refusal::FileUnlisted("model.py".to_owned())));
    let changed = judged(&fixture, FOREIGN, &[first, second, ("model.safetensors", "v\n")]);
    assert!(matches!(changed, Err(Refusal::DigestMismatch { .. })), "{changed:?}");
}

#[test]
fn no_changed_bit_of_a_foreign_bundle_holds() {
    let mut fixture = Fixture::new();
    fixture.trust.keys.push(trusted(key().public(), "*"));
    for bit in 0..FOREIGN.len() * 8 {
        let mut changed = FOREIGN.to_vec();
        changed[bit / 8] ^= 1 << (bit % 8);
        let Ok(bundle) = Bundle::parse(&changed) else { continue };
        let judged = bundle.verify_foreign(&name(), &fixture.trust, NOW, &found(&FOREIGN_FILES));
        assert!(judged.is_err(), "bit {bit}");
    }
}

#[test]
fn a_second_bundle_stands_beside_the_first_and_must_agree_with_it() {
    let mut fixture = Fixture::new();
    let verified = fixture.verify().unwrap();
    let path = fixture.path("tiny.oms/p256.sig");
    let unknown = Refusal::UnknownSigner(key().public().id());
    let sign = |fixture: &Fixture| fixture.store.sign_p256(&verified, &key(), &fixture.trust, NOW);
    let untrusted = sign(&fixture).unwrap_err();
    assert!(matches!(&untrusted, DraftError::Untrusted(refusal) if *refusal == unknown), "{untrusted}");
    assert!(!path.exists(), "nothing was written");
    fixture.trust.keys.push(trusted(key().public(), "*"));
    sign(&fixture).unwrap();
    fixture.load().unwrap();
    // Its key is trusted no longer.
    let key = fixture.trust.keys.pop().unwrap();
    assert_eq!(fixture.refusal(), Refusal::InterchangeInvalid(Box::new(unknown)));
    fixture.trust.keys.push(key);
    // Of a trusted signer, and about other files.
    let good = fs::read(&path).unwrap();
    fixture.write(&[("config.json", "{}"), ("model.safetensors", "other"), ("tokenizer.json", "{}")]);
    assert!(!path.exists(), "a new package has no old bundle");
    fixture.load().unwrap();
    fs::write(&path, &good).unwrap();
    assert_eq!(fixture.refusal(), Refusal::InterchangeInvalid(Box::new(Refusal::SubjectMismatch)));
    fs::write(&path, "{").unwrap();
    let malformed = |refusal: &Refusal| matches!(refusal, Refusal::BundleMalformed(_));
    let refused = fixture.refusal();
    assert!(matches!(&refused, Refusal::InterchangeInvalid(inner) if malformed(inner)), "{refused}");
}

#[test]
fn a_package_can_not_be_run_with_the_second_bundle_alone() {
    let mut fixture = Fixture::new();
    fixture.trust.keys.push(trusted(key().public(), "*"));
    fixture.store.sign_p256(&fixture.verify().unwrap(), &key(), &fixture.trust, NOW).unwrap();
    fs::remove_file(fixture.bundle_path()).unwrap();
    assert_eq!(fixture.refusal(), Refusal::Unsigned);
}

#[test]
fn a_key_of_one_kind_is_not_taken_for_the_other() {
    let fixture = Fixture::new();
    let mut trust = fixture.trust.clone();
    trust.keys.push(trusted(key().public(), "*"));
    let signed = trust.sign(&fixture.root);
    let root = PublicKey::of(&fixture.root);
    assert_eq!(ringfence_models::Trust::verify(signed.as_bytes(), &root), Ok(trust));
}
