//! Whose signature counts, for which packages, and when.

use crate::fixture::{Fixture, NOW, envelope, refusal};
use ringfence_models::{
    Digest, Fault, Glob, KeyError, PublicKey, Refusal, SigningKey, Trust, TrustError, TrustFiles, floor_text,
};
use serde_json::{Value, json};

const PAYLOAD_TYPE: &str = "application/vnd.ringfence.trust+json";

#[test]
fn the_trust_file_decides_whose_signature_counts() {
    let id = PublicKey::of(&SigningKey::from_bytes(&[1; 32])).id();
    let check = |change: &dyn Fn(&mut Trust, Digest), expected: Option<Refusal>| {
        let mut fixture = Fixture::new();
        let digest = fixture.verify().unwrap().digest;
        change(&mut fixture.trust, digest);
        let signed = fixture.trust.sign(&fixture.root);
        fixture.trust = Trust::verify(signed.as_bytes(), &PublicKey::of(&fixture.root)).unwrap();
        match expected {
            Some(expected) => assert_eq!(fixture.refusal(), expected),
            None => drop(fixture.load().unwrap()),
        }
    };
    let glob = |text| vec![Glob::new(text).unwrap()];
    check(&|_, _| {}, None);
    check(&|t, _| t.keys.clear(), Some(Refusal::UnknownSigner(id)));
    check(&|t, _| t.keys[0].models = glob("other-*"), Some(Refusal::OutOfScope(id)));
    check(&|t, _| t.keys[0].models = vec![], Some(Refusal::OutOfScope(id)));
    check(&|t, _| t.keys[0].models = [glob("other-*"), glob("ti*")].concat(), None);
    let not_before = Refusal::NotYetValid { signer: id, not_before: NOW + 1 };
    check(&|t, _| t.keys[0].not_before = NOW, None);
    check(&|t, _| t.keys[0].not_before = NOW + 1, Some(not_before));
    check(&|t, _| t.keys[0].not_after = NOW, Some(Refusal::Expired { signer: id, not_after: NOW }));
    check(&|t, _| t.expires = NOW, Some(Refusal::TrustExpired(NOW)));
    check(&|t, _| t.revoked_keys = vec![id], Some(Refusal::KeyRevoked(id)));
    let revoked_and_gone = |t: &mut Trust, _| {
        t.keys.clear();
        t.revoked_keys = vec![id];
    };
    check(&revoked_and_gone, Some(Refusal::KeyRevoked(id)));
    let digest = Fixture::new().verify().unwrap().digest;
    check(&|t, digest| t.revoked_digests = vec![digest], Some(Refusal::DigestRevoked(digest)));
    check(&|t, _| t.revoked_digests = vec![Digest::of(b"another")], None);
}

#[test]
fn a_key_that_is_not_listed_is_unknown_even_with_a_good_signature() {
    let mut fixture = Fixture::new();
    fixture.operator = SigningKey::from_bytes(&[3; 32]);
    fixture.store.sign(&crate::fixture::name(), &fixture.operator).unwrap();
    let id = PublicKey::of(&fixture.operator).id();
    assert_eq!(refusal(fixture.load().map(|_| ())), Refusal::UnknownSigner(id));
}

#[test]
fn another_root_is_told_from_a_broken_signature() {
    let fixture = Fixture::empty();
    let root = PublicKey::of(&fixture.root);
    let signed = fixture.trust.sign(&SigningKey::from_bytes(&[9; 32]));
    assert_eq!(Trust::verify(signed.as_bytes(), &root), Err(TrustError::WrongRoot));
    let mut forged: Value = serde_json::from_str(&signed).unwrap();
    forged["signatures"][0]["keyid"] = json!(root.id().to_string());
    assert_eq!(Trust::verify(forged.to_string().as_bytes(), &root), Err(TrustError::SignatureInvalid));
}

