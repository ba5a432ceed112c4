//! BERT on a GPU (in software, where there is no other) against candle-transformers' and against the CPU's.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use candle_core::{DType, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::bert;
use ringfence_gpu::{Adapter, Adapters, Gpu, Products, Shaders};
use ringfence_protocol::{
    Architecture, Data, EmbedInput, FromWorker, Item, LinkError, LoadError, ToWorker, WorkerLink,
    WorkerSideLink, connected_pair,
};
use ringfence_worker::device::{DeviceFailure, Usage, Wgpu};
use ringfence_worker::memory::{Lease, Memory, Refusal};
use ringfence_worker::models::bert::Bert;
use ringfence_worker::models::{Batch, Embedder, LoadedEmbedder, RandomWeights, load_on};
use ringfence_worker::package::config::BertConfig;
use ringfence_worker::package::modules::{Head, Pooling};
use ringfence_worker::serve::{End, serve_jobs};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use support::{Package, START, cosine, embed};

const LEASE: u64 = 64 << 20;

/// A model that gives its device up before a step, and counts.
struct Watched {
    model: Bert<Wgpu>,
    steps: u32,
    /// The step before which the device is given up.
    lost_at: u32,
    forgotten: Arc<AtomicU32>,
}

impl Embedder for Watched {
    fn dimensions(&self) -> usize {
        self.model.dimensions()
    }

    fn bytes_per_token(&self) -> u64 {
        self.model.bytes_per_token()
    }

    fn reserve(&mut self, tokens: usize, memory: &dyn Memory) -> Result<(), Refusal> {
        self.model.reserve(tokens, memory)
    }

    fn release(&mut self) {
        self.model.release();
    }

    fn usage(&self, memory: &dyn Memory) -> Usage {
        self.model.usage(memory)
    }

    fn restart_peak(&self, memory: &dyn Memory) {
        self.model.restart_peak(memory);
    }

    fn forget(&mut self) {
        self.forgotten.fetch_add(1, Ordering::SeqCst);
        self.model.forget();
    }

    fn embed_while(
        &mut self,
        batch: &Batch,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Option<&[f32]>, DeviceFailure> {
        self.steps += 1;
        if self.steps == self.lost_at {
            self.model.device().gpu().destroy();
        }
        self.model.embed_while(batch, go_on)
    }
}

fn adapter() -> Adapter {
    let adapters =
        Adapters::list().unwrap_or_else(|error| panic!("{error}; `scripts/system-packages` installs one"));
    adapters.all().last().expect("never empty").clone()
}

fn gpu(lease: u64) -> Gpu {
    let gpu = Gpu::open(&adapter(), lease).unwrap();
    gpu.warm_up().unwrap();
    gpu
}

fn load(package: &Package, gpu: Gpu) -> Result<LoadedEmbedder, LoadError> {
    let loaded = load_on(&package.files(), Architecture::Bert, Wgpu::new(gpu), 512, &Lease)?;
    Ok(loaded.embedder().unwrap())
}

fn small() -> BertConfig {
    BertConfig {
        hidden: 32,
        intermediate: 64,
        layers: 2,
        heads: 4,
        positions: 64,
        types: 2,
        vocabulary: 99,
        epsilon: 1e-12,
    }
}

/// Sequences of these lengths.
fn sequences(lengths: &[u32]) -> Vec<Vec<u32>> {
    lengths.iter().map(|length| (0..*length).map(|i| (i * 7 + length) % 240).collect()).collect()
}

fn oracle(package: &Package) -> impl Fn(&[u32]) -> Vec<f32> {
    let cpu = candle_core::Device::Cpu;
    let config: bert::Config = serde_json::from_slice(&package.0["config.json"]).unwrap();
    let weights = package.0["model.safetensors"].clone();
    let weights = VarBuilder::from_buffered_safetensors(weights, DType::F32, &cpu).unwrap();
    let model = bert::BertModel::load(weights, &config).unwrap();
    move |ids| {
        let input = Tensor::new(ids, &cpu).unwrap().unsqueeze(0).unwrap();
        let states = model.forward(&input, &input.zeros_like().unwrap(), None).unwrap();
        states.mean(1).unwrap().to_vec2::<f32>().unwrap().remove(0)
    }
}

#[test]
fn ragged_batches_give_the_vectors_of_candle_transformers() {
    let ways = [
        (Package::tiny(), Products::Singles, 0.999_999),
        // Weights in halves are multiplied in each way that the adapter has.
        (Package::tiny().into_halves(), Products::Singles, 0.999_999),
        (Package::tiny().into_halves(), Products::Halves, 0.999),
        (Package::tiny().into_halves(), Products::Cooperative, 0.999),
    ];
    for (package, products, least) in ways {
        let gpu = Gpu::open_with(&adapter(), LEASE, Shaders { subgroups: true, products }).unwrap();
        gpu.warm_up().unwrap();
        let oracle = oracle(&package);
        let mut loaded = load(&package, gpu).unwrap();
        // Long after short, so that buffers grow; then short again, so that they hold what a longer batch left.
        for lengths in [&[1][..], &[2, 5], &[31, 1, 64, 33, 12], &[3, 3], &[1]] {
            let batch = sequences(lengths);
            for (ids, found) in batch.iter().zip(embed(&mut loaded, &batch)) {
                let cosine = cosine(&found, &oracle(ids));
                assert!(cosine >= least, "{cosine} for {} tokens, {products:?}", ids.len());
            }
        }
    }
}

#[test]
fn pooling_and_length_are_the_cpus() {
    let mut package = Package::tiny();
    let cls = r#"{"word_embedding_dimension": 32, "pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}"#;
    let modules = r#"[{"path": "", "type": "sentence_transformers.models.Transformer"},
                      {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]"#;
    package.0.insert("1_Pooling/config.json".to_owned(), cls.into());
    package.0.insert("modules.json".to_owned(), modules.into());
    let batch = sequences(&[4, 19, 1]);
    let found = embed(&mut load(&package, gpu(LEASE)).unwrap(), &batch);
    let expected = embed(&mut package.load().unwrap(), &batch);
    for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
        assert!((found - expected).abs() < 1e-5, "{found} instead of {expected}");
    }
}

