//! Silero voice activity detection, version 6 for 16 kHz, from ONNX: the weights under plain names, all F32.
//!
//! The network: 512 new samples after the last 64 ones, 64 more by reflection; a Fourier transform by convolution and its
//! magnitudes; four convolutions; an LSTM cell with PyTorch's order of gates (input, forget, cell, output); a weighted
//! sum and a sigmoid.

mod onnx;

use super::safetensors::{self, Tensor};
use super::{Work, malformed, output, refused};
use crate::package::config;
use crate::package::safetensors::Dtype;
use crate::package::silero::{FREQUENCIES, GATES, HIDDEN, HOP, STRIDES, SileroConfig, WINDOW};
use onnx::{Convolution, FILE, Graph};
use ringfence_protocol::{ConvertError, Facts, ModelArchitecture};

/// The largest file in bytes; the real one has 1.3 MB.
const BYTES_MAX: usize = 16 * 1024 * 1024;

/// In the package; in the file; shape.
#[rustfmt::skip]
const TENSORS: &[(&str, &str, &[usize])] = &[
    ("stft.basis", "model.stft.forward_basis_buffer", &[2 * FREQUENCIES, 1, WINDOW]),
    ("encoder.0.weight", "model.encoder.0.reparam_conv.weight", &[128, FREQUENCIES, 3]),
    ("encoder.0.bias", "model.encoder.0.reparam_conv.bias", &[128]),
    ("encoder.1.weight", "model.encoder.1.reparam_conv.weight", &[64, 128, 3]),
    ("encoder.1.bias", "model.encoder.1.reparam_conv.bias", &[64]),
    ("encoder.2.weight", "model.encoder.2.reparam_conv.weight", &[64, 64, 3]),
    ("encoder.2.bias", "model.encoder.2.reparam_conv.bias", &[64]),
    ("encoder.3.weight", "model.encoder.3.reparam_conv.weight", &[HIDDEN, 64, 3]),
    ("encoder.3.bias", "model.encoder.3.reparam_conv.bias", &[HIDDEN]),
    ("lstm.weight_ih", "model.decoder.rnn.weight_ih", &[GATES * HIDDEN, HIDDEN]),
    ("lstm.weight_hh", "model.decoder.rnn.weight_hh", &[GATES * HIDDEN, HIDDEN]),
    ("lstm.bias_ih", "model.decoder.rnn.bias_ih", &[GATES * HIDDEN]),
    ("lstm.bias_hh", "model.decoder.rnn.bias_hh", &[GATES * HIDDEN]),
    ("decoder.weight", "model.decoder.decoder.2.weight", &[1, HIDDEN, 1]),
    ("decoder.bias", "model.decoder.decoder.2.bias", &[1]),
];

/// The weights of the graph's convolutions, with the step and the padding on each side.
const CONVOLUTIONS: &[(&str, usize, u64)] = &[
    ("model.stft.forward_basis_buffer", HOP, 0),
    ("model.encoder.0.reparam_conv.weight", STRIDES[0], 1),
    ("model.encoder.1.reparam_conv.weight", STRIDES[1], 1),
    ("model.encoder.2.reparam_conv.weight", STRIDES[2], 1),
    ("model.encoder.3.reparam_conv.weight", STRIDES[3], 1),
    ("model.decoder.decoder.2.weight", 1, 0),
];

/// A package of `model.onnx`.
///
/// # Errors
/// The file is missing or malformed, or its graph is not that network: names, shapes and steps are compared.
pub fn convert(work: &mut Work<'_>) -> Result<Facts, ConvertError> {
    let bytes = work.files.require(FILE, BYTES_MAX).map_err(refused)?.clone();
    let graph = onnx::read(&bytes)?;
    check_convolutions(&graph.convolutions)?;
    let places = take(&graph, &bytes)?;
    output::write(work.output, config::FILE, config().as_bytes())?;
    safetensors::write(work.output, &tensors(), |place, put| put(places[place]))?;
    Ok(Facts { architecture: ModelArchitecture::SileroVad, max_tokens: 1, licence: None })
}

fn tensors() -> Vec<Tensor> {
    let tensor = |(name, _, shape): &(&str, &str, &[usize])| Tensor {
        name: (*name).to_owned(),
        dtype: Dtype::F32,
        shape: shape.to_vec(),
    };
    TENSORS.iter().map(tensor).collect()
}

fn config() -> String {
    serde_json::to_string(&SileroConfig::default()).expect("texts and numbers are JSON")
}

fn check_convolutions(found: &[Convolution<'_>]) -> Result<(), ConvertError> {
    let expected = CONVOLUTIONS.iter().all(|(weights, step, padding)| {
        let mut same = found.iter().filter(|node| node.inputs.get(1) == Some(weights));
        same.next().is_some_and(|node| steps(node, *step as u64, *padding)) && same.next().is_none()
    });
    if expected && found.len() == CONVOLUTIONS.len() {
        return Ok(());
    }
    Err(malformed(FILE, "its convolutions are not those of Silero's network for 16 kHz"))
}

fn steps(node: &Convolution<'_>, step: u64, padding: u64) -> bool {
    let is = |name: &str, value: &[u64]| node.lists.get(name).is_some_and(|list| list == value);
    is("strides", &[step]) && is("pads", &[padding, padding]) && is("dilations", &[1])
}

/// The bytes of each tensor; the graph may start from no others.
fn take<'a>(graph: &Graph<'_>, bytes: &'a [u8]) -> Result<Vec<&'a [u8]>, ConvertError> {
    let known = |name: &str| TENSORS.iter().any(|(_, source, _)| *source == name);
    match graph.initializers.keys().find(|name| !known(name)) {
        Some(name) => Err(tensor_error(name, "Silero's network has no such tensor")),
        None => TENSORS.iter().map(|(_, source, shape)| take_one(graph, bytes, source, shape)).collect(),
    }
}

fn take_one<'a>(
    graph: &Graph<'_>,
    bytes: &'a [u8],
    name: &str,
    shape: &[usize],
) -> Result<&'a [u8], ConvertError> {
    let found = graph.initializers.get(name).ok_or_else(|| tensor_error(name, "it is missing"))?;
    let length = shape.iter().product::<usize>() * Dtype::F32.bytes();
    let same_shape = found.shape.iter().copied().eq(shape.iter().map(|size| *size as u64));
    if !same_shape || found.dtype != Some(Dtype::F32) || found.bytes.len() != length {
        return Err(tensor_error(name, format!("it must be raw F32 of shape {shape:?}")));
    }
    Ok(&bytes[found.bytes.clone()])
}

fn tensor_error(tensor: &str, reason: impl Into<String>) -> ConvertError {
    ConvertError::Tensor { tensor: tensor.to_owned(), reason: reason.into() }
}
