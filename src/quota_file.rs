//! `quotas.toml` on the disk. Root may own the home folder, so the file can't be replaced by a rename: it is written in
//! place, and the whole new text lies in `run/quotas.next` until that is done.

use crate::home::{Home, HomeError};
use ringfence_scheduler::quotas::{FILE_BYTES_MAX, Quotas};
use sha2::{Digest, Sha256};

const NAME: &str = "quotas.toml";
const RUN: &str = "run";
const NEXT: &str = "quotas.next";

/// Characters of a revision.
const REVISION_CHARS: usize = 16;

/// The text that lies there; `None` if there is no file.
pub(crate) fn read(home: &Home) -> Result<Option<Vec<u8>>, HomeError> {
    home.read(NAME, FILE_BYTES_MAX)
}

/// Names a text: the beginning of its SHA-256.
pub(crate) fn revision(text: &[u8]) -> String {
    let mut hex = crate::keys::hex(&Sha256::digest(text));
    hex.truncate(REVISION_CHARS);
    hex
}

/// Replaces the text durably. After a power cut at any time the file is the old one or the new one, after an error the
/// old one.
pub(crate) fn save(home: &Home, old: &[u8], new: &[u8]) -> Result<(), HomeError> {
    // A file that can't be written is found before anything has changed.
    home.overwritable(NAME)?;
    home.replace(RUN, NEXT, new, 0o600)?;
    home.overwrite(NAME, new).and_then(|()| forget(home)).inspect_err(|_| put_back(home, old))
}

/// Ends a replacement that was cut off. Before the file is read.
pub(crate) fn finish(home: &Home) -> Result<(), HomeError> {
    let next = match home.read(&format!("{RUN}/{NEXT}"), FILE_BYTES_MAX) {
        Ok(None) => return Ok(()),
        Ok(Some(next)) => next,
        Err(HomeError::TooLong { .. }) => Vec::from(b"\xff"),
        Err(error) => return Err(error),
    };
    match Quotas::parse_bytes(&next) {
        Ok(_) if read(home)?.as_deref() == Some(next.as_slice()) => {}
        Ok(_) => {
            tracing::warn!("a change of quotas.toml was cut off; it is finished now");
            home.overwrite(NAME, &next)?;
        }
        Err(error) => tracing::warn!(%error, "run/quotas.next is no quotas.toml; it is removed"),
    }
    forget(home)
}

/// The old text, after the new one could not be written. What can't be undone now is undone at the next start.
fn put_back(home: &Home, old: &[u8]) {
    let undone = home.replace(RUN, NEXT, old, 0o600);
    let undone = home.overwrite(NAME, old).and_then(|()| forget(home)).or(undone);
    if let Err(error) = undone {
        tracing::error!(%error, "quotas.toml may be half of a refused change; put the former one back");
    }
}

fn forget(home: &Home) -> Result<(), HomeError> {
    home.remove_durably(RUN, NEXT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    struct Case {
        folder: tempfile::TempDir,
        home: Home,
    }

    impl Case {
        fn new(text: &str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let home = Home::open(folder.path()).unwrap();
            home.folder(RUN, 0o755).unwrap();
            fs::write(folder.path().join(NAME), text).unwrap();
            Self { folder, home }
        }

        fn next(&self, text: &str) {
            fs::write(self.folder.path().join("run/quotas.next"), text).unwrap();
        }

        fn check(&self, expected: &str) {
            assert_eq!(fs::read_to_string(self.folder.path().join(NAME)).unwrap(), expected);
            assert_eq!(fs::read_dir(self.folder.path().join(RUN)).unwrap().count(), 0);
        }
    }

    #[test]
    fn a_shorter_text_replaces_a_longer_one_whole() {
        let case = Case::new("# a long text\n");
        save(&case.home, b"# a long text\n", b"# short\n").unwrap();
        case.check("# short\n");
    }

    #[test]
    fn a_replacement_that_was_cut_off_is_finished_and_one_that_is_none_is_dropped() {
        let case = Case::new("[queues]\ntot");
        case.next("[queues]\ntotal = 5\n");
        finish(&case.home).unwrap();
        case.check("[queues]\ntotal = 5\n");
        case.next("[queues]\ntotal = 0\n");
        finish(&case.home).unwrap();
        case.check("[queues]\ntotal = 5\n");
        case.next(&"#".repeat(FILE_BYTES_MAX + 1));
        finish(&case.home).unwrap();
        case.check("[queues]\ntotal = 5\n");
        finish(&case.home).unwrap();
    }

    #[test]
    fn after_a_text_that_could_not_be_written_the_old_one_is_back_and_is_not_replaced_at_the_next_start() {
        let case = Case::new("[queues]\ntot");
        case.next("[queues]\ntotal = 5\n");
        put_back(&case.home, b"# old\n");
        case.check("# old\n");
        finish(&case.home).unwrap();
        case.check("# old\n");
    }

    #[test]
    fn a_file_that_is_not_there_is_an_error_and_nothing_is_left() {
        let case = Case::new("");
        fs::remove_file(case.folder.path().join(NAME)).unwrap();
        save(&case.home, b"", b"# new\n").unwrap_err();
        assert_eq!(fs::read_dir(case.folder.path().join(RUN)).unwrap().count(), 0);
        assert_eq!(read(&case.home).unwrap(), None);
    }

    #[test]
    fn a_revision_is_the_beginning_of_the_digest() {
        assert_eq!(revision(b""), "e3b0c44298fc1c14");
    }
}
