//! What the shaders do on a device: `bench [--json] [--rounds N] [--adapter N]`. Products with weights in halves are timed in
//! each way that the adapter has, a device opened for each. Each case is timed once in each round, so
//! that a noisy neighbour disturbs all of them alike; medians and the spread of the rounds are printed.
#![expect(clippy::disallowed_methods, reason = "it measures time")]

use ringfence_gpu::{
    ATTENTION_WORDS_PER_ROW, Activation, Adapter, AdapterKind, Adapters, Gpu, LinearWeights, Matrix,
    NormWeights, Products, Shaders, Stored, Words,
};
use serde_json::{Value, json};
use std::error::Error;
use std::process::Command;
use std::time::Instant;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// A round of a case repeats it until it lasts for so long, in seconds.
const ROUND_SECONDS: f64 = 0.1;
const LEASE_BYTES: u64 = 2 << 30;

/// The shape of MiniLM-L6.
const LAYERS: usize = 6;
const HIDDEN: usize = 384;
const INNER: usize = 1536;
const HEAD: usize = 32;

/// How large the cases are.
struct Sizes {
    /// Rows, inputs and outputs of products.
    products: &'static [[usize; 3]],
    /// Inputs and outputs of a product with one row.
    vector: usize,
    /// Floats that are added to as many.
    stream: usize,
    /// Sequences of a forward pass, and the tokens of each.
    batch: [usize; 2],
}

const HARDWARE: Sizes = Sizes {
    products: &[[4096, 4096, 4096], [4096, HIDDEN, INNER], [4096, INNER, HIDDEN], [32, 4096, 4096]],
    vector: 4096,
    stream: 1 << 24,
    batch: [32, 128],
};
const SOFTWARE: Sizes = Sizes {
    products: &[[512, 512, 512], [512, HIDDEN, INNER], [512, INNER, HIDDEN], [16, 512, 512]],
    vector: 2048,
    stream: 1 << 22,
    batch: [8, 64],
};

/// Something that can be timed.
struct Case {
    name: String,
    /// Operations and bytes of a run.
    flops: f64,
    bytes: f64,
    /// Runs in a round.
    repeats: usize,
    record: Box<dyn FnMut(&Gpu)>,
    /// Of a run, one for each round.
    seconds: Vec<f64>,
}

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |name: &str| -> Outcome<Option<usize>> {
        let at = arguments.iter().position(|argument| argument == name);
        Ok(at.and_then(|at| arguments.get(at + 1)).map(|text| text.parse()).transpose()?)
    };
    let adapters = Adapters::list()?;
    let chosen = number("--adapter")?.unwrap_or(0);
    let adapter = adapters.all().get(chosen).ok_or("there is no such adapter")?;
    let mut gpus = Vec::new();
    for products in [Products::Singles, Products::Halves, Products::Cooperative] {
        let gpu = Gpu::open_with(adapter, LEASE_BYTES, Shaders { subgroups: true, products })?;
        gpu.warm_up()?;
        gpu.passed_over().iter().for_each(|over| eprintln!("{}: {}", over.products.name(), over.reason));
        if gpu.products() == products {
            gpus.push(gpu);
        }
    }
    let sizes = if adapter.kind == AdapterKind::Cpu { SOFTWARE } else { HARDWARE };
    let mut cases = Vec::new();
    for gpu in &gpus {
        cases.extend(cases_on(gpu, &sizes)?.into_iter().map(|case| (gpu, case)));
    }
    for (gpu, case) in &mut cases {
        let once = case.run(gpu)?;
        case.repeats = (ROUND_SECONDS / once).ceil().clamp(1.0, 1e4) as usize;
    }
    for _ in 0..number("--rounds")?.unwrap_or(7).max(1) {
        for (gpu, case) in &mut cases {
            let seconds = case.run(gpu)?;
            case.seconds.push(seconds);
        }
    }
    let cases: Vec<Case> = cases.into_iter().map(|(_, case)| case).collect();
    let report = report(adapter, &sizes, &cases);
    if arguments.iter().any(|argument| argument == "--json") {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print(&report);
    }
    Ok(())
}

