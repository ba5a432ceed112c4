//! `model.safetensors`, or the shards of one: a strict parser of the whole header. The format is: a little-endian u64,
//! that many bytes of JSON, then the tensors' bytes. Every byte belongs to exactly one tensor, in some order, without
//! holes; every tensor is in exactly one shard, and the index, where there is one, says in which.

use super::{FileBytes, Files, json, malformed};
use ringfence_protocol::LoadError;
use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;

/// Its name where it is one file.
pub const FILE: &str = "model.safetensors";
/// What the names of all shards end with.
const SUFFIX: &str = ".safetensors";
/// Says which shard has which tensor.
pub const INDEX: &str = "model.safetensors.index.json";
const INDEX_BYTES_MAX: usize = 8 * 1024 * 1024;
/// The largest shard in bytes.
const BYTES_MAX: usize = 1 << 40;
/// The most shards.
pub const SHARDS_MAX: usize = 128;

/// The longest header in bytes.
pub const HEADER_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The most tensors, of all shards together.
pub const TENSORS_MAX: usize = 16_384;
/// The longest name of a tensor in bytes.
const NAME_BYTES_MAX: usize = 256;
/// The most dimensions of a tensor.
const DIMENSIONS_MAX: usize = 8;
/// The most entries of the free-form metadata.
const METADATA_MAX: usize = 1024;

/// Element types of the format whose elements are whole bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Dtype {
    /// bool
    #[serde(rename = "BOOL")]
    Bool,
    /// u8
    U8,
    /// i8
    I8,
    /// u16
    U16,
    /// i16
    I16,
    /// IEEE half
    F16,
    /// bfloat16
    #[serde(rename = "BF16")]
    Bf16,
    /// u32
    U32,
    /// i32
    I32,
    /// IEEE single
    F32,
    /// u64
    U64,
    /// i64
    I64,
    /// IEEE double
    F64,
}

impl Dtype {
    /// As headers have it.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::Bool => "BOOL",
            Dtype::U8 => "U8",
            Dtype::I8 => "I8",
            Dtype::U16 => "U16",
            Dtype::I16 => "I16",
            Dtype::F16 => "F16",
            Dtype::Bf16 => "BF16",
            Dtype::U32 => "U32",
            Dtype::I32 => "I32",
            Dtype::F32 => "F32",
            Dtype::U64 => "U64",
            Dtype::I64 => "I64",
            Dtype::F64 => "F64",
        }
    }

    /// Bytes of an element.
    pub fn bytes(self) -> usize {
        match self {
            Dtype::Bool | Dtype::U8 | Dtype::I8 => 1,
            Dtype::U16 | Dtype::I16 | Dtype::F16 | Dtype::Bf16 => 2,
            Dtype::U32 | Dtype::I32 | Dtype::F32 => 4,
            Dtype::U64 | Dtype::I64 | Dtype::F64 => 8,
        }
    }
}

/// Where a tensor is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Type of its elements.
    pub dtype: Dtype,
    /// Sizes of its dimensions; none for a scalar.
    pub shape: Vec<usize>,
    /// Its bytes in the file.
    pub bytes: Range<usize>,
}

/// The tensors of a package.
#[derive(Clone, Default)]
pub struct Tensors {
    entries: BTreeMap<String, Entry>,
    /// The shard that has each.
    shards: BTreeMap<String, FileBytes>,
}

impl fmt::Debug for Tensors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(&self.entries).finish()
    }
}

impl Tensors {
    /// Reads the headers of all of a package's weights.
    ///
    /// # Errors
    /// There are none, a file is malformed, two have one tensor, or the index says something else.
    pub fn read(files: &Files) -> Result<Self, LoadError> {
        let index = Index::read(files)?;
        let mut tensors = Self::default();
        for (count, name) in shards(files).enumerate() {
            if count == SHARDS_MAX {
                return Err(malformed(name, format!("at most {SHARDS_MAX} files of weights are taken")));
            }
            let entries = tensors.add(name, files.require(name, BYTES_MAX)?)?;
            if index.as_ref().is_some_and(|index| !index.agrees(name, &entries)) {
                return Err(malformed(INDEX, format!("it doesn't list the tensors that `{name}` has")));
            }
            tensors.entries.extend(entries);
        }
        if shards(files).next().is_none() {
            return Err(LoadError::Missing { file: FILE.to_owned() });
        }
        Ok(tensors)
    }

    /// The tensors of a shard, none of which was in another.
    fn add(&mut self, name: &str, shard: &FileBytes) -> Result<BTreeMap<String, Entry>, LoadError> {
        let entries = parse(name, shard)?;
        if self.entries.len() + entries.len() > TENSORS_MAX {
            return Err(malformed(name, format!("together, at most {TENSORS_MAX} tensors are taken")));
        }
        for tensor in entries.keys() {
            if self.shards.insert(tensor.clone(), shard.clone()).is_some() {
                return Err(malformed(name, format!("the tensor `{tensor}` is in another file as well")));
            }
        }
        Ok(entries)
    }

    /// Every tensor by name.
    pub fn entries(&self) -> &BTreeMap<String, Entry> {
        &self.entries
    }

    /// The whole file that a tensor is in.
    pub fn file_of(&self, tensor: &str) -> Option<&FileBytes> {
        self.shards.get(tensor)
    }
}

/// The names of a package's files of weights.
pub fn shards(files: &Files) -> impl Iterator<Item = &str> {
    files.names().filter(|name| name.ends_with(SUFFIX) && !name.contains('/'))
}

/// `model.safetensors.index.json`.
#[derive(Deserialize)]
struct Index {
    /// The shard of each tensor.
    weight_map: BTreeMap<String, String>,
    #[serde(rename = "metadata")]
    _metadata: Option<IgnoredAny>,
}

