//! OpenAI's Whisper checkpoints as `torch.save` writes them: a zip of stored members, with a pickle of the sizes and
//! of what each tensor is, and a member for each storage.

use super::pickle::{GROWTH, PICKLE_BYTES_MAX, Pickle, Tensor, Value};
use super::{Entries, SIZE_MAX, Sizes, TENSORS_MAX, tensor_error, unsupported};
use crate::convert::{denied, malformed};
use crate::memory::Memory;
use crate::package::safetensors::Entry;
use ringfence_protocol::ConvertError;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Cursor;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use zip::{CompressionMethod, ZipArchive};

/// Its name.
pub(super) const FILE: &str = "model.pt";

/// The most members: a storage for each tensor and a few more.
const MEMBERS_MAX: usize = TENSORS_MAX + 16;
/// The most bytes of the list of members, and what a byte of it can become in memory.
const DIRECTORY_BYTES_MAX: u32 = 4 * 1024 * 1024;
const DIRECTORY_GROWTH: u64 = 32;
const PICKLE: &str = "data.pkl";
/// The dictionary of tensors.
const STATE: &str = "model_state_dict";

/// What a file holds.
pub(super) struct Checkpoint {
    pub(super) sizes: Sizes,
    pub(super) entries: Entries,
    /// The tensors of two dimensions that stand column by column.
    pub(super) turned: BTreeSet<String>,
}

pub(super) fn read(bytes: &[u8], memory: &dyn Memory) -> Result<Checkpoint, ConvertError> {
    let members = members(bytes, memory)?;
    let (prefix, pickle) = find_pickle(&members)?;
    check_byte_order(bytes, members.get(&format!("{prefix}byteorder")))?;
    let wanted = pickle.len().min(PICKLE_BYTES_MAX) as u64 * GROWTH;
    memory.check(wanted).map_err(denied)?;
    let refuse = |reason: String| malformed(FILE, reason);
    let (pickle, root) = Pickle::read(&bytes[pickle]).map_err(refuse)?;
    let member = |key: &str| members.get(&format!("{prefix}data/{key}")).cloned();
    let sizes = sizes(&pickle, root)?;
    let entries = entries(&pickle, root, member)?;
    Ok(Checkpoint { sizes, entries, turned: turned(&pickle, root)? })
}

/// Where each member's bytes are.
fn members(bytes: &[u8], memory: &dyn Memory) -> Result<BTreeMap<String, Range<usize>>, ConvertError> {
    let directory = check_end(bytes)?;
    memory.check(u64::from(directory) * DIRECTORY_GROWTH).map_err(denied)?;
    let read = catch_unwind(AssertUnwindSafe(|| list(bytes)));
    read.unwrap_or_else(|_| Err(ConvertError::Decoder { file: FILE.to_owned() }))
}

/// Checks the end record before the library reads what it points to, and says how long the list of members is.
fn check_end(bytes: &[u8]) -> Result<u32, ConvertError> {
    const SIGNATURE: &[u8] = b"PK\x05\x06";
    const LENGTH: usize = 22;
    let end = bytes.len().checked_sub(LENGTH).map(|start| &bytes[start..]);
    let end = end.filter(|end| end.starts_with(SIGNATURE));
    let end = end.ok_or_else(|| malformed(FILE, "it is no zip archive, or something follows its end"))?;
    let count = usize::from(u16::from_le_bytes([end[10], end[11]]));
    let directory = u32::from_le_bytes([end[12], end[13], end[14], end[15]]);
    if count > MEMBERS_MAX || directory > DIRECTORY_BYTES_MAX {
        return Err(malformed(FILE, "it has too many members"));
    }
    Ok(directory)
}

fn list(bytes: &[u8]) -> Result<BTreeMap<String, Range<usize>>, ConvertError> {
    let broken = |_| malformed(FILE, "its list of members is broken");
    let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(broken)?;
    if archive.len() > MEMBERS_MAX {
        return Err(malformed(FILE, "it has too many members"));
    }
    let mut members = BTreeMap::new();
    for index in 0..archive.len() {
        let member = archive.by_index_raw(index).map_err(broken)?;
        if member.compression() != CompressionMethod::Stored || member.encrypted() {
            return Err(unsupported(FILE, "a compressed or encrypted member"));
        }
        let range = range(bytes.len(), member.data_start(), member.size());
        let range = range.ok_or_else(|| malformed(FILE, "a member lies outside"))?;
        let name = member.name().map_err(broken)?.into_owned();
        if members.insert(name, range).is_some() {
            return Err(malformed(FILE, "a member is doubled"));
        }
    }
    Ok(members)
}

fn range(length: usize, start: Option<u64>, size: u64) -> Option<Range<usize>> {
    let start = usize::try_from(start?).ok()?;
    let end = start.checked_add(usize::try_from(size).ok()?)?;
    (end <= length).then_some(start..end)
}

