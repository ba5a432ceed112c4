//! Whisper in CTranslate2's binary form, version 6: named variables, then other names for them. Little-endian.
//! Sizes are not written down but follow from the shapes.

use super::names::key_biases;
use super::reader::Reader;
use super::{Entries, LAYERS_MAX, SIZE_MAX, Sizes, TENSORS_MAX, tensor_error, unsupported};
use crate::convert::malformed;
use crate::package::safetensors::{Dtype, Entry};
use ringfence_protocol::ConvertError;

/// Its name.
pub(super) const FILE: &str = "model.bin";

const VERSION: u32 = 6;
const SPECIFICATION: &str = "WhisperSpec";
const REVISION: u32 = 3;
const NAME_BYTES_MAX: usize = 256;
const DIMENSIONS_MAX: u8 = 3;
/// The longest variable in bytes, as the format can say it.
const VARIABLE_BYTES_MAX: usize = u32::MAX as usize;

/// What a file holds.
pub(super) struct Ctranslate2 {
    pub(super) sizes: Sizes,
    /// The tensors; variables that only say how the network is built are checked and left out.
    pub(super) entries: Entries,
}

pub(super) fn read(bytes: &[u8]) -> Result<Ctranslate2, ConvertError> {
    let mut reader = Reader::new(FILE, bytes);
    check_beginning(&mut reader)?;
    let mut entries = Entries::new();
    for _ in 0..reader.count("the number of variables", TENSORS_MAX)? {
        let (name, entry) = read_variable(&mut reader)?;
        if entries.insert(name, entry).is_some() {
            return Err(malformed(FILE, "a variable is doubled"));
        }
    }
    read_aliases(&mut reader, &entries)?;
    check_scalars(bytes, &entries)?;
    let sizes = sizes(bytes, &entries)?;
    entries.retain(|name, entry| !entry.shape.is_empty() && !IGNORED.contains(&name.as_str()));
    check_key_biases(bytes, &entries, &sizes)?;
    Ok(Ctranslate2 { sizes, entries })
}

fn check_beginning(reader: &mut Reader<'_>) -> Result<(), ConvertError> {
    let version = reader.u32()?;
    if version != VERSION {
        return Err(unsupported(FILE, format!("version {version} of CTranslate2's form")));
    }
    if name(reader)? != SPECIFICATION {
        return Err(unsupported(FILE, "a CTranslate2 model that is not Whisper"));
    }
    let revision = reader.u32()?;
    if revision != REVISION {
        return Err(unsupported(FILE, format!("revision {revision} of {SPECIFICATION}")));
    }
    Ok(())
}

/// A text with its length before it; the length counts a zero byte at its end.
fn name(reader: &mut Reader<'_>) -> Result<String, ConvertError> {
    let odd = || malformed(FILE, "a name is too long or no text");
    let length = usize::from(reader.u16()?);
    if length > NAME_BYTES_MAX {
        return Err(odd());
    }
    let text = reader.take(length)?.strip_suffix(&[0]).ok_or_else(odd)?;
    Ok(std::str::from_utf8(text).map_err(|_| odd())?.to_owned())
}

fn read_variable(reader: &mut Reader<'_>) -> Result<(String, Entry), ConvertError> {
    let name = name(reader)?;
    let dimensions = reader.u8()?;
    if dimensions > DIMENSIONS_MAX {
        return Err(tensor_error(&name, format!("it has {dimensions} dimensions")));
    }
    let mut shape = Vec::new();
    for _ in 0..dimensions {
        shape.push(reader.count("a dimension", SIZE_MAX)?);
    }
    let dtype = dtype(reader.u8()?)?;
    let length = reader.count("a variable's length", VARIABLE_BYTES_MAX)?;
    // Three dimensions of at most SIZE_MAX can't overflow.
    if shape.iter().product::<usize>() * dtype.bytes() != length {
        return Err(tensor_error(&name, "its length doesn't agree with its shape and type"));
    }
    let bytes = reader.skip(length)?;
    Ok((name, Entry { dtype, shape, bytes }))
}

fn dtype(code: u8) -> Result<Dtype, ConvertError> {
    match code {
        0 => Ok(Dtype::F32),
        1 => Ok(Dtype::I8),
        2 => Ok(Dtype::I16),
        3 => Ok(Dtype::I32),
        4 => Ok(Dtype::F16),
        _ => Err(unsupported(FILE, format!("CTranslate2's type {code}"))),
    }
}

/// The output projection must be the token embedding: packages of Whisper have no other.
fn read_aliases(reader: &mut Reader<'_>, entries: &Entries) -> Result<(), ConvertError> {
    let mut aliases = Vec::new();
    for _ in 0..reader.count("the number of other names", TENSORS_MAX)? {
        aliases.push((name(reader)?, name(reader)?));
    }
    if !reader.is_done() {
        return Err(malformed(FILE, "something follows its end"));
    }
    let tied = |(other, of): &(String, String)| other == PROJECTION && of == EMBEDDINGS;
    if aliases.iter().any(tied) && aliases.len() == 1 && entries.contains_key(EMBEDDINGS) {
        return Ok(());
    }
    Err(unsupported(FILE, "an output projection that is not the token embedding"))
}

