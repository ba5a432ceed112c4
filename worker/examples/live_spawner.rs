//! A stand-in for the server and for the program that captures: `live_spawner WORKER USER MODEL DETECTOR` drops root to USER
//! (`-` keeps the user), starts the worker in its sandbox, loads the packages in the two folders, and lets it hear a tone. It
//! panics, and so ends with a code, where something is not as it must be.
#![allow(clippy::unwrap_used, reason = "one half of a test: what is not as it must be ends it")]

#[path = "../tests/support/live.rs"]
mod live;
mod support;

use live::{Audio, plain, silence, tone};
use ringfence_protocol::{Architecture, Device, FromWorker, ToWorker};
use ringfence_sandbox::{SealedFile, drop_to_user, raise_nofile};
use rustix::fs::{Mode, OFlags, open};
use std::path::Path;
use support::Worker;

const LEASE_BYTES: u64 = 256 << 20;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, program, user, model, detector] = &arguments[..] else {
        panic!("live_spawner WORKER USER MODEL DETECTOR")
    };
    let program = open(program.as_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    let (model, detector) = (package(model.as_ref()), package(detector.as_ref()));
    if user != "-" {
        drop_to_user(user).unwrap();
    }
    raise_nofile().unwrap();
    let worker = Worker::starting(&program, Architecture::Whisper, Device::Cpu, LEASE_BYTES).sealed();
    worker.hand_over(&ToWorker::Load { files: model.0, blocks: vec![] }, &model.1);
    assert!(matches!(worker.hear(), FromWorker::Ready { .. }));
    worker.hand_over(&ToWorker::LoadDetector { files: detector.0 }, &detector.1);
    for slot in 0..2 {
        listens(&worker, slot);
    }
    worker.stop();
}

/// The names and the bytes of a folder's files.
fn package(folder: &Path) -> (Vec<String>, Vec<SealedFile>) {
    let file = |entry: std::io::Result<std::fs::DirEntry>| {
        let entry = entry.unwrap();
        let file = SealedFile::from_bytes("package", &std::fs::read(entry.path()).unwrap()).unwrap();
        (entry.file_name().into_string().unwrap(), file)
    };
    std::fs::read_dir(folder).unwrap().map(file).unzip()
}

/// A handshake, frames, a pause and another handshake, and the end.
fn listens(worker: &Worker, slot: u32) {
    let mut audio = Audio::listen(&worker.link, slot, 1, plain());
    let FromWorker::Listens { key, .. } = worker.hear() else { panic!("it does not listen") };
    for _ in 0..2 {
        audio.open(key);
        audio.push(&[silence(300), tone(1_200), silence(500)].concat());
        audio.pause();
    }
    audio.open(key);
    audio.end();
    let mut segments = 0;
    loop {
        match worker.hear() {
            FromWorker::Segment { .. } => segments += 1,
            FromWorker::Step { .. } | FromWorker::Partial { .. } | FromWorker::Listened { .. } => {}
            end => {
                println!("{segments} segments, {end:?}");
                assert!(matches!(end, FromWorker::Done { .. }));
                break;
            }
        }
    }
    assert_eq!(segments, 2);
}
