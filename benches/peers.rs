//! Our MiniLM beside stock candle's, each in a process of its own with its own lockfile, rounds alternated.

#[path = "support/mod.rs"]
mod bench;

use bench::{load, median, verdict};
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// Tokens of a text, texts in a batch, and forward passes in a round.
const SHAPES: [(usize, usize, usize); 6] =
    [(16, 1, 41), (64, 1, 21), (256, 1, 9), (64, 8, 9), (64, 32, 5), (256, 32, 1)];
const ROUNDS: usize = 5;

/// A process that answers `run TOKENS BATCH PASSES` with the median time of a pass.
struct Side {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Side {
    fn start(program: &Path, folder: &Path) -> Self {
        let mut child = Command::new(program)
            .arg(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        let input = child.stdin.take().expect("piped");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        Self { child, input, output }
    }

    fn run(&mut self, (tokens, batch, passes): (usize, usize, usize)) -> f64 {
        writeln!(self.input, "run {tokens} {batch} {passes}").expect("the process reads");
        let mut line = String::new();
        self.output.read_line(&mut line).expect("the process answers");
        let answer: Value = serde_json::from_str(&line).expect("the answer is JSON");
        answer["median_ms"].as_f64().expect("a number")
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn main() {
    let folder = bench::minilm();
    let build = |arguments: &[&str], folder: &Path| {
        let status =
            Command::new(env!("CARGO")).args(arguments).current_dir(folder).status().expect("cargo runs");
        assert!(status.success(), "cargo {arguments:?} in {}", folder.display());
    };
    let peer = bench::root().join("benches/peers/candle");
    build(&["build", "--release", "--quiet", "--example", "forward"], bench::root());
    build(&["build", "--release", "--quiet", "--locked", "--target-dir", "target"], &peer);
    let profile = Path::new(env!("CARGO_BIN_EXE_ringfence-server")).parent().expect("a folder");
    let mut ours = Side::start(&profile.join("examples/forward"), &folder);
    let mut stock = Side::start(&peer.join("target/release/peer-candle"), &folder);

    println!("MiniLM forward pass, medians of {ROUNDS} alternated rounds, load {}", load());
    println!("{:>10} {:>12} {:>12} {:>8}", "shape", "ours ms", "candle ms", "ratio");
    let mut slower = Vec::new();
    for shape in SHAPES {
        let (mut here, mut there) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            here.push(ours.run(shape));
            there.push(stock.run(shape));
        }
        let (here, there) = (median(&mut here), median(&mut there));
        let floor = if shape.0 == 64 && shape.1 == 8 { 1.5 } else { 1.0 };
        let name = format!("{}x{}", shape.0, shape.1);
        println!(
            "{name:>10} {here:>12.2} {there:>12.2} {:>8.2} (floor {floor}: {})",
            there / here,
            verdict(there / here >= floor)
        );
        if there / here < floor {
            slower.push(name);
        }
    }
    println!("load at the end {}", load());
    assert!(slower.is_empty(), "below the floor: {slower:?}");
}
