//! Where a model's weights come from: a package, or nowhere for the warm-up.

use crate::device::{BlockKind, Stored, TableSource};
use crate::memory::{Memory, load_error};
use crate::package::safetensors::{Dtype, Entry, Tensors};
use crate::package::{FileBytes, Files};
use ringfence_kernels::OutOfMemory;
use ringfence_protocol::{BlockType, LoadError};
use std::collections::BTreeMap;
use std::ops::Range;

/// Tensors by name, each with the shape that the model needs.
pub trait Weights {
    /// All floats of a tensor.
    ///
    /// # Errors
    /// The tensor is missing, of another shape or type, or does not fit in memory.
    fn floats(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, LoadError>;

    /// How a tensor is stored; nothing if there is none of that name and a type that is known.
    fn stored(&self, name: &str) -> Option<Stored>;

    /// A tensor of two dimensions that is in quantised blocks; nothing where it is not.
    ///
    /// # Errors
    /// It is of another shape, or has not as many bytes as that takes.
    fn blocks(&self, _name: &str, _shape: [usize; 2]) -> Result<Option<Blocks>, LoadError> {
        Ok(None)
    }

    /// A tensor of two dimensions, to look up rows in.
    ///
    /// # Errors
    /// As for [`Weights::floats`].
    fn table(&self, name: &str, shape: [usize; 2]) -> Result<TableSource, LoadError>;
}

/// A tensor in quantised blocks.
pub struct Blocks {
    /// Of which kind.
    pub kind: BlockKind,
    /// The file.
    pub file: FileBytes,
    /// The blocks in it, row by row.
    pub bytes: Range<usize>,
}

impl std::fmt::Debug for Blocks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Blocks({:?}, {} bytes)", self.kind, self.bytes.len())
    }
}

/// The weights of a package.
pub struct PackageWeights<'a> {
    tensors: Tensors,
    /// What some packages put before every name.
    prefix: &'static str,
    /// Those in quantised blocks, stored as bytes, and their shape before.
    blocks: BTreeMap<String, (BlockType, Vec<u64>)>,
    memory: &'a dyn Memory,
}

/// A list of positions that old packages carry; nothing reads it.
const POSITION_IDS: &str = "embeddings.position_ids";

impl<'a> PackageWeights<'a> {
    /// Reads the headers of a package's weights.
    ///
    /// # Errors
    /// A file is malformed, or a tensor is neither F32 nor F16.
    pub fn read(files: &Files, memory: &'a dyn Memory) -> Result<Self, LoadError> {
        Self::read_with_blocks(files, BTreeMap::new(), memory)
    }

    /// As [`PackageWeights::read`], where the manifest names tensors that stay in quantised blocks.
    ///
    /// # Errors
    /// As there.
    pub fn read_with_blocks(
        files: &Files,
        blocks: BTreeMap<String, (BlockType, Vec<u64>)>,
        memory: &'a dyn Memory,
    ) -> Result<Self, LoadError> {
        let tensors = Tensors::read(files)?;
        for (name, entry) in tensors.entries() {
            let is_known = stored(entry.dtype).is_some() || blocks.contains_key(name);
            if !is_known && !name.ends_with(POSITION_IDS) {
                return Err(wrong(name, "its type is neither F32 nor F16"));
            }
        }
        let prefix =
            if tensors.entries().keys().any(|name| name.starts_with("bert.")) { "bert." } else { "" };
        Ok(Self { tensors, prefix, blocks, memory })
    }

    /// Where a tensor is, how it is stored, and the file that it is in.
    fn entry(&self, name: &str, shape: &[usize]) -> Result<(&Entry, Stored, &FileBytes), LoadError> {
        let name = format!("{}{name}", self.prefix);
        let found = self.tensors.entries().get(&name).zip(self.tensors.file_of(&name));
        let (entry, file) = found.ok_or_else(|| wrong(&name, "it is missing"))?;
        if entry.shape != shape {
            let reason = format!("its shape is {:?}, `config.json` says {shape:?}", entry.shape);
            return Err(wrong(&name, reason));
        }
        let stored = stored(entry.dtype).ok_or_else(|| wrong(&name, "its type is neither F32 nor F16"))?;
        Ok((entry, stored, file))
    }
}

impl Weights for PackageWeights<'_> {
    fn floats(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, LoadError> {
        let (entry, stored, file) = self.entry(name, shape)?;
        let count = entry.bytes.len() / stored.bytes();
        let mut floats = Vec::new();
        let refused = |_| OutOfMemory { bytes: count * size_of::<f32>() };
        floats.try_reserve_exact(count).map_err(refused).map_err(|e| load_error(self.memory.denied(e)))?;
        floats.resize(count, 0.0);
        stored.widen(&file[entry.bytes.clone()], &mut floats);
        Ok(floats)
    }

    fn stored(&self, name: &str) -> Option<Stored> {
        stored(self.tensors.entries().get(&format!("{}{name}", self.prefix))?.dtype)
    }

    fn blocks(&self, name: &str, shape: [usize; 2]) -> Result<Option<Blocks>, LoadError> {
        let Some((kind, before)) = self.blocks.get(name) else { return Ok(None) };
        if before.iter().map(|size| *size as usize).ne(shape) {
            let reason = format!("its shape was {before:?}, `config.json` says {shape:?}");
            return Err(wrong(name, reason));
        }
        let found = self.tensors.entries().get(name).zip(self.tensors.file_of(name));
        let (entry, file) = found.ok_or_else(|| wrong(name, "it is missing"))?;
        let kind = match kind {
            BlockType::Q4_1 => BlockKind::Q4_1,
            BlockType::Q8_0 => BlockKind::Q8_0,
        };
        let [rows, columns] = shape;
        let row = columns / kind.weights() * kind.bytes();
        if !columns.is_multiple_of(kind.weights()) || entry.bytes.len() != rows * row {
            return Err(wrong(name, format!("its bytes are not the blocks of {shape:?}")));
        }
        Ok(Some(Blocks { kind, file: file.clone(), bytes: entry.bytes.clone() }))
    }

    fn table(&self, name: &str, shape: [usize; 2]) -> Result<TableSource, LoadError> {
        let (entry, stored, file) = self.entry(name, &shape)?;
        Ok(TableSource::File { file: file.clone(), bytes: entry.bytes.clone(), stored })
    }
}

fn stored(dtype: Dtype) -> Option<Stored> {
    match dtype {
        Dtype::F32 => Some(Stored::F32),
        Dtype::F16 => Some(Stored::F16),
        Dtype::Bool | Dtype::U8 | Dtype::I8 | Dtype::U16 | Dtype::I16 | Dtype::Bf16 => None,
        Dtype::U32 | Dtype::I32 | Dtype::U64 | Dtype::I64 | Dtype::F64 => None,
    }
}

fn wrong(tensor: &str, reason: impl Into<String>) -> LoadError {
    LoadError::Tensor { tensor: tensor.to_owned(), reason: reason.into() }
}

/// Numbers between -0.1 and 0.1 for any name and shape, the same ones every time.
#[derive(Clone, Copy, Debug)]
pub struct RandomWeights;

impl Weights for RandomWeights {
    fn floats(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, LoadError> {
        let mut state = name.len() as u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0) / 10.0
        };
        Ok((0..shape.iter().product()).map(|_| next()).collect())
    }

    fn stored(&self, _: &str) -> Option<Stored> {
        Some(Stored::F32)
    }

    fn table(&self, name: &str, shape: [usize; 2]) -> Result<TableSource, LoadError> {
        self.floats(name, &shape).map(TableSource::Floats)
    }
}
