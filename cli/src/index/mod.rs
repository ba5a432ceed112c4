//! A folder as something that can be searched, made by a client that has nothing of the disk but its grants.
//!
//! ```text
//! grants    asked for, waited for, given back at the end
//! walk      what of the folder is wanted: names and sizes, through one grant
//! embed     each file by its passages, read by the model's worker through the same grant
//! store     passages and vectors as one SQLite file, read and written through two others
//! ```

pub mod embed;
pub mod grants;
pub mod store;
pub mod walk;

/// Where the index is, below the folder.
pub const FOLDER: &str = ".ringfence";
/// Its file there.
pub const FILE: &str = "index.sqlite";
