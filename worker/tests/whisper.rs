//! A tiny random Whisper on both devices: against plain loops in f64, against candle-transformers', and against itself in
//! other steps.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;
#[path = "support/whisper.rs"]
mod tiny;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::whisper::{Config, model};
use ringfence_gpu::{Adapters, Gpu};
use ringfence_kernels::{Compute, Isa, Pool};
use ringfence_protocol::{Architecture, LoadError};
use ringfence_sandbox::CountingAllocator;
use ringfence_worker::device::{Cpu, Wgpu};
use ringfence_worker::memory::{Lease, Memory, Refusal};
use ringfence_worker::models::whisper::Whisper;
use ringfence_worker::models::whisper::mel::Mel;
use ringfence_worker::models::whisper::transcription::{Options, Segment, StartError, Step, Transcription};
use ringfence_worker::models::whisper::vocabulary::Task;
use ringfence_worker::models::{LoadedTranscriber, PackageWeights, State, Transcriber, load_on, warm_up};
use ringfence_worker::package::whisper::WhisperConfig;
use ringfence_worker::package::{FileBytes, Files};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use support::{FixedLease, compute};
use tiny::{POSITIONS, Plain, VOCABULARY};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Tokens of a text, more than a tile's rows.
const IDS: [u32; 17] = [257, 258, 262, 5, 77, 140, 5, 5, 200, 31, 8, 9, 250, 2, 3, 266, 80];

fn weights() -> HashMap<String, Tensor> {
    let tensor = |(name, (shape, floats)): (String, (Vec<usize>, Vec<f32>))| {
        (name, Tensor::from_vec(floats, shape, &Device::Cpu).unwrap())
    };
    tiny::tensors().into_iter().map(tensor).collect()
}

fn package(multilingual: bool, half: bool) -> BTreeMap<String, Vec<u8>> {
    let mut weights = weights();
    if half {
        weights.values_mut().for_each(|tensor| *tensor = tensor.to_dtype(DType::F16).unwrap());
    }
    BTreeMap::from([
        ("config.json".to_owned(), tiny::config().to_string().into_bytes()),
        ("generation_config.json".to_owned(), tiny::generation(multilingual).to_string().into_bytes()),
        ("tokenizer.json".to_owned(), tiny::tokenizer().to_string().into_bytes()),
        ("model.safetensors".to_owned(), safetensors::serialize(&weights, None).unwrap()),
    ])
}

fn files(package: BTreeMap<String, Vec<u8>>) -> Files {
    package.into_iter().map(|(name, bytes)| (name, Arc::new(bytes) as FileBytes)).collect()
}

fn gpu() -> Wgpu {
    let gpu = Gpu::open(Adapters::list().unwrap().all().last().unwrap(), 64 << 20).unwrap();
    gpu.warm_up().unwrap();
    Wgpu::new(gpu)
}

fn on_cpu() -> LoadedTranscriber {
    let loaded = load_on(&files(package(true, false)), Architecture::Whisper, Cpu::new(compute()), 0, &Lease);
    loaded.unwrap().transcriber().unwrap()
}

fn close(found: &[f32], exact: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), exact.len(), "{what}");
    let off = |(a, b): (&f32, &f64)| (f64::from(*a) - b).abs();
    let worst = found.iter().zip(exact).map(off).fold(0.0, f64::max);
    assert!(worst <= tolerance, "{what}: off by {worst}");
}

fn encode(model: &mut dyn Transcriber, rows: usize) -> State {
    model.reserve(rows.max(IDS.len()), &Lease).unwrap();
    let mut state = model.open(&Lease).unwrap();
    model.hear(&mut state, &tiny::mel());
    while !model.encode(&mut state, rows).unwrap() {}
    state
}

/// Logits after the pieces of these lengths of [`IDS`].
fn decode(model: &mut dyn Transcriber, state: &mut State, pieces: &[usize]) -> Vec<Vec<f32>> {
    let mut at = 0;
    let mut all = Vec::new();
    for piece in pieces {
        let mut logits = Vec::new();
        model.decode(state, &IDS[at..at + piece], at, Some(&mut logits)).unwrap();
        all.push(logits);
        at += piece;
    }
    all
}

fn check(model: &mut dyn Transcriber, tolerance: f64, what: &str) {
    let plain = Plain(tiny::tensors());
    let heard = plain.encode(&tiny::mel());
    let exact = plain.decode(&heard, &IDS);
    for (rows, pieces) in [(100, &[17][..]), (7, &[1; 17]), (13, &[3, 1, 13])] {
        let mut state = encode(model, rows);
        let mut at = 0;
        for (piece, logits) in pieces.iter().zip(decode(model, &mut state, pieces)) {
            at += piece;
            close(&logits, &exact[at - 1], tolerance, &format!("{what}, {rows} rows, after {at} tokens"));
        }
        // A text may be taken back to any place.
        let mut logits = Vec::new();
        model.decode(&mut state, &IDS[5..7], 5, Some(&mut logits)).unwrap();
        close(&logits, &exact[6], tolerance, what);
    }
}

