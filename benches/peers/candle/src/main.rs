//! Times the forward pass of candle-transformers' BERT on a real package, mean pooling and normalisation included, told by
//! lines on standard input: `run TOKENS BATCH ROUNDS` prints the median in milliseconds as JSON.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::{BertModel, Config};
use std::error::Error;
use std::io::BufRead;
use std::path::Path;
use std::time::Instant;

fn main() -> std::result::Result<(), Box<dyn Error>> {
    let folder = std::env::args().nth(1).ok_or("usage: peer-candle FOLDER")?;
    let model = load(Path::new(&folder))?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let ["run", tokens, batch, rounds] = words[..] else { return Err("run TOKENS BATCH ROUNDS".into()) };
        let (tokens, batch, rounds) = (tokens.parse()?, batch.parse()?, rounds.parse()?);
        let median = median_ms(&model, tokens, batch, rounds)?;
        println!(r#"{{"tokens":{tokens},"batch":{batch},"median_ms":{median:.4}}}"#);
    }
    Ok(())
}

fn load(folder: &Path) -> std::result::Result<BertModel, Box<dyn Error>> {
    let config: Config = serde_json::from_slice(&std::fs::read(folder.join("config.json"))?)?;
    let weights = std::fs::read(folder.join("model.safetensors"))?;
    let weights = VarBuilder::from_buffered_safetensors(weights, DType::F32, &Device::Cpu)?;
    Ok(BertModel::load(weights, &config)?)
}

fn median_ms(model: &BertModel, tokens: usize, batch: usize, rounds: usize) -> Result<f64> {
    let row = |item: usize| (0..tokens).map(move |i| 1000 + ((i * 37 + item * 101) % 20_000) as u32);
    let ids: Vec<u32> = (0..batch).flat_map(row).collect();
    let ids = Tensor::from_vec(ids, (batch, tokens), &Device::Cpu)?;
    let types = ids.zeros_like()?;
    let mut times = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let start = Instant::now();
        // Without an attention mask: nothing is padded here, and a mask would only cost it time.
        let states = model.forward(&ids, &types, None)?;
        let mean = (states.sum(1)? / tokens as f64)?;
        let length = mean.sqr()?.sum_keepdim(1)?.sqrt()?;
        mean.broadcast_div(&length)?.to_vec2::<f32>()?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}
