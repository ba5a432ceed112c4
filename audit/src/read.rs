//! Reading a log's files, whether they are those that a server writes or an export.

use crate::checkpoint::{CHECKPOINT_BYTES_MAX, Checkpoint, CheckpointError, PublicKey};
use crate::files::Files;
use crate::tail::{TAIL, TAIL_FILE_BYTES_MAX, Tail};
use crate::tiles::{
    BUNDLE_BYTES_MAX, FormError, TILE_BYTES_MAX, bundle_name, decode_bundle, decode_tile, tile_name,
};
use crate::tree::{Hash, TILE_BITS, TILE_WIDTH, hex};
use std::io;

/// The log's folder, below the audit folder.
pub(crate) const LOG: &str = "log/";
const WIDTH: u64 = TILE_WIDTH as u64;

/// What is wrong with a log, and where.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// A file can't be read.
    #[error("{file}: {source}")]
    Io {
        /// Below the audit folder.
        file: String,
        /// From the system.
        source: io::Error,
    },
    /// A file that the checkpoint covers is gone.
    #[error("{file} is missing")]
    Missing {
        /// Below the audit folder.
        file: String,
    },
    /// A file has another form.
    #[error("{file} {source}")]
    Form {
        /// Below the audit folder.
        file: String,
        /// How.
        source: FormError,
    },
    /// The checkpoint does not count.
    #[error("{what} {source}")]
    Checkpoint {
        /// The file, or that it is the outside one.
        what: &'static str,
        /// Why.
        source: CheckpointError,
    },
    /// An entry is not the one that was written.
    #[error("entry {index} in {file}: the hash should be {}, found {}", hex(.expected), hex(.found))]
    Entry {
        /// The first one.
        index: u64,
        /// Where it lies.
        file: String,
        /// By the hash tile.
        expected: Hash,
        /// By the entry.
        found: Hash,
    },
    /// The last entries are cut off or damaged.
    #[error("{file}: entry {index} is missing or damaged; the checkpoint covers {size}")]
    CutOff {
        /// The first one.
        index: u64,
        /// Where it should lie.
        file: String,
        /// Entries by the checkpoint.
        size: u64,
    },
    /// A hash tile is not that of the tiles below it.
    #[error("{file}: hash {at} should be {}, found {}", hex(.expected), hex(.found))]
    Tile {
        /// Below the audit folder.
        file: String,
        /// The first such hash.
        at: usize,
        /// By the tile below.
        expected: Hash,
        /// In this tile.
        found: Hash,
    },
    /// The entries are not those of a checkpoint.
    #[error("the first {size} entries hash to {}, but {what} says {}", hex(.found), hex(.expected))]
    Root {
        /// How many.
        size: u64,
        /// Whose word it is.
        what: &'static str,
        /// By the checkpoint.
        expected: Hash,
        /// By the entries.
        found: Hash,
    },
    /// An outside checkpoint covers more than there is.
    #[error("the log has {size} entries, but {what} covers {outside}: the end was cut off")]
    Short {
        /// Whose word it is.
        what: &'static str,
        /// Entries.
        size: u64,
        /// By the outside checkpoint.
        outside: u64,
    },
    /// Bundles are gone, and no entry says that they were pruned.
    #[error("{file} is missing, and no entry says that entry {index} was pruned")]
    Deleted {
        /// Below the audit folder.
        file: String,
        /// The first entry in it.
        index: u64,
    },
}

/// A log's files as they were at one moment. A server may go on writing.
pub(crate) struct Stored<'a, F> {
    pub(crate) files: &'a F,
    /// The file of the last entries; `None` in an export.
    pub(crate) tail: Option<Tail>,
}

impl<'a, F: Files> Stored<'a, F> {
    /// Reads the tail, which says which bundles are full.
    pub(crate) fn open(files: &'a F) -> Result<Self, Fault> {
        let file = format!("{LOG}{TAIL}");
        let cut_off = FormError::CutOff { whole: 0, expected: 1 };
        let tail = match read(files, &file, TAIL_FILE_BYTES_MAX)? {
            None => None,
            Some(bytes) => Some(Tail::decode(&bytes).ok_or(Fault::Form { file, source: cut_off })?),
        };
        Ok(Self { files, tail })
    }

    /// How wide a file is: what was full when the log was shorter is read as it is now.
    fn width(&self, level: u8, number: u64, size: u64) -> usize {
        let there = self.tail.as_ref().map_or(size, |tail| tail.base.max(size));
        let width = (there >> (TILE_BITS * u32::from(level))).saturating_sub(number * WIDTH).min(WIDTH);
        usize::try_from(width).expect("a tile is at most 256 wide")
    }

