//! Whisper in ggml's form, as whisper.cpp reads it: numbers of the network, mel filters, the vocabulary in the order of
//! its ranks, then each tensor with its name. Little-endian throughout.

use super::reader::Reader;
use super::tokenizer::{TOKEN_BYTES_MAX, TOKENS_MAX};
use super::{Entries, SIZE_MAX, Sizes, TENSORS_MAX, unsupported};
use crate::convert::malformed;
use crate::package::safetensors::{Dtype, Entry};
use ringfence_protocol::ConvertError;

/// Its name.
pub(super) const FILE: &str = "model.bin";

const MAGIC: u32 = 0x6767_6d6c;
const NAME_BYTES_MAX: usize = 256;
const DIMENSIONS_MAX: usize = 3;

/// What a file holds.
pub(super) struct Ggml {
    pub(super) sizes: Sizes,
    /// The vocabulary by rank.
    pub(super) tokens: Vec<Vec<u8>>,
    pub(super) entries: Entries,
}

pub(super) fn read(bytes: &[u8]) -> Result<Ggml, ConvertError> {
    let mut reader = Reader::new(FILE, bytes);
    if reader.u32()? != MAGIC {
        return Err(malformed(FILE, "it doesn't begin as ggml files do"));
    }
    let sizes = read_sizes(&mut reader)?;
    skip_filters(&mut reader, &sizes)?;
    let tokens = read_tokens(&mut reader)?;
    let mut entries = Entries::new();
    while !reader.is_done() {
        let (name, entry) = read_tensor(&mut reader)?;
        if entries.len() == TENSORS_MAX || entries.insert(name, entry).is_some() {
            return Err(malformed(FILE, "a tensor is doubled, or there are too many"));
        }
    }
    Ok(Ggml { sizes, tokens, entries })
}

fn read_sizes(reader: &mut Reader<'_>) -> Result<Sizes, ConvertError> {
    let mut size = |what| reader.count(what, SIZE_MAX);
    let sizes = Sizes {
        vocabulary: size("n_vocab")?,
        audio_positions: size("n_audio_ctx")?,
        state: size("n_audio_state")?,
        audio_heads: size("n_audio_head")?,
        audio_layers: size("n_audio_layer")?,
        text_positions: size("n_text_ctx")?,
        text_state: size("n_text_state")?,
        text_heads: size("n_text_head")?,
        text_layers: size("n_text_layer")?,
        mels: size("n_mels")?,
    };
    // The type of most tensors; each tensor also says its own.
    reader.u32()?;
    Ok(sizes)
}

/// They are the same for every model of as many mel bands, and made anew by who computes spectrograms.
fn skip_filters(reader: &mut Reader<'_>, sizes: &Sizes) -> Result<(), ConvertError> {
    let bands = reader.count("bands of the filters", SIZE_MAX)?;
    let frequencies = reader.count("frequencies of the filters", SIZE_MAX)?;
    if bands != sizes.mels {
        return Err(malformed(FILE, format!("its filters have {bands} bands, the model has {}", sizes.mels)));
    }
    reader.skip(bands * frequencies * Dtype::F32.bytes()).map(drop)
}

fn read_tokens(reader: &mut Reader<'_>) -> Result<Vec<Vec<u8>>, ConvertError> {
    let count = reader.count("the vocabulary's length", TOKENS_MAX)?;
    let mut tokens = Vec::new();
    for _ in 0..count {
        let length = reader.count("a token's length", TOKEN_BYTES_MAX)?;
        tokens.push(reader.take(length)?.to_vec());
    }
    Ok(tokens)
}

fn read_tensor(reader: &mut Reader<'_>) -> Result<(String, Entry), ConvertError> {
    let dimensions = reader.count("a tensor's number of dimensions", DIMENSIONS_MAX)?;
    let length = reader.count("the length of a tensor's name", NAME_BYTES_MAX)?;
    let dtype = dtype(reader.u32()?)?;
    let mut shape = Vec::new();
    for _ in 0..dimensions {
        shape.insert(0, reader.count("a tensor's dimension", SIZE_MAX)?);
    }
    let name = std::str::from_utf8(reader.take(length)?);
    let name = name.map_err(|_| malformed(FILE, "a tensor's name is not text"))?.to_owned();
    // Three dimensions of at most SIZE_MAX can't overflow.
    let bytes = reader.skip(shape.iter().product::<usize>() * dtype.bytes())?;
    // The biases of convolutions are columns here.
    if name.starts_with("encoder.conv") && name.ends_with(".bias") && shape.last() == Some(&1) {
        shape.truncate(1);
    }
    Ok((name, Entry { dtype, shape, bytes }))
}

fn dtype(code: u32) -> Result<Dtype, ConvertError> {
    match code {
        0 => Ok(Dtype::F32),
        1 => Ok(Dtype::F16),
        _ => Err(unsupported(FILE, format!("ggml's tensor type {code}"))),
    }
}
