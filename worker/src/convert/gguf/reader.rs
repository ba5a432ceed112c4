//! The outline of a GGUF file, version 2 or 3, little-endian: metadata and where tensors are. Every length is compared
//! with what is left of the file before anything is made of it; arrays stay where they are and are read when asked for.
//!
//! Source: the format's specification, <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

use super::super::blocks::Type;
use super::super::malformed;
use super::FILE;
use ringfence_protocol::ConvertError;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Range;

/// The most entries of the metadata.
const METADATA_MAX: u64 = 4096;
/// The longest key and the longest tensor name in bytes.
const NAME_BYTES_MAX: u64 = 256;
/// The longest text in bytes.
const TEXT_BYTES_MAX: u64 = 1 << 20;
/// The most elements of an array.
const ARRAY_MAX: u64 = 1 << 22;
/// The most tensors.
const TENSORS_MAX: u64 = crate::package::safetensors::TENSORS_MAX as u64;
/// The most dimensions of a tensor.
const DIMENSIONS_MAX: u32 = 4;
/// Where the file says nothing.
const ALIGNMENT: u64 = 32;
/// The largest alignment.
const ALIGNMENT_MAX: u64 = 1 << 16;

/// A parsed outline.
#[derive(Debug)]
pub(super) struct Gguf<'a> {
    /// What the file says about itself.
    pub(super) metadata: Metadata<'a>,
    /// Where tensors are, by name.
    pub(super) tensors: BTreeMap<&'a str, Tensor>,
}

/// Where a tensor is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tensor {
    /// How its elements are stored.
    pub(super) kind: Type,
    /// Sizes of its dimensions, outermost first (the file has them the other way round).
    pub(super) shape: Vec<usize>,
    /// Its bytes in the file.
    pub(super) bytes: Range<usize>,
}

/// What a file says about itself, by key.
#[derive(Debug, Default)]
pub(super) struct Metadata<'a>(BTreeMap<&'a str, Value<'a>>);

#[derive(Clone, Copy, Debug)]
enum Value<'a> {
    Natural(u64),
    Integer(i64),
    Float(f64),
    Flag(bool),
    Text(&'a str),
    Array(Array<'a>),
}

/// Elements that were checked, still as the file has them.
#[derive(Clone, Copy, Debug)]
struct Array<'a> {
    kind: Kind,
    count: usize,
    bytes: &'a [u8],
}

/// Types of values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    Array,
    U64,
    I64,
    F64,
}

impl Kind {
    fn of(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::U8,
            1 => Self::I8,
            2 => Self::U16,
            3 => Self::I16,
            4 => Self::U32,
            5 => Self::I32,
            6 => Self::F32,
            7 => Self::Bool,
            8 => Self::Text,
            9 => Self::Array,
            10 => Self::U64,
            11 => Self::I64,
            12 => Self::F64,
            _ => return None,
        })
    }
}

impl<'a> Gguf<'a> {
    /// Reads and checks the outline of a whole file.
    pub(super) fn read(file: &'a [u8]) -> Result<Self, ConvertError> {
        let mut cursor = Cursor { file, at: 0 };
        if cursor.array()? != *b"GGUF" {
            return Err(malformed(FILE, "it doesn't begin as GGUF does"));
        }
        let version = cursor.u32()?;
        if ![2, 3].contains(&version) {
            let version = if version.swap_bytes() <= 3 { "big-endian GGUF" } else { "this version of GGUF" };
            return Err(super::unsupported(version));
        }
        let tensors = cursor.count("number of tensors", TENSORS_MAX)?;
        let entries = cursor.count("number of metadata entries", METADATA_MAX)?;
        let metadata = cursor.metadata(entries)?;
        let alignment = metadata.alignment()?;
        let raw = (0..tensors).map(|_| cursor.tensor()).collect::<Result<Vec<_>, _>>()?;
        let start = (cursor.at as u64).next_multiple_of(alignment);
        let tensors = place(raw, start, alignment, file.len() as u64)?;
        Ok(Self { metadata, tensors })
    }
}