    /// The hashes of a tile in a log of `size` entries.
    pub(crate) fn tile(&self, level: u8, number: u64, size: u64) -> Result<(String, Vec<Hash>), Fault> {
        let width = self.width(level, number, size);
        let file = format!("{LOG}{}", tile_name(level, number, width));
        match read(self.files, &file, TILE_BYTES_MAX)? {
            None => Err(Fault::Missing { file }),
            Some(bytes) => match decode_tile(&bytes, width) {
                Ok(hashes) => Ok((file, hashes)),
                Err(source) => Err(Fault::Form { file, source }),
            },
        }
    }

    /// The file of a bundle in a log of `size` entries.
    pub(crate) fn bundle_file(&self, number: u64, size: u64) -> String {
        format!("{LOG}{}", bundle_name(number, self.width(0, number, size)))
    }

    /// The entries of a bundle in a log of `size` entries; none where its file is not there.
    pub(crate) fn bundle(&self, number: u64, size: u64) -> Result<Option<Vec<Vec<u8>>>, Fault> {
        let file = self.bundle_file(number, size);
        let Some(bytes) = read(self.files, &file, BUNDLE_BYTES_MAX)? else { return Ok(None) };
        match decode_bundle(&bytes, self.width(0, number, size)) {
            Ok(entries) => Ok(Some(entries.into_iter().map(<[u8]>::to_vec).collect())),
            Err(source) => Err(Fault::Form { file, source }),
        }
    }

    /// The entries of a bundle that are there, wherever they lie, up to `size`.
    pub(crate) fn entries(&self, number: u64, size: u64) -> Result<Vec<Vec<u8>>, Fault> {
        let mut entries = match self.tail.as_ref().filter(|tail| number * WIDTH >= tail.base) {
            None => self.bundle(number, size)?.unwrap_or_default(),
            Some(tail) => {
                let first = usize::try_from(number * WIDTH - tail.base).expect("a tail has few entries");
                let entries = tail.entries.iter().skip(first).take(TILE_WIDTH);
                entries.map(|(entry, _)| entry.clone()).collect()
            }
        };
        entries.truncate(usize::try_from(size - number * WIDTH).unwrap_or(TILE_WIDTH));
        Ok(entries)
    }
}

/// The newest checkpoint of a log, as the note that it is and as what it says, once its signature holds.
///
/// # Errors
/// [`Fault`].
pub fn newest_checkpoint(files: &impl Files, public: &PublicKey) -> Result<(String, Checkpoint), Fault> {
    let file = crate::log::CHECKPOINT;
    let note = read(files, file, CHECKPOINT_BYTES_MAX)?;
    let note = note.ok_or_else(|| Fault::Missing { file: file.to_owned() })?;
    let checkpoint =
        Checkpoint::open(&note, public).map_err(|source| Fault::Checkpoint { what: file, source })?;
    Ok((String::from_utf8_lossy(&note).into_owned(), checkpoint))
}

pub(crate) fn read(files: &impl Files, file: &str, bytes_max: usize) -> Result<Option<Vec<u8>>, Fault> {
    files.read(file, bytes_max).map_err(|source| Fault::Io { file: file.to_owned(), source })
}

/// The entries of a log, for reading; only [`crate::verify`] says whether they are what was written.
pub struct Reader<'a, F> {
    stored: Stored<'a, F>,
    size: u64,
}

impl<'a, F: Files> Reader<'a, F> {
    /// Opens a log, or an export of one: then with its `checkpoint`, whose size says what there is.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn open(files: &'a F, checkpoint: Option<&Checkpoint>) -> Result<Self, Fault> {
        let stored = Stored::open(files)?;
        let size = match (&stored.tail, checkpoint) {
            (Some(tail), _) => tail.size(),
            (None, Some(checkpoint)) => checkpoint.size,
            (None, None) => return Err(Fault::Missing { file: format!("{LOG}{TAIL}") }),
        };
        Ok(Self { stored, size })
    }

    /// Entries, those that are in no checkpoint yet included.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The entries from this index on, with their indices. Those that were pruned are passed over.
    pub fn entries(&self, from: u64) -> impl Iterator<Item = Result<(u64, Vec<u8>), Fault>> {
        let bundles = (from / WIDTH)..self.size.div_ceil(WIDTH);
        bundles.flat_map(move |number| {
            let first = number * WIDTH;
            let (entries, fault) = match self.stored.entries(number, self.size) {
                Ok(entries) => (entries, None),
                Err(fault) => (Vec::new(), Some(Err(fault))),
            };
            let entries = entries.into_iter().zip(first..).map(|(entry, index)| Ok((index, entry)));
            let wanted = entries.filter(move |entry| entry.as_ref().is_ok_and(|(index, _)| *index >= from));
            wanted.chain(fault)
        })
    }
}
