//! A tiny speech model with random weights, made here: its files, and what it computes by plain loops in f64.
#![allow(dead_code, clippy::unwrap_used, reason = "helpers of tests; each test program uses its part")]

use serde_json::{Value, json};
use std::collections::BTreeMap;

pub(crate) const MELS: usize = 8;
pub(crate) const STATE: usize = 16;
pub(crate) const HEADS: usize = 2;
pub(crate) const LAYERS: usize = 2;
/// Positions of the encoder; a window has twice as many frames.
pub(crate) const POSITIONS: usize = 20;
pub(crate) const TEXT: usize = 32;
/// All bytes; two special tokens, the languages, six more, and a timestamp for each position and the end.
pub(crate) const LANGUAGES: [&str; 3] = ["en", "de", "fr"];
pub(crate) const END: u32 = 256;
pub(crate) const START: u32 = 257;
pub(crate) const TRANSLATE: u32 = START + 1 + LANGUAGES.len() as u32;
pub(crate) const PREVIOUS: u32 = TRANSLATE + 3;
pub(crate) const NO_SPEECH: u32 = TRANSLATE + 4;
pub(crate) const TIMESTAMPS: u32 = TRANSLATE + 6;
pub(crate) const VOCABULARY: usize = TIMESTAMPS as usize + POSITIONS + 1;

pub(crate) type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

pub(crate) fn config() -> Value {
    json!({
        "model_type": "whisper",
        "activation_function": "gelu",
        "vocab_size": VOCABULARY,
        "num_mel_bins": MELS,
        "d_model": STATE,
        "encoder_layers": LAYERS,
        "encoder_attention_heads": HEADS,
        "encoder_ffn_dim": 4 * STATE,
        "decoder_layers": LAYERS,
        "decoder_attention_heads": HEADS,
        "decoder_ffn_dim": 4 * STATE,
        "max_source_positions": POSITIONS,
        "max_target_positions": TEXT,
        // A sign that captions use for music.
        "suppress_tokens": [35],
    })
}

pub(crate) fn generation(multilingual: bool) -> Value {
    json!({ "is_multilingual": multilingual })
}

pub(crate) fn tokenizer() -> Value {
    let mut next = 0x100_u32..;
    let character = |byte: u8| match byte {
        b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
        _ => next.next().and_then(char::from_u32).unwrap(),
    };
    let vocabulary: BTreeMap<String, usize> =
        (0..=u8::MAX).map(character).map(String::from).zip(0..).collect();
    let tasks = ["translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps"];
    let times = (0..=POSITIONS).map(|place| format!("{:.2}", place as f64 * 0.02));
    let names = ["endoftext", "startoftranscript"].into_iter().chain(LANGUAGES).chain(tasks);
    let added: Vec<Value> = names
        .map(str::to_owned)
        .chain(times)
        .zip(256..)
        .map(|(name, id)| {
            json!({"id": id, "content": format!("<|{name}|>"), "single_word": false, "lstrip": false,
                   "rstrip": false, "normalized": false, "special": true})
        })
        .collect();
    let bytes =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": bytes, "post_processor": null, "decoder": bytes,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
                  "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false, "vocab": vocabulary, "merges": []},
    })
}

/// Sine and cosine waves, as every Whisper has them on its encoder's side.
fn waves() -> Vec<f32> {
    let half = STATE / 2;
    let step = 10_000f64.ln() / (half - 1) as f64;
    let angle = |position: usize, i: usize| position as f64 * (-step * i as f64).exp();
    (0..POSITIONS)
        .flat_map(|position| {
            let sines = (0..half).map(move |i| angle(position, i).sin() as f32);
            sines.chain((0..half).map(move |i| angle(position, i).cos() as f32)).collect::<Vec<_>>()
        })
        .collect()
}