/// A tensor as the file lists it.
struct Listed<'a> {
    name: &'a str,
    kind: Type,
    shape: Vec<usize>,
    /// From the start of the data.
    offset: u64,
    length: u64,
}

/// Tensors follow one another with nothing between them but padding to the alignment, and end where the file ends.
fn place<'a>(
    mut listed: Vec<Listed<'a>>,
    start: u64,
    alignment: u64,
    file: u64,
) -> Result<BTreeMap<&'a str, Tensor>, ConvertError> {
    listed.sort_by_key(|tensor| tensor.offset);
    let mut tensors = BTreeMap::new();
    let mut end = start;
    for Listed { name, kind, shape, offset, length } in listed {
        let begin = start.checked_add(offset);
        let expected = end.next_multiple_of(alignment);
        let Some(begin) = begin.filter(|begin| *begin == expected) else {
            return Err(malformed(FILE, "tensors overlap, leave a hole or are not aligned"));
        };
        end = begin.checked_add(length).filter(|end| *end <= file).ok_or_else(ends_early)?;
        let tensor = Tensor { kind, shape, bytes: begin as usize..end as usize };
        if tensors.insert(name, tensor).is_some() {
            return Err(ConvertError::Twice { file: name.to_owned() });
        }
    }
    if file > end.next_multiple_of(alignment) {
        return Err(malformed(FILE, "there is more after the last tensor"));
    }
    Ok(tensors)
}

fn ends_early() -> ConvertError {
    malformed(FILE, "it ends too early")
}

