//! A server that says what it likes to a worker with a model: the worker ends typed or serves on, and what it says is
//! legal by what it was told.

use crate::support;
use ringfence_kernels::{Compute, Isa, Pool};
use ringfence_protocol::{
    Architecture, Data, Device, FromWorker, ITEMS_MAX, Start, ToWorker, WorkerLink, WorkerSideLink,
    connected_pair,
};
use ringfence_sandbox::SealedFile;
use ringfence_worker::models::{LoadedEmbedder, load};
use ringfence_worker::serve::serve_jobs;
use rustix::net::{Shutdown, shutdown};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;

/// Messages of a run: more than a worker has slots.
const MESSAGES_MAX: usize = 300;
/// Small, so that jobs take several steps.
const START: Start = Start {
    architecture: Architecture::Bert,
    device: Device::Cpu,
    threads: 1,
    lease_bytes: 1 << 30,
    max_tokens: 64,
    step_tokens: 32,
    slots: 8,
    step_us: 60_000_000,
    calibrate: false,
};

fn tiny() -> LoadedEmbedder {
    let files = support::files(&[
        ("config.json", include_bytes!("../../../tests/data/tiny-bert/config.json")),
        ("tokenizer.json", include_bytes!("../../../tests/data/tiny-bert/tokenizer.json")),
        ("modules.json", include_bytes!("../../../tests/data/tiny-bert/modules.json")),
        ("1_Pooling/config.json", include_bytes!("../../../tests/data/tiny-bert/1_Pooling/config.json")),
        ("model.safetensors", include_bytes!("../../../tests/data/tiny-bert/model.safetensors")),
    ]);
    let compute = Compute::new(Isa::detect(), Pool::new(1).expect("a thread"));
    let loaded =
        load(&files, Architecture::Bert, compute, 64, &support::Lease).expect("it is a good package");
    loaded.embedder().expect("BERT is one")
}

thread_local! {
    static TINY: RefCell<LoadedEmbedder> = RefCell::new(tiny());
}

/// Sends whatever the bytes decode to, one message after another, then closes the link's one direction.
fn say(link: &WorkerLink, mut bytes: &[u8]) {
    for _ in 0..MESSAGES_MAX {
        let Ok((message, rest)) = postcard::take_from_bytes::<ToWorker>(bytes) else { break };
        bytes = rest;
        let file = match &message {
            // It takes memory, which is all that it is for.
            ToWorker::Drill { .. } => continue,
            ToWorker::Run {
                input: Data::Descriptor { bytes: count } | Data::Text { bytes: count, .. },
                ..
            } => {
                let count = usize::try_from(*count).unwrap_or(usize::MAX).min(bytes.len());
                let (input, rest) = bytes.split_at(count);
                bytes = rest;
                Some(SealedFile::from_bytes("input", input).expect("memory"))
            }
            _ => None,
        };
        let descriptors: Vec<_> = file.iter().map(AsFd::as_fd).collect();
        // A worker that has ended hears nothing.
        if link.send(&message, &descriptors).is_err() {
            break;
        }
    }
    let _ = shutdown(link, Shutdown::Write);
}

/// Hears the worker out.
fn hear(link: &WorkerLink) {
    let ready = link.receive().expect("it says that it is ready");
    assert!(matches!(ready.message, FromWorker::Ready { .. }));
    let mut chunks: BTreeMap<u32, u32> = BTreeMap::new();
    // Slots of texts without passages, which end without output.
    let mut empty = BTreeSet::new();
    while let Ok(received) = link.receive() {
        match received.message {
            FromWorker::Chunk { slot, sequence, data } => {
                let next = chunks.entry(slot).or_default();
                assert!(sequence == *next && !data.0.is_empty());
                *next += 1;
            }
            FromWorker::Passages { slot, passages } => {
                assert!(
                    passages.len() <= ITEMS_MAX && passages.iter().all(|passage| passage.start < passage.end)
                );
                assert!(passages.windows(2).all(|pair| pair[0].end <= pair[1].start));
                if passages.is_empty() {
                    empty.insert(slot);
                }
            }
            FromWorker::Done { slot, .. } => {
                assert!(chunks.remove(&slot).is_some_and(|chunks| chunks > 0) || empty.remove(&slot));
            }
            FromWorker::Failed { slot, .. } => drop(chunks.remove(&slot)),
            FromWorker::Step { tokens, .. } => {
                assert!(!tokens.is_empty() && tokens.iter().all(|(_, tokens)| *tokens > 0));
            }
            other => panic!("{other:?}"),
        }
    }
}

/// One run.
pub(crate) fn run(bytes: &[u8]) {
    let (ours, theirs) = connected_pair().expect("descriptors are free");
    let link = WorkerLink::new(ours);
    TINY.with_borrow_mut(|loaded| {
        std::thread::scope(|scope| {
            scope.spawn(|| say(&link, bytes));
            scope.spawn(|| hear(&link));
            let worker = WorkerSideLink::new(theirs);
            let _ = serve_jobs(&worker, loaded, &START, &support::Lease);
            drop(worker);
        });
    });
}
