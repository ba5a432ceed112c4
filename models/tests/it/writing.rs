//! Writing, replacing and removing packages.

use crate::fixture::{FILES, Fixture, NOW, name};
use ringfence_models::{DraftError, FileNameError, PackageError, PublicKey, Refusal, SigningKey};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

#[test]
fn a_package_is_replaced_as_a_whole() {
    let fixture = Fixture::new();
    let old = fixture.verify().unwrap().digest;
    let mut files = FILES.to_vec();
    files.remove(0);
    files[0].1 = "other weights";
    let new = fixture.write(&files);
    assert_ne!(new, old);
    assert_eq!(fixture.load().unwrap().verified.digest, new);
    assert_eq!(names(&fixture), ["tiny", "tiny.oms"]);
}

#[test]
fn a_crash_between_the_two_exchanges_leaves_a_refused_package_that_can_be_replaced() {
    let fixture = Fixture::new();
    let other = Fixture::empty();
    other.write(&[("config.json", "{}"), ("model.safetensors", "other")]);
    fs::rename(fixture.path("tiny"), fixture.path(".tiny.new")).unwrap();
    fs::rename(other.path("tiny"), fixture.path("tiny")).unwrap();
    fs::rename(other.path("tiny.oms"), fixture.path(".tiny.oms.new")).unwrap();
    assert!(matches!(fixture.refusal(), Refusal::FileMissing(_) | Refusal::DigestMismatch { .. }));
    let digest = fixture.write(&FILES);
    assert_eq!(fixture.load().unwrap().verified.digest, digest);
    assert_eq!(names(&fixture), ["tiny", "tiny.oms"]);
}

#[test]
fn a_draft_that_is_dropped_changes_nothing() {
    let fixture = Fixture::new();
    let mut draft = fixture.store.draft(&name()).unwrap();
    draft.add("config.json", &mut "{}".as_bytes()).unwrap();
    drop(draft);
    fixture.load().unwrap();
    assert_eq!(names(&fixture), ["tiny", "tiny.oms"]);
}

#[test]
fn only_one_writes_at_a_time() {
    let fixture = Fixture::new();
    let draft = fixture.store.draft(&name()).unwrap();
    assert!(matches!(fixture.store.draft(&name()), Err(DraftError::Busy)));
    assert!(matches!(fixture.store.remove(&name()), Err(DraftError::Busy)));
    assert!(matches!(fixture.store.sign(&name(), &fixture.operator), Err(DraftError::Busy)));
    drop(draft);
    fixture.store.remove(&name()).unwrap();
}

#[test]
fn a_removed_package_is_gone() {
    let fixture = Fixture::new();
    fixture.store.remove(&name()).unwrap();
    assert!(matches!(fixture.verify(), Err(PackageError::Missing)));
    assert!(matches!(fixture.store.remove(&name()), Err(DraftError::Missing)));
    assert_eq!(names(&fixture), [""; 0]);
}

#[test]
fn a_package_can_be_signed_where_it_lies() {
    let fixture = Fixture::new();
    fs::write(fixture.file("config.json"), "{\"changed\":true}").unwrap();
    let digest = fixture.store.sign(&name(), &fixture.operator).unwrap();
    assert_eq!(fixture.load().unwrap().verified.digest, digest);
    fs::write(fixture.file("model.py"), "import os").unwrap();
    let signed = fixture.store.sign(&name(), &fixture.operator);
    assert!(
        matches!(signed, Err(DraftError::FileName { error: FileNameError::KindUnknown, .. })),
        "{signed:?}"
    );
}

#[test]
fn a_draft_takes_only_what_a_package_can_have() {
    let fixture = Fixture::empty();
    let mut draft = fixture.store.draft(&name()).unwrap();
    for (file, expected) in
        [("../config.json", FileNameError::Illegal), ("model.py", FileNameError::KindUnknown)]
    {
        let added = draft.add(file, &mut "".as_bytes());
        assert!(matches!(added, Err(DraftError::FileName { error, .. }) if error == expected), "{file}");
    }
    draft.add("config.json", &mut "{}".as_bytes()).unwrap();
    assert!(matches!(draft.add("config.json", &mut "{}".as_bytes()), Err(DraftError::Twice(_))));
    let long = "a".repeat((1 << 20) + 1);
    assert!(matches!(draft.add("README.md", &mut long.as_bytes()), Err(DraftError::TooLarge { .. })));
    assert!(matches!(draft.commit(&fixture.operator), Err(DraftError::Incomplete("package.toml"))));
    assert_eq!(names(&fixture), [""; 0]);
}

#[test]
fn who_may_read_a_package_is_who_may_read_the_store() {
    let check = |store: u32, folder: u32, file: u32| {
        let fixture = Fixture::empty();
        fs::set_permissions(fixture.path(""), Permissions::from_mode(store)).unwrap();
        fixture.write(&FILES);
        let mode = |name| fs::metadata(fixture.path(name)).unwrap().permissions().mode() & 0o7777;
        for name in ["tiny", "tiny/1_Pooling", "tiny.oms"] {
            assert_eq!(mode(name), folder, "{name}");
        }
        for name in ["tiny/config.json", "tiny/1_Pooling/config.json", "tiny.oms/ed25519.sig"] {
            assert_eq!(mode(name), file, "{name}");
        }
    };
    check(0o755, 0o755, 0o644);
    check(0o700, 0o700, 0o600);
}

#[test]
fn what_is_no_package_is_not_listed() {
    let fixture = Fixture::new();
    for folder in [".tiny.new", "Upper", "other.oms"] {
        fs::create_dir(fixture.path(folder)).unwrap();
    }
    fs::write(fixture.path("file"), "").unwrap();
    assert_eq!(fixture.store.list().unwrap(), [name()]);
    assert!(fixture.store.verify(&name(), &fixture.trust, NOW).is_ok());
}

fn names(fixture: &Fixture) -> Vec<String> {
    let entries = fs::read_dir(fixture.path("")).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_package_is_signed_again_as_it_was_verified_whatever_lies_there_now() {
    let mut fixture = Fixture::new();
    let verified = fixture.verify().unwrap();
    let next = SigningKey::from_bytes(&[3; 32]);
    fs::write(fixture.file("config.json"), "changed since").unwrap();
    fixture.store.resign(&verified, &next).unwrap();
    fixture.trust = crate::fixture::trusting(&next);
    assert!(matches!(fixture.refusal(), Refusal::DigestMismatch { .. }));
    fs::write(fixture.file("config.json"), FILES[1].1).unwrap();
    let again = fixture.verify().unwrap();
    assert_eq!((again.digest, again.signer), (verified.digest, PublicKey::of(&next).id()));
}
