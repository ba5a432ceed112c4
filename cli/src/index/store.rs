//! The index: files, where their passages are, and a vector for each, in one SQLite database that lives in memory and is
//! read and written whole. Vectors have length 1, so that the product of two is their cosine.

use super::walk::Found;
use crate::error::CliError;
use rusqlite::{Connection, MAIN_DB, OptionalExtension, params};
use std::collections::BinaryHeap;
use std::ops::Range;

/// Marks the file as ours: "RFIX".
const APPLICATION: i32 = 0x5246_4958;
/// The tables' version.
const VERSION: i32 = 1;

const TABLES: &str = "
CREATE TABLE model (name TEXT NOT NULL, digest TEXT NOT NULL, passage_tokens INTEGER NOT NULL) STRICT;
CREATE TABLE files (
    number INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE, size INTEGER NOT NULL, modified_ms INTEGER NOT NULL,
    skipped TEXT -- the server's code, where it has no passages for another reason than that it is empty
) STRICT;
CREATE TABLE passages (
    file INTEGER NOT NULL REFERENCES files ON DELETE CASCADE,
    first INTEGER NOT NULL, behind INTEGER NOT NULL, -- bytes of the file
    vector BLOB NOT NULL                             -- little-endian f32, of length 1
) STRICT;
CREATE INDEX passages_of_file ON passages (file);
";

/// What made the vectors: those of another model say nothing beside them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// The model's name.
    pub model: String,
    /// The digest of its package.
    pub digest: String,
    /// The most tokens of a passage.
    pub passage_tokens: u32,
}

/// A passage as the worker made it.
#[derive(Clone, Debug, PartialEq)]
pub struct Passage {
    /// Its bytes in the file.
    pub bytes: Range<u64>,
    /// Its vector.
    pub vector: Vec<f32>,
}

/// What a search finds.
#[derive(Clone, Debug, PartialEq)]
pub struct Hit {
    /// The cosine, from -1 to 1.
    pub score: f32,
    /// The file.
    pub path: String,
    /// Its bytes there.
    pub bytes: Range<u64>,
}

/// Numbers of an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// Files in it, skipped ones too.
    pub files: u64,
    /// Files that have nothing in it.
    pub skipped: u64,
    /// Passages.
    pub passages: u64,
}

/// An open index.
#[derive(Debug)]
pub struct Store(Connection);

impl Store {
    /// An empty one.
    ///
    /// # Errors
    /// [`CliError::Failed`] from the library.
    pub fn new(made: &Made) -> Result<Self, CliError> {
        let store = || {
            let database = Connection::open_in_memory()?;
            database.pragma_update(None, "application_id", APPLICATION)?;
            database.pragma_update(None, "user_version", VERSION)?;
            database.pragma_update(None, "foreign_keys", true)?;
            database.execute_batch(TABLES)?;
            let row = params![made.model, made.digest, made.passage_tokens];
            database.execute("INSERT INTO model VALUES (?1, ?2, ?3)", row)?;
            Ok(Self(database))
        };
        store().map_err(failed)
    }

    /// Reads a file's bytes; none where they are another program's or another version's.
    ///
    /// # Errors
    /// [`CliError::Failed`] where they are damaged.
    pub fn from_bytes(bytes: &[u8]) -> Result<Option<Self>, CliError> {
        let store = || {
            let mut database = Connection::open_in_memory()?;
            database.deserialize_read_exact(MAIN_DB, bytes, bytes.len(), false)?;
            let number = |name| database.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
            if (number("application_id")?, number("user_version")?) != (APPLICATION, VERSION) {
                return Ok(None);
            }
            database.pragma_update(None, "foreign_keys", true)?;
            Ok(Some(Self(database)))
        };
        store().map_err(failed)
    }

    /// The whole file.
    ///
    /// # Errors
    /// [`CliError::Failed`] from the library.
    pub fn bytes(&self) -> Result<Vec<u8>, CliError> {
        self.0.serialize(MAIN_DB).map(|data| data.to_vec()).map_err(failed)
    }

