//! Where the files of a new package go.

use ringfence_protocol::{BlockType, ConvertError};
use std::collections::BTreeMap;

/// Takes the files of a package, one after another. Names are relative, with `/`, as packages have them.
pub trait Output {
    /// The file `name` is the source or member `source`, unchanged.
    ///
    /// # Errors
    /// There is none of that name, or no room for another file.
    fn keep(&mut self, name: &str, source: &str) -> Result<(), ConvertError>;

    /// Begins a file; what [`Self::put`] appends from now on is its content, until the next file begins.
    ///
    /// # Errors
    /// It is there already, or there is no room for another file.
    fn begin(&mut self, name: &str) -> Result<(), ConvertError>;

    /// Appends to the file that was begun last.
    ///
    /// # Errors
    /// It would become too large.
    fn put(&mut self, bytes: &[u8]) -> Result<(), ConvertError>;

    /// Says that a tensor stays in blocks: stored as U8, with this layout and this shape before it was quantised.
    ///
    /// # Errors
    /// There are too many.
    fn block(&mut self, tensor: &str, block: BlockType, shape: &[u64]) -> Result<(), ConvertError>;

    /// How many bytes of how many have been handled; called now and then.
    fn progress(&mut self, done: u64, total: u64);
}

/// A whole file at once.
///
/// # Errors
/// As [`Output::begin`] and [`Output::put`].
pub fn write(output: &mut dyn Output, name: &str, bytes: &[u8]) -> Result<(), ConvertError> {
    output.begin(name)?;
    output.put(bytes)
}

/// A package in memory, for tests and tools.
#[derive(Debug, Default)]
pub struct InMemory {
    /// The sources, for [`Output::keep`].
    pub sources: crate::package::Files,
    /// The files by name.
    pub files: BTreeMap<String, Vec<u8>>,
    /// Tensors in blocks.
    pub blocks: BTreeMap<String, (BlockType, Vec<u64>)>,
    current: String,
}

impl InMemory {
    /// An empty package made from these sources.
    pub fn new(sources: &crate::package::Files) -> Self {
        Self { sources: sources.clone(), ..Self::default() }
    }
}

impl Output for InMemory {
    fn keep(&mut self, name: &str, source: &str) -> Result<(), ConvertError> {
        let missing = || ConvertError::Missing { file: source.to_owned() };
        let bytes = self.sources.get(source).ok_or_else(missing)?.to_vec();
        self.begin(name)?;
        self.put(&bytes)
    }

    fn begin(&mut self, name: &str) -> Result<(), ConvertError> {
        name.clone_into(&mut self.current);
        match self.files.insert(name.to_owned(), Vec::new()) {
            None => Ok(()),
            Some(_) => Err(ConvertError::Twice { file: name.to_owned() }),
        }
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), ConvertError> {
        self.files.get_mut(&self.current).expect("a file was begun").extend_from_slice(bytes);
        Ok(())
    }

    fn block(&mut self, tensor: &str, block: BlockType, shape: &[u64]) -> Result<(), ConvertError> {
        match self.blocks.insert(tensor.to_owned(), (block, shape.to_vec())) {
            None => Ok(()),
            Some(_) => Err(ConvertError::Twice { file: tensor.to_owned() }),
        }
    }

    fn progress(&mut self, done: u64, total: u64) {
        assert!(done <= total, "{done} of {total}");
    }
}