#[test]
fn a_model_that_does_not_fit_on_the_device_is_refused_with_the_devices_numbers() {
    let headroom = gpu(LEASE).numbers().headroom;
    let error = load(&Package::tiny(), gpu(headroom + 50_000)).err();
    let Some(LoadError::OutOfMemory { wanted, limit, .. }) = error else { panic!("{error:?}") };
    assert!(limit == headroom + 50_000 && wanted > 10_000, "{error:?}");
}

#[test]
fn halves_stay_halves_on_the_device() {
    let used = |package: Package| {
        let loaded = load(&package, gpu(LEASE)).unwrap();
        loaded.model.usage(&Lease).used
    };
    let (singles, halves) = (used(Package::tiny()), used(Package::tiny().into_halves()));
    let small = small();
    let saved = (2 * 2 * small.hidden * (4 * small.hidden + 2 * small.intermediate)) as u64;
    // Less what is rounded up for each buffer.
    assert!(singles - halves >= saved * 9 / 10, "{singles} {halves}, {saved} bytes could be saved");
}

#[test]
fn a_batch_that_does_not_fit_is_refused_and_a_smaller_one_runs() {
    let headroom = gpu(LEASE).numbers().headroom;
    let mut loaded = load(&Package::tiny(), gpu(headroom + (1 << 20))).unwrap();
    let refusal = loaded.model.reserve(100_000, &Lease).unwrap_err();
    assert!(matches!(refusal, Refusal::Denied(denial) if denial.limit == headroom + (1 << 20)), "{refusal}");
    assert_eq!(embed(&mut loaded, &sequences(&[3])).len(), 1);
}

#[test]
fn a_step_takes_no_more_than_bytes_per_token_says() {
    let mut device = Wgpu::new(gpu(LEASE));
    for tokens in [1usize, 3, 64, 640] {
        let mut batch = Batch::default();
        (0..tokens.div_ceil(64)).for_each(|i| batch.push(&vec![7; (tokens - i * 64).min(64)]));
        let head = Head { pooling: Pooling::Mean, normalize: true, max_tokens: None };
        let mut model = Bert::new(device, &small(), head, 64, &RandomWeights, &Lease).unwrap();
        let before = model.device().gpu().numbers().used;
        model.reserve(tokens, &Lease).unwrap();
        model.embed(&batch).unwrap();
        let taken = model.device().gpu().numbers().used - before;
        let bound = model.bytes_per_token() * tokens as u64;
        assert!(taken > 0 && taken <= bound, "{tokens} tokens took {taken} bytes, the bound is {bound}");
        device = model.into_device();
    }
    assert_eq!(device.gpu().numbers().used, device.gpu().numbers().headroom, "all is given back");
}

