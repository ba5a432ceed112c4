//! A stand-in for the server: `spawner WORKER USER DEVICE FOLDER TEXT..` drops root to USER (`-` keeps the user), starts
//! the worker in its sandbox on the device `cpu` or `vulkan-software`, loads the package in FOLDER and embeds the texts, first under a lease that is too small. It
//! panics, and so ends with a code, where something is not as it must be.
#![allow(clippy::unwrap_used, reason = "one half of a test: what is not as it must be ends it")]
#![expect(clippy::disallowed_methods, reason = "it measures the start")]

mod support;

use ringfence_protocol::{
    Architecture, Data, Device, EmbedInput, FromWorker, Item, JobError, LoadError, ToWorker,
};
use ringfence_sandbox::{Exit, SealedFile, drop_to_user, raise_nofile};
use rustix::fs::{Mode, OFlags, open};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Instant;
use support::Worker;

/// Of a worker on a GPU, for what is not on it.
const HOST_LEASE_BYTES: u64 = 256 << 20;

const FILES: [&str; 5] =
    ["config.json", "tokenizer.json", "modules.json", "1_Pooling/config.json", "model.safetensors"];

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, program, user, device, folder, texts @ ..] = &arguments[..] else {
        panic!("spawner WORKER USER DEVICE FOLDER TEXT..")
    };
    let on_gpu = device == "vulkan-software";
    let program = open(program.as_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    let files = FILES.map(|name| {
        let bytes = std::fs::read(Path::new(folder).join(name)).unwrap();
        SealedFile::from_bytes(name, &bytes).unwrap()
    });
    if user != "-" {
        drop_to_user(user).unwrap();
    }
    raise_nofile().unwrap();
    let weights = files[4].len();
    if on_gpu {
        refuses_to_start_on_gpu(&program);
        refuses_to_load_on_gpu(&program, &files);
    } else {
        refuses_to_load(&program, &files);
        fails_one_job(&program, &files);
    }
    embeds(&program, on_gpu, &files, weights, texts);
}

fn start(program: &OwnedFd, lease_bytes: u64) -> Worker {
    start_on(program, Device::Cpu, lease_bytes)
}

fn start_on(program: &OwnedFd, device: Device, lease_bytes: u64) -> Worker {
    starting_on(program, device, lease_bytes).sealed()
}

fn starting_on(program: &OwnedFd, device: Device, lease_bytes: u64) -> Worker {
    Worker::starting(program, Architecture::Bert, device, lease_bytes)
}

impl Worker {
    fn load(&self, files: &[SealedFile]) -> FromWorker {
        self.hand_over(&ToWorker::Load { files: FILES.map(str::to_owned).into(), blocks: vec![] }, files);
        self.hear()
    }

    /// The bytes of a job's chunks, and its end.
    fn run(&self, items: Vec<Item>) -> (usize, FromWorker) {
        let input = EmbedInput { items, truncate: true }.encode();
        let file = SealedFile::from_bytes("input", &input).unwrap();
        let data = Data::Descriptor { bytes: input.len() as u64 };
        self.link
            .send(&ToWorker::Run { slot: 0, domain: 1, weight: 1, input: data }, &[file.as_fd()])
            .unwrap();
        let mut bytes = 0;
        loop {
            match self.hear() {
                FromWorker::Chunk { data, .. } => bytes += data.0.len(),
                FromWorker::Step { .. } => {}
                end => return (bytes, end),
            }
        }
    }
}

fn refuses_to_load(program: &OwnedFd, files: &[SealedFile]) {
    let worker = start(program, 1024 * 1024);
    match worker.load(files) {
        FromWorker::LoadFailed { error: LoadError::OutOfMemory { .. } } => {}
        // A tiny package fits.
        FromWorker::Ready { .. } => return worker.stop(),
        other => panic!("{other:?}"),
    }
    assert_eq!(worker.child.wait().unwrap(), Exit::Code(1));
}

/// One of the leases does not hold what opening the device takes.
fn refuses_to_start_on_gpu(program: &OwnedFd) {
    for (device_bytes, host_bytes) in [(64 << 20, 4 << 20), (1 << 20, HOST_LEASE_BYTES)] {
        let worker = starting_on(program, Device::Wgpu { lease_bytes: device_bytes }, host_bytes);
        let heard = worker.hear();
        let FromWorker::LoadFailed { error: LoadError::OutOfMemory { limit, .. } } = heard else {
            panic!("{heard:?}")
        };
        assert_eq!(limit, device_bytes.min(host_bytes));
        assert_eq!(worker.child.wait().unwrap(), Exit::Code(1));
    }
}

/// Device memory that holds the warm-up and not the package. A tiny package fits.
fn refuses_to_load_on_gpu(program: &OwnedFd, files: &[SealedFile]) {
    let worker = start_on(program, Device::Wgpu { lease_bytes: 24 << 20 }, HOST_LEASE_BYTES);
    match worker.load(files) {
        FromWorker::LoadFailed { error: LoadError::OutOfMemory { limit, .. } } => assert_eq!(limit, 24 << 20),
        FromWorker::Ready { .. } => return worker.stop(),
        other => panic!("{other:?}"),
    }
    assert_eq!(worker.child.wait().unwrap(), Exit::Code(1));
}

/// A lease that holds the package, but not one sequence of the model's length with it.
fn fails_one_job(program: &OwnedFd, files: &[SealedFile]) {
    let probe = start(program, u64::MAX / 2);
    let FromWorker::Ready { bytes_per_token, used_bytes, max_tokens, .. } = probe.load(files) else {
        panic!()
    };
    probe.stop();
    let full = bytes_per_token * u64::from(max_tokens);
    let room = 24 * 1024 * 1024;
    if full < 512 * 1024 {
        return; // Too small to tell from the rest.
    }
    let worker = start(program, used_bytes + room);
    assert!(matches!(worker.load(files), FromWorker::Ready { .. }));
    let words = |n: usize| Item::Text("word ".repeat(n));
    let (_, end) = worker.run(vec![words(300); 8]);
    println!("eight long items under a lease with {room} bytes of room: {end:?}");
    let hog = Item::Tokens(vec![1000; 4_000_000]);
    match worker.run(vec![hog]) {
        (0, FromWorker::Failed { error: JobError::OutOfMemory { .. }, .. }) => {}
        other => panic!("{other:?}"),
    }
    assert!(matches!(worker.run(vec![words(3)]).1, FromWorker::Done { .. }));
    worker.stop();
}

fn embeds(program: &OwnedFd, on_gpu: bool, files: &[SealedFile], weights: u64, texts: &[String]) {
    let clock = Instant::now();
    let lease_bytes = weights * 5 / 4 + 256 * 1024 * 1024;
    let worker = if on_gpu {
        start_on(program, Device::Wgpu { lease_bytes }, HOST_LEASE_BYTES)
    } else {
        start(program, lease_bytes)
    };
    let sealed = clock.elapsed();
    let FromWorker::Ready { dimensions, .. } = worker.load(files) else { panic!("not ready") };
    println!("sealed after {sealed:.1?}, ready after {:.1?}", clock.elapsed());
    let items: Vec<Item> = texts.iter().cloned().map(Item::Text).collect();
    for _ in 0..3 {
        let clock = Instant::now();
        let (bytes, end) = worker.run(items.clone());
        println!("{:.1?}: {end:?}", clock.elapsed());
        assert_eq!(bytes, items.len() * dimensions as usize * 4);
        assert!(matches!(end, FromWorker::Done { .. }));
    }
    worker.stop();
}
