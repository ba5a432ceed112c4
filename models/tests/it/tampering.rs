//! A flipped bit anywhere in a package, its bundle or the trust file is refused, each with its own refusal.

use crate::fixture::{FILES, Fixture, NOW, Numbers, name};
use ringfence_models::{
    Bundle, Fault, FieldError, P256SigningKey, PublicKey, Refusal, SignBytes, Trust, TrustError, TrustedKey,
};
use std::fs;
use std::ops::Range;

/// Files up to this length are flipped at every byte, longer ones at as many places from a seed.
const PLACES_MAX: usize = 256;

#[test]
fn a_flipped_bit_in_any_file_is_refused_and_named() {
    let fixture = Fixture::empty();
    let long = "weights ".repeat(16 * 1024);
    let mut files = FILES;
    files[2].1 = &long;
    fixture.write(&files);
    for file in FILES.iter().map(|(name, _)| *name).chain(["package.toml"]) {
        let good = fs::read(fixture.file(file)).unwrap();
        for (at, bit) in places(good.len(), 7) {
            let mut bad = good.clone();
            bad[at] ^= 1 << bit;
            fs::write(fixture.file(file), &bad).unwrap();
            let refusal = fixture.refusal();
            let named = matches!(&refusal, Refusal::DigestMismatch { file: named, .. } if named == file);
            assert!(named, "bit {bit} of byte {at} of {file}: {refusal:?}");
        }
        fs::write(fixture.file(file), good).unwrap();
    }
    fixture.load().unwrap();
}

#[test]
fn a_file_that_lost_or_gained_bytes_is_refused_and_named() {
    let fixture = Fixture::new();
    for (file, text) in FILES {
        for bad in [&text[..text.len() - 1], "", &format!("{text} ")] {
            fs::write(fixture.file(file), bad).unwrap();
            let refusal = fixture.refusal();
            assert!(
                matches!(&refusal, Refusal::DigestMismatch { file: named, .. } if named == file),
                "{refusal:?}"
            );
        }
        fs::write(fixture.file(file), text).unwrap();
    }
}

#[test]
fn a_flipped_bit_anywhere_in_the_bundle_is_refused_by_the_field_it_hits() {
    let fixture = Fixture::new();
    let good = fs::read(fixture.bundle_path()).unwrap();
    let [hint, payload, sig] = ["\"hint\":\"", "\"payload\":\"", "\"sig\":\""].map(|key| value(&good, key));
    for (at, bit) in every_bit(good.len()) {
        let mut bad = good.clone();
        bad[at] ^= 1 << bit;
        let verified = Bundle::parse(&bad)
            .map_err(Refusal::BundleMalformed)
            .and_then(|bundle| bundle.verify(&name(), &fixture.trust, NOW));
        let refusal = verified.expect_err("flipped");
        let expected = match &refusal {
            Refusal::BundleMalformed(FieldError { fault: Fault::NotJson, .. }) => true,
            Refusal::BundleMalformed(FieldError { field, .. }) if hint.contains(&at) => {
                field.ends_with("hint")
            }
            Refusal::BundleMalformed(FieldError { field, .. }) if payload.contains(&at) => {
                field.ends_with("payload")
            }
            Refusal::BundleMalformed(FieldError { field, .. }) if sig.contains(&at) => field.ends_with("sig"),
            Refusal::BundleMalformed(_) => true,
            Refusal::UnknownSigner(_) => hint.contains(&at),
            Refusal::SignatureInvalid => payload.contains(&at) || sig.contains(&at),
            _ => false,
        };
        assert!(expected, "bit {bit} of byte {at}: {refusal:?}");
    }
}

#[test]
fn a_flipped_bit_anywhere_in_the_trust_file_is_refused() {
    let fixture = Fixture::empty();
    let good = fixture.trust.sign(&fixture.root).into_bytes();
    let root = PublicKey::of(&fixture.root);
    assert_eq!(Trust::verify(&good, &root), Ok(fixture.trust.clone()));
    let [keyid, payload, sig] = ["\"keyid\":\"", "\"payload\":\"", "\"sig\":\""].map(|key| value(&good, key));
    for (at, bit) in every_bit(good.len()) {
        let mut bad = good.clone();
        bad[at] ^= 1 << bit;
        let error = Trust::verify(&bad, &root).expect_err("flipped");
        let expected = match &error {
            TrustError::Malformed(_) => true,
            TrustError::WrongRoot => keyid.contains(&at),
            TrustError::SignatureInvalid => payload.contains(&at) || sig.contains(&at),
            TrustError::Key { .. } | TrustError::RolledBack { .. } | TrustError::FloorInvalid => false,
        };
        assert!(expected, "bit {bit} of byte {at}: {error:?}");
    }
}

/// Where the text after `key` stands.
fn value(document: &[u8], key: &str) -> Range<usize> {
    let text = std::str::from_utf8(document).unwrap();
    let start = text.find(key).unwrap() + key.len();
    start..start + text[start..].find('"').unwrap()
}

fn every_bit(bytes: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..bytes).flat_map(|at| (0..8).map(move |bit| (at, bit)))
}

/// Bytes to flip, and a bit of each.
fn places(bytes: usize, seed: u64) -> Vec<(usize, usize)> {
    let mut numbers = Numbers(seed);
    if bytes <= PLACES_MAX {
        return (0..bytes).map(|at| (at, numbers.below(8))).collect();
    }
    (0..PLACES_MAX).map(|_| (numbers.below(bytes), numbers.below(8))).collect()
}

/// One bit of one of the files, the bundles or the trust file, from a seed: nothing changed is ever taken.
/// `RINGFENCE_MUTATIONS` says how many are tried.
#[test]
fn no_changed_bit_of_a_package_is_accepted() {
    let count = std::env::var("RINGFENCE_MUTATIONS").map_or(5_000, |count| count.parse().unwrap());
    let mut fixture = Fixture::new();
    let key = P256SigningKey::from_pem(include_str!("../data/p256.pem")).unwrap();
    let interchange = TrustedKey { public: key.public(), ..fixture.trust.keys[0].clone() };
    fixture.trust.keys.push(interchange);
    fixture.store.sign_p256(&fixture.verify().unwrap(), &key, &fixture.trust, NOW).unwrap();
    let files = FILES.map(|(file, _)| fixture.file(file));
    let bundles = [fixture.bundle_path(), fixture.path("tiny.oms/p256.sig"), fixture.file("package.toml")];
    let places: Vec<_> = files.into_iter().chain(bundles).collect();
    let trust = fixture.trust.sign(&fixture.root);
    let mut random = Numbers(0x5eed);
    for number in 0..count {
        let place = random.below(places.len() + 1);
        let Some(path) = places.get(place) else {
            let mut bad = trust.clone().into_bytes();
            flip(&mut bad, &mut random);
            assert!(Trust::verify(&bad, &PublicKey::of(&fixture.root)).is_err(), "mutation {number}");
            continue;
        };
        let good = fs::read(path).unwrap();
        let mut bad = good.clone();
        flip(&mut bad, &mut random);
        fs::write(path, bad).unwrap();
        let taken = if number % 10 == 0 { fixture.load().is_ok() } else { fixture.verify().is_ok() };
        assert!(!taken, "mutation {number} of seed 0x5eed, in {}", path.display());
        fs::write(path, good).unwrap();
    }
    fixture.load().unwrap();
}

fn flip(bytes: &mut [u8], random: &mut Numbers) {
    let (at, bit) = (random.below(bytes.len()), random.below(8));
    bytes[at] ^= 1 << bit;
}