/// A worker with such a model, from `Ready` on.
struct Serving {
    link: WorkerLink,
    thread: JoinHandle<Result<(), End>>,
    forgotten: Arc<AtomicU32>,
}

impl Serving {
    fn start(lost_at: u32) -> Self {
        let (ours, theirs) = connected_pair().unwrap();
        let forgotten = Arc::<AtomicU32>::default();
        let counter = Arc::clone(&forgotten);
        let thread = std::thread::spawn(move || {
            let text = Package::tiny().load().unwrap().text;
            let head = Head { pooling: Pooling::Mean, normalize: true, max_tokens: None };
            let config = BertConfig { vocabulary: 246, ..small() };
            let device = Wgpu::new(gpu(LEASE));
            let model = Bert::new(device, &config, head, 64, &RandomWeights, &Lease).unwrap();
            let model = Watched { model, steps: 0, lost_at, forgotten: counter };
            let mut loaded = LoadedEmbedder { model: Box::new(model), text };
            serve_jobs(&WorkerSideLink::new(theirs), &mut loaded, &START, &Lease)
        });
        let serving = Self { link: WorkerLink::new(ours), thread, forgotten };
        assert!(matches!(serving.hear(), FromWorker::Ready { .. }));
        serving
    }

    fn hear(&self) -> FromWorker {
        self.link.receive().unwrap().message
    }

    fn run(&self, domain: u64) {
        let input = EmbedInput { items: vec![Item::Tokens(vec![1, 2, 3])], truncate: false };
        let message = ToWorker::Run { slot: 0, domain, weight: 1, input: Data::Inline(input) };
        self.link.send(&message, &[]).unwrap();
    }

    /// Runs a job to its end, and says how much of the lease is in use then, and was at most.
    fn runs(&self, domain: u64) -> (u64, u64) {
        self.run(domain);
        assert!(matches!(self.hear(), FromWorker::Step { .. }));
        assert!(matches!(self.hear(), FromWorker::Chunk { .. }));
        let FromWorker::Done { used_bytes, peak_bytes, .. } = self.hear() else { panic!("a job's end") };
        (used_bytes, peak_bytes)
    }
}

#[test]
fn a_worker_whose_device_is_lost_says_so_and_ends() {
    let serving = Serving::start(2);
    let (used, peak) = serving.runs(1);
    // The ring of uploads alone takes more than that.
    assert!((4 << 20..=LEASE).contains(&used) && (used..=LEASE).contains(&peak));
    serving.run(1);
    let FromWorker::DeviceFailed { reason } = serving.hear() else { panic!("what is lost is lost") };
    assert!(reason.contains("given up"), "{reason}");
    assert!(matches!(serving.thread.join().unwrap(), Err(End::Device(_))));
    assert!(matches!(serving.link.receive().unwrap_err(), LinkError::Closed));
}

#[test]
fn memory_of_the_device_is_overwritten_when_the_next_step_is_another_domains() {
    let serving = Serving::start(u32::MAX);
    let forgotten = |domain| {
        serving.runs(domain);
        serving.forgotten.load(Ordering::SeqCst)
    };
    let first = forgotten(1);
    let after = [1, 1, 2, 2, 1].map(|domain| forgotten(domain) - first);
    assert_eq!(after, [0, 0, 1, 1, 2]);
}

#[test]
fn a_device_that_is_lost_under_a_job_is_an_error() {
    let head = Head { pooling: Pooling::Mean, normalize: true, max_tokens: None };
    let device = Wgpu::new(gpu(LEASE));
    let mut model = Bert::new(device, &small(), head, 64, &RandomWeights, &Lease).unwrap();
    let mut batch = Batch::default();
    batch.push(&[1, 2, 3]);
    model.reserve(3, &Lease).unwrap();
    model.embed(&batch).unwrap();
    model.device().gpu().destroy();
    let failure = model.embed(&batch).unwrap_err();
    assert!(failure.to_string().contains("lost"), "{failure}");
    assert!(matches!(model.reserve(9, &Lease).unwrap_err(), Refusal::Failed(_)));
    let again = Bert::new(model.into_device(), &small(), head, 64, &RandomWeights, &Lease).err();
    assert!(matches!(again, Some(LoadError::Device { .. })), "{again:?}");
}
