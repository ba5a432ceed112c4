//! Writing the log: append, commit, checkpoint, prune, and recovery when it is opened.
//!
//! A commit is one write to the tail and one fdatasync. A checkpoint signs what is durable; then full bundles leave the
//! tail for their own files. Each step of that can be the last before a power cut, and the next open goes on from there.

use crate::checkpoint::{CHECKPOINT_BYTES_MAX, Checkpoint, PublicKey};
use crate::entry::{Clock, Entry, EntryError, Event};
use crate::files::{Files, FilesExt};
use crate::keys::Keys;
use crate::mask::{Masked, Word};
use crate::names::Names;
use crate::read::{self, Fault, LOG, Reader, Stored};
use crate::tail::{TAIL, TAIL_BYTES_MAX, TAIL_ENTRIES_MAX, Tail, encode_head, encode_record};
use crate::tiles::{BUNDLE_BYTES_MAX, bundle_name, encode_entry, tile_name};
use crate::tree::{Hash, TILE_BITS, TILE_WIDTH, Tile, Tree, leaf_hash};
use crate::verify::{self, OWN, at, covered};
use std::collections::HashSet;
use std::io;

/// The newest checkpoint, below the audit folder.
pub(crate) const CHECKPOINT: &str = "log/checkpoint";
/// The public key, below the audit folder.
pub(crate) const PUBLIC_KEY: &str = "public-key";
/// Held by whoever writes the log.
const LOCK: &str = "lock";
const WIDTH: u64 = TILE_WIDTH as u64;
/// Entries after which a checkpoint is due.
pub const CHECKPOINT_ENTRIES: u64 = 64;
/// Milliseconds after which it is.
pub const CHECKPOINT_MS: u64 = 1_000;
/// Full bundles, the newest ones, that are hashed when a log is opened: about a quarter of a million entries, in less
/// than two seconds. Older ones are checked by [`crate::verify`] only.
pub const BUNDLES_CHECKED_AT_OPEN: u64 = 1_024;
/// Whose word the second place's checkpoint is.
const SECOND: &str = "the second place's checkpoint";

/// An open log, which nobody else can have open.
pub struct Log<F> {
    files: F,
    keys: Keys,
    names: Names,
    /// Of all that is durable.
    tree: Tree,
    /// Durable entries that are in no bundle yet.
    tail: Tail,
    tail_bytes: usize,
    /// Full tiles that are in no file yet.
    tiles: Vec<Tile>,
    /// Entries that are not durable yet, and their records.
    appended: Vec<(Vec<u8>, Hash)>,
    records: Vec<u8>,
    covered: u64,
    /// The time of the first durable entry that is in no checkpoint.
    uncovered_since_ms: Option<u64>,
    last_ms: u64,
    second: Option<F>,
    second_error: Option<io::Error>,
    poisoned: bool,
}

/// What was found when a log was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// Entries.
    pub size: u64,
    /// Of them, those that no checkpoint covered yet.
    pub uncovered: u64,
    /// Bytes of a write that was cut off; they were dropped. No entry in them was acknowledged.
    pub dropped_bytes: usize,
}

/// Why a log does not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another server has it, or a command that prunes it.
    #[error("the audit log is open elsewhere: another server runs on this home")]
    Locked,
    /// Something below the last checkpoint is not what was written.
    #[error("the audit log does not hold: {0}")]
    Fault(#[from] Fault),
    /// A file can't be read or written.
    #[error("audit/{file}: {source}")]
    Io {
        /// Below the audit folder.
        file: &'static str,
        /// From the system.
        source: io::Error,
    },
}

