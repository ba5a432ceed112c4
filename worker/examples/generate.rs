//! A generator in this process, to be measured beside others: `generate MODEL.gguf [THREADS]` answers each line of its input
//! by a line of JSON.
//!
//! ```text
//! prefill N         a prompt of N tokens, until its logits are there: {"seconds": ..., "tokens": N}
//! decode S N [P]    S sequences with prompts of P tokens (16), then N steps of all: {"seconds": ..., "tokens": S*N}
//! perplexity FILE   of the first 1024 tokens of a text: {"perplexity": ..., "tokens": ...}
//! ```
//! Prompts are numbers, the same for everybody; the largest logit is taken.
#![expect(clippy::disallowed_methods, reason = "it measures time")]

use ringfence_kernels::{Compute, Isa, Pool};
use ringfence_protocol::{KeptBlocks, SourceForm};
use ringfence_sandbox::{CountingAllocator, keep_freed_memory};
use ringfence_worker::convert::output::InMemory;
use ringfence_worker::convert::{Work, convert};
use ringfence_worker::device::{CACHE_BLOCK_TOKENS, Cpu};
use ringfence_worker::memory::Lease;
use ringfence_worker::models::llama::Run;
use ringfence_worker::models::{LoadedGenerator, STEP_ROWS_MAX, Sizes, load_generator};
use ringfence_worker::package::{FileBytes, Files, tokenizer};
use serde_json::{Value, json};
use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Sequences at a time.
const SEQUENCES_MAX: usize = 8;
/// The longest sequence.
const TOKENS_MAX: usize = 8192;
/// Tokens of the prompts before a timed answer, where nothing else is said.
const PROMPT_TOKENS: usize = 16;
/// Tokens of a text whose perplexity is told.
const TEXT_TOKENS: usize = 1024;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    keep_freed_memory();
    let mut words = std::env::args().skip(1);
    let file = words.next().ok_or("usage: generate MODEL.gguf [THREADS]")?;
    let threads = words.next().map_or(Ok(2), |word| word.parse())?;
    let start = Instant::now();
    let mut side = Side::load(file.as_ref(), threads)?;
    eprintln!("loaded in {:.1} ms, {} bytes", start.elapsed().as_secs_f64() * 1e3, CountingAllocator::used());
    side.prefill(64)?;
    side.decode(1, 4, PROMPT_TOKENS)?;
    for line in std::io::stdin().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = match words[..] {
            ["prefill", tokens] => side.prefill(tokens.parse()?)?,
            ["decode", sequences, steps] => side.decode(sequences.parse()?, steps.parse()?, PROMPT_TOKENS)?,
            ["decode", sequences, steps, prompt] => {
                side.decode(sequences.parse()?, steps.parse()?, prompt.parse()?)?
            }
            ["perplexity", file] => side.perplexity(&std::fs::read_to_string(file)?)?,
            _ => return Err(format!("no line that is known: {line}").into()),
        };
        println!("{answer}");
    }
    Ok(())
}

struct Side {
    loaded: LoadedGenerator,
    tokenizer: Vec<u8>,
    logits: Vec<f32>,
}

impl Side {
    fn load(file: &Path, threads: usize) -> Result<Self> {
        let source = [("model.gguf".to_owned(), shared(std::fs::read(file)?))].into_iter().collect();
        let mut output = InMemory::new(&source);
        convert(SourceForm::Gguf, &mut Work { files: &source, output: &mut output, memory: &Lease })?;
        let tokenizer = output.files[tokenizer::FILE].clone();
        let blocks = std::mem::take(&mut output.blocks).into_iter();
        let blocks: Vec<KeptBlocks> =
            blocks.map(|(tensor, (kind, shape))| KeptBlocks { tensor, kind, shape }).collect();
        let files: Files = output.files.into_iter().map(|(name, bytes)| (name, shared(bytes))).collect();
        let compute = Compute::new(Isa::detect(), Pool::new(threads)?);
        let sizes = Sizes { max_tokens: TOKENS_MAX, step_tokens: STEP_ROWS_MAX, slots: SEQUENCES_MAX };
        let loaded = load_generator(&files, &blocks, Cpu::new(compute), sizes, &Lease)?;
        Ok(Self { loaded, tokenizer, logits: Vec::new() })
    }