    /// What made its vectors.
    ///
    /// # Errors
    /// [`CliError::Failed`] from the library.
    pub fn made(&self) -> Result<Made, CliError> {
        let row = |row: &rusqlite::Row<'_>| {
            Ok(Made { model: row.get(0)?, digest: row.get(1)?, passage_tokens: row.get(2)? })
        };
        self.0.query_row("SELECT name, digest, passage_tokens FROM model", [], row).map_err(failed)
    }

    /// Whether a file is in it as it is now.
    ///
    /// # Errors
    /// [`CliError::Failed`] from the library.
    pub fn has(&self, found: &Found) -> Result<bool, CliError> {
        let known =
            self.0.query_row("SELECT size, modified_ms FROM files WHERE path = ?1", [&found.path], |row| {
                Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?))
            });
        let known = known.optional().map_err(failed)?;
        Ok(known == Some((found.size.cast_signed(), found.modified_ms)))
    }

    /// Takes a file anew: its passages, or why it has none.
    ///
    /// # Errors
    /// [`CliError::Failed`] from the library.
    pub fn put(&mut self, found: &Found, passages: Result<&[Passage], &str>) -> Result<(), CliError> {
        let mut put = || {
            let change = self.0.transaction()?;
            change.execute("DELETE FROM files WHERE path = ?1", [&found.path])?;
            let row = params![found.path, found.size.cast_signed(), found.modified_ms, passages.err()];
            change.execute(
                "INSERT INTO files (path, size, modified_ms, skipped) VALUES (?1, ?2, ?3, ?4)",
                row,
            )?;
            let file = change.last_insert_rowid();
            let mut add = change.prepare("INSERT INTO passages VALUES (?1, ?2, ?3, ?4)")?;
            for Passage { bytes, vector } in passages.unwrap_or_default() {
                let blob = encoded(vector);
                add.execute(params![file, bytes.start.cast_signed(), bytes.end.cast_signed(), blob])?;
            }
            drop(add);
            change.commit()
        };
        put().map_err(failed)
    }

    /// Forgets files that are gone; how many.
    ///
    /// # Errors
    /// [`CliError::Failed`] from the library.
    pub fn keep_only(&mut self, found: &[Found]) -> Result<u64, CliError> {
        let mut forget = || {
            let change = self.0.transaction()?;
            let mut gone = Vec::new();
            {
                let mut all = change.prepare("SELECT path FROM files")?;
                let paths = all.query_map([], |row| row.get::<_, String>(0))?;
                for path in paths {
                    let path = path?;
                    if found.binary_search_by(|found| found.path.cmp(&path)).is_err() {
                        gone.push(path);
                    }
                }
            }
            for path in &gone {
                change.execute("DELETE FROM files WHERE path = ?1", [path])?;
            }
            change.commit()?;
            Ok(gone.len() as u64)
        };
        forget().map_err(failed)
    }

    /// The passages nearest to a vector, best first.
    ///
    /// # Errors
    /// [`CliError::Failed`] from the library, or where the vector is of another model's width.
    pub fn nearest(&self, vector: &[f32], most: usize) -> Result<Vec<Hit>, CliError> {
        let wanted = encoded(vector);
        let nearest = || {
            let mut all = self.0.prepare("SELECT rowid, vector FROM passages")?;
            let mut rows = all.query([])?;
            // The worst on top, to be given up for a better one.
            let mut best: BinaryHeap<(std::cmp::Reverse<i64>, i64)> = BinaryHeap::with_capacity(most + 1);
            while let Some(row) = rows.next()? {
                let score = product(&wanted, row.get_ref(1)?.as_blob()?);
                best.push((std::cmp::Reverse((f64::from(score) * 1e9) as i64), row.get(0)?));
                if best.len() > most {
                    best.pop();
                }
            }
            let hits = best.into_sorted_vec().into_iter().map(|(score, row)| self.hit(score.0, row));
            hits.collect::<rusqlite::Result<Vec<_>>>()
        };
        nearest().map_err(failed)
    }

    fn hit(&self, score: i64, row: i64) -> rusqlite::Result<Hit> {
        let found =
            "SELECT path, first, behind FROM passages JOIN files ON file = number WHERE passages.rowid = ?1";
        self.0.query_row(found, [row], |row| {
            let bytes = row.get::<_, i64>(1)?.cast_unsigned()..row.get::<_, i64>(2)?.cast_unsigned();
            Ok(Hit { score: (score as f64 / 1e9) as f32, path: row.get(0)?, bytes })
        })
    }

    /// How much is in it.
    ///
    /// # Errors
    /// [`CliError::Failed`] from the library.
    pub fn counts(&self) -> Result<Counts, CliError> {
        let counts = "SELECT count(*), count(skipped), (SELECT count(*) FROM passages) FROM files";
        let row = |row: &rusqlite::Row<'_>| {
            let count = |at| row.get::<_, i64>(at).map(i64::cast_unsigned);
            Ok(Counts { files: count(0)?, skipped: count(1)?, passages: count(2)? })
        };
        self.0.query_row(counts, [], row).map_err(failed)
    }
}

