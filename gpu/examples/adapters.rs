//! Says which devices there are, opens each under a lease of 256 MiB, warms it up and multiplies once. Under a tracer of
//! system calls the lines that it prints part what needs files from what does not.
#![expect(clippy::disallowed_methods, reason = "it measures time")]

use ringfence_gpu::{Activation, Adapters, Gpu, Stored};
use std::error::Error;
use std::time::Instant;

const LEASE_BYTES: u64 = 256 << 20;
const WIDTH: usize = 512;

fn main() -> Result<(), Box<dyn Error>> {
    let start = Instant::now();
    let adapters = Adapters::list()?;
    println!("listed after {:?}", start.elapsed());
    for adapter in adapters.all() {
        println!("{adapter:#?}");
        let start = Instant::now();
        let gpu = Gpu::open(adapter, LEASE_BYTES)?;
        println!("opened after {:?}: {:?}", start.elapsed(), gpu.numbers());
        gpu.warm_up()?;
        println!("warm after {:?}: {:?}", start.elapsed(), gpu.numbers());
        for (rows, stored) in [(1, Stored::F32), (1, Stored::F16), (512, Stored::F32), (512, Stored::F16)] {
            let seconds = multiply(&gpu, rows, stored)?;
            let flops = 2.0 * (rows * WIDTH * WIDTH) as f64 / seconds;
            println!(
                "{rows} rows, {WIDTH} to {WIDTH}, {stored:?}: {:.3} ms, {:.1} GFLOP/s",
                seconds * 1e3,
                flops / 1e9
            );
        }
        println!("at the end: {:?}", gpu.numbers());
    }
    Ok(())
}

/// The seconds of one product, the best of some.
fn multiply(gpu: &Gpu, rows: usize, stored: Stored) -> Result<f64, Box<dyn Error>> {
    let weights = gpu.linear_weights(WIDTH, &[(&[0.01; WIDTH * WIDTH], &[0.0; WIDTH])], stored)?;
    let (input, mut to) = (gpu.matrix(rows, WIDTH)?, gpu.matrix(rows, WIDTH)?);
    gpu.finish()?;
    let mut best = f64::INFINITY;
    for _ in 0..3 {
        let start = Instant::now();
        gpu.linear(&input, rows, &weights, Activation::None, &mut to);
        gpu.finish()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(best)
}
