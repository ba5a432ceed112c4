//! Verifying a log from its folder and a public key alone, bundle by bundle: memory stays the same however long it is.

use crate::checkpoint::{Checkpoint, PublicKey};
use crate::entry::{Entry, Event};
use crate::files::Files;
use crate::read::{self, Fault, LOG, Stored};
use crate::tiles::bundle_name;
use crate::tree::{Hash, TILE_BITS, TILE_WIDTH, Tile, Tree, leaf_hash};

const WIDTH: u64 = TILE_WIDTH as u64;
/// Whose word a checkpoint is.
pub(crate) const OWN: &str = "the checkpoint";
const OUTSIDE: &str = "the outside checkpoint";

/// A log that holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// What its newest checkpoint says.
    pub checkpoint: Checkpoint,
    /// That checkpoint, to be kept elsewhere.
    pub note: String,
    /// Entries that are there and hash to what they should.
    pub present: u64,
    /// Entries that were pruned; their hashes hold.
    pub pruned: u64,
    /// Whole entries after the checkpoint. Nothing but a newer checkpoint can say whether they are all.
    pub newer: u64,
    /// Bytes after those that are no whole entry: a write that goes on or was cut off.
    pub torn_bytes: usize,
    /// Entries that an outside checkpoint covers.
    pub outside: Option<u64>,
}

/// Checks every entry, tile and checkpoint of a log or of an export of one. Without an `outside` checkpoint, who has the
/// key can have written all of it anew.
///
/// # Errors
/// The first [`Fault`].
pub fn verify(files: &impl Files, public: &PublicKey, outside: Option<&[u8]>) -> Result<Verified, Fault> {
    // The checkpoint first: the tail that is read after it covers at least as much.
    let (note, checkpoint) = read::newest_checkpoint(files, public)?;
    let outside = outside.map(|note| Checkpoint::open(note, public)).transpose();
    let outside = outside.map_err(|source| Fault::Checkpoint { what: OUTSIDE, source })?;
    let stored = Stored::open(files)?;
    let walk = walk(&stored, checkpoint, outside, |_| Ok(()))?;
    let (newer, torn_bytes) = match &stored.tail {
        None => (0, 0),
        Some(tail) => (tail.size().saturating_sub(checkpoint.size), tail.torn_bytes),
    };
    let outside = outside.map(|outside| outside.size);
    let (present, pruned) = (checkpoint.size - walk.missing, walk.missing);
    Ok(Verified { checkpoint, note, present, pruned, newer, torn_bytes, outside })
}

/// What a walk has found.
pub(crate) struct Walk {
    /// The tree at the checkpoint.
    pub(crate) tree: Tree,
    /// Entries that were pruned, all at the beginning.
    pub(crate) missing: u64,
}

/// Goes through all that a checkpoint covers. Full tiles go to `full` once they are checked.
pub(crate) fn walk<F: Files>(
    stored: &Stored<'_, F>,
    checkpoint: Checkpoint,
    outside: Option<Checkpoint>,
    mut full: impl FnMut(&Tile) -> Result<(), Fault>,
) -> Result<Walk, Fault> {
    if let Some(outside) = outside {
        covered(OUTSIDE, outside.size, checkpoint.size)?;
    }
    let (mut tree, mut missing, mut allowed) = (Tree::default(), 0, 0);
    let check_outside = |tree: &Tree| outside.map_or(Ok(()), |outside| at(tree, OUTSIDE, outside));
    check_outside(&tree)?;
    for number in 0..checkpoint.size.div_ceil(WIDTH) {
        let bundle = bundle(stored, number, checkpoint.size)?;
        if bundle.pruned {
            gone_from_the_start(number, missing)?;
            missing += WIDTH;
        }
        allowed = bundle.allowed.unwrap_or(allowed);
        for hash in bundle.hashes {
            let mut tiles = Vec::new();
            tree.push(hash, |tile| tiles.push(tile));
            check_outside(&tree)?;
            for tile in tiles {
                check_full(stored, &tile, checkpoint.size)?;
                full(&tile)?;
            }
        }
    }
    if missing > allowed {
        return Err(deleted(allowed / WIDTH));
    }
    at(&tree, OWN, checkpoint)?;
    if stored.tail.is_none() {
        check_partial(stored, &tree)?;
    }
    Ok(Walk { tree, missing })
}

/// What one bundle comes to.
pub(crate) struct Bundle {
    pub(crate) hashes: Vec<Hash>,
    /// The entries are not there.
    pub(crate) pruned: bool,
    /// By the last entry in it that says so: from where on no entry was pruned.
    pub(crate) allowed: Option<u64>,
}

