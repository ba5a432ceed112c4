//! What the process boundary and the sandbox cost: the same model at the same batch size in process and through the
//! server, in alternated rounds; per-request overhead when idle; and how long a worker takes to be ready.
#![expect(clippy::disallowed_methods, reason = "it measures time")]

#[path = "support/mod.rs"]
mod bench;
#[path = "../tests/support/mod.rs"]
mod support;

use bench::{load, median, verdict};
use ringfence_kernels::{Compute, Isa, Pool};
use ringfence_protocol::{Architecture, Item};
use ringfence_worker::memory::Lease;
use ringfence_worker::models::{Batch, LoadedEmbedder};
use ringfence_worker::package::Files;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use support::{Home, Server};

const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(3);
const BATCH: usize = 8;
const TOKENS: usize = 64;
const MAX_TOKENS: usize = 256;

fn main() {
    bench::build_programs();
    let folder = bench::minilm();
    let home = Home::new();
    let cache = bench::root().join(".cache/archives");
    home.cli_ok(&[
        "model",
        "add",
        "minilm",
        "--cache",
        cache.to_str().expect("a path of the repository is text"),
    ]);
    println!("load at the start: {}", load());
    throughput(&home, &folder);
    idle(&home);
    starts(&home);
}

fn ask(server: &Server) {
    server.api().embed(&json!({ "model": "minilm", "input": "ready" })).ok();
}

/// Jobs a second of 8 texts of 64 tokens: one caller in process, 16 connections through the server.
fn throughput(home: &Home, folder: &std::path::Path) {
    let server = home.start();
    ask(&server);
    let mut loaded = in_process(folder);
    let (mut inside, mut through) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        inside.push(jobs_in_process(&mut loaded));
        through.push(run(home, "16", &["--duration", "3s"])["requests_per_s"].as_f64().expect("a number"));
    }
    let ratio = median(&mut through) / median(&mut inside);
    println!(
        "throughput, {BATCH} x {TOKENS} tokens: in process {:.1} jobs/s, through the server with 16 connections {:.1}; \
         ratio {ratio:.3} (floor 0.9: {}), load {}",
        median(&mut inside),
        median(&mut through),
        verdict(ratio >= 0.9),
        load()
    );
}

fn in_process(folder: &std::path::Path) -> LoadedEmbedder {
    ringfence_sandbox::keep_freed_memory();
    let files = Files::from_folder(folder).expect("MiniLM's files");
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let compute = Compute::new(Isa::detect(), Pool::new(threads).expect("threads"));
    ringfence_worker::models::load(&files, Architecture::Bert, compute, MAX_TOKENS, &Lease)
        .expect("MiniLM loads")
        .embedder()
        .expect("BERT is one")
}

/// Tokenises and embeds like a worker, for one round.
fn jobs_in_process(loaded: &mut LoadedEmbedder) -> f64 {
    let text = "time ".repeat(TOKENS - 2);
    let items = vec![Item::Text(text); BATCH];
    let (start, mut jobs) = (Instant::now(), 0_u32);
    while start.elapsed() < ROUND {
        let mut batch = Batch::default();
        for (index, item) in (0..).zip(&items) {
            batch.push(&loaded.text.tokens(index, item, false).expect("it fits").ids);
        }
        loaded.model.reserve(batch.tokens(), &Lease).expect("memory");
        std::hint::black_box(loaded.model.embed(&batch).expect("the CPU does not fail"));
        jobs += 1;
    }
    f64::from(jobs) / start.elapsed().as_secs_f64()
}

/// One run of the load generator.
fn run(home: &Home, connections: &str, arguments: &[&str]) -> Value {
    let mut all = vec!["bench", "embed", "--json", "--connections", connections];
    all.extend_from_slice(arguments);
    let report: Value = serde_json::from_str(&home.cli_ok(&all)).expect("the report is JSON");
    let run = report["runs"][0].clone();
    assert_eq!(run["errors"], json!({}), "{run}");
    run
}

/// What a request costs beside the model when nothing else is going on.
fn idle(home: &Home) {
    let server = home.start();
    ask(&server);
    let (mut by_worker, mut by_compute) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let run = run(home, "1", &["--requests", "300", "--batch", "1"]);
        let overhead = |which: &str| run["overhead_ms"][which]["p50"].as_f64().expect("a number");
        by_worker.push(overhead("total_minus_worker"));
        by_compute.push(overhead("total_minus_compute"));
    }
    let (outside, beside) = (median(&mut by_worker), median(&mut by_compute));
    println!(
        "overhead of a request, idle, p50: {outside:.3} ms outside of the worker by the server's stamps (floor 0.4: {}); \
         {beside:.3} ms beside what the worker says it computed, wake-ups of two processes included; load {}",
        verdict(outside <= 0.4),
        load()
    );
}

/// From the decision to start a worker until it can serve.
fn starts(home: &Home) {
    let (mut cold, mut again, mut sandbox) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let server = home.start();
        ask(&server);
        let worker = server.status()["workers"][0].clone();
        assert_eq!(worker["cold"], true, "the first start reads the package");
        cold.push(worker["ready_after_ms"].as_f64().expect("a number"));
        let pid = server.worker_pid();
        let process = rustix::process::Pid::from_raw(pid).expect("a pid");
        rustix::process::kill_process(process, rustix::process::Signal::KILL).expect("it runs");
        server.await_status("the worker's end", |status| {
            status["workers"]
                .as_array()
                .is_some_and(|workers| workers.iter().all(|worker| worker["pid"] != pid))
        });
        ask(&server);
        let worker = server.status()["workers"][0].clone();
        assert_eq!(worker["cold"], false, "the second start has the held memory");
        again.push(worker["ready_after_ms"].as_f64().expect("a number"));
        sandbox.push(worker["sandbox_setup_us"].as_f64().expect("a number") / 1e3);
    }
    let (cold, again, sandbox) = (median(&mut cold), median(&mut again), median(&mut sandbox));
    println!(
        "worker ready: cold {cold:.0} ms (floor 1500: {}), respawned {again:.0} ms (floor 500: {}), sandbox {sandbox:.1} ms \
         of it (floor 10: {}), load {}",
        verdict(cold <= 1500.0),
        verdict(again <= 500.0),
        verdict(sandbox <= 10.0),
        load()
    );
}