    /// One step; where each of the answers' logits begin is said by their order.
    fn step(&mut self, runs: &[Run<'_>]) -> Result<()> {
        self.loaded
            .model
            .step_while(runs, &mut self.logits, &mut || true)
            .map_err(|error| format!("{error:?}"))?;
        Ok(())
    }

    fn vocabulary(&self) -> usize {
        self.loaded.model.config().vocabulary
    }

    fn prefill(&mut self, tokens: usize) -> Result<Value> {
        let ids = prompt(tokens, 0);
        let blocks = blocks(0, tokens);
        let start = Instant::now();
        self.read(&ids, &blocks)?;
        Ok(json!({ "seconds": start.elapsed().as_secs_f64(), "tokens": tokens }))
    }

    /// A prompt in steps as long as they get; its logits are there at the end.
    fn read(&mut self, ids: &[u32], blocks: &[u32]) -> Result<()> {
        let rows = self.loaded.rows_max;
        for (at, piece) in ids.chunks(rows).enumerate() {
            let first = at * rows;
            self.step(&[Run { ids: piece, first, blocks, answers: first + piece.len() == ids.len() }])?;
        }
        Ok(())
    }

    fn decode(&mut self, sequences: usize, steps: usize, tokens: usize) -> Result<Value> {
        if sequences == 0 || sequences > SEQUENCES_MAX {
            return Err(format!("1 to {SEQUENCES_MAX} sequences").into());
        }
        let total = tokens + steps;
        let places: Vec<Vec<u32>> = (0..sequences).map(|sequence| blocks(sequence, total)).collect();
        let mut last = Vec::new();
        for (sequence, blocks) in places.iter().enumerate() {
            self.read(&prompt(tokens, sequence), blocks)?;
            last.push(best(&self.logits));
        }
        let vocabulary = self.vocabulary();
        let start = Instant::now();
        for step in 0..steps {
            let first = tokens + step;
            let run = |(id, blocks)| Run { ids: std::slice::from_ref(id), first, blocks, answers: true };
            let runs: Vec<Run<'_>> = last.iter().zip(places.iter().map(Vec::as_slice)).map(run).collect();
            self.step(&runs)?;
            last = self.logits.chunks(vocabulary).map(best).collect();
        }
        Ok(json!({ "seconds": start.elapsed().as_secs_f64(), "tokens": sequences * steps }))
    }

    fn perplexity(&mut self, text: &str) -> Result<Value> {
        let tokenizer = tokenizer::parse_bpe(&self.tokenizer, self.vocabulary())?;
        let encoded = tokenizer.encode(text, false).map_err(|error| error.to_string())?;
        let ids = &encoded.get_ids()[..encoded.get_ids().len().min(TEXT_TOKENS)];
        let blocks = blocks(0, ids.len());
        let mut sum = 0.0;
        for (at, next) in ids.iter().enumerate().skip(1) {
            self.step(&[Run { ids: &ids[at - 1..at], first: at - 1, blocks: &blocks, answers: true }])?;
            sum -= log_likelihood(&self.logits, *next as usize);
        }
        let mean = sum / (ids.len() - 1) as f64;
        Ok(json!({ "perplexity": mean.exp(), "tokens": ids.len() }))
    }
}

/// Blocks of a sequence that nobody else has.
fn blocks(sequence: usize, tokens: usize) -> Vec<u32> {
    let of_each = (TOKENS_MAX / CACHE_BLOCK_TOKENS) as u32;
    let first = sequence as u32 * of_each;
    (first..first + tokens.div_ceil(CACHE_BLOCK_TOKENS) as u32).collect()
}

fn prompt(tokens: usize, sequence: usize) -> Vec<u32> {
    (0..tokens as u32).map(|at| (1000 * (sequence as u32 + 1) + 37 * at) % 40_000).collect()
}

fn best(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (at, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = at;
        }
    }
    best as u32
}

fn log_likelihood(logits: &[f32], of: usize) -> f64 {
    let largest = logits.iter().copied().fold(f32::MIN, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - largest).exp()).sum();
    f64::from(logits[of] - largest) - sum.ln()
}

fn shared(bytes: Vec<u8>) -> FileBytes {
    Arc::new(bytes)
}