impl Case {
    fn new(name: String, flops: f64, bytes: f64, record: impl FnMut(&Gpu) + 'static) -> Self {
        Self { name, flops, bytes, repeats: 1, record: Box::new(record), seconds: Vec::new() }
    }

    /// Seconds of a run.
    fn run(&mut self, gpu: &Gpu) -> Outcome<f64> {
        let start = Instant::now();
        (0..self.repeats).for_each(|_| (self.record)(gpu));
        gpu.finish()?;
        Ok(start.elapsed().as_secs_f64() / self.repeats as f64)
    }

    fn median(&self) -> f64 {
        let mut seconds = self.seconds.clone();
        seconds.sort_by(f64::total_cmp);
        seconds[seconds.len() / 2]
    }

    fn to_json(&self) -> Value {
        let [least, most] = [f64::min, f64::max]
            .map(|choose| self.seconds.iter().copied().reduce(choose).expect("at least a round"));
        let median = self.median();
        json!({
            "case": self.name, "repeats": self.repeats,
            "median_ms": median * 1e3, "least_ms": least * 1e3, "most_ms": most * 1e3,
            "gflops": self.flops / median / 1e9, "gbytes": self.bytes / median / 1e9,
        })
    }
}

/// All of them on a device that multiplies in f32; on another what it does otherwise.
fn cases_on(gpu: &Gpu, sizes: &Sizes) -> Outcome<Vec<Case>> {
    let plain = gpu.products() == Products::Singles;
    let stored: &[Stored] = if plain { &[Stored::F32, Stored::F16] } else { &[Stored::F16] };
    let mut cases = Vec::new();
    for &[rows, inputs, outputs] in sizes.products {
        for stored in stored {
            cases.push(product(gpu, rows, inputs, outputs, *stored)?);
        }
    }
    for stored in stored {
        cases.push(forward(gpu, sizes.batch, *stored)?);
    }
    if plain {
        for stored in stored {
            cases.push(product(gpu, 1, sizes.vector, sizes.vector, *stored)?);
        }
        cases.push(stream(gpu, sizes.stream)?);
        cases.push(clearing(gpu, sizes.batch)?);
    }
    Ok(cases)
}

/// How weights are stored and, if that is open, multiplied.
fn way(gpu: &Gpu, stored: Stored) -> String {
    match stored {
        Stored::F32 => "f32".to_owned(),
        Stored::F16 => format!("f16 in {}", gpu.products().name()),
    }
}

/// Numbers that are no zeros and don't grow.
fn floats(count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7 + i / 3) % 13) as f32 / 200.0 - 0.03).collect()
}

fn matrix(gpu: &Gpu, rows: usize, columns: usize) -> Outcome<Matrix> {
    let matrix = gpu.matrix(rows, columns)?;
    gpu.upload(&matrix, &floats(rows * columns));
    Ok(matrix)
}

fn weights(gpu: &Gpu, inputs: usize, outputs: usize, stored: Stored) -> Outcome<LinearWeights> {
    Ok(gpu.linear_weights(inputs, &[(&floats(inputs * outputs), &floats(outputs))], stored)?)
}

fn product(gpu: &Gpu, rows: usize, inputs: usize, outputs: usize, stored: Stored) -> Outcome<Case> {
    let weights = weights(gpu, inputs, outputs, stored)?;
    let (input, mut to) = (matrix(gpu, rows, inputs)?, gpu.matrix(rows, outputs)?);
    let name = format!("{rows} x {inputs} -> {outputs}, {}", way(gpu, stored));
    let flops = 2.0 * (rows * inputs * outputs) as f64;
    let bytes = (stored.bytes() * inputs * outputs + 4 * rows * (inputs + outputs)) as f64;
    Ok(Case::new(name, flops, bytes, move |gpu| {
        gpu.linear(&input, rows, &weights, Activation::None, &mut to);
    }))
}

