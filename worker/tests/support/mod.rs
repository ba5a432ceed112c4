//! What the worker's tests share: packages as changeable bytes, a shell without a sandbox, one end of a link.
#![allow(dead_code, reason = "each test program uses its part")]

use ringfence_kernels::{Compute, Isa, OutOfMemory, Pool};
use ringfence_protocol::{
    Architecture, Data, Device, EmbedInput, FromWorker, INLINE_INPUT_BYTES_MAX, Item, Start, ToWorker,
    WorkerLink, WorkerSideLink, connected_pair,
};
use ringfence_sandbox::{Denial, EnterError, Sealed, SealedFile};
use ringfence_worker::memory::{Lease, Memory};
use ringfence_worker::models::{Batch, LoadedEmbedder, load};
use ringfence_worker::package::{FileBytes, Files};
use ringfence_worker::serve::{End, serve};
use ringfence_worker::shell::Shell;
use std::collections::{BTreeMap, HashMap};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

pub(crate) fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data").join(name)
}

/// The files of weights of [`Package::into_shards`].
pub(crate) const SHARDS: [&str; 2] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];

/// A package whose files can be changed.
#[derive(Clone)]
pub(crate) struct Package(pub(crate) BTreeMap<String, Vec<u8>>);

impl Package {
    pub(crate) fn tiny() -> Self {
        let names =
            ["config.json", "tokenizer.json", "modules.json", "1_Pooling/config.json", "model.safetensors"];
        let read = |name: &str| (name.to_owned(), std::fs::read(data("tiny-bert").join(name)).unwrap());
        Self(names.map(read).into())
    }

    pub(crate) fn files(&self) -> Files {
        self.0.iter().map(|(name, bytes)| (name.clone(), Arc::new(bytes.clone()) as FileBytes)).collect()
    }

    /// The same with weights in halves.
    pub(crate) fn into_halves(mut self) -> Self {
        let (cpu, mut halves) = (candle_core::Device::Cpu, HashMap::new());
        for (name, tensor) in
            candle_core::safetensors::load_buffer(&self.0["model.safetensors"], &cpu).unwrap()
        {
            halves.insert(name, tensor.to_dtype(candle_core::DType::F16).unwrap());
        }
        let bytes = safetensors::serialize(&halves, None).unwrap();
        self.0.insert("model.safetensors".to_owned(), bytes);
        self
    }

    /// Puts every other tensor into a second file of weights, and an index beside both.
    pub(crate) fn into_shards(mut self) -> Self {
        let weights = self.0.remove("model.safetensors").unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&weights).unwrap();
        let mut list = tensors.tensors();
        list.sort_by(|a, b| a.0.cmp(&b.0));
        let mut map = BTreeMap::new();
        for (half, name) in SHARDS.into_iter().enumerate() {
            let part: Vec<_> = list.iter().skip(half).step_by(2).cloned().collect();
            map.extend(part.iter().map(|(tensor, _)| (tensor.clone(), name)));
            self.0.insert(name.to_owned(), safetensors::serialize(part, None).unwrap());
        }
        let index = serde_json::json!({"metadata": {"total_size": weights.len()}, "weight_map": map});
        self.0.insert("model.safetensors.index.json".to_owned(), index.to_string().into_bytes());
        self
    }

    /// Replaces a text that occurs in a JSON file.
    pub(crate) fn replace(&mut self, file: &str, from: &str, to: &str) {
        let text = String::from_utf8(self.0[file].clone()).unwrap();
        assert!(text.contains(from), "{file} has no {from}");
        self.0.insert(file.to_owned(), text.replacen(from, to, 1).into());
    }

    pub(crate) fn load(&self) -> Result<LoadedEmbedder, ringfence_protocol::LoadError> {
        let loaded = load(&self.files(), Architecture::Bert, compute(), 512, &Lease)?;
        Ok(loaded.embedder().expect("BERT is one"))
    }
}

pub(crate) fn compute() -> Compute {
    Compute::new(Isa::detect(), Pool::new(2).unwrap())
}

/// The vectors of sequences, run as one batch.
pub(crate) fn embed(loaded: &mut LoadedEmbedder, sequences: &[Vec<u32>]) -> Vec<Vec<f32>> {
    let mut batch = Batch::default();
    sequences.iter().for_each(|ids| batch.push(ids));
    loaded.model.reserve(batch.tokens(), &Lease).unwrap();
    let dimensions = loaded.model.dimensions();
    loaded.model.embed(&batch).unwrap().chunks(dimensions).map(<[f32]>::to_vec).collect()
}

pub(crate) fn tokens(loaded: &LoadedEmbedder, text: &str) -> Vec<u32> {
    loaded.text.tokens(0, &Item::Text(text.to_owned()), true).unwrap().ids
}

pub(crate) fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

pub(crate) fn floats(value: &serde_json::Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
}

/// A lease that the test sets, where nothing else is counted.
pub(crate) struct FixedLease(pub(crate) Arc<AtomicU64>);

impl FixedLease {
    pub(crate) fn of(bytes: u64) -> Self {
        Self(Arc::new(AtomicU64::new(bytes)))
    }