impl Index {
    /// All shards that it names are there.
    fn read(files: &Files) -> Result<Option<Self>, LoadError> {
        let Some(bytes) = files.find(INDEX, INDEX_BYTES_MAX)? else {
            return Ok(None);
        };
        let index = Self::parse(bytes)?;
        match index.weight_map.values().find(|shard| files.get(shard).is_none()) {
            Some(shard) => Err(LoadError::Missing { file: shard.clone() }),
            None => Ok(Some(index)),
        }
    }

    fn parse(bytes: &[u8]) -> Result<Self, LoadError> {
        let index: Self = json::parse(INDEX, bytes)?;
        let legal = |name: &String| is_legal_name(name) && name.ends_with(SUFFIX);
        if index.weight_map.len() > TENSORS_MAX || !index.weight_map.values().all(legal) {
            return Err(malformed(INDEX, "it lists too many tensors, or names an illegal file"));
        }
        Ok(index)
    }

    /// It lists exactly these tensors for this shard.
    fn agrees(&self, shard: &str, entries: &BTreeMap<String, Entry>) -> bool {
        let listed = self.weight_map.iter().filter(|(_, listed)| listed.as_str() == shard);
        listed.map(|(tensor, _)| tensor).eq(entries.keys())
    }
}

/// Parses and checks the header of the file `name`, which is in `bytes`.
///
/// # Errors
/// It is malformed.
pub fn parse(name: &str, bytes: &[u8]) -> Result<BTreeMap<String, Entry>, LoadError> {
    entries(bytes).map_err(|reason| malformed(name, reason))
}

fn entries(file: &[u8]) -> Result<BTreeMap<String, Entry>, String> {
    let (length, rest) = file.split_first_chunk::<8>().ok_or("it ends in the header's length")?;
    let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
    if length > HEADER_BYTES_MAX {
        return Err(format!("the header has {length} bytes, at most {HEADER_BYTES_MAX} are taken"));
    }
    let (header, data) = rest.split_at_checked(length).ok_or("it ends in the header")?;
    if header.first() != Some(&b'{') {
        return Err("the header doesn't start with `{`".to_owned());
    }
    let header: Header =
        serde_json::from_slice(header).map_err(|error| format!("header: {}", json::describe(&error)))?;
    check_cover(&header.0, data.len())?;
    let entry = |raw: RawEntry| {
        let [begin, end] = raw.data_offsets;
        Entry { dtype: raw.dtype, shape: raw.shape, bytes: 8 + length + begin..8 + length + end }
    };
    Ok(header.0.into_iter().map(|(name, raw)| (name, entry(raw))).collect())
}

/// Each tensor is as long as its shape says, and together they cover the data once.
fn check_cover(entries: &BTreeMap<String, RawEntry>, data: usize) -> Result<(), String> {
    let mut spans = Vec::with_capacity(entries.len());
    for entry in entries.values() {
        let [begin, end] = entry.data_offsets;
        let length = end.checked_sub(begin).ok_or("a tensor ends before it begins")?;
        if entry.byte_length() != Some(length) {
            return Err("a tensor's shape and type don't agree with its offsets".to_owned());
        }
        spans.push((begin, end));
    }
    spans.sort_unstable();
    let mut covered = 0;
    for (begin, end) in spans {
        if begin != covered {
            return Err("tensors overlap or leave a hole".to_owned());
        }
        covered = end;
    }
    if covered == data { Ok(()) } else { Err("the tensors don't end where the file ends".to_owned()) }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    dtype: Dtype,
    shape: Vec<usize>,
    data_offsets: [usize; 2],
}

impl RawEntry {
    /// `None` if the product overflows.
    fn byte_length(&self) -> Option<usize> {
        self.shape.iter().try_fold(self.dtype.bytes(), |product, size| product.checked_mul(*size))
    }
}

/// The header's object, each name once.
struct Header(BTreeMap<String, RawEntry>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Header, A::Error> {
                read_entries(map).map(Header)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

fn read_entries<'de, A: MapAccess<'de>>(mut map: A) -> Result<BTreeMap<String, RawEntry>, A::Error> {
    let mut entries = BTreeMap::new();
    let mut metadata = false;
    while let Some(name) = map.next_key::<String>()? {
        if name == "__metadata__" {
            if std::mem::replace(&mut metadata, true) {
                return Err(A::Error::custom("doubled metadata"));
            }
            map.next_value::<Metadata>()?;
            continue;
        }
        let entry = map.next_value::<RawEntry>()?;
        let legal =
            is_legal_name(&name) && entry.shape.len() <= DIMENSIONS_MAX && entries.len() < TENSORS_MAX;
        if !legal || entries.insert(name, entry).is_some() {
            return Err(A::Error::custom("an illegal or doubled tensor"));
        }
    }
    Ok(entries)
}

/// Printable ASCII without anything that could be taken for a path upwards.
fn is_legal_name(name: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\' && byte != b'/')
        && !name.contains("..")
}

/// Texts by text, each key once; their contents mean nothing here.
struct Metadata;

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Texts;
        impl<'de> Visitor<'de> for Texts {
            type Value = Metadata;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of texts")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Metadata, A::Error> {
                let mut keys = BTreeSet::new();
                while let Some((key, _)) = map.next_entry::<String, String>()? {
                    if keys.len() == METADATA_MAX || !keys.insert(key) {
                        return Err(A::Error::custom("doubled or too much metadata"));
                    }
                }
                Ok(Metadata)
            }
        }
        deserializer.deserialize_map(Texts)
    }
}