/// Why something is not in the log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The entry itself; the log goes on.
    #[error(transparent)]
    Entry(#[from] EntryError),
    /// So much was appended that a commit or a checkpoint has to come first.
    #[error("the audit log has {TAIL_ENTRIES_MAX} entries or {TAIL_BYTES_MAX} bytes waiting")]
    Full,
    /// A write or fsync failed. What is on the disk is not known, so nothing is written any more until the next open.
    #[error("the audit log can't be written: audit/{file}: {source}")]
    Io {
        /// Below the audit folder.
        file: String,
        /// From the system.
        source: io::Error,
    },
    /// It has failed before.
    #[error("the audit log failed before; restart the server once the disk is well")]
    Poisoned,
    /// A bundle that is to be pruned can't be read.
    #[error("the audit log does not hold: {0}")]
    Fault(#[from] Fault),
}

impl<F: Files> Log<F> {
    /// Opens the log in the audit folder, or begins one. What an interrupted write left is put in order; anything else
    /// that is not as it was written is an error. Where checkpoints go to a `second` place, the log has to agree with
    /// the one that is there.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(mut files: F, keys: Keys, second: Option<F>) -> Result<(Self, Recovery), OpenError> {
        let io = |file| move |source| OpenError::Io { file, source };
        if !files.lock(LOCK).map_err(io(LOCK))? {
            return Err(OpenError::Locked);
        }
        begin(&mut files, &keys)?;
        let names = Names::open(&mut files).map_err(io(crate::names::NAMES))?;
        let public = keys.public();
        let (second_note, second_error) = match second.as_ref().map(|second| second_note(second, &public)) {
            None | Some(Ok(None)) => (None, None),
            Some(Ok(Some(note))) => (Some(note), None),
            Some(Err(error)) => (None, Some(error)),
        };
        let second_said = second_note.map(|note| Checkpoint::open(&note, &public)).transpose();
        let second_said = second_said.map_err(|source| Fault::Checkpoint { what: SECOND, source })?;
        let Head { tree, mut tail, tiles, covered, last_ms } = head(&files, &public, second_said)?;
        let dropped_bytes = std::mem::take(&mut tail.torn_bytes);
        let tail_file = "log/pending";
        let file = tail.encode();
        if dropped_bytes > 0 {
            files.replace(tail_file, &file).map_err(io(tail_file))?;
        }
        // Entries that were written and not acknowledged count from now on.
        files.sync(tail_file).map_err(io(tail_file))?;
        let recovery = Recovery { size: tree.size(), uncovered: tree.size() - covered, dropped_bytes };
        let mut log = Self {
            files,
            keys,
            names,
            tree,
            tail,
            tail_bytes: file.len(),
            tiles,
            appended: Vec::new(),
            records: Vec::new(),
            covered,
            uncovered_since_ms: None,
            last_ms,
            second,
            second_error,
            poisoned: false,
        };
        let signed = log.checkpoint();
        signed.map_err(|error| match error {
            LogError::Io { source, .. } => OpenError::Io { file: CHECKPOINT, source },
            LogError::Entry(_) | LogError::Full | LogError::Poisoned | LogError::Fault(_) => {
                unreachable!("a checkpoint fails by IO only")
            }
        })?;
        Ok((log, recovery))
    }

    /// Entries that are durable.
    pub fn size(&self) -> u64 {
        self.tree.size()
    }

    /// By which others check the log.
    pub fn public(&self) -> PublicKey {
        self.keys.public()
    }

    /// Masks a name and keeps it for the owner, from the next commit on.
    pub fn mask(&mut self, plain: &str) -> Masked {
        self.names.mask(plain, &self.keys)
    }

    /// How often a name was masked and not kept since the log was opened, as the map of names has no room. Pruning makes
    /// room.
    pub fn names_left_out(&self) -> u64 {
        self.names.left_out()
    }

    /// Puts an entry behind the others, in memory only, and says its index.
    ///
    /// # Errors
    /// [`LogError::Entry`], [`LogError::Full`], [`LogError::Poisoned`]; the log is as before then.
    pub fn append(&mut self, mut entry: Entry) -> Result<u64, LogError> {
        self.well()?;
        entry.clock = (entry.time_ms < self.last_ms).then_some(Clock::Back);
        let bytes = entry.encode()?;
        let waiting = self.tail.entries.len() + self.appended.len();
        if waiting >= TAIL_ENTRIES_MAX || self.tail_bytes + self.records.len() > TAIL_BYTES_MAX {
            return Err(LogError::Full);
        }
        self.last_ms = entry.time_ms;
        self.uncovered_since_ms.get_or_insert(entry.time_ms);
        let hash = leaf_hash(&bytes);
        encode_record(&mut self.records, &bytes, &hash);
        let index = self.tree.size() + self.appended.len() as u64;
        self.appended.push((bytes, hash));
        Ok(index)
    }

    /// Makes all that was appended durable: one write and one fdatasync, and as much again where there are new names.
    /// Says how many entries are durable now.
    ///
    /// # Errors
    /// [`LogError::Io`], after which nothing works but a new open; [`LogError::Poisoned`].
    pub fn commit(&mut self) -> Result<u64, LogError> {
        self.well()?;
        if self.appended.is_empty() {
            return Ok(self.size());
        }
        let named = self.names.commit(&mut self.files);
        self.done(crate::names::NAMES, named)?;
        let file = format!("{LOG}{TAIL}");
        let written = self.files.append(&file, &self.records).and_then(|()| self.files.sync(&file));
        self.done(&file, written)?;
        self.tail_bytes += self.records.len();
        self.records.clear();
        for (entry, hash) in self.appended.drain(..) {
            self.tree.push(hash, |tile| self.tiles.push(tile));
            self.tail.entries.push((entry, hash));
        }
        Ok(self.size())
    }

    /// Whether a checkpoint is due: after [`CHECKPOINT_ENTRIES`], or [`CHECKPOINT_MS`] after the first entry. A clock
    /// that went back makes it due at once.
    pub fn checkpoint_due(&self, now_ms: u64) -> bool {
        let uncovered = self.size() - self.covered;
        let in_time = |since: u64| (since..since.saturating_add(CHECKPOINT_MS)).contains(&now_ms);
        uncovered >= CHECKPOINT_ENTRIES || (uncovered > 0 && !self.uncovered_since_ms.is_some_and(in_time))
    }

    /// Signs what is durable, then moves full bundles out of the tail.
    ///
    /// # Errors
    /// [`LogError::Io`], after which nothing works but a new open; [`LogError::Poisoned`].
    pub fn checkpoint(&mut self) -> Result<Checkpoint, LogError> {
        self.well()?;
        let checkpoint = Checkpoint { size: self.size(), root: self.tree.root() };
        let note = checkpoint.sign(&self.keys.audit);
        if checkpoint.size > self.covered {
            let written = self.files.replace(CHECKPOINT, note.as_bytes());
            self.done(CHECKPOINT, written)?;
            self.covered = checkpoint.size;
        }
        // What was appended since keeps its own second.
        self.uncovered_since_ms = (!self.appended.is_empty()).then_some(self.last_ms);
        self.push(&note);
        self.move_bundles()?;
        Ok(checkpoint)
    }

    /// Why the last checkpoint is not in the second place. The log itself is well.
    pub fn second_error(&self) -> Option<&io::Error> {
        self.second_error.as_ref()
    }

    fn push(&mut self, note: &str) {
        if let Some(second) = &mut self.second {
            let name = second_name(&self.keys.public());
            self.second_error = second.replace(&name, note.as_bytes()).err();
        }
    }

    /// Writes the files of full bundles, then the tail without them. Done again after a power cut, they are the same.
    fn move_bundles(&mut self) -> Result<(), LogError> {
        let full = self.tail.entries.len() / TILE_WIDTH;
        if full == 0 {
            return Ok(());
        }
        let moved: Vec<_> = self.tail.entries.drain(..full * TILE_WIDTH).collect();
        for bundle in moved.chunks(TILE_WIDTH) {
            let file = format!("{LOG}{}", bundle_name(self.tail.base / WIDTH, TILE_WIDTH));
            let mut bytes = Vec::new();
            bundle.iter().for_each(|(entry, _)| encode_entry(&mut bytes, entry));
            let written = self.files.replace(&file, &bytes);
            self.tail.base += WIDTH;
            self.done(&file, written)?;
        }
        for (level, number, hashes) in std::mem::take(&mut self.tiles) {
            let file = format!("{LOG}{}", tile_name(level, number, TILE_WIDTH));
            let written = self.files.replace(&file, hashes.as_flattened());
            self.done(&file, written)?;
        }
        let bytes = self.tail.encode();
        let file = format!("{LOG}{TAIL}");
        let written = self.files.replace(&file, &bytes);
        self.done(&file, written)?;
        self.tail_bytes = bytes.len();
        Ok(())
    }

    fn well(&self) -> Result<(), LogError> {
        if self.poisoned { Err(LogError::Poisoned) } else { Ok(()) }
    }

    /// After a failed write nobody knows what is on the disk: a second fsync that succeeds proves nothing.
    fn done(&mut self, file: &str, written: io::Result<()>) -> Result<(), LogError> {
        self.poisoned |= written.is_err();
        written.map_err(|source| LogError::Io { file: file.to_owned(), source })
    }
}