/// A place in the file.
struct Cursor<'a> {
    file: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, length: u64) -> Result<&'a [u8], ConvertError> {
        let length = usize::try_from(length).map_err(|_| ends_early())?;
        let end = self.at.checked_add(length).ok_or_else(ends_early)?;
        let taken = self.file.get(self.at..end).ok_or_else(ends_early)?;
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ConvertError> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N as u64)?);
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, ConvertError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, ConvertError> {
        self.array().map(u64::from_le_bytes)
    }

    fn count(&mut self, what: &str, max: u64) -> Result<u64, ConvertError> {
        let count = self.u64()?;
        let reason = || malformed(FILE, format!("a {what} is {count}, at most {max} is taken"));
        if count <= max { Ok(count) } else { Err(reason()) }
    }

    fn text(&mut self, max: u64) -> Result<&'a str, ConvertError> {
        let length = self.count("text's length", max)?;
        let bytes = self.take(length)?;
        std::str::from_utf8(bytes).map_err(|_| malformed(FILE, "a text is no UTF-8"))
    }

    /// Of a key or a tensor: graphic ASCII.
    fn name(&mut self) -> Result<&'a str, ConvertError> {
        let name = self.text(NAME_BYTES_MAX)?;
        let legal = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic());
        if legal { Ok(name) } else { Err(malformed(FILE, "a key or the name of a tensor is illegal")) }
    }

    fn metadata(&mut self, entries: u64) -> Result<Metadata<'a>, ConvertError> {
        let mut metadata = BTreeMap::new();
        for _ in 0..entries {
            let key = self.name()?;
            let kind = self.kind()?;
            let value = self.value(kind)?;
            match metadata.entry(key) {
                Entry::Vacant(entry) => entry.insert(value),
                Entry::Occupied(_) => return Err(ConvertError::Twice { file: key.to_owned() }),
            };
        }
        Ok(Metadata(metadata))
    }

    fn kind(&mut self) -> Result<Kind, ConvertError> {
        Kind::of(self.u32()?).ok_or_else(|| malformed(FILE, "a value is of an unknown type"))
    }

    fn value(&mut self, kind: Kind) -> Result<Value<'a>, ConvertError> {
        Ok(match kind {
            Kind::Array => Value::Array(self.elements()?),
            Kind::U8 => Value::Natural(u8::from_le_bytes(self.array()?).into()),
            Kind::I8 => Value::Integer(i8::from_le_bytes(self.array()?).into()),
            Kind::U16 => Value::Natural(u16::from_le_bytes(self.array()?).into()),
            Kind::I16 => Value::Integer(i16::from_le_bytes(self.array()?).into()),
            Kind::U32 => Value::Natural(self.u32()?.into()),
            Kind::I32 => Value::Integer(i32::from_le_bytes(self.array()?).into()),
            Kind::F32 => Value::Float(shortest(f32::from_le_bytes(self.array()?))),
            Kind::Bool => Value::Flag(self.flag()?),
            Kind::Text => Value::Text(self.text(TEXT_BYTES_MAX)?),
            Kind::U64 => Value::Natural(self.u64()?),
            Kind::I64 => Value::Integer(i64::from_le_bytes(self.array()?)),
            Kind::F64 => Value::Float(f64::from_le_bytes(self.array()?)),
        })
    }

    fn flag(&mut self) -> Result<bool, ConvertError> {
        match self.array()? {
            [0] => Ok(false),
            [1] => Ok(true),
            [_] => Err(malformed(FILE, "a flag is neither 0 nor 1")),
        }
    }

    /// Walks over an array; each element is looked at once, so that nothing is wrong with it later.
    fn elements(&mut self) -> Result<Array<'a>, ConvertError> {
        let kind = self.kind()?;
        if kind == Kind::Array {
            return Err(super::unsupported("an array of arrays"));
        }
        let count = self.count("number of array elements", ARRAY_MAX)?;
        let start = self.at;
        for _ in 0..count {
            self.value(kind)?;
        }
        Ok(Array { kind, count: count as usize, bytes: &self.file[start..self.at] })
    }

    fn tensor(&mut self) -> Result<Listed<'a>, ConvertError> {
        let name = self.name()?;
        let dimensions = self.u32()?;
        if !(1..=DIMENSIONS_MAX).contains(&dimensions) {
            return Err(tensor(name, "it has no dimension, or too many"));
        }
        let mut sizes = (0..dimensions).map(|_| self.u64()).collect::<Result<Vec<_>, _>>()?;
        let number = self.u32()?;
        let kind = Type::of(number).ok_or_else(|| super::unsupported(&format!("ggml's type {number}")))?;
        let length = byte_length(&sizes, kind).ok_or_else(|| tensor(name, "its shape can't be"))?;
        sizes.reverse();
        let shape = sizes.into_iter().map(|size| size as usize).collect();
        Ok(Listed { name, kind, shape, offset: self.u64()?, length })
    }
}

/// Of a tensor whose rows are `sizes[0]` long; `None` if a row is no whole number of blocks, or there are too many.
fn byte_length(sizes: &[u64], kind: Type) -> Option<u64> {
    let row = *sizes.first()?;
    if sizes.contains(&0) || !row.is_multiple_of(kind.block_weights() as u64) {
        return None;
    }
    let row = (row / kind.block_weights() as u64).checked_mul(kind.block_bytes() as u64)?;
    // The number of weights is later counted in floats; that must fit too.
    sizes.iter().try_fold(4_u64, |product, size| product.checked_mul(*size))?;
    sizes[1..].iter().try_fold(row, |product, size| product.checked_mul(*size))
}

fn tensor(name: &str, reason: &str) -> ConvertError {
    ConvertError::Tensor { tensor: name.to_owned(), reason: reason.to_owned() }
}

/// The double with the shortest decimal form of the float, so that 1e-5 stays 1e-5 in JSON.
fn shortest(float: f32) -> f64 {
    float.to_string().parse().unwrap_or(f64::NAN)
}