/// Two floats are read and one is written, for each of so many.
fn stream(gpu: &Gpu, count: usize) -> Outcome<Case> {
    let columns = 1024;
    let rows = count / columns;
    let (mut x, added) = (gpu.matrix(rows, columns)?, gpu.matrix(rows, columns)?);
    let bytes = (12 * rows * columns) as f64;
    let name = format!("add {} MiB to as much", count / (1 << 18));
    Ok(Case::new(name, (rows * columns) as f64, bytes, move |gpu| gpu.add(&mut x, &added, rows)))
}

struct Layer {
    qkv: LinearWeights,
    out: LinearWeights,
    up: LinearWeights,
    down: LinearWeights,
}

/// A step's buffers.
struct Buffers {
    x: Matrix,
    y: Matrix,
    qkv: Matrix,
    context: Matrix,
    inner: Matrix,
    words: Words,
}

impl Buffers {
    fn new(gpu: &Gpu, tokens: usize) -> Outcome<Self> {
        Ok(Self {
            x: matrix(gpu, tokens, HIDDEN)?,
            y: gpu.matrix(tokens, HIDDEN)?,
            qkv: gpu.matrix(tokens, 3 * HIDDEN)?,
            context: gpu.matrix(tokens, HIDDEN)?,
            inner: gpu.matrix(tokens, INNER)?,
            words: gpu.words(ATTENTION_WORDS_PER_ROW * tokens)?,
        })
    }

    fn layer(&mut self, gpu: &Gpu, rows: usize, starts: &[usize], layer: &Layer, norm: &NormWeights) {
        gpu.linear(&self.x, rows, &layer.qkv, Activation::None, &mut self.qkv);
        gpu.attention(&self.qkv, starts, HEAD, &mut self.words, &mut self.context);
        gpu.linear(&self.context, rows, &layer.out, Activation::None, &mut self.y);
        gpu.add_layer_norm(&mut self.x, &self.y, rows, norm);
        gpu.linear(&self.x, rows, &layer.up, Activation::Gelu, &mut self.inner);
        gpu.linear(&self.inner, rows, &layer.down, Activation::None, &mut self.y);
        gpu.add_layer_norm(&mut self.x, &self.y, rows, norm);
    }
}

/// The layers of MiniLM's shape, without tables and pooling.
fn forward(gpu: &Gpu, [sequences, length]: [usize; 2], stored: Stored) -> Outcome<Case> {
    let layer = || -> Outcome<Layer> {
        Ok(Layer {
            qkv: weights(gpu, HIDDEN, 3 * HIDDEN, stored)?,
            out: weights(gpu, HIDDEN, HIDDEN, stored)?,
            up: weights(gpu, HIDDEN, INNER, stored)?,
            down: weights(gpu, INNER, HIDDEN, stored)?,
        })
    };
    let layers = (0..LAYERS).map(|_| layer()).collect::<Outcome<Vec<_>>>()?;
    let norm = gpu.norm_weights(&[1.0; HIDDEN], Some(&[0.0; HIDDEN]), 1e-12)?;
    let tokens = sequences * length;
    let starts: Vec<usize> = (0..=sequences).map(|sequence| sequence * length).collect();
    let mut buffers = Buffers::new(gpu, tokens)?;
    let weights = LAYERS * (4 * HIDDEN * HIDDEN + 2 * HIDDEN * INNER);
    let flops = tokens as f64 * (2.0 * weights as f64 + (LAYERS * 4 * length * HIDDEN) as f64);
    // Each operation reads its operands and writes its result once.
    let bytes = stored.bytes() * weights + 4 * tokens * LAYERS * (18 * HIDDEN + 2 * INNER);
    let name = format!("forward, {sequences} x {length} tokens, {}", way(gpu, stored));
    Ok(Case::new(name, flops, bytes as f64, move |gpu| {
        layers.iter().for_each(|layer| buffers.layer(gpu, tokens, &starts, layer, &norm));
    }))
}

