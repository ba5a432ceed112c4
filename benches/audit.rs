//! What the audit log costs: latency and throughput of jobs with the log on the disk, with it in memory (a tmpfs, where an
//! fdatasync costs nothing), and, where `RINGFENCE_AUDIT_BASELINE` names the folder of programs from before there was a log,
//! without one; in alternated rounds, beside what one fdatasync takes on that disk.
#![expect(clippy::disallowed_methods, reason = "it measures time")]

#[path = "support/mod.rs"]
mod bench;
#[path = "../tests/support/mod.rs"]
mod support;

use bench::{load, median};
use serde_json::Value;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;
use support::{Home, programs};

const ROUNDS: usize = 5;
const SYNCS: usize = 200;
/// Jobs far shorter than an fdatasync, and longer ones.
const MODELS: [&str; 2] = ["tiny-bert", "minilm"];
const BASELINE: &str = "RINGFENCE_AUDIT_BASELINE";
/// Of an entry and its record.
const ENTRY_BYTES: usize = 400;

/// Where the log is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Log {
    None,
    Disk,
    Memory,
}

impl Log {
    fn name(self) -> &'static str {
        match self {
            Self::None => "no log",
            Self::Disk => "log on the disk",
            Self::Memory => "log in memory",
        }
    }
}

/// Of each place of the log: p50 with one connection, and jobs a second with 16.
struct Measured {
    log: Log,
    p50_ms: Vec<f64>,
    per_s: Vec<f64>,
}

fn main() {
    bench::build_programs();
    let mut home = Home::with_tiny();
    let archives = archives();
    if let Some(archives) = &archives {
        home.cli_ok(&["model", "add", MODELS[1], "--cache", archives.to_str().expect("a path in UTF-8")]);
    }
    println!("load at the start: {}", load());
    println!("one fdatasync after {ENTRY_BYTES} bytes, in the home: p50 {:.3} ms", fdatasync(&home.path()));
    for model in MODELS {
        if model == MODELS[1] && archives.is_none() {
            println!("{model}: left out, as its archive is not in .cache; make test fetches it");
            continue;
        }
        compare(&mut home, model);
    }
    println!("load at the end: {}", load());
}

/// Where `make test` and `make bench` have put what the second model is made of.
fn archives() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/archives");
    folder.is_dir().then_some(folder)
}

fn compare(home: &mut Home, model: &str) {
    let baseline = std::env::var_os(BASELINE).map(PathBuf::from);
    let logs = [baseline.is_some().then_some(Log::None), Some(Log::Memory), Some(Log::Disk)];
    let empty = |log| Measured { log, p50_ms: Vec::new(), per_s: Vec::new() };
    let mut all: Vec<Measured> = logs.into_iter().flatten().map(empty).collect();
    for _ in 0..ROUNDS {
        for measured in &mut all {
            home.use_programs(match (measured.log, &baseline) {
                (Log::None, Some(baseline)) => baseline.clone(),
                (Log::None | Log::Disk | Log::Memory, _) => programs(),
            });
            let memory = (measured.log == Log::Memory).then(|| Memory::mount(home));
            if memory.as_ref().is_some_and(Option::is_none) {
                continue;
            }
            round(home, model, measured);
        }
    }
    let mut first = None;
    for Measured { log, p50_ms, per_s } in &mut all {
        if p50_ms.is_empty() {
            println!("{model}, {}: left out, as a tmpfs is mounted by root only", log.name());
            continue;
        }
        let (p50, per_s) = (median(p50_ms), median(per_s));
        let (p50_first, per_s_first) = *first.get_or_insert((p50, per_s));
        println!(
            "{model}, {}: 1 connection p50 {p50:.3} ms ({:+.3}), 16 connections {per_s:.1} jobs/s ({:.3} of the first)",
            log.name(),
            p50 - p50_first,
            per_s / per_s_first,
        );
    }
}

fn round(home: &Home, model: &str, measured: &mut Measured) {
    let server = home.start();
    let number = |connections: &str, path: [&str; 2]| {
        let report = home.cli_ok(&[
            "--json",
            "bench",
            "embed",
            "--model",
            model,
            "--connections",
            connections,
            "--duration",
            "4s",
            // The first takes no more than 64, and its tokeniser knows few words.
            "--tokens",
            "16",
        ]);
        let report: Value = serde_json::from_str(&report).expect("a report is JSON");
        let run = &report["runs"][0];
        let found = if path[1].is_empty() { &run[path[0]] } else { &run[path[0]][path[1]] };
        found.as_f64().expect("a number")
    };
    measured.p50_ms.push(number("1", ["latency_ms", "p50"]));
    measured.per_s.push(number("16", ["requests_per_s", ""]));
    assert!(server.stop().success());
}

/// Milliseconds.
fn fdatasync(folder: &Path) -> f64 {
    let path = folder.join("run/fdatasync");
    let mut file = OpenOptions::new().create(true).append(true).open(&path).expect("the home can be written");
    let mut one = || {
        file.write_all(&[b'x'; ENTRY_BYTES]).expect("the home can be written");
        let begun = Instant::now();
        file.sync_data().expect("the home can be synced");
        begun.elapsed().as_secs_f64() * 1e3
    };
    let mut times: Vec<f64> = (0..SYNCS).map(|_| one()).collect();
    std::fs::remove_file(path).expect("it was just made");
    median(&mut times)
}

/// A tmpfs where the home has its log; a log of its own.
struct Memory(PathBuf);

impl Memory {
    fn mount(home: &Home) -> Option<Self> {
        let folder = home.path().join("audit");
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", "size=1g,mode=700,uid=65534,gid=65534", "tmpfs"]).arg(&folder);
        command.output().is_ok_and(|output| output.status.success()).then_some(Self(folder))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("--lazy").arg(&self.0).status());
    }
}