fn network<D: ringfence_worker::device::Device>(device: D) -> Whisper<D> {
    let files = files(package(true, false));
    let config = WhisperConfig::read(&files).unwrap();
    Whisper::new(device, &config, &PackageWeights::read(&files, &Lease).unwrap(), &Lease).unwrap()
}

#[test]
fn logits_are_those_of_plain_loops_at_every_level_of_instructions() {
    for isa in Isa::available() {
        let mut model = network(Cpu::new(Compute::new(isa, Pool::new(3).unwrap())));
        check(&mut model, 2e-4, &format!("{isa:?}"));
        let mut state = encode(&mut model, 100);
        let exact = Plain(tiny::tensors()).encode(&tiny::mel());
        close(&model.encoded(&mut state).unwrap(), &exact.concat(), 1e-4, "encoder");
    }
}

#[test]
fn logits_are_those_of_plain_loops_on_a_gpu() {
    check(&mut network(gpu()), 4e-4, "a GPU");
}

#[test]
fn halves_are_close_to_singles() {
    for on_gpu in [false, true] {
        let files = files(package(true, true));
        let loaded = if on_gpu {
            load_on(&files, Architecture::Whisper, gpu(), 0, &Lease)
        } else {
            load_on(&files, Architecture::Whisper, Cpu::new(compute()), 0, &Lease)
        };
        check(&mut *loaded.unwrap().transcriber().unwrap().model, 0.2, "halves");
    }
}

/// candle's activation is the approximation by tanh, so it is near, not equal.
#[test]
fn logits_are_near_those_of_candle_transformers() {
    let mut config = tiny::config();
    config["suppress_tokens"] = serde_json::json!([]);
    let config: Config = serde_json::from_value(config).unwrap();
    let builder = VarBuilder::from_tensors(weights(), DType::F32, &Device::Cpu);
    let mut oracle = model::Whisper::load(&builder, config).unwrap();
    let mel = Tensor::from_vec(tiny::mel(), (2 * POSITIONS, tiny::MELS), &Device::Cpu).unwrap();
    let heard = oracle.encoder.forward(&mel.t().unwrap().contiguous().unwrap().unsqueeze(0).unwrap(), true);
    let ids = Tensor::new(&IDS[..], &Device::Cpu).unwrap().unsqueeze(0).unwrap();
    let hidden = oracle.decoder.forward(&ids, &heard.unwrap(), true).unwrap();
    let expected =
        oracle.decoder.final_linear(&hidden).unwrap().squeeze(0).unwrap().to_vec2::<f32>().unwrap();
    let mut model = network(Cpu::new(compute()));
    let mut state = encode(&mut model, 100);
    for (logits, expected) in decode(&mut model, &mut state, &[1; 17]).iter().zip(&expected) {
        let expected: Vec<f64> = expected.iter().map(|x| f64::from(*x)).collect();
        close(logits, &expected, 0.03, "candle");
    }
}

/// Noise that the same numbers make.
fn sound(seconds: f64) -> Mel {
    let mut state = 7u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    let samples: Vec<f32> = (0..(seconds * 16_000.0) as usize).map(|_| next()).collect();
    let mut mel = Mel::new(tiny::MELS);
    mel.push(&samples, &Lease).unwrap();
    mel.finish(&Lease).unwrap();
    mel
}

fn start(loaded: &LoadedTranscriber, options: Options, seconds: f64) -> Transcription {
    Transcription::new(loaded, options, sound(seconds), &Lease).unwrap()
}

/// The segments of several jobs that take turns.
fn transcribe(
    loaded: &mut LoadedTranscriber,
    mut jobs: Vec<Transcription>,
    rows: usize,
) -> Vec<Vec<Segment>> {
    let mut segments = vec![Vec::new(); jobs.len()];
    let mut running: Vec<usize> = (0..jobs.len()).collect();
    while !running.is_empty() {
        running.retain(|job| match jobs[*job].step(loaded, rows).unwrap() {
            Step::More => true,
            Step::Segment(segment) => {
                segments[*job].push(segment);
                true
            }
            Step::Done => false,
        });
    }
    segments
}

#[test]
fn jobs_that_take_turns_say_what_they_say_alone() {
    let mut loaded = on_cpu();
    loaded.model.reserve(64, &Lease).unwrap();
    let german = || Options { language: Some("de".to_owned()), seed: 3, ..Options::default() };
    let alone: Vec<Vec<Segment>> = [(Options::default(), 1.0), (german(), 0.7)]
        .into_iter()
        .flat_map(|(options, seconds)| {
            let job = start(&loaded, options, seconds);
            transcribe(&mut loaded, vec![job], 64)
        })
        .collect();
    let jobs = vec![start(&loaded, Options::default(), 1.0), start(&loaded, german(), 0.7)];
    assert_eq!(transcribe(&mut loaded, jobs, 9), alone);
    let segments = alone.concat();
    assert!(!segments.is_empty());
    for segment in &segments {
        assert!(segment.start <= segment.end && segment.end <= 1.4, "{segment:?}");
        assert!(segment.avg_logprob < 0.0 && (0.0..=1.0).contains(&segment.no_speech_prob), "{segment:?}");
    }
}

