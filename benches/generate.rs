//! Our text generation beside llama.cpp's on the same weights, two threads each, rounds alternated; what the server and the
//! sandbox cost against the same network in process; and how long a short prompt waits behind a long one.

#[path = "support/mod.rs"]
mod bench;
#[path = "../tests/support/mod.rs"]
mod support;

use bench::{Side, load, median, verdict};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use support::Home;

const ROUNDS: usize = 5;
/// Tokens of a prompt and of an answer where the server is measured.
const PROMPT: &str = "128";
const ANSWER: &str = "128";
/// Each part: what it is called, the line that asks for it, and how many times as fast as llama.cpp ours has to be.
const PARTS: [(&str, &str, Option<f64>); 3] = [
    ("prefill 512", "prefill 512", Some(0.5)),
    ("decode 1", "decode 1 128", Some(0.6)),
    ("decode 8 together", "decode 8 64", None),
];

/// Tokens a second.
fn rate(side: &mut Side, what: &str) -> f64 {
    let answer = side.ask(what);
    answer["tokens"].as_f64().expect("a number") / answer["seconds"].as_f64().expect("a number")
}

/// Words for what is slower than it has to be.
#[derive(Default)]
struct Missed(Vec<String>);

impl Missed {
    /// The verdict, kept where it is a bad one.
    fn judge(&mut self, what: &str, holds: bool) -> &'static str {
        if !holds {
            self.0.push(what.to_owned());
        }
        verdict(holds)
    }
}

fn main() {
    bench::run(Command::new(env!("CARGO")).args([
        "build",
        "--release",
        "--quiet",
        "--bins",
        "--example",
        "demo",
        "--example",
        "generate",
    ]));
    let cache = bench::root().join(".cache");
    if !cache.join("smollm2-135m/model.gguf").is_file() {
        bench::run(Command::new("make").arg(cache.join("sources/ready")));
    }
    let mut missed = Missed::default();
    let ours = support::programs().join("examples/generate");
    // `cargo bench --bench generate -- server` is the second part alone.
    if std::env::args().all(|word| word != "server") {
        beside_llama_cpp(&cache, &ours, &mut missed);
    }
    through_the_server(&cache, &ours, &mut missed);
    println!("load at the end {}", load());
    assert!(missed.0.is_empty(), "missed: {:?}", missed.0);
}

fn beside_llama_cpp(cache: &Path, ours: &Path, missed: &mut Missed) {
    let python = llama_cpp(cache);
    let files = weights(cache, &python);
    let script = bench::root().join("benches/peers/generate.py");
    let text = bench::root().join("worker/tests/data/perplexity.txt");
    println!("SmolLM2-135M, 2 threads, tokens/s, medians of {ROUNDS} alternated rounds, load {}", load());
    println!("{:<6} {:<18} {:>9} {:>9} {:>7}", "", "", "ours", "llama.cpp", "ratio");
    for (kind, file) in &files {
        let mut here = Side::start(Command::new(ours).arg(file).arg("2"));
        let mut there = Side::start(Command::new(&python).arg(&script).arg(file));
        let mut together = [0.0; PARTS.len()];
        for (at, (name, line, floor)) in PARTS.into_iter().enumerate() {
            let (mut mine, mut theirs) = (Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                mine.push(rate(&mut here, line));
                theirs.push(rate(&mut there, line));
            }
            let (mine, theirs) = (median(&mut mine), median(&mut theirs));
            together[at] = mine;
            let ratio = mine / theirs;
            let word = match floor {
                Some(floor) => {
                    format!("floor {floor}: {}", missed.judge(&format!("{kind} {name}"), ratio >= floor))
                }
                None => "goal 1.0".to_owned(),
            };
            println!("{kind:<6} {name:<18} {mine:>9.1} {theirs:>9.1} {ratio:>7.2} ({word})");
        }
        let times = together[2] / together[1];
        // A kind whose unpacking is most of the work gains less: there is no floor for it.
        let word = match *kind {
            "q4_1" => "no floor".to_owned(),
            _ => format!("floor 3: {}", missed.judge(&format!("{kind}: 8 sequences"), times >= 3.0)),
        };
        println!("{kind:<6} 8 sequences are {times:.2} times as fast as one ({word})");
        let ask = format!("perplexity {}", text.display());
        let [mine, theirs] =
            [&mut here, &mut there].map(|side| side.ask(&ask)["perplexity"].as_f64().expect("a number"));
        let off = (mine / theirs - 1.0).abs();
        let word = missed.judge(&format!("{kind} perplexity"), off < 0.01);
        println!("{kind:<6} perplexity {mine:.3} against {theirs:.3} (within 1 %: {word})");
    }
}