    fn limit(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

impl Memory for FixedLease {
    fn check(&self, bytes: u64) -> Result<(), Denial> {
        let denial = Denial { wanted: bytes, used: 0, limit: self.limit() };
        if bytes <= self.limit() { Ok(()) } else { Err(denial) }
    }

    fn denied(&self, allocation: OutOfMemory) -> Denial {
        Denial { wanted: allocation.bytes as u64, used: 0, limit: self.limit() }
    }

    fn used(&self) -> u64 {
        0
    }

    fn peak(&self) -> u64 {
        0
    }

    fn restart_peak(&self) {}
}

struct NoSandbox;

impl Shell for NoSandbox {
    fn set_lease(&self, _: u64) {}

    fn entered_us(&self) -> u64 {
        0
    }

    fn seal(self) -> Result<Sealed, EnterError> {
        Ok(Sealed { layers: Vec::new(), landlock_abi: 0, missing: Vec::new() })
    }
}

/// A worker on a thread of the test, and the server's end of its link.
pub(crate) struct Worker {
    pub(crate) link: WorkerLink,
    pub(crate) lease: Arc<AtomicU64>,
    pub(crate) thread: JoinHandle<Result<(), End>>,
}

pub(crate) const START: Start = Start {
    architecture: Architecture::Bert,
    device: Device::Cpu,
    threads: 2,
    lease_bytes: u64::MAX,
    max_tokens: 512,
    step_tokens: 64,
    slots: 8,
    step_us: 60_000_000,
    calibrate: false,
};

impl Worker {
    /// Before its start.
    pub(crate) fn new() -> Self {
        let (ours, theirs) = connected_pair().unwrap();
        let memory = FixedLease::of(u64::MAX);
        let lease = Arc::clone(&memory.0);
        let thread = std::thread::spawn(move || serve(&WorkerSideLink::new(theirs), NoSandbox, &memory));
        Self { link: WorkerLink::new(ours), lease, thread }
    }

    /// With a package loaded.
    pub(crate) fn ready(package: &Package) -> Self {
        let worker = Self::new();
        assert!(matches!(worker.hear(), FromWorker::Hello { .. }));
        worker.say(ToWorker::Start(START));
        assert!(matches!(worker.hear(), FromWorker::Sealed { .. }));
        worker.load(package);
        let ready = worker.hear();
        assert!(matches!(ready, FromWorker::Ready { dimensions: 32, max_tokens: 64, .. }), "{ready:?}");
        worker
    }

    pub(crate) fn load(&self, package: &Package) {
        let files: Vec<String> = package.0.keys().cloned().collect();
        let sealed: Vec<SealedFile> =
            package.0.values().map(|bytes| SealedFile::from_bytes("test", bytes).unwrap()).collect();
        let descriptors: Vec<_> = sealed.iter().map(AsFd::as_fd).collect();
        self.link.send(&ToWorker::Load { files, blocks: Vec::new() }, &descriptors).unwrap();
    }

    pub(crate) fn say(&self, message: ToWorker) {
        self.link.send(&message, &[]).unwrap();
    }

    pub(crate) fn hear(&self) -> FromWorker {
        self.link.receive().unwrap().message
    }

    /// As the server does it: inside the message if it is small, else as a sealed file.
    pub(crate) fn run(&self, slot: u32, items: Vec<Item>, truncate: bool) {
        let input = EmbedInput { items, truncate };
        let bytes = input.encode();
        if bytes.len() <= INLINE_INPUT_BYTES_MAX {
            return self.say(ToWorker::Run { slot, domain: 1, weight: 1, input: Data::Inline(input) });
        }
        let file = SealedFile::from_bytes("input", &bytes).unwrap();
        let input = Data::Descriptor { bytes: bytes.len() as u64 };
        self.link.send(&ToWorker::Run { slot, domain: 1, weight: 1, input }, &[file.as_fd()]).unwrap();
    }

    pub(crate) fn run_inline(&self, slot: u32, items: Vec<Item>) {
        let input = Data::Inline(EmbedInput { items, truncate: false });
        self.say(ToWorker::Run { slot, domain: 1, weight: 1, input });
    }

    /// All messages until this many jobs have ended.
    pub(crate) fn until_ends(&self, ends: usize) -> Vec<FromWorker> {
        let mut heard = Vec::new();
        let is_end = |m: &FromWorker| matches!(m, FromWorker::Done { .. } | FromWorker::Failed { .. });
        while heard.iter().filter(|m| is_end(m)).count() < ends {
            heard.push(self.hear());
        }
        heard
    }

    /// Stops it and expects that it ends well.
    pub(crate) fn stop(self) {
        self.say(ToWorker::Stop);
        self.thread.join().unwrap().unwrap();
    }
}

pub(crate) fn text(text: &str) -> Item {
    Item::Text(text.to_owned())
}

/// The vectors in a slot's chunks, checked to be in order.
pub(crate) fn output(heard: &[FromWorker], of: u32) -> Vec<Vec<f32>> {
    let mut bytes = Vec::new();
    let mut next = 0;
    for message in heard {
        if let FromWorker::Chunk { slot, sequence, data } = message
            && *slot == of
        {
            assert_eq!(*sequence, next);
            assert!(!data.0.is_empty() && data.0.len() <= ringfence_protocol::CHUNK_BYTES_MAX);
            next += 1;
            bytes.extend_from_slice(&data.0);
        }
    }
    let floats: Vec<f32> = bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    floats.chunks(32).map(<[f32]>::to_vec).collect()
}