#[test]
fn a_sound_without_a_frame_has_no_text() {
    let mut loaded = on_cpu();
    loaded.model.reserve(64, &Lease).unwrap();
    let job = start(&loaded, Options::default(), 0.009);
    assert_eq!(job.progress(), (0, 0));
    assert_eq!(transcribe(&mut loaded, vec![job], 64), [vec![]]);
}

#[test]
fn what_a_model_cannot_do_is_refused() {
    let multilingual = on_cpu();
    let english =
        load_on(&files(package(false, false)), Architecture::Whisper, Cpu::new(compute()), 0, &Lease);
    let english = english.unwrap().transcriber().unwrap();
    let refused = |loaded: &LoadedTranscriber, options: Options| {
        Transcription::new(loaded, options, sound(0.1), &Lease).map(|_| ()).unwrap_err()
    };
    let language = |code: &str| Options { language: Some(code.to_owned()), ..Options::default() };
    let unknown = |code: &str| StartError::LanguageUnknown { language: code.to_owned() };
    assert_eq!(refused(&multilingual, language("xx")), unknown("xx"));
    assert_eq!(refused(&english, language("de")), unknown("de"));
    let translate = Options { task: Task::Translate, ..Options::default() };
    assert_eq!(refused(&english, translate), StartError::EnglishOnly);
    for temperatures in [vec![], vec![f32::NAN], vec![-0.1]] {
        let options = Options { temperatures, ..Options::default() };
        assert_eq!(refused(&multilingual, options), StartError::Temperature);
    }
    let job = Transcription::new(&english, language("en"), sound(0.1), &Lease);
    assert!(job.is_ok());
}

#[test]
fn a_job_takes_no_more_than_it_says_and_is_refused_where_there_is_less() {
    let mut loaded = on_cpu();
    let before = Lease.used();
    loaded.model.reserve(50, &Lease).unwrap();
    let taken = Lease.used() - before;
    let bound = loaded.model.bytes_per_row() * 50 + 4 * (VOCABULARY as u64 + 32);
    assert!(taken <= bound, "{taken} bytes, the bound is {bound}");
    let mel = sound(1.0);
    let before = Lease.used();
    let mut job = Transcription::new(&loaded, Options::default(), mel, &Lease).unwrap();
    while job.step(&mut loaded, 50).unwrap() != Step::Done {}
    let taken = Lease.used().saturating_sub(before);
    // Besides, what it has said.
    let bound = loaded.model.bytes_per_job() + loaded.model.host_bytes_per_job() + 8192;
    assert!(taken <= bound, "{taken} bytes, the bound is {bound}");
    let small = FixedLease::of(10_000);
    assert!(matches!(loaded.model.open(&small), Err(Refusal::Denied(_))));
    loaded.model.release();
    assert!(matches!(loaded.model.reserve(50, &small), Err(Refusal::Denied(_))));
    let loaded = load_on(&files(package(true, false)), Architecture::Whisper, Cpu::new(compute()), 0, &small);
    assert!(matches!(loaded.err(), Some(LoadError::OutOfMemory { limit: 10_000, .. })));
}

#[test]
fn the_warm_up_runs_every_operation() {
    warm_up(Architecture::Whisper, Cpu::new(compute()), &Lease).unwrap();
    warm_up(Architecture::Whisper, gpu(), &Lease).unwrap();
}

#[test]
fn packages_that_are_no_whisper_are_refused() {
    let refused = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut config = tiny::config();
        change(&mut config);
        let mut package = package(true, false);
        package.insert("config.json".to_owned(), config.to_string().into_bytes());
        let loaded = load_on(&files(package), Architecture::Whisper, Cpu::new(compute()), 0, &Lease);
        loaded.map(|_| ()).unwrap_err()
    };
    for (key, value) in [
        ("model_type", "bert".into()),
        ("activation_function", "relu".into()),
        ("d_model", 0.into()),
        ("encoder_attention_heads", 3.into()),
        ("decoder_attention_heads", 0.into()),
        ("encoder_ffn_dim", 32.into()),
        ("max_source_positions", 1501.into()),
        ("tie_word_embeddings", false.into()),
        ("scale_embedding", true.into()),
        ("suppress_tokens", serde_json::json!([VOCABULARY])),
    ] {
        let error = refused(&|config| config[key] = value.clone());
        assert!(
            matches!(&error, LoadError::Malformed { file, .. } if file == "config.json"),
            "{key}: {error}"
        );
    }
    let error = refused(&|config| config["num_mel_bins"] = 9.into());
    assert!(matches!(error, LoadError::Tensor { .. }), "{error}");
    let error = refused(&|config| config["vocab_size"] = 265.into());
    assert!(matches!(&error, LoadError::Malformed { file, .. } if file == "tokenizer.json"), "{error}");
}