/// Every tensor of the network, with numbers that its name gives.
pub(crate) fn tensors() -> Tensors {
    let mut all = Tensors::new();
    let mut add = |name: String, shape: &[usize], scale: f32, middle: f32| {
        let mut state =
            name.bytes().fold(1u64, |seed, byte| seed.wrapping_mul(131).wrapping_add(byte.into()));
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            middle + scale * ((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0)
        };
        let floats = (0..shape.iter().product()).map(|_| next()).collect();
        all.insert(format!("model.{name}"), (shape.to_vec(), floats));
    };
    for (name, inputs) in [("conv1", MELS), ("conv2", STATE)] {
        add(format!("encoder.{name}.weight"), &[STATE, inputs, 3], 0.4, 0.0);
        add(format!("encoder.{name}.bias"), &[STATE], 0.3, 0.0);
    }
    add("decoder.embed_tokens.weight".into(), &[VOCABULARY, STATE], 1.0, 0.0);
    add("decoder.embed_positions.weight".into(), &[TEXT, STATE], 0.5, 0.0);
    for (side, attentions) in [("encoder", &["self_attn"][..]), ("decoder", &["self_attn", "encoder_attn"])] {
        let mut norms = vec![format!("{side}.layer_norm")];
        for layer in 0..LAYERS {
            let prefix = format!("{side}.layers.{layer}");
            norms.push(format!("{prefix}.final_layer_norm"));
            for attention in attentions {
                norms.push(format!("{prefix}.{attention}_layer_norm"));
                for part in ["q_proj", "k_proj", "v_proj", "out_proj"] {
                    add(format!("{prefix}.{attention}.{part}.weight"), &[STATE, STATE], 0.5, 0.0);
                    if part != "k_proj" {
                        add(format!("{prefix}.{attention}.{part}.bias"), &[STATE], 0.3, 0.0);
                    }
                }
            }
            for (part, outputs, inputs) in [("fc1", 4 * STATE, STATE), ("fc2", STATE, 4 * STATE)] {
                add(format!("{prefix}.{part}.weight"), &[outputs, inputs], 0.4, 0.0);
                add(format!("{prefix}.{part}.bias"), &[outputs], 0.3, 0.0);
            }
        }
        for norm in norms {
            add(format!("{norm}.weight"), &[STATE], 0.3, 1.0);
            add(format!("{norm}.bias"), &[STATE], 0.2, 0.0);
        }
    }
    all.insert("model.encoder.embed_positions.weight".to_owned(), (vec![POSITIONS, STATE], waves()));
    all
}

/// The files of a package.
pub(crate) fn package(multilingual: bool) -> BTreeMap<String, Vec<u8>> {
    let tensor = |(name, (shape, floats)): (String, (Vec<usize>, Vec<f32>))| {
        (name, candle_core::Tensor::from_vec(floats, shape, &candle_core::Device::Cpu).unwrap())
    };
    let weights: BTreeMap<String, candle_core::Tensor> = tensors().into_iter().map(tensor).collect();
    BTreeMap::from([
        ("config.json".to_owned(), config().to_string().into_bytes()),
        ("generation_config.json".to_owned(), generation(multilingual).to_string().into_bytes()),
        ("tokenizer.json".to_owned(), tokenizer().to_string().into_bytes()),
        ("model.safetensors".to_owned(), safetensors::serialize(&weights, None).unwrap()),
    ])
}

/// A window's spectrogram.
pub(crate) fn mel() -> Vec<f32> {
    (0..2 * POSITIONS * MELS).map(|i| ((i * 37 % 101) as f32 / 50.0 - 1.0) * 0.8).collect()
}

type Rows = Vec<Vec<f64>>;

/// The network by plain loops.
pub(crate) struct Plain(pub(crate) Tensors);

impl Plain {
    fn floats(&self, name: &str) -> &[f32] {
        &self.0[&format!("model.{name}")].1
    }

    fn linear(&self, x: &Rows, name: &str) -> Rows {
        let weight = self.floats(&format!("{name}.weight"));
        let bias = self.0.get(&format!("model.{name}.bias")).map(|(_, floats)| &floats[..]);
        let inputs = x[0].len();
        let output = |row: &Vec<f64>, at: usize| {
            let products = row.iter().zip(&weight[at * inputs..]).map(|(x, w)| x * f64::from(*w));
            products.sum::<f64>() + bias.map_or(0.0, |bias| f64::from(bias[at]))
        };
        x.iter().map(|row| (0..weight.len() / inputs).map(|at| output(row, at)).collect()).collect()
    }

    fn norm(&self, x: &Rows, name: &str) -> Rows {
        let (weight, bias) = (self.floats(&format!("{name}.weight")), self.floats(&format!("{name}.bias")));
        x.iter()
            .map(|row| {
                let mean = row.iter().sum::<f64>() / row.len() as f64;
                let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / row.len() as f64;
                let unit = |x: &f64| (x - mean) / (variance + 1e-5).sqrt();
                let scaled = row.iter().map(unit).zip(weight.iter().zip(bias));
                scaled.map(|(x, (w, b))| x * f64::from(*w) + f64::from(*b)).collect()
            })
            .collect()
    }

    fn convolution(&self, x: &Rows, name: &str, stride: usize) -> Rows {
        let (weight, bias) = (self.floats(&format!("{name}.weight")), self.floats(&format!("{name}.bias")));
        let channels = x[0].len();
        let output = |step: usize, at: usize| {
            let mut sum = f64::from(bias[at]);
            for tap in 0..3 {
                let Some(row) = (step * stride + tap).checked_sub(1).and_then(|row| x.get(row)) else {
                    continue;
                };
                for (channel, x) in row.iter().enumerate() {
                    sum += x * f64::from(weight[(at * channels + channel) * 3 + tap]);
                }
            }
            gelu(sum)
        };
        (0..x.len() / stride).map(|step| (0..STATE).map(|at| output(step, at)).collect()).collect()
    }