/// Pruning.
impl<F: Files> Log<F> {
    /// The first entry that is not older than this, or lies after one: what may be pruned before it.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn older_than(&self, time_ms: u64) -> Result<u64, Fault> {
        let first = self.first_present()? * WIDTH;
        for entry in Reader::open(&self.files, None)?.entries(first) {
            let (index, entry) = entry?;
            // An entry of another version says no time, and is kept.
            if Entry::decode(&entry).map_or(u64::MAX, |entry| entry.time_ms) >= time_ms {
                return Ok(index);
            }
        }
        Ok(self.size())
    }

    /// Removes the full bundles before this entry, and names that no other entry has; hash tiles stay. An entry says so
    /// before it is done. Says how many entries are gone.
    ///
    /// # Errors
    /// [`LogError`].
    pub fn prune(&mut self, before: u64, time_ms: u64, run: Word) -> Result<u64, LogError> {
        let bundles = before.min(self.tail.base) / WIDTH;
        let first = self.first_present()?;
        if bundles <= first {
            return Ok(0);
        }
        self.append(Entry::of_server(time_ms, run, Event::Pruned { before: bundles * WIDTH }))?;
        self.commit()?;
        self.checkpoint()?;
        for number in first..bundles {
            let file = format!("{LOG}{}", bundle_name(number, TILE_WIDTH));
            let removed = self.files.remove(&file);
            self.done(&file, removed)?;
        }
        let kept = self.masks_from(bundles * WIDTH)?;
        let forgotten = self.names.retain(&kept, &mut self.files);
        self.done(crate::names::NAMES, forgotten)?;
        Ok((bundles - first) * WIDTH)
    }

    /// The masks in this entry and all after it, wherever they stand in them.
    fn masks_from(&self, index: u64) -> Result<HashSet<Hash>, Fault> {
        let mut masks = HashSet::new();
        for entry in Reader::open(&self.files, None)?.entries(index) {
            let (_, entry) = entry?;
            let text = String::from_utf8_lossy(&entry);
            let words = text.split('"').filter_map(|word| Masked::try_from(word.to_owned()).ok());
            masks.extend(words.map(|masked| masked.0));
        }
        Ok(masks)
    }

    /// The first full bundle that is there: they go from the oldest on, so halving finds it.
    fn first_present(&self) -> Result<u64, Fault> {
        let (mut low, mut high) = (0, self.tail.base / WIDTH);
        while low < high {
            let middle = low.midpoint(high);
            let file = format!("{LOG}{}", bundle_name(middle, TILE_WIDTH));
            match read::read(&self.files, &file, BUNDLE_BYTES_MAX)? {
                Some(_) => high = middle,
                None => low = middle + 1,
            }
        }
        Ok(low)
    }
}