/// The one pickle, and what stands before its name and the names of all others.
fn find_pickle(members: &BTreeMap<String, Range<usize>>) -> Result<(String, Range<usize>), ConvertError> {
    let mut found = members.iter().filter_map(|(name, range)| {
        let prefix = name.strip_suffix(PICKLE).filter(|prefix| prefix.ends_with('/'))?;
        Some((prefix.to_owned(), range.clone()))
    });
    let one = found.next().ok_or_else(|| malformed(FILE, "it has no `data.pkl`"))?;
    if found.next().is_some() { Err(malformed(FILE, "it has more than one `data.pkl`")) } else { Ok(one) }
}

/// Files of older versions don't say it; they are little-endian.
fn check_byte_order(bytes: &[u8], member: Option<&Range<usize>>) -> Result<(), ConvertError> {
    match member.map(|range| &bytes[range.clone()]) {
        None | Some(b"little") => Ok(()),
        Some(_) => Err(unsupported(FILE, "another byte order than little-endian")),
    }
}

fn sizes(pickle: &Pickle<'_>, root: Value<'_>) -> Result<Sizes, ConvertError> {
    let dimensions = part(pickle, root, "dims")?;
    let size = |name: &str| match dimensions.get(name) {
        Some(Value::Integer(size)) => bounded(name, *size),
        _ => Err(malformed(FILE, format!("`dims` has no number `{name}`"))),
    };
    Ok(Sizes {
        mels: size("n_mels")?,
        audio_positions: size("n_audio_ctx")?,
        state: size("n_audio_state")?,
        audio_heads: size("n_audio_head")?,
        audio_layers: size("n_audio_layer")?,
        text_positions: size("n_text_ctx")?,
        text_state: size("n_text_state")?,
        text_heads: size("n_text_head")?,
        text_layers: size("n_text_layer")?,
        vocabulary: size("n_vocab")?,
    })
}

fn bounded(name: &str, size: i64) -> Result<usize, ConvertError> {
    let size = usize::try_from(size).ok().filter(|size| *size <= SIZE_MAX);
    size.ok_or_else(|| malformed(FILE, format!("`{name}` is below zero or above {SIZE_MAX}")))
}

type Part<'p, 'a> = &'p std::collections::HashMap<&'a str, Value<'a>>;

fn part<'p, 'a>(pickle: &'p Pickle<'a>, root: Value<'a>, name: &str) -> Result<Part<'p, 'a>, ConvertError> {
    let part = pickle.dictionary(root).and_then(|root| root.get(name));
    let part = part.and_then(|part| pickle.dictionary(*part));
    part.ok_or_else(|| malformed(FILE, format!("it has no dictionary `{name}`")))
}

fn entries<'a>(
    pickle: &Pickle<'a>,
    root: Value<'a>,
    member: impl Fn(&str) -> Option<Range<usize>>,
) -> Result<Entries, ConvertError> {
    let state = part(pickle, root, STATE)?;
    if state.len() > TENSORS_MAX {
        return Err(malformed(FILE, "it has too many tensors"));
    }
    let entry = |(name, value): (&&str, &Value<'a>)| {
        let tensor = pickle.tensor(*value).ok_or_else(|| tensor_error(name, "it is no tensor"))?;
        let storage =
            member(tensor.storage.key).ok_or_else(|| tensor_error(name, "its numbers are missing"))?;
        let bytes =
            place(tensor, storage).ok_or_else(|| tensor_error(name, "it lies outside its numbers"))?;
        Ok(((*name).to_owned(), Entry { dtype: tensor.storage.dtype, shape: tensor.shape.clone(), bytes }))
    };
    state.iter().map(entry).collect()
}

fn turned<'a>(pickle: &Pickle<'a>, root: Value<'a>) -> Result<BTreeSet<String>, ConvertError> {
    let state = part(pickle, root, STATE)?.iter();
    let turned = |value: &Value<'a>| pickle.tensor(*value).is_some_and(|tensor| tensor.turned);
    Ok(state.filter(|(_, value)| turned(value)).map(|(name, _)| (*name).to_owned()).collect())
}

/// Where a tensor's bytes are; `None` if its storage is not as long as it says, or ends before the tensor does.
fn place(tensor: &Tensor<'_>, storage: Range<usize>) -> Option<Range<usize>> {
    let width = tensor.storage.dtype.bytes();
    if tensor.storage.elements.checked_mul(width)? != storage.len() {
        return None;
    }
    let length = tensor.shape.iter().try_fold(width, |product, size| product.checked_mul(*size))?;
    let start = storage.start.checked_add(tensor.offset.checked_mul(width)?)?;
    let end = start.checked_add(length)?;
    (end <= storage.end).then_some(start..end)
}
