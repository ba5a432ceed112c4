//! A store with one signed package, and envelopes signed by hand.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::Signer;
use ringfence_models::{
    Digest, Glob, LoadedPackage, Manifest, PackageError, PackageName, PublicKey, Refusal, SigningKey, Store,
    Trust, TrustedKey, Verified,
};
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use tempfile::TempDir;

/// The time at which everything is valid.
pub(crate) const NOW: u64 = 1_800_000_000;
/// The package's name.
pub(crate) const NAME: &str = "tiny";
/// Its files beside the manifest.
pub(crate) const FILES: [(&str, &str); 4] = [
    ("1_Pooling/config.json", r#"{"pooling_mode_mean_tokens":true}"#),
    ("config.json", r#"{"hidden_size":4,"num_hidden_layers":1}"#),
    ("model.safetensors", "not really weights, but nobody here parses them"),
    ("tokenizer.json", r#"{"model":{"type":"WordPiece"}}"#),
];

const MANIFEST: &str = "\
name = \"tiny\"
task = \"embed\"
architecture = \"bert\"
max_tokens = 64
licence = \"MIT\"
source = \"made by a test\"
";

pub(crate) struct Fixture {
    folder: TempDir,
    pub(crate) store: Store,
    pub(crate) operator: SigningKey,
    pub(crate) root: SigningKey,
    pub(crate) trust: Trust,
}

impl Fixture {
    /// A store with the package `tiny`, signed by a key that may sign everything.
    pub(crate) fn new() -> Self {
        let fixture = Self::empty();
        fixture.write(&FILES);
        fixture
    }

    pub(crate) fn empty() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (operator, root) = (SigningKey::from_bytes(&[1; 32]), SigningKey::from_bytes(&[2; 32]));
        let store = Store::open(folder.path()).unwrap();
        let trust = trusting(&operator);
        Self { folder, store, operator, root, trust }
    }

    /// Writes the package with these files and the manifest.
    pub(crate) fn write(&self, files: &[(&str, &str)]) -> Digest {
        let mut draft = self.store.draft(&name()).unwrap();
        draft.add_manifest(&manifest()).unwrap();
        for (name, text) in files {
            draft.add(name, &mut text.as_bytes()).unwrap();
        }
        draft.commit(&self.operator).unwrap()
    }

    /// The path of something in the store.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The path of a file of the package.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path(NAME).join(name)
    }

    pub(crate) fn bundle_path(&self) -> PathBuf {
        self.path("tiny.oms/ed25519.sig")
    }

    pub(crate) fn bundle(&self) -> Value {
        serde_json::from_slice(&fs::read(self.bundle_path()).unwrap()).unwrap()
    }

    pub(crate) fn verify(&self) -> Result<Verified, PackageError> {
        self.store.verify(&name(), &self.trust, NOW)
    }

    pub(crate) fn load(&self) -> Result<LoadedPackage, PackageError> {
        self.store.load(&name(), &self.trust, NOW)
    }

    /// The refusal, which must be the same for verifying and for loading.
    pub(crate) fn refusal(&self) -> Refusal {
        let verified = refusal(self.verify().map(|_| ()));
        assert_eq!(verified, refusal(self.load().map(|_| ())));
        verified
    }
}

pub(crate) fn refusal(result: Result<(), PackageError>) -> Refusal {
    match result {
        Err(PackageError::Refused(refusal)) => refusal,
        other => panic!("not refused: {other:?}"),
    }
}

pub(crate) fn name() -> PackageName {
    PackageName::new(NAME).unwrap()
}

pub(crate) fn manifest() -> Manifest {
    Manifest::parse(MANIFEST.as_bytes()).unwrap()
}

/// A trust file by which `key` may sign everything.
pub(crate) fn trusting(key: &SigningKey) -> Trust {
    let key = TrustedKey {
        public: PublicKey::of(key),
        models: vec![Glob::new("*").unwrap()],
        not_before: NOW - 1,
        not_after: NOW + 1,
    };
    Trust { version: 1, expires: NOW + 1, keys: vec![key], revoked_keys: vec![], revoked_digests: vec![] }
}

/// An envelope signed by hand, after the specification.
pub(crate) fn envelope(payload_type: &str, payload: &str, keyid: &str, key: &SigningKey) -> Value {
    let signed = format!("DSSEv1 {} {payload_type} {} {payload}", payload_type.len(), payload.len());
    let sig = STANDARD.encode(key.sign(signed.as_bytes()).to_bytes());
    json!({
        "payload": STANDARD.encode(payload),
        "payloadType": payload_type,
        "signatures": [{"sig": sig, "keyid": keyid}],
    })
}

/// Numbers from a seed (SplitMix64), so that a failing run can be repeated.
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ mixed >> 31) % bound as u64).unwrap()
    }
}
