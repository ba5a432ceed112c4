//! Times the forward pass on a real package, told by lines on standard input: `run TOKENS BATCH ROUNDS` prints the
//! median in milliseconds as JSON. The peer in `benches/peers/candle` speaks the same, so that rounds can alternate.
#![expect(clippy::disallowed_methods, reason = "it measures time")]

use ringfence_gpu::{Adapters, Gpu};
use ringfence_kernels::{Compute, Isa, Pool};
use ringfence_protocol::Architecture;
use ringfence_sandbox::{CountingAllocator, keep_freed_memory};
use ringfence_worker::device::Wgpu;
use ringfence_worker::memory::Lease;
use ringfence_worker::models::{Batch, Embedder, load, load_on};
use ringfence_worker::package::Files;
use std::error::Error;
use std::io::BufRead;
use std::time::Instant;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn main() -> Result<(), Box<dyn Error>> {
    keep_freed_memory();
    let folder = std::env::args().nth(1).ok_or("usage: forward FOLDER [THREADS | gpu]")?;
    let on = std::env::args().nth(2).unwrap_or_else(|| "2".to_owned());
    let files = Files::from_folder(folder.as_ref())?;
    let start = Instant::now();
    let loaded = match on.as_str() {
        "gpu" => load_on(&files, Architecture::Bert, gpu()?, 512, &Lease)?,
        threads => {
            let compute = Compute::new(Isa::detect(), Pool::new(threads.parse()?)?);
            load(&files, Architecture::Bert, compute, 512, &Lease)?
        }
    };
    let mut loaded = loaded.embedder().ok_or("it is no embedder")?;
    let (used, peak) = (CountingAllocator::used(), CountingAllocator::peak());
    eprintln!(
        "loaded in {:.1} ms, {used} bytes in use, {peak} at the peak",
        start.elapsed().as_secs_f64() * 1e3
    );
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let ["run", tokens, batch, rounds] = words[..] else { return Err("run TOKENS BATCH ROUNDS".into()) };
        let (tokens, batch, rounds) = (tokens.parse()?, batch.parse()?, rounds.parse()?);
        let median = median_ms(&mut *loaded.model, tokens, batch, rounds)?;
        println!(r#"{{"tokens":{tokens},"batch":{batch},"median_ms":{median:.4}}}"#);
    }
    Ok(())
}

/// The first GPU that there is, warmed up.
fn gpu() -> Result<Wgpu, Box<dyn Error>> {
    let adapters = Adapters::list()?;
    let start = Instant::now();
    let gpu = Gpu::open(&adapters.all()[0], 1 << 30)?;
    let opened = start.elapsed();
    gpu.warm_up()?;
    eprintln!("{}: opened in {opened:?}, warm after {:?}", adapters.all()[0].name, start.elapsed());
    Ok(Wgpu::new(gpu))
}

fn median_ms(
    model: &mut dyn Embedder,
    tokens: usize,
    count: usize,
    rounds: usize,
) -> Result<f64, Box<dyn Error>> {
    let mut batch = Batch::default();
    for item in 0..count {
        let ids: Vec<u32> = (0..tokens).map(|i| 1000 + ((i * 37 + item * 101) % 20_000) as u32).collect();
        batch.push(&ids);
    }
    model.reserve(batch.tokens(), &Lease)?;
    let mut times = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let start = Instant::now();
        model.embed(&batch)?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}