    fn attention(&self, x: &Rows, heard: &Rows, name: &str, causal: bool) -> Rows {
        let (query, key) =
            (self.linear(x, &format!("{name}.q_proj")), self.linear(heard, &format!("{name}.k_proj")));
        let value = self.linear(heard, &format!("{name}.v_proj"));
        let head = STATE / HEADS;
        let mut context = vec![vec![0.0; STATE]; x.len()];
        for (row, context) in context.iter_mut().enumerate() {
            let seen = if causal { row + 1 } else { heard.len() };
            for first in (0..STATE).step_by(head) {
                let dot = |key: &Vec<f64>| {
                    let products = query[row][first..first + head].iter().zip(&key[first..]);
                    (products.map(|(q, k)| q * k).sum::<f64>() / (head as f64).sqrt()).exp()
                };
                let scores: Vec<f64> = key[..seen].iter().map(dot).collect();
                let total: f64 = scores.iter().sum();
                for i in first..first + head {
                    context[i] = scores.iter().zip(&value).map(|(s, value)| s / total * value[i]).sum();
                }
            }
        }
        self.linear(&context, &format!("{name}.out_proj"))
    }

    fn inner(&self, x: &mut Rows, prefix: &str) {
        let mut up =
            self.linear(&self.norm(x, &format!("{prefix}.final_layer_norm")), &format!("{prefix}.fc1"));
        up.iter_mut().flatten().for_each(|x| *x = gelu(*x));
        add(x, &self.linear(&up, &format!("{prefix}.fc2")));
    }

    fn rows(&self, name: &str) -> Rows {
        self.floats(name).chunks(STATE).map(|row| row.iter().map(|x| f64::from(*x)).collect()).collect()
    }

    /// What the encoder makes of a window.
    pub(crate) fn encode(&self, mel: &[f32]) -> Rows {
        let frames: Rows =
            mel.chunks(MELS).map(|frame| frame.iter().map(|x| f64::from(*x)).collect()).collect();
        let mut x = self.convolution(&self.convolution(&frames, "encoder.conv1", 1), "encoder.conv2", 2);
        add(&mut x, &self.rows("encoder.embed_positions.weight"));
        for layer in 0..LAYERS {
            let prefix = format!("encoder.layers.{layer}");
            let normed = self.norm(&x, &format!("{prefix}.self_attn_layer_norm"));
            add(&mut x, &self.attention(&normed, &normed, &format!("{prefix}.self_attn"), false));
            self.inner(&mut x, &prefix);
        }
        self.norm(&x, "encoder.layer_norm")
    }

    /// The logits after each token.
    pub(crate) fn decode(&self, heard: &Rows, ids: &[u32]) -> Rows {
        let embeddings = self.rows("decoder.embed_tokens.weight");
        let mut x: Rows = ids.iter().map(|id| embeddings[*id as usize].clone()).collect();
        add(&mut x, &self.rows("decoder.embed_positions.weight"));
        for layer in 0..LAYERS {
            let prefix = format!("decoder.layers.{layer}");
            let normed = self.norm(&x, &format!("{prefix}.self_attn_layer_norm"));
            add(&mut x, &self.attention(&normed, &normed, &format!("{prefix}.self_attn"), true));
            let normed = self.norm(&x, &format!("{prefix}.encoder_attn_layer_norm"));
            add(&mut x, &self.attention(&normed, heard, &format!("{prefix}.encoder_attn"), false));
            self.inner(&mut x, &prefix);
        }
        let x = self.norm(&x, "decoder.layer_norm");
        let dot = |row: &Vec<f64>, token: &Vec<f64>| row.iter().zip(token).map(|(a, b)| a * b).sum();
        x.iter().map(|row| embeddings.iter().map(|token| dot(row, token)).collect()).collect()
    }
}

fn add(x: &mut Rows, added: &Rows) {
    for (x, added) in x.iter_mut().zip(added) {
        x.iter_mut().zip(added).for_each(|(x, y)| *x += y);
    }
}

/// x times the standard normal distribution at x, by Simpson's rule over the density.
pub(crate) fn gelu(x: f64) -> f64 {
    let steps = 400;
    let density = |t: f64| (-t * t / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
    let width = x / f64::from(steps);
    let sum: f64 = (0..steps)
        .map(|i| {
            let from = f64::from(i) * width;
            (density(from) + 4.0 * density(from + width / 2.0) + density(from + width)) * width / 6.0
        })
        .sum();
    x * (0.5 + sum)
}
