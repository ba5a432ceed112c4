//! Cheap facts of a package's files: whether the disk may hold something else than before, without reading a byte.

use super::folder::Folder;
use super::{BUNDLE_FILE, INTERCHANGE_FILE, Store};
use crate::kind::FileName;
use crate::name::PackageName;
use rustix::fs::fstat;
use rustix::io::Errno;

/// What the kernel said about a package's folders, files and bundles at one moment.
///
/// Equal stamps say that nothing is known to have changed, no more: a clock can be set and a file system may keep
/// coarse times. Different stamps say that the package is to be verified again, not that its bytes differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamps(Vec<Stamp>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamp {
    path: String,
    seen: Result<Facts, Errno>,
}

/// Times are whole seconds and nanoseconds, the length is in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Facts {
    device: u64,
    inode: u64,
    length: i64,
    modified: (i64, u64),
    changed: (i64, u64),
}

impl Stamps {
    /// Paths below the models folder whose facts are no longer those of `before`, in the order of `self`.
    pub fn differing<'a>(&'a self, before: &'a Self) -> impl Iterator<Item = &'a str> {
        let differs = |stamp: &&Stamp| !before.0.contains(stamp);
        self.0.iter().filter(differs).map(|stamp| stamp.path.as_str())
    }
}

impl Store {
    /// The facts of these files of a package, of the folders they lie in and of its bundles, as they are now.
    ///
    /// A file that is missing or can't be looked at is a fact too, so this does not fail. It opens no file for
    /// reading and follows no link; it may wait for the disk.
    pub fn stamps<'a>(&self, name: &PackageName, files: impl IntoIterator<Item = &'a FileName>) -> Stamps {
        let bundle = |file| format!("{}/{file}", name.bundle_folder());
        let mut paths = vec![name.as_str().to_owned(), bundle(BUNDLE_FILE), bundle(INTERCHANGE_FILE)];
        for file in files {
            let path = format!("{name}/{}", file.as_str());
            paths.extend(path.rsplit_once('/').map(|(folder, _)| folder.to_owned()));
            paths.push(path);
        }
        paths.sort();
        paths.dedup();
        Stamps(paths.into_iter().map(|path| stamp(&self.folder, path)).collect())
    }
}

fn stamp(folder: &Folder, path: String) -> Stamp {
    let seen = folder.look_at(&path).and_then(fstat).map(|stat| Facts {
        device: stat.st_dev,
        inode: stat.st_ino,
        length: stat.st_size,
        modified: (stat.st_mtime, stat.st_mtime_nsec),
        changed: (stat.st_ctime, stat.st_ctime_nsec),
    });
    Stamp { path, seen }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

    const FILE: &str = "tiny/package.toml";

    /// Whether the stamps are others after `change`, and which paths differ.
    fn after(change: impl FnOnce(&Path)) -> Vec<String> {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir(home.path().join("tiny")).unwrap();
        fs::write(home.path().join(FILE), "one").unwrap();
        let (store, name) = (Store::open(home.path()).unwrap(), PackageName::new("tiny").unwrap());
        let stamps = || store.stamps(&name, [&FileName::manifest()]);
        let before = stamps();
        assert_eq!(before, stamps());
        change(home.path());
        let now = stamps();
        now.differing(&before).map(str::to_owned).collect()
    }

    #[test]
    fn nothing_differs_where_nothing_happened() {
        assert_eq!(after(|_| ()), Vec::<String>::new());
    }

    #[test]
    fn a_change_of_length_differs() {
        assert!(after(|home| fs::write(home.join(FILE), "longer").unwrap()).contains(&FILE.to_owned()));
    }

    #[test]
    fn the_same_bytes_under_another_inode_differ() {
        let replace = |home: &Path| {
            fs::write(home.join("other"), "one").unwrap();
            fs::rename(home.join("other"), home.join(FILE)).unwrap();
        };
        assert!(after(replace).contains(&FILE.to_owned()));
    }

    #[test]
    fn a_missing_file_and_a_link_in_its_place_differ() {
        assert!(after(|home| fs::remove_file(home.join(FILE)).unwrap()).contains(&FILE.to_owned()));
        let link = |home: &Path| {
            fs::rename(home.join(FILE), home.join("other")).unwrap();
            std::os::unix::fs::symlink("../other", home.join(FILE)).unwrap();
        };
        assert!(after(link).contains(&FILE.to_owned()));
    }

    #[test]
    fn a_bundle_that_appears_differs() {
        for file in [BUNDLE_FILE, INTERCHANGE_FILE] {
            let appear = |home: &Path| {
                let folder = home.join(PackageName::new("tiny").unwrap().bundle_folder());
                fs::create_dir(&folder).unwrap();
                fs::write(folder.join(file), "x").unwrap();
            };
            assert!(after(appear).iter().any(|path| path.ends_with(file)));
        }
    }
}
