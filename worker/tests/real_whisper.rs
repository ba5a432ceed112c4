//! Published speech models through the importers: what comes out transcribes, by our own network as openai/whisper does, and
//! forms of the same weights agree.
//! `RINGFENCE_SPEECH` names the folder with the sources; `make test` fills it.
//!
//! ```text
//! tiny.en.pt, gpt2.tiktoken, multilingual.tiktoken     OpenAI's checkpoint and vocabularies
//! tiny.en.ggml.bin                                     ggml's form of that checkpoint, by scripts/pt-to-ggml.py
//! tiny.ggml.bin                                        ggml, multilingual
//! base.ctranslate2.bin, base.tokenizer.json, base.config.json      CTranslate2
//! silero.onnx, jfk.wav                                 Silero; eleven seconds of speech at 16 kHz
//! librivox/                                            five clips, and what is said in them
//! ```
//! `tests/data/whisper.expected.json` is what PyPI's openai-whisper 20250625 on torch (f32, temperatures from 0) says of the
//! same clips by the same weights of tiny.en, once; and of all of them one after another, with a second of silence behind
//! each.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;
#[path = "support/words.rs"]
mod words;

use candle_core::{DType, Device, Tensor};
use ringfence_protocol::{Architecture, Facts, ModelArchitecture, SourceForm};
use ringfence_worker::convert::output::InMemory;
use ringfence_worker::convert::{Work, convert};
use ringfence_worker::memory::Lease;
use ringfence_worker::models::silero::{Silero, SileroState};
use ringfence_worker::models::whisper::mel::Mel;
use ringfence_worker::models::whisper::transcription::{Options, Segment, Step, Transcription, Window};
use ringfence_worker::models::whisper::vocabulary::Task;
use ringfence_worker::models::{LoadedTranscriber, load};
use ringfence_worker::package::silero::CHUNK;
use ringfence_worker::package::tokenizer::parse_bpe;
use ringfence_worker::package::{FileBytes, Files};
use ringfence_worker::sound::Sound;
use serde_json::Value;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use tokenizers::Tokenizer;
use words::{distance, words};

fn folder() -> PathBuf {
    PathBuf::from(
        std::env::var_os("RINGFENCE_SPEECH").expect("RINGFENCE_SPEECH must be set; `make test` does"),
    )
}

