//! Names of clients, parsed once into what can't lead elsewhere by its words.

use ringfence_protocol::{FILE_NAME_BYTES_MAX, FILE_PATH_BYTES_MAX, FileRefusal};

/// A path of plain parts below a root. What the parts are on disk is still to be seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BelowRoot(String);

impl BelowRoot {
    /// Takes a path with at least one part.
    ///
    /// # Errors
    /// [`FileRefusal::OutsideRoot`]: empty, absolute, too long, with a zero byte, or with a part that is empty, `.` or `..`.
    pub fn parse(path: &str) -> Result<Self, FileRefusal> {
        let plain =
            path.len() <= FILE_PATH_BYTES_MAX && !path.contains('\0') && path.split('/').all(is_plain);
        if plain { Ok(Self(path.to_owned())) } else { Err(FileRefusal::OutsideRoot) }
    }

    /// The whole.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its parts, at least one.
    pub fn parts(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }

    /// The folder's path, if that is not the root itself, and the last part.
    pub fn split_last(&self) -> (Option<&str>, &str) {
        self.0.rsplit_once('/').map_or((None, self.0.as_str()), |(folder, name)| (Some(folder), name))
    }
}

fn is_plain(part: &str) -> bool {
    !matches!(part, "" | "." | "..") && part.len() <= FILE_NAME_BYTES_MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_parts_are_taken() {
        for path in ["a", "a/b", "...", "a/..b", ".a", "%2e%2e", "a\\..\\b", "\u{2025}", " "] {
            assert_eq!(BelowRoot::parse(path).map(|path| path.0), Ok(path.to_owned()));
        }
        let long = "a/".repeat(2047) + "a";
        assert!(BelowRoot::parse(&long).is_ok());
        let too_long = [long + "b", "n".repeat(256), "a".to_owned() + &"/b".repeat(2048)];
        let wrong = ["", "/", "/a", "a/", "a//b", ".", "..", "a/..", "../a", "a/./b", "a\0", "\0"];
        for path in wrong.map(str::to_owned).into_iter().chain(too_long) {
            assert_eq!(BelowRoot::parse(&path), Err(FileRefusal::OutsideRoot), "{path:?}");
        }
    }

    #[test]
    fn the_last_part_stands_apart() {
        let split = |path: &str| {
            let path = BelowRoot::parse(path).unwrap();
            let (folder, name) = path.split_last();
            (folder.map(str::to_owned), name.to_owned())
        };
        assert_eq!(split("a"), (None, "a".to_owned()));
        assert_eq!(split("a/b/c"), (Some("a/b".to_owned()), "c".to_owned()));
    }
}