#[test]
fn a_signed_trust_file_of_another_form_is_refused() {
    let fixture = Fixture::empty();
    let root = PublicKey::of(&fixture.root);
    let operator = PublicKey::of(&fixture.operator);
    let good = json!({
        "version": 1, "expires": NOW + 1, "revoked_keys": [], "revoked_digests": [],
        "keys": [{"id": operator.id().to_string(), "alg": "ed25519", "pub": operator.to_base64(), "models": ["*"],
                  "not_before": NOW - 1, "not_after": NOW + 1}],
    });
    let read = |payload: &str| {
        let signed = envelope(PAYLOAD_TYPE, payload, &root.id().to_string(), &fixture.root);
        Trust::verify(signed.to_string().as_bytes(), &root)
    };
    assert_eq!(read(&good.to_string()), Ok(fixture.trust.clone()));
    let check = |change: &dyn Fn(&mut Value), field: &str, fault| {
        let mut bad = good.clone();
        change(&mut bad);
        match read(&bad.to_string()) {
            Err(TrustError::Malformed(error)) => assert_eq!((&*error.field, error.fault), (field, fault)),
            other => panic!("{bad}: {other:?}"),
        }
    };
    check(&|t| t["version"] = json!("1"), "version", Fault::WrongType);
    check(&|t| t["expires"] = json!(-1), "expires", Fault::WrongType);
    check(&|t| t["more"] = json!(1), "more", Fault::Unknown);
    check(&|t| t["revoked_keys"] = json!(["x"]), "revoked_keys[0]", Fault::WrongValue);
    check(&|t| t["revoked_digests"] = json!(["x"]), "revoked_digests[0]", Fault::WrongValue);
    check(&|t| t["keys"][0]["alg"] = json!("rsa"), "keys[0].alg", Fault::WrongValue);
    check(&|t| t["keys"][0]["id"] = json!("0".repeat(64)), "keys[0].id", Fault::WrongValue);
    check(&|t| t["keys"][0]["models"] = json!(["../*"]), "keys[0].models[0]", Fault::WrongValue);
    check(&|t| t["keys"][0]["more"] = json!(1), "keys[0].more", Fault::Unknown);
    let twice = good.to_string().replacen("\"version\":", "\"version\":2,\"version\":", 1);
    assert!(matches!(read(&twice), Err(TrustError::Malformed(error)) if error.fault == Fault::Twice));
}

#[test]
fn a_weak_key_is_refused_even_where_the_root_lists_it() {
    let fixture = Fixture::empty();
    let root = PublicKey::of(&fixture.root);
    // The identity: with it, a signature of zeros holds over any message for a verifier that is not strict.
    let weak = "AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    let payload = json!({
        "version": 1, "expires": NOW + 1, "revoked_keys": [], "revoked_digests": [],
        "keys": [{"id": "0".repeat(64), "alg": "ed25519", "pub": weak, "models": ["*"], "not_before": 0,
                  "not_after": NOW + 1}],
    });
    let signed = envelope(PAYLOAD_TYPE, &payload.to_string(), &root.id().to_string(), &fixture.root);
    let expected = TrustError::Key { index: 0, error: KeyError::Weak };
    assert_eq!(Trust::verify(signed.to_string().as_bytes(), &root), Err(expected));
}

#[test]
fn after_each_step_of_a_change_one_file_counts_and_never_an_older_one() {
    let fixture = Fixture::empty();
    let (root, other) = (PublicKey::of(&fixture.root), SigningKey::from_bytes(&[9; 32]));
    let signed = |version, key| Trust { version, ..fixture.trust.clone() }.sign(key);
    let (old, new, new_root) = (signed(4, &fixture.root), signed(5, &fixture.root), signed(5, &other));
    let check = |root: &PublicKey, floor, current: &str, next: Option<&str>, expected| {
        let floor = floor_text(floor);
        let next = next.map(str::as_bytes);
        let files = TrustFiles { floor: floor.as_bytes(), current: current.as_bytes(), next };
        assert_eq!(files.newest(root).map(|(trust, _)| trust.version), expected);
    };
    let rolled_back = Err(TrustError::RolledBack { version: 4, floor: 5 });
    check(&root, 4, &old, None, Ok(4));
    check(&root, 4, &old, Some(&new), Ok(4));
    check(&root, 5, &old, Some(&new), Ok(5));
    check(&root, 5, &new, None, Ok(5));
    check(&root, 5, &old, None, rolled_back.clone());
    check(&root, 5, &old, Some(&old), rolled_back.clone());
    check(&root, 5, &old, Some("{}"), rolled_back);
    // The root key changes as well: its public half is replaced before the floor.
    let new_pub = PublicKey::of(&other);
    check(&root, 4, &old, Some(&new_root), Ok(4));
    check(&new_pub, 4, &old, Some(&new_root), Ok(5));
    check(&new_pub, 5, &new_root, None, Ok(5));
    check(&new_pub, 4, &old, None, Err(TrustError::WrongRoot));
}

#[test]
fn a_newer_file_than_the_floor_counts_and_a_floor_that_says_nothing_stops_all() {
    let fixture = Fixture::empty();
    let (root, signed) = (PublicKey::of(&fixture.root), fixture.trust.sign(&fixture.root));
    let newest =
        |floor| TrustFiles { floor, current: signed.as_bytes(), next: Some(signed.as_bytes()) }.newest(&root);
    assert_eq!(newest(b"1\n"), Ok((fixture.trust.clone(), 1)));
    assert_eq!(newest(b""), Err(TrustError::FloorInvalid));
    let newer = Trust { version: 7, ..fixture.trust.clone() };
    assert_eq!(newer.clone().not_below(7), Ok(newer.clone()));
    assert_eq!(newer.not_below(8), Err(TrustError::RolledBack { version: 7, floor: 8 }));
}
