//! One file for each target: what reads a stranger's bytes, and is given whatever the fuzzer makes of them.

mod archive;
mod audit;
mod bundle;
mod config;
mod ctranslate2;
mod gate;
mod ggml;
mod gguf;
mod header;
mod link;
mod onnx;
mod pt;
mod pushed;
mod serving;
mod sound;
mod tokenizer;
mod trace;
mod trust;

/// A target and its name.
pub(crate) type Target = (&'static str, fn(&[u8]));

/// All of them.
pub(crate) const TARGETS: [Target; 18] = [
    ("archive", archive::run),
    ("audit", audit::run),
    ("bundle", bundle::run),
    ("config", config::run),
    ("ctranslate2", ctranslate2::run),
    ("gate", gate::run),
    ("ggml", ggml::run),
    ("gguf", gguf::run),
    ("header", header::run),
    ("link", link::run),
    ("onnx", onnx::run),
    ("pt", pt::run),
    ("pushed", pushed::run),
    ("serving", serving::run),
    ("sound", sound::run),
    ("tokenizer", tokenizer::run),
    ("trace", trace::run),
    ("trust", trust::run),
];
