//! Transcribes a sound with a real model and times it: `transcribe FOLDER SOUND [THREADS [ROUNDS]]` prints the text and the
//! median of the seconds, and how they were spent; with `-` for the rounds each line of input is one, answered by a line of
//! JSON. The folder is a package, or the sources of one: `model.pt` with
//! `vocabulary.tiktoken`, or `model.bin` of CTranslate2 with `tokenizer.json`, or of ggml.
#![expect(clippy::disallowed_methods, reason = "it measures time")]

use ringfence_kernels::{Compute, Isa, Pool};
use ringfence_protocol::{Architecture, SourceForm};
use ringfence_sandbox::{CountingAllocator, keep_freed_memory};
use ringfence_worker::convert::output::InMemory;
use ringfence_worker::convert::{Work, convert};
use ringfence_worker::memory::Lease;
use ringfence_worker::models::whisper::mel::Mel;
use ringfence_worker::models::whisper::transcription::{Options, Segment, Step, Transcription};
use ringfence_worker::models::{LoadedTranscriber, load};
use ringfence_worker::package::{FileBytes, Files};
use ringfence_worker::sound::Sound;
use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Rows of a step.
const ROWS: usize = 512;

fn main() -> Result<(), Box<dyn Error>> {
    keep_freed_memory();
    let mut words = std::env::args().skip(1);
    let usage = "usage: transcribe FOLDER SOUND [THREADS [ROUNDS]]";
    let (folder, sound) = words.next().zip(words.next()).ok_or(usage)?;
    let threads = words.next().map_or(Ok(2), |word| word.parse())?;
    let rounds = words.next().unwrap_or_else(|| "5".to_owned());
    let files = package(folder.as_ref())?;
    let compute = Compute::new(Isa::detect(), Pool::new(threads)?);
    let start = Instant::now();
    let loaded = load(&files, Architecture::Whisper, compute, usize::MAX, &Lease)?;
    let mut loaded = loaded.transcriber().ok_or("it is no speech model")?;
    eprintln!("loaded in {:.1} ms, {} bytes", start.elapsed().as_secs_f64() * 1e3, CountingAllocator::used());
    loaded.model.reserve(ROWS, &Lease)?;
    let mut samples = Vec::new();
    let mut sound = Sound::open(Arc::new(std::fs::read(sound)?))?;
    while sound.read(&mut samples)? {}
    if rounds == "-" {
        for _ in std::io::stdin().lines() {
            let Round { segments, seconds, .. } = round(&mut loaded, &samples)?;
            let text: String = segments.iter().map(|segment| segment.text.as_str()).collect();
            println!("{}", serde_json::json!({ "seconds": seconds, "text": text }));
        }
        return Ok(());
    }
    let rounds: usize = rounds.parse()?;
    let mut rounds: Vec<Round> =
        (0..rounds).map(|_| round(&mut loaded, &samples)).collect::<Result<_, _>>()?;
    for segment in &rounds[0].segments {
        println!("[{:.2} -> {:.2}]{}", segment.start, segment.end, segment.text);
    }
    rounds.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
    let Round { seconds, mel, steps, longest, .. } = rounds[rounds.len() / 2];
    println!(
        r#"{{"sound_s":{:.2},"median_s":{seconds:.4},"mel_s":{mel:.4},"steps":{steps},"longest_step_ms":{:.2}}}"#,
        samples.len() as f64 / 16_000.0,
        longest * 1e3
    );
    Ok(())
}

struct Round {
    segments: Vec<Segment>,
    seconds: f64,
    mel: f64,
    steps: usize,
    longest: f64,
}

fn round(loaded: &mut LoadedTranscriber, samples: &[f32]) -> Result<Round, Box<dyn Error>> {
    let start = Instant::now();
    let mut sound = Mel::new(loaded.model.config().mels);
    sound.push(samples, &Lease)?;
    sound.finish(&Lease)?;
    let mel = start.elapsed().as_secs_f64();
    let mut transcription = Transcription::new(loaded, Options::default(), sound, &Lease)?;
    let (mut segments, mut steps, mut longest) = (Vec::new(), 0, 0.0f64);
    loop {
        let step = Instant::now();
        match transcription.step(loaded, ROWS)? {
            Step::More => {}
            Step::Segment(segment) => segments.push(segment),
            Step::Done => break,
        }
        longest = longest.max(step.elapsed().as_secs_f64());
        steps += 1;
    }
    Ok(Round { segments, seconds: start.elapsed().as_secs_f64(), mel, steps, longest })
}

/// The folder's files, converted where they are no package yet.
fn package(folder: &Path) -> Result<Files, Box<dyn Error>> {
    let (form, names) = if folder.join("model.pt").is_file() {
        (SourceForm::WhisperPt, &["model.pt", "vocabulary.tiktoken"][..])
    } else if !folder.join("model.bin").is_file() {
        return Ok(Files::from_folder(folder)?);
    } else if folder.join("tokenizer.json").is_file() {
        (SourceForm::WhisperCtranslate2, &["model.bin", "tokenizer.json"][..])
    } else {
        (SourceForm::WhisperGgml, &["model.bin"][..])
    };
    let read = |name: &&str| -> std::io::Result<_> {
        Ok(((*name).to_owned(), shared(std::fs::read(folder.join(name))?)))
    };
    let files: Files = names.iter().map(read).collect::<std::io::Result<_>>()?;
    let mut output = InMemory::new(&files);
    convert(form, &mut Work { files: &files, output: &mut output, memory: &Lease })?;
    Ok(output.files.into_iter().map(|(name, bytes)| (name, shared(bytes))).collect())
}

fn shared(bytes: Vec<u8>) -> FileBytes {
    Arc::new(bytes)
}
