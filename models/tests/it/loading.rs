//! What lies in a package's folder, and what stays true of the bytes once they are loaded.

use crate::fixture::{FILES, Fixture, Numbers};
use ringfence_models::{
    Digest, LoadedPackage, ManifestError, NotRegular, PackageError, PackageName, Refusal,
};
use rustix::fs::{FileType, Mode, SealFlags, fcntl_get_seals, ftruncate, mknodat};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

#[test]
fn a_worker_gets_the_files_that_it_reads_and_no_others() {
    let fixture = Fixture::empty();
    let companions = [("README.md", "read me"), ("vocab.txt", "a\nb"), ("special_tokens_map.json", "{}")];
    fixture.write(&[&FILES[..], &companions[..]].concat());
    let package = fixture.load().unwrap();
    let names: Vec<&str> = package.files.iter().map(|file| file.name.as_str()).collect();
    assert_eq!(names, FILES.map(|(name, _)| name));
    assert_eq!(contents(&package), FILES.map(|(_, text)| text.as_bytes().to_vec()));
    assert_eq!(package.verified.files.len(), FILES.len() + companions.len() + 1);
    assert_eq!(package.verified.worker_bytes(), package.files.iter().map(|file| file.bytes).sum::<u64>());
    assert_eq!(package.verified.weight_bytes(), FILES[2].1.len() as u64);
    assert_eq!(package.verified, fixture.verify().unwrap());
    assert_eq!(package.verified.manifest, crate::fixture::manifest());
}

#[test]
fn a_planted_file_or_folder_is_refused() {
    let check = |name: &str, plant: &dyn Fn(&Path)| {
        let fixture = Fixture::new();
        plant(&fixture.file(name));
        assert_eq!(fixture.refusal(), Refusal::FileUnlisted(name.to_owned()));
    };
    let file = |path: &Path| fs::write(path, "x").unwrap();
    check("model-2.safetensors", &file);
    check(".git", &|path| fs::create_dir(path).unwrap());
    check(".hidden", &file);
    check("1_Pooling/model.safetensors", &file);
    check("1_Pooling/deeper", &|path| fs::create_dir(path).unwrap());
    check("2_Normalize", &|path| fs::create_dir(path).unwrap());
    check("vocab.txt", &|path| symlink("config.json", path).unwrap());
    // Would block whoever opened it.
    check("README.md", &fifo);
}

#[test]
fn a_planted_name_that_is_no_text_is_refused() {
    use std::os::unix::ffi::OsStrExt;
    let fixture = Fixture::new();
    let name = std::ffi::OsStr::from_bytes(b"config\xff.json");
    fs::write(fixture.path("tiny").join(name), "x").unwrap();
    assert_eq!(fixture.refusal(), Refusal::FileUnlisted("config\u{fffd}.json".to_owned()));
}

#[test]
fn only_a_plain_file_of_its_own_stands_for_a_file() {
    let check = |file: &str, expected, replace: &dyn Fn(&Path, &Path)| {
        let fixture = Fixture::new();
        let (path, aside) = (fixture.file(file), fixture.path("aside"));
        fs::rename(&path, &aside).unwrap();
        replace(&path, &aside);
        assert_eq!(fixture.refusal(), Refusal::NotRegular { file: file.to_owned(), found: expected });
    };
    // The same bytes in each case where there are any.
    check("config.json", NotRegular::Symlink, &|path, aside| symlink(aside, path).unwrap());
    check("config.json", NotRegular::HardLink, &|path, aside| fs::hard_link(aside, path).unwrap());
    check("config.json", NotRegular::Fifo, &|path, _| fifo(path));
    check("config.json", NotRegular::Folder, &|path, _| fs::create_dir(path).unwrap());
    check("config.json", NotRegular::Special, &|path, _| drop(UnixListener::bind(path).unwrap()));
    check("package.toml", NotRegular::Symlink, &|path, aside| symlink(aside, path).unwrap());
}

#[test]
fn a_folder_in_the_package_is_a_folder() {
    let fixture = Fixture::new();
    let (path, aside) = (fixture.file("1_Pooling"), fixture.path("aside"));
    fs::rename(&path, &aside).unwrap();
    let check = |file: &str, found| {
        assert_eq!(fixture.refusal(), Refusal::NotRegular { file: file.to_owned(), found });
        fs::remove_file(&path).unwrap();
    };
    symlink(&aside, &path).unwrap();
    check("1_Pooling", NotRegular::Symlink);
    fs::write(&path, "x").unwrap();
    check("1_Pooling", NotRegular::NotAFolder);
    assert_eq!(fixture.refusal(), Refusal::FileMissing("1_Pooling/config.json".to_owned()));
}

#[test]
fn a_package_behind_a_link_is_not_loaded() {
    let fixture = Fixture::new();
    fs::rename(fixture.path("tiny"), fixture.path("aside")).unwrap();
    symlink("aside", fixture.path("tiny")).unwrap();
    let expected = Refusal::NotRegular { file: "tiny".to_owned(), found: NotRegular::Symlink };
    assert_eq!(fixture.refusal(), expected);
    assert_eq!(fixture.store.list().unwrap(), [PackageName::new("aside").unwrap()]);
}

#[test]
fn a_missing_file_is_named() {
    for (file, _) in FILES {
        let fixture = Fixture::new();
        fs::remove_file(fixture.file(file)).unwrap();
        assert_eq!(fixture.refusal(), Refusal::FileMissing(file.to_owned()));
    }
}

