//! Verification and load of a package: copy into memory, hash, seal, compare; beside copy with SHA-256 alone.
//!
//! Then the same in the large: a package of `RINGFENCE_VERIFY_BYTES` (default 4 GiB) is loaded and mapped, in turns with
//! a copy of its files into memory with SHA-256 alone, on as many threads.

#![allow(clippy::disallowed_methods, reason = "a bench reads the clock")]

mod support;

use criterion::{Criterion, Throughput, criterion_group};
use ringfence_models::{
    Architecture, Digest, Glob, Hasher, Manifest, ManifestValues, PackageName, PublicKey, SigningKey, Store,
    Task, Trust, TrustedKey,
};
use ringfence_sandbox::{Map, SealedFile};
use rustix::fs::{MemfdFlags, memfd_create};
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use support::{load as machine_load, median, verdict};

const WEIGHT_BYTES: u64 = 64 * 1024 * 1024;
const GIB: u64 = 1 << 30;
const BLOCK_BYTES: usize = 1 << 20;
/// Files of weights of the large package.
const SHARDS: u64 = 4;
/// Threads of both sides: those of `Store::load`.
const THREADS: usize = 2;
const ROUNDS: usize = 5;
/// Least rate of ours against the copy's.
const RATIO_MIN: f64 = 0.70;
/// Most memory in use while a package is loaded, in copies of it.
const COPIES_MAX: f64 = 1.1;

fn load(criterion: &mut Criterion) {
    let home = tempfile::tempdir().expect("a temporary folder");
    let bench = package(home.path(), WEIGHT_BYTES, 1);
    let mut group = criterion.benchmark_group("package of 64 MiB");
    group.sample_size(10).throughput(Throughput::Bytes(WEIGHT_BYTES));
    group.bench_function("verify and load", |bencher| {
        bencher.iter(|| bench.store.load(&bench.name, &bench.trust, 1).expect("it verifies"));
    });
    group.bench_function("verify", |bencher| {
        bencher.iter(|| bench.store.verify(&bench.name, &bench.trust, 1).expect("it verifies"));
    });
    group.bench_function("read and SHA-256 alone", |bencher| {
        bencher.iter(|| hash(&bench.weights[0], |_| ()));
    });
    group.finish();
}

/// The digest of a file; every block is handed on.
fn hash(path: &Path, mut take: impl FnMut(&[u8])) -> Digest {
    let mut file = std::fs::OpenOptions::new().read(true).open(path).expect("it is there");
    let (mut hasher, mut block) = (Hasher::default(), vec![0; BLOCK_BYTES]);
    loop {
        match file.read(&mut block).expect("it is read") {
            0 => break hasher.finish(),
            count => {
                hasher.update(&block[..count]);
                take(&block[..count]);
            }
        }
    }
}

/// What both sides are compared by.
fn large() {
    let bytes = std::env::var("RINGFENCE_VERIFY_BYTES")
        .map_or(4 * GIB, |bytes| bytes.parse().expect("RINGFENCE_VERIFY_BYTES is a number"));
    let home = tempfile::tempdir().expect("a temporary folder");
    let bench = package(home.path(), bytes, SHARDS);
    // Both sides read from the page cache.
    for path in &bench.weights {
        std::hint::black_box(hash(path, |_| ()));
    }
    println!("\npackage of {:.1} GiB in {SHARDS} files, {ROUNDS} rounds in turns", gib(bytes));
    let (mut ours, mut copies, mut peak) = (Vec::new(), Vec::new(), 0.0_f64);
    for round in 1..=ROUNDS {
        let memory = Memory::watch();
        let (loading, maps) = rate(bytes, || bench.load_and_map());
        let (touching, ()) = rate(bytes, || maps.iter().for_each(touch));
        peak = peak.max(memory.peak_bytes() as f64 / bytes as f64);
        drop(maps);
        let (copying, copied) = rate(bytes, || bench.copy_and_hash());
        drop(copied);
        println!(
            "  round {round}: verify, seal and map {loading:.2} GiB/s, copy with SHA-256 {copying:.2} GiB/s \
             (first look at every page of the map, by one thread: {touching:.2} GiB/s)"
        );
        ours.push(loading);
        copies.push(copying);
    }
    let ratio = median(&mut ours) / median(&mut copies);
    println!(
        "  medians {:.2} and {:.2} GiB/s, ratio {ratio:.2}: floor {RATIO_MIN} {}; load {}",
        median(&mut ours),
        median(&mut copies),
        verdict(ratio >= RATIO_MIN),
        machine_load()
    );
    println!("  peak of host memory {peak:.2} copies: bound {COPIES_MAX} {}", verdict(peak <= COPIES_MAX));
    assert!(ratio >= RATIO_MIN && peak <= COPIES_MAX, "a floor is missed");
}

