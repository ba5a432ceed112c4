//! Our Whisper beside faster-whisper and whisper.cpp, on the same weights and the same eleven seconds of speech, with two
//! threads each; rounds alternated.

#[path = "support/mod.rs"]
mod bench;

use bench::{Side, load, median, verdict};
use std::path::{Path, PathBuf};
use std::process::Command;

const ROUNDS: usize = 7;
/// Our sources of the model, by the names that the converter wants.
const SOURCES: [(&str, &[(&str, &str)]); 3] = [
    ("tiny.en", &[("tiny.en.pt", "model.pt"), ("gpt2.tiktoken", "vocabulary.tiktoken")]),
    ("tiny", &[("tiny.ggml.bin", "model.bin")]),
    ("base", &[("base.ctranslate2.bin", "model.bin"), ("base.tokenizer.json", "tokenizer.json")]),
];
/// Another program's word for what it runs, and how many times as fast as it ours has to be; without a floor it is a goal.
const PEERS: [(&str, &str, Option<f64>); 4] = [
    ("base", "faster-whisper base float32", Some(1.0)),
    ("base", "faster-whisper base int8", None),
    ("tiny.en", "whisper.cpp tiny.en", Some(0.7)),
    ("tiny", "whisper.cpp tiny", Some(0.7)),
];

/// One round's seconds, and what was heard.
struct Round {
    seconds: f64,
    words: Vec<String>,
}

fn round(side: &mut Side, what: &str) -> Round {
    let answer = side.ask(what);
    let text = answer["text"].as_str().expect("a text").to_lowercase();
    let words = text.split_whitespace().map(|word| word.replace(|c: char| !c.is_alphanumeric(), ""));
    Round { seconds: answer["seconds"].as_f64().expect("a number"), words: words.collect() }
}

fn main() {
    let cache = bench::root().join(".cache");
    let speech = cache.join("speech");
    if !speech.join("tiny.en.ggml.bin").is_file() {
        bench::run(Command::new("make").arg(cache.join("sources/ready")));
    }
    let python = peers(&cache);
    bench::run(Command::new(env!("CARGO")).args([
        "build",
        "--release",
        "--quiet",
        "--example",
        "transcribe",
    ]));
    let profile = Path::new(env!("CARGO_BIN_EXE_ringfence-server")).parent().expect("a folder");
    let ours = profile.join("examples/transcribe");
    let mut theirs =
        Side::start(Command::new(python).arg(bench::root().join("benches/peers/speech.py")).arg(&speech));

    println!("Whisper on 11 s of speech, 2 threads, medians of {ROUNDS} alternated rounds, load {}", load());
    println!("{:<30} {:>9} {:>9} {:>7}", "on the same weights", "ours s", "theirs s", "ratio");
    let mut slower = Vec::new();
    for (size, peer, floor) in PEERS {
        let folder = tempfile::tempdir().expect("a folder");
        let mut here = Side::start(Command::new(&ours).args([
            &sources(&speech, size, folder.path()),
            &speech.join("jfk.wav"),
            Path::new("2"),
            Path::new("-"),
        ]));
        let (first, other) = (round(&mut here, "go"), round(&mut theirs, peer));
        assert_eq!(first.words, other.words, "{peer} hears something else");
        let (mut mine, mut others) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            mine.push(round(&mut here, "go").seconds);
            others.push(round(&mut theirs, peer).seconds);
        }
        let (mine, others) = (median(&mut mine), median(&mut others));
        let ratio = others / mine;
        let word = match floor {
            Some(floor) => format!("floor {floor}: {}", verdict(ratio >= floor)),
            None => "goal 1.0".to_owned(),
        };
        println!("{peer:<30} {mine:>9.3} {others:>9.3} {ratio:>7.2} ({word})");
        if floor.is_some_and(|floor| ratio < floor) {
            slower.push(peer);
        }
    }
    println!("load at the end {}", load());
    assert!(slower.is_empty(), "below the floor: {slower:?}");
}

/// A Python that has the others, in an environment of its own.
fn peers(cache: &Path) -> PathBuf {
    let environment = cache.join("peers");
    let python = environment.join("bin/python");
    let requirements = bench::root().join("benches/peers/requirements.txt");
    if !environment.join("ready").is_file() {
        bench::run(Command::new("python3").args(["-m", "venv"]).arg(&environment));
        bench::run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "-r"]).arg(&requirements));
        std::fs::write(environment.join("ready"), "").expect("the folder is ours");
    }
    python
}

/// A folder with a model's sources under the names by which the program knows their form.
fn sources(speech: &Path, size: &str, into: &Path) -> PathBuf {
    let (_, files) = SOURCES.iter().find(|(name, _)| *name == size).expect("it is in the table");
    for (source, name) in *files {
        std::os::unix::fs::symlink(speech.join(source), into.join(name)).expect("the folder is new");
    }
    into.to_owned()
}