#[test]
fn a_file_above_the_limit_of_its_kind_is_refused_unread() {
    let fixture = Fixture::new();
    let file = File::options().write(true).open(fixture.file("config.json")).unwrap();
    file.set_len((1 << 20) + 1).unwrap();
    let expected = Refusal::FileTooLarge { file: "config.json".to_owned(), bytes_max: 1 << 20 };
    assert_eq!(fixture.refusal(), expected);
}

#[test]
fn a_signed_manifest_is_still_judged() {
    let check = |from: &str, to: &str, expected: &dyn Fn(&ManifestError) -> bool| {
        let fixture = Fixture::new();
        let text = fs::read_to_string(fixture.file("package.toml")).unwrap();
        fs::write(fixture.file("package.toml"), text.replace(from, to)).unwrap();
        fixture.store.sign(&crate::fixture::name(), &fixture.operator).unwrap();
        let refusal = fixture.refusal();
        assert!(matches!(&refusal, Refusal::ManifestInvalid(error) if expected(error)), "{refusal:?}");
    };
    check("64", "0", &|error| *error == ManifestError::MaxTokens);
    check("embed", "sing", &|error| matches!(error, ManifestError::NotAManifest(_)));
    check("\"tiny\"", "\"other\"", &|error| matches!(error, ManifestError::OtherName(_)));
}

#[test]
fn an_unknown_model_is_missing() {
    let fixture = Fixture::new();
    let other = PackageName::new("other").unwrap();
    let loaded = fixture.store.load(&other, &fixture.trust, crate::fixture::NOW);
    assert!(matches!(loaded, Err(PackageError::Missing)));
}

#[test]
fn loaded_bytes_stay_when_the_disk_changes() {
    let fixture = Fixture::new();
    let package = fixture.load().unwrap();
    for (file, _) in FILES {
        fs::write(fixture.file(file), "changed").unwrap();
    }
    fs::remove_dir_all(fixture.path("tiny")).unwrap();
    assert_eq!(contents(&package), FILES.map(|(_, text)| text.as_bytes().to_vec()));
}

#[test]
fn loaded_bytes_can_not_be_changed_by_anybody() {
    let package = Fixture::new().load().unwrap();
    let all = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    for (sealed, (_, text)) in package.files.iter().zip(FILES) {
        assert!(fcntl_get_seals(&sealed.fd).unwrap().contains(all));
        let mut file = File::from(sealed.fd.try_clone().unwrap());
        assert!(file.write_all(b"x").is_err());
        assert!(file.write_all_at(b"x", 0).is_err());
        assert!(ftruncate(&sealed.fd, 0).is_err());
        assert!(ftruncate(&sealed.fd, sealed.bytes + 1).is_err());
        let again = format!("/proc/self/fd/{}", sealed.fd.as_raw_fd());
        let written = File::options().write(true).open(again).and_then(|mut file| file.write_all(b"x"));
        assert!(written.is_err());
        file.seek(SeekFrom::Start(0)).unwrap();
        let mut bytes = String::new();
        file.read_to_string(&mut bytes).unwrap();
        assert_eq!(bytes, text);
    }
}

#[test]
fn a_file_swapped_while_it_is_read_never_gets_through() {
    const LOADS_MAX: usize = 2_000;
    const REFUSALS: usize = 20;
    let fixture = Fixture::empty();
    let weights = "weights ".repeat(512 * 1024);
    let mut files = FILES;
    files[2].1 = &weights;
    fixture.write(&files);
    let file = File::options().write(true).open(fixture.file("model.safetensors")).unwrap();
    let is_over = AtomicBool::new(false);
    let swap = || {
        let mut numbers = Numbers(11);
        while !is_over.load(Ordering::Relaxed) {
            let at = numbers.below(weights.len());
            file.write_all_at(b"!", at as u64).unwrap();
            std::thread::yield_now();
            file.write_all_at(&weights.as_bytes()[at..=at], at as u64).unwrap();
            std::thread::yield_now();
        }
    };
    let refusals = std::thread::scope(|scope| {
        scope.spawn(swap);
        let mut refusals = 0;
        for _ in 0..LOADS_MAX {
            match fixture.load() {
                Ok(package) => assert_digests(&package),
                Err(PackageError::Refused(Refusal::DigestMismatch { .. })) => refusals += 1,
                Err(error) => panic!("{error:?}"),
            }
            if refusals == REFUSALS {
                break;
            }
        }
        is_over.store(true, Ordering::Relaxed);
        refusals
    });
    assert_eq!(refusals, REFUSALS, "the swap was never seen: this test shows nothing");
    assert_digests(&fixture.load().unwrap());
}

fn assert_digests(package: &LoadedPackage) {
    let bytes = contents(package);
    for (sealed, bytes) in package.files.iter().zip(bytes) {
        let signed = package.verified.files.iter().find(|file| file.name == sealed.name).unwrap();
        assert_eq!(Digest::of(&bytes), signed.digest, "{}", sealed.name);
    }
}

fn contents(package: &LoadedPackage) -> Vec<Vec<u8>> {
    let content = |sealed: &ringfence_models::SealedFile| {
        let mut bytes = Vec::new();
        File::from(sealed.fd.try_clone().unwrap()).read_to_end(&mut bytes).unwrap();
        bytes
    };
    package.files.iter().map(content).collect()
}

fn fifo(path: &Path) {
    mknodat(rustix::fs::CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
}