/// GiB/s of something that does this many bytes, and what it makes.
fn rate<T>(bytes: u64, act: impl FnOnce() -> T) -> (f64, T) {
    let start = Instant::now();
    let made = act();
    (gib(bytes) / start.elapsed().as_secs_f64(), made)
}

fn touch(map: &Map) {
    std::hint::black_box(map.iter().step_by(4096).fold(0, |sum: u8, byte| sum.wrapping_add(*byte)));
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / GIB as f64
}

/// Watches the memory of this process, memfds included, while it lives.
struct Memory {
    stop: std::sync::Arc<AtomicBool>,
    thread: thread::JoinHandle<u64>,
}

impl Memory {
    fn watch() -> Self {
        let stop = std::sync::Arc::new(AtomicBool::new(false));
        let (ended, before) = (stop.clone(), in_use());
        let thread = thread::spawn(move || {
            let mut peak = 0;
            while !ended.load(Ordering::Relaxed) {
                peak = peak.max(in_use().saturating_sub(before));
                thread::sleep(Duration::from_millis(5));
            }
            peak.max(in_use().saturating_sub(before))
        });
        Self { stop, thread }
    }

    fn peak_bytes(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("reading /proc does not panic")
    }
}

/// Bytes of anonymous memory of this process and of all memory files of the machine.
fn in_use() -> u64 {
    let field = |file: &str, name: &str| {
        let text = std::fs::read_to_string(file).expect("/proc is there");
        let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("the kernel says it");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
    };
    field("/proc/self/status", "RssAnon:") + field("/proc/meminfo", "Shmem:")
}

struct Bench {
    store: Store,
    name: PackageName,
    trust: Trust,
    weights: Vec<PathBuf>,
}

impl Bench {
    /// As the server and its worker do it: verified bytes in sealed memory, mapped.
    fn load_and_map(&self) -> Vec<Map> {
        let package = self.store.load(&self.name, &self.trust, 1).expect("it verifies");
        let map = |file: ringfence_models::SealedFile| {
            SealedFile::from_descriptor(file.fd).and_then(|file| file.map()).expect("it is sealed")
        };
        package.files.into_iter().map(map).collect()
    }

    /// The same files into memory files, with nothing but SHA-256.
    fn copy_and_hash(&self) -> Vec<File> {
        let next = AtomicUsize::new(0);
        let work = || {
            let claim = || self.weights.get(next.fetch_add(1, Ordering::Relaxed));
            let copy = |path: &PathBuf| {
                let mut to = File::from(memfd_create("copy", MemfdFlags::CLOEXEC).expect("a memory file"));
                std::hint::black_box(hash(path, |block| to.write_all(block).expect("it is written")));
                to
            };
            std::iter::from_fn(|| claim().map(copy)).collect::<Vec<_>>()
        };
        thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
            threads.into_iter().flat_map(|thread| thread.join().expect("copying does not panic")).collect()
        })
    }
}

/// Noise without end.
struct Noise {
    block: Vec<u8>,
    at: usize,
}

impl Noise {
    fn new() -> Self {
        Self { block: (0..BLOCK_BYTES).map(|index| ((index * 2_654_435_761) >> 7) as u8).collect(), at: 0 }
    }
}

impl Read for Noise {
    fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
        let from = &self.block[self.at..];
        let count = from.len().min(to.len());
        to[..count].copy_from_slice(&from[..count]);
        self.at = (self.at + count) % self.block.len();
        Ok(count)
    }
}

/// A signed package in this folder, whose weights are so many bytes of noise in so many files.
fn package(folder: &Path, weight_bytes: u64, shards: u64) -> Bench {
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
    let mut draft = store.draft(&name).expect("nobody else writes");
    let files: Vec<String> = match shards {
        1 => vec!["model.safetensors".to_owned()],
        _ => (1..=shards).map(|shard| format!("model-{shard:05}-of-{shards:05}.safetensors")).collect(),
    };
    for file in &files {
        draft.add(file, &mut Noise::new().take(weight_bytes / shards)).expect("a file");
    }
    draft.add_manifest(&manifest.expect("a manifest")).expect("a file");
    draft.commit(&key).expect("the package is complete");
    let weights = files.iter().map(|file| folder.join("noise").join(file)).collect();
    Bench { store, name, trust, weights }
}

criterion_group!(benches, load);

fn main() {
    // Under `cargo test --benches` there is nothing to measure.
    if !std::env::args().any(|word| word == "--bench") {
        return;
    }
    benches();
    Criterion::default().configure_from_args().final_summary();
    large();
}
