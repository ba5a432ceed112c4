//! Verification and load of a package: copy into memory, hash, seal, compare; beside copy with SHA-256 alone.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ringfence_models::{
    Architecture, Glob, Hasher, Manifest, ManifestValues, PackageName, PublicKey, SigningKey, Store, Task,
    Trust, TrustedKey,
};
use std::io::Read;
use std::path::{Path, PathBuf};

const WEIGHT_BYTES: usize = 64 * 1024 * 1024;

fn load(criterion: &mut Criterion) {
    let home = tempfile::tempdir().expect("a temporary folder");
    let bench = package(home.path(), WEIGHT_BYTES);
    let mut group = criterion.benchmark_group("package of 64 MiB");
    group.sample_size(10).throughput(Throughput::Bytes(WEIGHT_BYTES as u64));
    group.bench_function("verify and load", |bencher| {
        bencher.iter(|| bench.store.load(&bench.name, &bench.trust, 1).expect("it verifies"));
    });
    group.bench_function("verify", |bencher| {
        bencher.iter(|| bench.store.verify(&bench.name, &bench.trust, 1).expect("it verifies"));
    });
    group.bench_function("read and SHA-256 alone", |bencher| {
        bencher.iter(|| {
            let mut file = std::fs::OpenOptions::new().read(true).open(&bench.weights).expect("it is there");
            let (mut hasher, mut block) = (Hasher::default(), vec![0; 1 << 20]);
            loop {
                match file.read(&mut block).expect("it is read") {
                    0 => break hasher.finish(),
                    count => hasher.update(&block[..count]),
                }
            }
        });
    });
    group.finish();
}

struct Bench {
    store: Store,
    name: PackageName,
    trust: Trust,
    weights: PathBuf,
}

/// A signed package in this folder, whose weights are so many bytes of noise.
fn package(folder: &Path, weight_bytes: usize) -> Bench {
    let key = SigningKey::from_bytes(&[7; 32]);
    let trusted = TrustedKey {
        public: PublicKey::of(&key),
        models: vec![Glob::new("*").expect("a glob")],
        not_before: 0,
        not_after: u64::MAX,
    };
    let trust = Trust {
        version: 1,
        expires: u64::MAX,
        keys: vec![trusted],
        revoked_keys: Vec::new(),
        revoked_digests: Vec::new(),
    };
    let store = Store::open(folder).expect("the folder opens");
    let name = PackageName::new("noise").expect("a name");
    let manifest = Manifest::new(ManifestValues {
        name: "noise".to_owned(),
        task: Task::Embed,
        architecture: Architecture::Bert,
        max_tokens: 8,
        licence: "none".to_owned(),
        source: "this bench".to_owned(),
        source_signer: None,
        archives: Vec::new(),
        blocks: std::collections::BTreeMap::new(),
        unverified_source: true,
    });
    let noise: Vec<u8> = (0..weight_bytes).map(|index| ((index * 2_654_435_761) >> 7) as u8).collect();
    let mut draft = store.draft(&name).expect("nobody else writes");
    draft.add("model.safetensors", &mut noise.as_slice()).expect("a file");
    draft.add_manifest(&manifest.expect("a manifest")).expect("a file");
    draft.commit(&key).expect("the package is complete");
    Bench { store, name, trust, weights: folder.join("noise/model.safetensors") }
}

criterion_group!(benches, load);
criterion_main!(benches);
