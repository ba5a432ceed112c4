//! The audit log: an append-only Merkle log of what was asked, decided and used, with signed checkpoints, in the C2SP
//! forms tlog-tiles and signed-note. It reads no clock and makes no random numbers; files lie below one descriptor.
//!
//! | file | holds |
//! | --- | --- |
//! | `entry` | what can happen, and its canonical JSON |
//! | `mask` | masked names, and words that can't be a path |
//! | `names` | the sealed map from masks to names |
//! | `keys` | the keys for signing, masking and sealing |
//! | `tree`, `tiles`, `checkpoint` | hashes, files and signatures |
//! | `tail` | the last entries, to which a commit appends |
//! | `log` | append, commit, checkpoint, prune, recovery |
//! | `read`, `verify` | reading, and checking all of it |
//! | `words`, `export` | plain words, and a copy for others |
//! | `files` | the file layer |

mod checkpoint;
mod entry;
mod export;
mod files;
mod keys;
mod log;
mod mask;
mod names;
mod read;
mod tail;
mod tiles;
mod tree;
mod verify;
mod words;

pub use checkpoint::{CHECKPOINT_BYTES_MAX, Checkpoint, CheckpointError, PUBLIC_KEY_BYTES_MAX, PublicKey};
pub use entry::{Access, Change, Clock, Decider, Decision, Entry, EntryError, Event, NUMBER_MAX};
pub use export::{ExportError, Exported, Filter, export};
pub use files::{Files, Folder};
pub use keys::{KEYS_BYTES, Keys, KeysError};
pub use log::{
    BUNDLES_CHECKED_AT_OPEN, CHECKPOINT_ENTRIES, CHECKPOINT_MS, Log, LogError, OpenError, Recovery,
};
pub use mask::{Masked, Masks, NoWord, WORD_BYTES_MAX, Word};
pub use names::{NAME_BYTES_MAX, NAMES_BYTES_MAX, NameMap};
pub use read::{Fault, Reader, newest_checkpoint};
pub use tail::{TAIL_BYTES_MAX, TAIL_ENTRIES_MAX, Tail};
pub use tiles::{ENTRY_BYTES_MAX, FormError, decode_bundle};
pub use tree::{Hash, TILE_WIDTH, leaf_hash, node_hash};
pub use verify::{Verified, verify};
pub use words::{line, utc};