/// A log with no entries, where there is none. Its checkpoint comes last: without it, it has not begun.
fn begin(files: &mut impl Files, keys: &Keys) -> Result<(), OpenError> {
    let tail_file = "log/pending";
    let io = |file| move |source| OpenError::Io { file, source };
    if files.read(CHECKPOINT, CHECKPOINT_BYTES_MAX).map_err(io(CHECKPOINT))?.is_some() {
        return Ok(());
    }
    let empty = Tail::default();
    if Stored::open(files)?.tail.is_some_and(|tail| tail != empty) {
        return Err(Fault::Missing { file: CHECKPOINT.to_owned() }.into());
    }
    let public = keys.public();
    files.replace(PUBLIC_KEY, format!("{}\n", public.to_text()).as_bytes()).map_err(io(PUBLIC_KEY))?;
    files.replace(tail_file, &encode_head(0)).map_err(io(tail_file))?;
    let nothing = Checkpoint { size: 0, root: Tree::default().root() };
    files.replace(CHECKPOINT, nothing.sign(&keys.audit).as_bytes()).map_err(io(CHECKPOINT))
}

/// What a log goes on from.
struct Head {
    tree: Tree,
    tail: Tail,
    tiles: Vec<Tile>,
    covered: u64,
    last_ms: u64,
}