/// What it costs that a step is another domain's than the one before.
fn clearing(gpu: &Gpu, [sequences, length]: [usize; 2]) -> Outcome<Case> {
    let tokens = sequences * length;
    let mut b = Buffers::new(gpu, tokens)?;
    let bytes = 4 * tokens * (6 * HIDDEN + INNER + ATTENTION_WORDS_PER_ROW);
    Ok(Case::new("overwrite that step's buffers".to_owned(), 0.0, bytes as f64, move |gpu| {
        for matrix in [&mut b.x, &mut b.y, &mut b.qkv, &mut b.context, &mut b.inner] {
            gpu.clear(matrix, tokens);
        }
        gpu.clear_numbers(&mut b.words, ATTENTION_WORDS_PER_ROW * tokens);
    }))
}

fn report(adapter: &Adapter, sizes: &Sizes, cases: &[Case]) -> Value {
    let date = Command::new("date").args(["-u", "+%F %T UTC"]).output();
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let best = |of: fn(&Case) -> f64, named: fn(&str) -> bool| {
        let of = |case: &Case| of(case) / case.median() / 1e9;
        cases.iter().filter(|case| named(&case.name)).map(of).fold(0.0, f64::max)
    };
    let is_product = |name: &str| name.contains("->");
    let peak = best(|case| case.flops, is_product);
    let bandwidth = best(|case| case.bytes, |name| name.starts_with("add"));
    let tokens = sizes.batch.iter().product::<usize>() as f64;
    let forwards = cases.iter().filter(|case| case.name.starts_with("forward")).map(|case| {
        let seconds = case.median();
        json!({
            "case": case.name,
            "tokens_per_second": tokens / seconds,
            "percent_of_best_product": case.flops / seconds / 1e9 / peak * 100.0,
            "percent_of_bandwidth": case.bytes / seconds / 1e9 / bandwidth * 100.0,
        })
    });
    json!({
        "date": date.map_or_else(|_| String::new(), |date| String::from_utf8_lossy(&date.stdout).trim().to_owned()),
        "load": load.split(' ').next(),
        "adapter": adapter.name, "driver": adapter.driver, "kind": format!("{:?}", adapter.kind),
        "f16": adapter.f16, "subgroups": adapter.subgroups, "cooperative_matrices": adapter.cooperative_matrices,
        "rounds": cases[0].seconds.len(),
        "cases": cases.iter().map(Case::to_json).collect::<Vec<_>>(),
        "best_product_gflops": peak, "bandwidth_gbytes": bandwidth,
        "forward": forwards.collect::<Vec<_>>(),
    })
}

fn print(report: &Value) {
    let text = |key: &str| report[key].as_str().unwrap_or("?").to_owned();
    println!("{}, load {}: {} ({})", text("date"), text("load"), text("adapter"), text("driver"));
    println!("{:50} {:>10} {:>19} {:>9} {:>7}", "CASE", "MEDIAN ms", "ROUNDS ms", "GFLOP/s", "GB/s");
    for case in report["cases"].as_array().into_iter().flatten() {
        let number = |key: &str| case[key].as_f64().unwrap_or(f64::NAN);
        println!(
            "{:50} {:>10.3} {:>8.3} ..{:>8.3} {:>9.1} {:>7.1}",
            case["case"].as_str().unwrap_or("?"),
            number("median_ms"),
            number("least_ms"),
            number("most_ms"),
            number("gflops"),
            number("gbytes"),
        );
    }
    for forward in report["forward"].as_array().into_iter().flatten() {
        let number = |key: &str| forward[key].as_f64().unwrap_or(f64::NAN);
        println!(
            "{}: {:.0} tokens/s, {:.0}% of the best product, {:.0}% of the bandwidth",
            forward["case"].as_str().unwrap_or("?"),
            number("tokens_per_second"),
            number("percent_of_best_product"),
            number("percent_of_bandwidth"),
        );
    }
}