/// Of length 1, unless it is zero.
fn encoded(vector: &[f32]) -> Vec<u8> {
    let length = vector.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt();
    let scale = if length > 0.0 { 1.0 / length } else { 0.0 };
    vector.iter().flat_map(|x| ((f64::from(*x) * scale) as f32).to_le_bytes()).collect()
}

fn product(one: &[u8], other: &[u8]) -> f32 {
    let number = |bytes: &[u8]| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    one.chunks_exact(4).zip(other.chunks_exact(4)).map(|(one, other)| number(one) * number(other)).sum()
}

fn failed(source: rusqlite::Error) -> CliError {
    CliError::Failed {
        subject: super::FILE.to_owned(),
        code: "index_unusable",
        source: source.into(),
        advice: "make it anew: ringfence index FOLDER --anew".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made() -> Made {
        Made { model: "minilm".to_owned(), digest: "d".to_owned(), passage_tokens: 128 }
    }

    fn found(path: &str, size: u64) -> Found {
        Found { path: path.to_owned(), size, modified_ms: 7 }
    }

    fn passage(start: u64, vector: [f32; 2]) -> Passage {
        Passage { bytes: start..start + 5, vector: vector.to_vec() }
    }

    #[test]
    fn what_was_put_is_found_again_after_a_round_through_its_bytes() {
        let mut store = Store::new(&made()).unwrap();
        store.put(&found("a.md", 20), Ok(&[passage(0, [3.0, 0.0]), passage(9, [1.0, 1.0])])).unwrap();
        store.put(&found("b.md", 9), Ok(&[passage(4, [0.0, 2.0])])).unwrap();
        store.put(&found("c.png", 9), Err("input_not_text")).unwrap();
        let mut store = Store::from_bytes(&store.bytes().unwrap()).unwrap().unwrap();
        assert_eq!(store.made().unwrap(), made());
        assert_eq!(store.counts().unwrap(), Counts { files: 3, skipped: 1, passages: 3 });
        let hits = |store: &Store, vector: [f32; 2]| {
            let hits = store.nearest(&vector, 2).unwrap();
            hits.into_iter().map(|hit| (hit.path, hit.bytes.start, hit.score)).collect::<Vec<_>>()
        };
        let near = hits(&store, [0.0, 5.0]);
        assert_eq!((near[0].0.as_str(), near[0].1, near[1].1), ("b.md", 4, 9));
        assert!((near[0].2 - 1.0).abs() < 1e-6 && (near[1].2 - 0.5_f32.sqrt()).abs() < 1e-6);
        assert!(store.has(&found("a.md", 20)).unwrap() && !store.has(&found("a.md", 21)).unwrap());

        // A file that is taken anew has only its new passages, one that is gone has none.
        store.put(&found("b.md", 10), Ok(&[passage(1, [1.0, 0.0])])).unwrap();
        assert_eq!(store.keep_only(&[found("b.md", 10), found("c.png", 9)]).unwrap(), 1);
        assert_eq!(store.counts().unwrap(), Counts { files: 2, skipped: 1, passages: 1 });
        assert_eq!(hits(&store, [0.0, 1.0]), [("b.md".to_owned(), 1, 0.0)]);
    }

    #[test]
    fn what_is_no_index_is_told_apart_from_one_that_is_damaged() {
        let other = Connection::open_in_memory().unwrap();
        other.execute_batch("CREATE TABLE a (b)").unwrap();
        assert!(Store::from_bytes(&other.serialize(MAIN_DB).unwrap()).unwrap().is_none());
        assert!(matches!(
            Store::from_bytes(&[b'x'; 4096]),
            Err(CliError::Failed { code: "index_unusable", .. })
        ));
    }
}