/// Reads the head of a log and checks it against its checkpoint, the second place's, and its newest bundles.
fn head<F: Files>(files: &F, public: &PublicKey, second: Option<Checkpoint>) -> Result<Head, Fault> {
    let (_, checkpoint) = read::newest_checkpoint(files, public)?;
    let stored = Stored::open(files)?;
    let base = match &stored.tail {
        None => return Err(Fault::Missing { file: format!("{LOG}{TAIL}") }),
        Some(tail) => tail.base,
    };
    // Bundles leave the tail only after a checkpoint that covers them.
    covered(OWN, base, checkpoint.size)?;
    let tail = stored.tail.as_ref().expect("it was just seen");
    if tail.size() < checkpoint.size {
        return Err(Fault::CutOff {
            index: tail.size(),
            file: format!("{LOG}{TAIL}"),
            size: checkpoint.size,
        });
    }
    let mut tree = load(&stored, base)?;
    let mut tiles = Vec::new();
    let checkpoints = [(OWN, Some(checkpoint)), (SECOND, second)];
    let check = |tree: &Tree| {
        checkpoints
            .iter()
            .filter_map(|(what, checkpoint)| Some((what, (*checkpoint)?)))
            .try_for_each(|(what, checkpoint)| at(tree, what, checkpoint))
    };
    check(&tree)?;
    for (_, hash) in &tail.entries {
        tree.push(*hash, |tile| tiles.push(tile));
        check(&tree)?;
    }
    if let Some(second) = second {
        covered(SECOND, second.size, tree.size())?;
        if second.size < base {
            at(&load(&stored, second.size)?, SECOND, second)?;
        }
    }
    check_bundles(&stored, base)?;
    let last_ms = Reader::open(files, None)?.entries(tree.size().saturating_sub(1)).last();
    let last_ms = last_ms.transpose()?.and_then(|(_, entry)| Entry::decode(&entry).ok());
    let last_ms = last_ms.map_or(0, |entry| entry.time_ms);
    let covered = checkpoint.size;
    Ok(Head { tree, tail: stored.tail.unwrap_or_default(), tiles, covered, last_ms })
}

/// The tree of the first `size` entries, all of which are in full tiles.
fn load<F: Files>(stored: &Stored<'_, F>, size: u64) -> Result<Tree, Fault> {
    let tile = |level, number| stored.tile(level, number, size).map(|(_, hashes)| hashes);
    let left = usize::try_from(size % WIDTH).expect("it is below 256");
    let last = match left {
        0 => Vec::new(),
        _ => tile(0, size >> TILE_BITS)?[..left].to_vec(),
    };
    Tree::load(size, last, tile)
}

/// Hashes the newest full bundles.
fn check_bundles<F: Files>(stored: &Stored<'_, F>, base: u64) -> Result<(), Fault> {
    let bundles = base / WIDTH;
    let (mut missing, mut allowed) = (None, 0);
    for number in bundles.saturating_sub(BUNDLES_CHECKED_AT_OPEN)..bundles {
        let bundle = verify::bundle(stored, number, base)?;
        allowed = bundle.allowed.unwrap_or(allowed);
        missing = if bundle.pruned { Some(number) } else { missing };
    }
    allowed = verify::allowed_in_tail(stored).unwrap_or(allowed);
    match missing {
        // The entry that says so came after what it speaks of, so it is among those that were just read.
        Some(number) if (number + 1) * WIDTH > allowed => Err(verify::deleted(number)),
        Some(_) | None => Ok(()),
    }
}

/// The checkpoint of this log in the second place.
fn second_note(second: &impl Files, public: &PublicKey) -> io::Result<Option<Vec<u8>>> {
    second.read(&second_name(public), CHECKPOINT_BYTES_MAX)
}

/// One folder can take the checkpoints of many installations.
fn second_name(public: &PublicKey) -> String {
    format!("{}.checkpoint", public.origin().replace('/', "."))
}