const PROJECTION: &str = "decoder/projection/weight";
const EMBEDDINGS: &str = "decoder/embeddings/weight";

/// Tensors that say nothing which the weights or the vocabulary don't.
const IGNORED: &[&str] = &["decoder/alignment_heads"];

/// Numbers about how the network is built: what they must be, if they are there. No entry: any value.
const SCALARS: &[(&str, Option<i32>)] = &[
    ("decoder/activation", Some(GELU)),
    ("encoder/activation", Some(GELU)),
    ("decoder/pre_norm", Some(1)),
    ("encoder/pre_norm", Some(1)),
    ("decoder/alibi", Some(0)),
    ("decoder/scale_embeddings", Some(0)),
    ("encoder/scale_embeddings", Some(0)),
    ("decoder/start_from_zero_embedding", Some(0)),
    ("decoder/alignment_heads", None),
    ("decoder/alignment_layer", None),
    (AUDIO_HEADS, None),
    (TEXT_HEADS, None),
];

const GELU: i32 = 3;
const AUDIO_HEADS: &str = "encoder/num_heads";
const TEXT_HEADS: &str = "decoder/num_heads";

fn check_scalars(bytes: &[u8], entries: &Entries) -> Result<(), ConvertError> {
    for (name, entry) in entries.iter().filter(|(_, entry)| entry.shape.is_empty()) {
        let known = SCALARS.iter().find(|(known, _)| known == name);
        let (_, must) = known.ok_or_else(|| unsupported(FILE, format!("variable {name}")))?;
        let found = scalar(bytes, entry);
        if must.is_some_and(|must| found != Some(must)) {
            return Err(unsupported(FILE, format!("this value of {name}")));
        }
    }
    Ok(())
}

/// A whole number; `None` for other types.
fn scalar(bytes: &[u8], entry: &Entry) -> Option<i32> {
    match bytes[entry.bytes.clone()] {
        [a] => Some(i32::from(i8::from_le_bytes([a]))),
        [a, b] if entry.dtype == Dtype::I16 => Some(i32::from(i16::from_le_bytes([a, b]))),
        [a, b, c, d] if entry.dtype == Dtype::I32 => Some(i32::from_le_bytes([a, b, c, d])),
        _ => None,
    }
}

fn sizes(bytes: &[u8], entries: &Entries) -> Result<Sizes, ConvertError> {
    let [vocabulary, text_state] = shape(entries, EMBEDDINGS)?;
    let [state, mels, _] = shape(entries, "encoder/conv1/weight")?;
    let [audio_positions, _] = shape(entries, "encoder/position_encodings/encodings")?;
    let [text_positions, _] = shape(entries, "decoder/position_encodings/encodings")?;
    Ok(Sizes {
        mels,
        audio_positions,
        state,
        audio_heads: heads(bytes, entries, AUDIO_HEADS)?,
        audio_layers: layers(entries, "encoder"),
        text_positions,
        text_state,
        text_heads: heads(bytes, entries, TEXT_HEADS)?,
        text_layers: layers(entries, "decoder"),
        vocabulary,
    })
}

fn shape<const N: usize>(entries: &Entries, name: &str) -> Result<[usize; N], ConvertError> {
    let entry = entries.get(name).ok_or_else(|| tensor_error(name, "it is missing"))?;
    let shape = entry.shape.as_slice().try_into();
    shape.map_err(|_| tensor_error(name, format!("it has {} dimensions, not {N}", entry.shape.len())))
}

fn heads(bytes: &[u8], entries: &Entries, name: &str) -> Result<usize, ConvertError> {
    let heads = entries.get(name).and_then(|entry| scalar(bytes, entry));
    let heads = heads.and_then(|heads| usize::try_from(heads).ok());
    heads.ok_or_else(|| tensor_error(name, "it is missing or no count"))
}

/// How many layers there are; that each is whole shows when their tensors are taken.
fn layers(entries: &Entries, side: &str) -> usize {
    (0..=LAYERS_MAX)
        .take_while(|layer| entries.contains_key(&format!("{side}/layer_{layer}/ffn/linear_0/weight")))
        .count()
}

fn check_key_biases(bytes: &[u8], entries: &Entries, sizes: &Sizes) -> Result<(), ConvertError> {
    for (name, (part, parts)) in key_biases(sizes) {
        // A bias that is missing shows when the others of its tensor are taken.
        let bias = entries.get(&name).map_or(&[][..], |entry| &bytes[entry.bytes.clone()]);
        let length = bias.len() / parts;
        if bias[part * length..][..length].iter().any(|byte| *byte != 0) {
            return Err(tensor_error(&name, "it gives keys a bias, which Whisper's keys don't have"));
        }
    }
    Ok(())
}