/// Reads a bundle and holds it against the hashes of its tile.
pub(crate) fn bundle<F: Files>(stored: &Stored<'_, F>, number: u64, size: u64) -> Result<Bundle, Fault> {
    let first = number * WIDTH;
    let wanted = usize::try_from((size - first).min(WIDTH)).expect("a bundle has at most 256 entries");
    if let Some(tail) = stored.tail.as_ref().filter(|tail| first >= tail.base) {
        let skip = usize::try_from(first - tail.base).expect("a tail has few entries");
        let entries = tail.entries.get(skip..).unwrap_or_default();
        if entries.len() < wanted {
            let index = first + entries.len() as u64;
            return Err(Fault::CutOff { index, file: format!("{LOG}{}", crate::tail::TAIL), size });
        }
        let entries = &entries[..wanted];
        let allowed = allowed(entries.iter().map(|(entry, _)| entry.as_slice()), first);
        return Ok(Bundle {
            hashes: entries.iter().map(|(_, hash)| *hash).collect(),
            pruned: false,
            allowed,
        });
    }
    let (_, mut hashes) = stored.tile(0, number, size)?;
    let file = stored.bundle_file(number, size);
    let Some(entries) = stored.bundle(number, size)? else {
        if wanted < TILE_WIDTH {
            return Err(Fault::Missing { file });
        }
        return Ok(Bundle { hashes, pruned: true, allowed: None });
    };
    for ((entry, &expected), index) in entries.iter().zip(&hashes).zip(first..) {
        let found = leaf_hash(entry);
        if found != expected {
            return Err(Fault::Entry { index, file, expected, found });
        }
    }
    hashes.truncate(wanted);
    let allowed = allowed(entries[..wanted].iter().map(Vec::as_slice), first);
    Ok(Bundle { hashes, pruned: false, allowed })
}

/// The last word of these entries on what was pruned. An entry can't speak of what came after it.
fn allowed<'a>(entries: impl Iterator<Item = &'a [u8]>, first: u64) -> Option<u64> {
    // The name sorts before all others, and no other kind has it.
    let of_pruning = entries.zip(first..).filter(|(entry, _)| entry.starts_with(b"{\"before\":"));
    let said = of_pruning.filter_map(|(entry, index)| match Entry::decode(entry).ok()?.event {
        Event::Pruned { before } if before <= index => Some(before),
        _ => None,
    });
    said.last()
}

/// Pruning goes from the oldest bundle on.
fn gone_from_the_start(number: u64, missing: u64) -> Result<(), Fault> {
    if number * WIDTH == missing { Ok(()) } else { Err(deleted(number)) }
}

fn bundle_file(number: u64) -> String {
    format!("{LOG}{}", bundle_name(number, TILE_WIDTH))
}

/// What somebody's checkpoint covers has to be there.
pub(crate) fn covered(what: &'static str, outside: u64, size: u64) -> Result<(), Fault> {
    if outside <= size { Ok(()) } else { Err(Fault::Short { what, size, outside }) }
}

/// Where the tree is of a checkpoint's size, it has to be of its hash.
pub(crate) fn at(tree: &Tree, what: &'static str, checkpoint: Checkpoint) -> Result<(), Fault> {
    let Checkpoint { size, root: expected } = checkpoint;
    if tree.size() != size {
        return Ok(());
    }
    let found = tree.root();
    if found == expected { Ok(()) } else { Err(Fault::Root { size, what, expected, found }) }
}

/// A tile above the lowest level has the hashes of the tiles below it.
fn check_full<F: Files>(stored: &Stored<'_, F>, tile: &Tile, size: u64) -> Result<(), Fault> {
    let (level, number, expected) = tile;
    let end = (number + 1) << (TILE_BITS * (u32::from(*level) + 1));
    // What is still in the tail has no tile yet; the lowest level was read from its tiles.
    if *level == 0 || stored.tail.as_ref().is_some_and(|tail| end > tail.base) {
        return Ok(());
    }
    let (file, found) = stored.tile(*level, *number, size)?;
    same(file, expected, &found)
}

/// An export has the partial tiles too.
fn check_partial<F: Files>(stored: &Stored<'_, F>, tree: &Tree) -> Result<(), Fault> {
    for (level, number, expected) in tree.partial().filter(|(level, ..)| *level > 0) {
        let (file, found) = stored.tile(level, number, tree.size())?;
        same(file, expected, &found)?;
    }
    Ok(())
}

fn same(file: String, expected: &[Hash], found: &[Hash]) -> Result<(), Fault> {
    match expected.iter().zip(found).position(|(expected, found)| expected != found) {
        None => Ok(()),
        Some(at) => Err(Fault::Tile { file, at, expected: expected[at], found: found[at] }),
    }
}

/// A full bundle is gone that should be there.
pub(crate) fn deleted(number: u64) -> Fault {
    Fault::Deleted { file: bundle_file(number), index: number * WIDTH }
}

/// What the entries in the tail say was pruned.
pub(crate) fn allowed_in_tail<F>(stored: &Stored<'_, F>) -> Option<u64> {
    let tail = stored.tail.as_ref()?;
    allowed(tail.entries.iter().map(|(entry, _)| entry.as_slice()), tail.base)
}