fn imported(form: SourceForm, sources: &[(&str, &str)]) -> InMemory {
    let folder = folder();
    let read = |(name, file): &(&str, &str)| {
        let bytes = std::fs::read(folder.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        ((*name).to_owned(), Arc::new(bytes) as FileBytes)
    };
    let files: Files = sources.iter().map(read).collect();
    let mut output = InMemory::new(&files);
    let facts = convert(form, &mut Work { files: &files, output: &mut output, memory: &Lease }).unwrap();
    match facts {
        Facts { architecture: ModelArchitecture::Whisper, max_tokens, licence: None } => {
            assert_eq!(max_tokens, 448)
        }
        other => assert_eq!((other.architecture, other.max_tokens), (ModelArchitecture::SileroVad, 1)),
    }
    output
}

fn english_pt() -> InMemory {
    let sources = [("model.pt", "tiny.en.pt"), ("vocabulary.tiktoken", "gpt2.tiktoken")];
    imported(SourceForm::WhisperPt, &sources)
}

fn multilingual_ggml() -> InMemory {
    imported(SourceForm::WhisperGgml, &[("model.bin", "tiny.ggml.bin")])
}

fn base_ctranslate2() -> InMemory {
    let sources = [("model.bin", "base.ctranslate2.bin"), ("tokenizer.json", "base.tokenizer.json")];
    imported(SourceForm::WhisperCtranslate2, &sources)
}

fn json(output: &InMemory, name: &str) -> Value {
    serde_json::from_slice(&output.files[name]).unwrap()
}

fn tensors(output: &InMemory) -> HashMap<String, Tensor> {
    candle_core::safetensors::load_buffer(&output.files["model.safetensors"], &Device::Cpu).unwrap()
}

const SPOKEN: &str = "And so my fellow Americans ask not what your country can do for you ask what you can do for your country";

#[test]
fn packages_are_folders_that_are_taken_unchanged() {
    for package in [english_pt(), multilingual_ggml()] {
        let shared =
            |(name, bytes): (&String, &Vec<u8>)| (name.clone(), Arc::new(bytes.clone()) as FileBytes);
        let files: Files = package.files.iter().map(shared).collect();
        let mut output = InMemory::new(&files);
        let mut work = Work { files: &files, output: &mut output, memory: &Lease };
        let facts = convert(SourceForm::HuggingFace, &mut work).unwrap();
        assert_eq!((facts.architecture, facts.max_tokens), (ModelArchitecture::Whisper, 448));
        assert!(output.files == package.files);
    }
}

/// The one that Hugging Face published, not one of ours.
#[test]
fn the_strict_parser_takes_the_published_tokenizer() {
    let folder = folder();
    parse_bpe(&std::fs::read(folder.join("base.tokenizer.json")).unwrap(), 51_865).unwrap();
}

#[test]
fn tiny_en_from_pt_equals_the_ggml_form_of_the_same_weights() {
    let pt = english_pt();
    let ggml = imported(SourceForm::WhisperGgml, &[("model.bin", "tiny.en.ggml.bin")]);
    for name in ["config.json", "generation_config.json", "tokenizer.json"] {
        assert_eq!(pt.files[name], ggml.files[name], "{name}");
    }
    let (pt, ggml) = (tensors(&pt), tensors(&ggml));
    assert_eq!((pt.len(), ggml.len()), (167, 167));
    for (name, tensor) in pt {
        let half = |tensor: &Tensor| -> Vec<f32> {
            let rounded = tensor.to_dtype(DType::F16).unwrap().to_dtype(DType::F32).unwrap();
            rounded.flatten_all().unwrap().to_vec1().unwrap()
        };
        let other = &ggml[&name];
        assert_eq!(tensor.dims(), other.dims(), "{name}");
        assert!(half(&tensor) == half(other), "{name}");
    }
}

#[test]
fn tokens_are_those_of_openai() {
    let english = english_pt();
    let expected: Value =
        serde_json::from_slice(&std::fs::read(support::data("whisper.tokens.json")).unwrap()).unwrap();
    check_tokens(&english, &expected["english"]);
    check_tokens(&multilingual_ggml(), &expected["multilingual"]);
    check_tokens(&base_ctranslate2(), &expected["multilingual"]);
    let of_ranks = [("model.bin", "tiny.ggml.bin"), ("vocabulary.tiktoken", "multilingual.tiktoken")];
    let of_ranks = imported(SourceForm::WhisperGgml, &of_ranks);
    assert_eq!(of_ranks.files["tokenizer.json"], multilingual_ggml().files["tokenizer.json"]);
}

fn check_tokens(output: &InMemory, expected: &Value) {
    let tokenizer = Tokenizer::from_bytes(&output.files["tokenizer.json"]).unwrap();
    for case in expected["cases"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let ids = tokenizer.encode_fast(text, false).unwrap().get_ids().to_vec();
        assert_eq!(Value::from(ids.clone()), case["ids"], "{text}");
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    }
    for (name, id) in expected["specials"].as_object().unwrap() {
        assert_eq!(tokenizer.token_to_id(name).map(Value::from).as_ref(), Some(id), "{name}");
    }
    assert_eq!(Value::from(tokenizer.get_vocab_size(true)), expected["vocabulary"]);
    let suppressed = json(output, "config.json")["suppress_tokens"].clone();
    for id in expected["non_speech"].as_array().unwrap() {
        assert!(suppressed.as_array().unwrap().contains(id), "{id}");
    }
    assert_eq!(suppressed.as_array().unwrap().len(), expected["non_speech"].as_array().unwrap().len() + 6);
}

fn files(package: &InMemory) -> Files {
    let shared = |(name, bytes): (&String, &Vec<u8>)| (name.clone(), Arc::new(bytes.clone()) as FileBytes);
    package.files.iter().map(shared).collect()
}

fn transcriber(package: &InMemory) -> LoadedTranscriber {
    let loaded = load(&files(package), Architecture::Whisper, support::compute(), 448, &Lease);
    let mut loaded = loaded.unwrap().transcriber().unwrap();
    loaded.model.reserve(ROWS, &Lease).unwrap();
    loaded
}

/// Rows of a step: some stages take several, of different sizes.
const ROWS: usize = 400;

/// All of a clip's samples.
fn clip(name: &str) -> Vec<f32> {
    let bytes = std::fs::read(folder().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    let mut sound = Sound::open(Arc::new(bytes) as FileBytes).unwrap();
    let mut samples = Vec::new();
    while sound.read(&mut samples).unwrap() {}
    samples
}

struct Heard {
    segments: Vec<Segment>,
    language: Option<String>,
}

impl Heard {
    fn text(&self) -> String {
        self.segments.iter().map(|segment| segment.text.as_str()).collect()
    }
}

fn hear(loaded: &mut LoadedTranscriber, samples: &[f32], options: Options) -> Heard {
    let mut sound = Mel::new(loaded.model.config().mels);
    sound.push(samples, &Lease).unwrap();
    sound.finish(&Lease).unwrap();
    let mut job = Transcription::new(loaded, options, sound, &Lease).unwrap();
    let mut segments = Vec::new();
    loop {
        match job.step(loaded, ROWS).unwrap() {
            Step::More => {}
            Step::Segment(segment) => segments.push(segment),
            Step::Done => break,
        }
    }
    Heard { segments, language: job.language().map(str::to_owned) }
}

fn expected() -> Value {
    serde_json::from_slice(&std::fs::read(support::data("whisper.expected.json")).unwrap()).unwrap()
}

/// Everything that is told of a segment is what openai/whisper tells.
#[track_caller]
fn equals_openai(heard: &Heard, expected: &Value) {
    let expected = expected["segments"].as_array().unwrap();
    assert_eq!(heard.segments.len(), expected.len(), "{:?}", heard.segments);
    for (segment, expected) in heard.segments.iter().zip(expected) {
        assert_eq!(Value::from(segment.text.clone()), expected["text"]);
        assert_eq!(Value::from(segment.tokens.clone()), expected["tokens"], "{}", segment.text);
        assert_eq!(Value::from(segment.seek), expected["seek"], "{}", segment.text);
        for (key, found, tolerance) in [
            ("start", segment.start, 1e-6),
            ("end", segment.end, 1e-6),
            ("temperature", f64::from(segment.temperature), 1e-6),
            ("avg_logprob", segment.avg_logprob, 2e-3),
            // Compressors differ in their effort.
            ("compression_ratio", segment.compression_ratio, 0.05),
            ("no_speech_prob", segment.no_speech_prob, 2e-3),
        ] {
            let off = (found - expected[key].as_f64().unwrap()).abs();
            assert!(off <= tolerance, "{key} is {found}: {expected}");
        }
    }
}

#[test]
fn what_kennedy_said_is_heard_without_an_error() {
    let heard = hear(&mut transcriber(&english_pt()), &clip("jfk.wav"), Options::default());
    assert_eq!(distance(&words(SPOKEN), &words(&heard.text())), 0, "{}", heard.text());
    equals_openai(&heard, &expected()["jfk"]);
}

/// What live sound is heard by: a word of one clip is misheard more often, as whole windows mishear it in another.
#[test]
fn fitted_windows_are_heard_nearly_as_well() {
    let mut loaded = transcriber(&english_pt());
    let mut errors = |window| -> usize {
        let options = Options { window, timestamps: false, ..Options::default() };
        let of_clip = |(name, said): (String, Vec<String>)| {
            let heard = hear(&mut loaded, &clip(&name), options.clone()).text();
            println!("{window:?} {name}:{heard}");
            distance(&said, &words(&heard))
        };
        clips().into_iter().map(of_clip).sum()
    };
    let (whole, fitted) = (errors(Window::Whole), errors(Window::Fitted));
    println!(
        "{whole} and {fitted} errors in {} words",
        clips().iter().map(|(_, said)| said.len()).sum::<usize>()
    );
    assert!(fitted <= whole + 2, "{fitted} errors instead of {whole}");
}

/// The files and what is said in them.
fn clips() -> Vec<(String, Vec<String>)> {
    let transcription = std::fs::read_to_string(folder().join("librivox/transcription")).unwrap();
    let of_line = |line: &str| {
        let (said, name) = line.rsplit_once(" (").unwrap();
        let said = words(said.trim_start_matches("<s>").trim_end_matches("</s>"));
        (format!("librivox/{}.wav", name.trim_end_matches(')')), said)
    };
    let kennedy = ("jfk.wav".to_owned(), words(SPOKEN));
    std::iter::once(kennedy).chain(transcription.lines().map(of_line)).collect()
}

#[test]
fn clips_are_heard_as_well_as_by_openai() {
    let transcription = std::fs::read_to_string(folder().join("librivox/transcription")).unwrap();
    let (mut loaded, expected) = (transcriber(&english_pt()), expected());
    let (mut all, mut ours, mut theirs) = (0, 0, 0);
    for line in transcription.lines() {
        let (said, name) = line.rsplit_once(" (").unwrap();
        let name = name.trim_end_matches(')');
        let said = words(said.trim_start_matches("<s>").trim_end_matches("</s>"));
        let heard = hear(&mut loaded, &clip(&format!("librivox/{name}.wav")), Options::default()).text();
        all += said.len();
        ours += distance(&said, &words(&heard));
        theirs += distance(&said, &words(expected[name]["text"].as_str().unwrap()));
        println!("{name}:{heard}");
    }
    let rate = |errors: usize| errors as f64 / all as f64 * 100.0;
    println!("word error rate {:.2}, openai/whisper's {:.2}", rate(ours), rate(theirs));
    assert!(all > 60 && rate(ours) <= rate(theirs) + 2.0, "{ours} and {theirs} of {all}");
}

/// Two windows, the second from where the first one's last pair of times is, with what was said before.
#[test]
fn a_sound_longer_than_a_window_is_heard_as_by_openai() {
    let names = ["0870", "0880", "0890", "0920", "0930"]
        .map(|number| format!("librivox/sense_and_sensibility_01_austen_64kb-{number}.wav"));
    let mut samples = Vec::new();
    for name in std::iter::once("jfk.wav").chain(names.iter().map(String::as_str)) {
        samples.extend(clip(name));
        samples.extend([0.0; 16_000]);
    }
    let heard = hear(&mut transcriber(&english_pt()), &samples, Options::default());
    equals_openai(&heard, &expected()["long"]);
}

#[test]
fn the_language_is_found_and_times_can_be_left_out() {
    let mut loaded = transcriber(&multilingual_ggml());
    let options = Options { timestamps: false, task: Task::Translate, ..Options::default() };
    let heard = hear(&mut loaded, &clip("jfk.wav"), options);
    assert_eq!(heard.language.as_deref(), Some("en"));
    assert!(distance(&words(SPOKEN), &words(&heard.text())) <= 1, "{}", heard.text());
    let heard = hear(&mut loaded, &clip("jfk.wav"), Options::default());
    assert_eq!(distance(&words(SPOKEN), &words(&heard.text())), 0, "{}", heard.text());
}

#[test]
fn base_of_ctranslate2_hears_what_kennedy_said() {
    let output = base_ctranslate2();
    let heard = hear(&mut transcriber(&output), &clip("jfk.wav"), Options::default());
    assert!(distance(&words(SPOKEN), &words(&heard.text())) <= 1, "{}", heard.text());
    // What its own configuration suppresses is what the vocabulary alone gives.
    let bytes = std::fs::read(folder().join("base.config.json")).unwrap();
    let theirs: Value = serde_json::from_slice(&bytes).unwrap();
    let (config, generation) = (json(&output, "config.json"), json(&output, "generation_config.json"));
    assert_eq!(config["suppress_tokens"], theirs["suppress_ids"]);
    assert_eq!(config["begin_suppress_tokens"], theirs["suppress_ids_begin"]);
    let mut languages: Vec<_> =
        generation["lang_to_id"].as_object().unwrap().values().map(|id| id.as_u64().unwrap()).collect();
    languages.sort_unstable();
    assert_eq!(Value::from(languages), theirs["lang_ids"]);
}

/// `tests/data/silero.expected.json` has what onnxruntime 1.32 says of `silero.onnx`, for each 512 samples from the first
/// on, with the 64 before them: `p, state = s.run(None, {'input': concatenate([context, chunk])[None], 'state': state, 'sr':
/// array(16000)})`.
#[test]
fn silero_says_what_onnxruntime_says() {
    let output = imported(SourceForm::SileroOnnx, &[("model.onnx", "silero.onnx")]);
    let expected: Value =
        serde_json::from_slice(&std::fs::read(support::data("silero.expected.json")).unwrap()).unwrap();
    let mut silero = Silero::read(&files(&output), &Lease).unwrap();
    let clips =
        [("jfk", "jfk.wav"), ("austen-0870", "librivox/sense_and_sensibility_01_austen_64kb-0870.wav")];
    for (name, file) in clips {
        let expected = support::floats(&expected[name]);
        let mut state = SileroState::default();
        let found: Vec<f32> =
            clip(file).chunks_exact(CHUNK).map(|samples| silero.look(&mut state, samples)).collect();
        assert_eq!(found.len(), expected.len());
        let worst = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        println!("{name}: worst difference {worst:e}");
        assert!(worst < 1e-5, "{worst}");
        assert!(
            expected.iter().any(|p| *p > 0.95) && expected.iter().any(|p| *p < 0.1),
            "both kinds are there"
        );
    }
}