/// A Python that has llama.cpp, in an environment of its own: built for this processor, which takes minutes.
fn llama_cpp(cache: &Path) -> PathBuf {
    let environment = cache.join("llama-cpp");
    let python = environment.join("bin/python");
    let peers = bench::root().join("benches/peers");
    if !environment.join("ready").is_file() {
        eprintln!("building llama.cpp for this processor (some ten minutes on two cores)");
        bench::run(Command::new("python3").args(["-m", "venv"]).arg(&environment));
        let arguments = Command::new(&python).arg(peers.join("llama_cpp_arguments.py")).output();
        let arguments = String::from_utf8(arguments.expect("the script runs").stdout).expect("words");
        bench::run(
            Command::new(&python)
                .env("CMAKE_ARGS", arguments.trim())
                .args(["-m", "pip", "install", "--quiet", "--no-binary", "llama-cpp-python", "-r"])
                .arg(peers.join("generate-requirements.txt")),
        );
        std::fs::write(environment.join("ready"), "").expect("the folder is ours");
    }
    python
}

/// The same weights in each kind.
fn weights(cache: &Path, python: &Path) -> [(&'static str, PathBuf); 3] {
    let source = cache.join("smollm2-135m/model.gguf");
    let peers = bench::root().join("benches/peers");
    let floats = cache.join("llama-cpp/f32.gguf");
    let made = |kind: &str| {
        let file = cache.join(format!("llama-cpp/{kind}.gguf"));
        if !file.is_file() {
            if !floats.is_file() {
                bench::run(Command::new(python).arg(peers.join("gguf_to_f32.py")).arg(&source).arg(&floats));
            }
            bench::run(Command::new(python).arg(peers.join("quantise.py")).arg(&floats).arg(&file).arg(kind));
        }
        file
    };
    [("f16", made("f16")), ("q8_0", made("q8_0")), ("q4_1", source.clone())]
}

/// One client's stream against the same network in process, and a short prompt behind one of 4,000 tokens.
fn through_the_server(cache: &Path, ours: &Path, missed: &mut Missed) {
    let home = Home::new();
    let archives = cache.join("archives");
    let archives = archives.to_str().expect("a path of the repository is text");
    home.cli_ok(&["model", "add", "smollm2-135m", "--cache", archives]);
    let _server = home.start();
    let mut here = Side::start(Command::new(ours).arg(cache.join("smollm2-135m/model.gguf")).arg("2"));
    let (mut inside, mut through) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        inside.push(rate(&mut here, &format!("decode 1 {ANSWER} {PROMPT}")));
        let words = ["--prompt-tokens", PROMPT, "--max-tokens", ANSWER, "--requests", "2"];
        through.push(chat(&home, &words)["stream_tokens_per_s"]["p50"].as_f64().expect("a number"));
    }
    drop(here);
    let (inside, through) = (median(&mut inside), median(&mut through));
    let ratio = through / inside;
    let word = missed.judge("through the server", ratio >= 0.97);
    println!(
        "one stream: in process {inside:.1} tokens/s, through the server {through:.1}; ratio {ratio:.3} (floor 0.97: {word}), \
         load {}",
        load()
    );

    let short = ["--prompt-tokens", "16", "--max-tokens", "2", "--requests", "12"];
    let first = |report: &Value| report["first_token_ms"]["p50"].as_f64().expect("a number");
    let idle = first(&chat(&home, &short));
    let busy = std::thread::scope(|scope| {
        let home = &home;
        // Each differs from the others: nothing of them is known.
        let words = ["--prompt-tokens", "4000", "--max-tokens", "1", "--requests", "4", "--warm-up", "0"];
        let long = scope.spawn(move || chat(home, &words));
        // Until the long one is being read.
        std::thread::sleep(std::time::Duration::from_secs(2));
        let busy = first(&chat(home, &short));
        let is_over = long.is_finished();
        let long = long.join().expect("they are answered");
        println!(
            "meanwhile {} prompts of {} tokens in {:.1} s",
            long["answered"], long["prompt_tokens_per_request"], long["elapsed_s"]
        );
        assert!(!is_over, "the long prompts were read before the short ones");
        busy
    });
    let times = busy / idle;
    let word = missed.judge("a short prompt behind a long one", times <= 3.0);
    println!(
        "first token of a short prompt, p50: {idle:.0} ms alone, {busy:.0} ms while 4,000 tokens are read; {times:.2} times \
         (at most 3: {word}), load {}",
        load()
    );
}

fn chat(home: &Home, arguments: &[&str]) -> Value {
    let mut words = vec!["bench", "chat", "--json"];
    words.extend_from_slice(arguments);
    let report: Value = serde_json::from_str(&home.cli_ok(&words)).expect("the report is JSON");
    assert_eq!(report["errors"], serde_json::json!({}), "{report}");
    report
}