impl<'a> Metadata<'a> {
    fn alignment(&self) -> Result<u64, ConvertError> {
        let alignment = self.natural("general.alignment")?.unwrap_or(ALIGNMENT);
        let legal = alignment.is_power_of_two() && alignment <= ALIGNMENT_MAX;
        if legal { Ok(alignment) } else { Err(wrong("general.alignment")) }
    }

    /// Every key.
    pub(super) fn keys(&self) -> impl Iterator<Item = &'a str> {
        self.0.keys().copied()
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>, ConvertError> {
        self.get(key, |value| match value {
            Value::Text(text) => Some(text),
            Value::Natural(_) | Value::Integer(_) | Value::Float(_) | Value::Flag(_) => None,
            Value::Array(_) => None,
        })
    }

    pub(super) fn natural(&self, key: &str) -> Result<Option<u64>, ConvertError> {
        self.get(key, natural)
    }

    pub(super) fn float(&self, key: &str) -> Result<Option<f64>, ConvertError> {
        self.get(key, |value| match value {
            Value::Float(float) => Some(float).filter(|float| float.is_finite()),
            Value::Natural(_) | Value::Integer(_) | Value::Text(_) | Value::Flag(_) => None,
            Value::Array(_) => None,
        })
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>, ConvertError> {
        self.get(key, |value| match value {
            Value::Flag(flag) => Some(flag),
            Value::Natural(_) | Value::Integer(_) | Value::Text(_) | Value::Float(_) => None,
            Value::Array(_) => None,
        })
    }

    /// An array of texts.
    pub(super) fn texts(&self, key: &str) -> Result<Option<Vec<&'a str>>, ConvertError> {
        self.get(key, |value| match value {
            Value::Array(array) if array.kind == Kind::Text => array.texts(),
            Value::Natural(_) | Value::Integer(_) | Value::Text(_) | Value::Float(_) => None,
            Value::Array(_) | Value::Flag(_) => None,
        })
    }

    /// An array of numbers that are not negative.
    pub(super) fn naturals(&self, key: &str) -> Result<Option<Vec<u64>>, ConvertError> {
        self.get(key, |value| match value {
            Value::Array(array) => array.naturals(),
            Value::Natural(_) | Value::Integer(_) | Value::Text(_) | Value::Float(_) => None,
            Value::Flag(_) => None,
        })
    }

    /// How many elements the array of this key has; 0 if there is none.
    pub(super) fn length(&self, key: &str) -> usize {
        match self.0.get(key) {
            Some(Value::Array(array)) => array.count,
            Some(Value::Natural(_) | Value::Integer(_) | Value::Text(_) | Value::Float(_)) => 0,
            Some(Value::Flag(_)) | None => 0,
        }
    }

    fn get<T>(
        &self,
        key: &str,
        read: impl FnOnce(Value<'a>) -> Option<T>,
    ) -> Result<Option<T>, ConvertError> {
        self.0.get(key).map(|value| read(*value).ok_or_else(|| wrong(key))).transpose()
    }
}

fn natural(value: Value<'_>) -> Option<u64> {
    match value {
        Value::Natural(number) => Some(number),
        Value::Integer(number) => u64::try_from(number).ok(),
        Value::Float(_) | Value::Text(_) | Value::Flag(_) | Value::Array(_) => None,
    }
}

impl<'a> Array<'a> {
    fn values(self) -> impl Iterator<Item = Option<Value<'a>>> {
        let mut cursor = Cursor { file: self.bytes, at: 0 };
        (0..self.count).map(move |_| cursor.value(self.kind).ok())
    }

    fn texts(self) -> Option<Vec<&'a str>> {
        let text = |value| if let Some(Value::Text(text)) = value { Some(text) } else { None };
        self.values().map(text).collect()
    }

    fn naturals(self) -> Option<Vec<u64>> {
        self.values().map(|value| value.and_then(natural)).collect()
    }
}

/// A value that is not what its key needs.
pub(super) fn wrong(key: &str) -> ConvertError {
    malformed(FILE, format!("`{key}` is of another type, or out of bounds"))
}
