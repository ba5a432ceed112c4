//! What somebody may do to a log that lies there: all of it is found, given one checkpoint that was kept elsewhere.

use crate::disk::Disk;
use crate::{count, entry, keys};
use ringfence_audit::{Entry, Fault, Folder, KEYS_BYTES, Keys, Log, OpenError, PublicKey, export, verify};
use std::collections::BTreeMap;

const ENTRIES: u64 = 500;

/// A log of 500 entries, all in its checkpoint, and that checkpoint.
fn written() -> (Disk, Vec<u8>) {
    let disk = Disk::default();
    write(&disk, &keys(), 0..ENTRIES);
    let note = disk.files()["log/checkpoint"].clone();
    (disk, note)
}

fn write(disk: &Disk, keys: &Keys, numbers: impl Iterator<Item = u64>) {
    let keys = Keys::decode(keys.encode().each_ref().map(|text| text.as_bytes())).unwrap();
    let (mut log, _) = Log::open(disk.clone(), keys, None).unwrap();
    for number in numbers {
        log.append(entry(number)).unwrap();
        if number % 50 == 49 {
            log.commit().unwrap();
            log.checkpoint().unwrap();
        }
    }
    log.commit().unwrap();
    log.checkpoint().unwrap();
}

/// What a third party reads.
fn public_files(disk: &Disk) -> Vec<String> {
    disk.files().into_keys().filter(|name| name.starts_with("log/") && !name.ends_with(".new")).collect()
}

fn found(disk: &Disk, note: &[u8], what: &str) -> Fault {
    found_with(disk, Some(note), what)
}

fn found_with(disk: &Disk, note: Option<&[u8]>, what: &str) -> Fault {
    match verify(disk, &keys().public(), note) {
        Ok(verified) => panic!("{what} is not found: {verified:?}"),
        Err(fault) => fault,
    }
}

#[test]
fn what_was_written_holds() {
    let (disk, note) = written();
    let verified = verify(&disk, &keys().public(), Some(&note)).unwrap();
    let counts = (verified.present, verified.pruned, verified.newer, verified.torn_bytes, verified.outside);
    assert_eq!(counts, (ENTRIES, 0, 0, 0, Some(ENTRIES)));
    assert_eq!(
        public_files(&disk),
        ["log/checkpoint", "log/pending", "log/tile/0/000", "log/tile/entries/000"]
    );
}

/// Even without an outside checkpoint. With RINGFENCE_AUDIT_FLIPS=8 every bit, else one of each byte.
#[test]
fn every_flipped_bit_is_found() {
    let (disk, _) = written();
    let (each, mut flips) = (count("RINGFENCE_AUDIT_FLIPS", 1), 0);
    for name in public_files(&disk) {
        for at in 0..disk.files()[&name].len() {
            for bit in 0..each {
                let bit = (at as u64 + bit) % 8;
                disk.change(&name, |bytes| bytes[at] ^= 1 << bit);
                found_with(&disk, None, &format!("bit {bit} of byte {at} of {name}"));
                if flips % 499 == 0 {
                    let opened = Log::open(disk.restarted(), keys(), None).map(|_| ());
                    assert!(matches!(opened, Err(OpenError::Fault(_))), "{name}, byte {at}: {opened:?}");
                }
                disk.change(&name, |bytes| bytes[at] ^= 1 << bit);
                flips += 1;
            }
        }
    }
    println!("{flips} flips");
}

#[test]
fn every_truncation_deletion_and_swap_of_files_is_found() {
    let (disk, note) = written();
    let files = disk.files();
    for name in public_files(&disk) {
        for length in 0..files[&name].len() {
            let kept = files[&name][..length].to_vec();
            disk.change(&name, |bytes| *bytes = kept);
            found_with(&disk, None, &format!("{name} cut to {length}"));
        }
        disk.change(&name, |bytes| *bytes = files[&name].clone());
        let without: BTreeMap<_, _> = files.clone().into_iter().filter(|(other, _)| *other != name).collect();
        found(&Disk::with(&without), &note, &format!("{name} deleted"));
        for other in public_files(&disk).iter().filter(|other| **other != name) {
            let mut swapped = files.clone();
            swapped.insert(name.clone(), files[other].clone());
            swapped.insert(other.clone(), files[&name].clone());
            found(&Disk::with(&swapped), &note, &format!("{name} and {other} swapped"));
        }
    }
}

/// The entries of a file as they lie there, each with its length and, in the tail, the first bytes of its hash.
fn records(name: &str, bytes: &[u8]) -> (usize, Vec<Vec<u8>>) {
    let (head, check) = if name == "log/pending" { (8, 8) } else { (0, 0) };
    let (mut records, mut rest) = (Vec::new(), &bytes[head..]);
    while !rest.is_empty() {
        let length = 2 + usize::from(u16::from_be_bytes([rest[0], rest[1]])) + check;
        records.push(rest[..length].to_vec());
        rest = &rest[length..];
    }
    (head, records)
}

#[test]
fn every_deleted_swapped_repeated_and_moved_entry_is_found() {
    let (disk, _) = written();
    for name in ["log/tile/entries/000", "log/pending"] {
        let whole = disk.files()[name].clone();
        let (head, entries) = records(name, &whole);
        let check = |change: &dyn Fn(&mut Vec<Vec<u8>>), what: String| {
            let mut changed = entries.clone();
            change(&mut changed);
            disk.change(name, |bytes| *bytes = [&whole[..head], &changed.concat()].concat());
            found_with(&disk, None, &what);
        };
        for at in 0..entries.len() {
            check(&|entries| drop(entries.remove(at)), format!("{name}: entry {at} deleted"));
            // Behind the checkpoint's last entry there may be newer ones, which are counted and not vouched for.
            if name != "log/pending" || at + 1 < entries.len() {
                check(
                    &|entries| entries.insert(at, entries[at].clone()),
                    format!("{name}: entry {at} repeated"),
                );
            }
            let other = (at * 7 + 1) % entries.len();
            if other != at {
                check(
                    &|entries| entries.swap(at, other),
                    format!("{name}: entries {at} and {other} swapped"),
                );
            }
            if at > 0 {
                check(&|entries| entries[..=at].rotate_left(1), format!("{name}: entry 0 moved to {at}"));
            }
        }
        disk.change(name, |bytes| *bytes = whole);
    }
}

#[test]
fn a_changed_entry_is_named_with_what_was_expected() {
    let (disk, note) = written();
    disk.change("log/tile/entries/000", |bytes| {
        let at = bytes.windows(11).position(|bytes| bytes == b"\"count\":123").unwrap();
        bytes[at + 10] = b'4';
    });
    match found(&disk, &note, "a changed entry") {
        Fault::Entry { index: 123, file, expected, found } => {
            let [was, is] = [123, 124].map(|count| {
                let ringfence_audit::Event::Refused { code, .. } = entry(123).event else { unreachable!() };
                let event = ringfence_audit::Event::Refused { code, count };
                ringfence_audit::leaf_hash(&Entry { event, ..entry(123) }.encode().unwrap())
            });
            assert_eq!((file.as_str(), expected, found), ("log/tile/entries/000", was, is));
        }
        other => panic!("{other}"),
    }
}

/// Who has the key can write anything; a checkpoint that he does not have in his hands says so.
#[test]
fn truncate_and_resume_and_a_log_sealed_anew_are_found_by_an_outside_checkpoint_only() {
    let (disk, note) = written();
    let sealed_anew = |numbers: &mut dyn Iterator<Item = u64>| {
        let disk = Disk::default();
        write(&disk, &keys(), numbers);
        assert!(verify(&disk, &keys().public(), None).is_ok());
        disk
    };
    let cut = sealed_anew(&mut (0..300));
    assert!(matches!(found(&cut, &note, "truncated"), Fault::Short { size: 300, outside: ENTRIES, .. }));
    let resumed = sealed_anew(&mut (0..300).chain(600..900));
    assert!(matches!(found(&resumed, &note, "resumed"), Fault::Root { size: ENTRIES, .. }));
    let resealed = sealed_anew(&mut (0..ENTRIES).map(|number| if number == 77 { 1_077 } else { number }));
    assert!(matches!(found(&resealed, &note, "resealed"), Fault::Root { size: ENTRIES, .. }));
    let emptied = Disk::default();
    write(&emptied, &keys(), 0..0);
    assert!(matches!(found(&emptied, &note, "emptied"), Fault::Short { size: 0, .. }));
    // Longer, with the same beginning: what the checkpoint covers is there.
    let longer = sealed_anew(&mut (0..900));
    assert_eq!(verify(&longer, &keys().public(), Some(&note)).unwrap().outside, Some(ENTRIES));
    // And who has not the key can not even do that.
    let other = Keys::generate(&[9; KEYS_BYTES]);
    let forged = Disk::default();
    write(&forged, &other, 0..ENTRIES);
    assert!(matches!(found(&forged, &note, "another key"), Fault::Checkpoint { .. }));
    drop(disk);
}

#[test]
fn a_second_place_finds_them_when_the_log_is_opened() {
    let (disk, _) = written();
    let second = Disk::default();
    let open =
        |disk: &Disk| Log::open(disk.restarted(), keys(), Some(second.restarted())).map(|(log, _)| log);
    {
        let (mut log, _) = Log::open(disk.restarted(), keys(), Some(second.clone())).unwrap();
        log.append(entry(500)).unwrap();
        log.commit().unwrap();
        assert_eq!(log.checkpoint().unwrap().size, 501);
        assert!(log.second_error().is_none());
    }
    let name = second.files().into_keys().find(|name| name.ends_with(".checkpoint")).unwrap();
    assert!(name.starts_with("ringfence.local."), "{name}");
    // The log as it was before the last entry.
    assert!(matches!(open(&disk), Err(OpenError::Fault(Fault::Short { size: 500, outside: 501, .. }))));
    for numbers in [0..300, 1..601, 1..1_201] {
        let other = Disk::default();
        write(&other, &keys(), numbers);
        assert!(matches!(open(&other), Err(OpenError::Fault(Fault::Short { .. } | Fault::Root { .. }))));
    }
    let longer = Disk::default();
    write(&longer, &keys(), 0..1_200);
    open(&longer).unwrap();
    // A place that can't be written is said, and the log goes on.
    second.fail(0, crate::disk::Fault::ReadOnly);
    let (mut log, _) = Log::open(longer.restarted(), keys(), Some(second)).unwrap();
    assert!(log.second_error().is_some());
    log.append(entry(0)).unwrap();
    assert_eq!(log.commit().unwrap(), 1_201);
}

#[test]
fn flips_in_an_export_are_found() {
    let (disk, note) = written();
    let public: PublicKey = keys().public();
    let folder = tempfile::tempdir().unwrap();
    let mut to = Folder::open(folder.path()).unwrap();
    export(&disk, &public, &Default::default(), &Default::default(), &mut to).unwrap();
    let names = [
        "checkpoint",
        "tile/0/000",
        "tile/0/001.p/244",
        "tile/1/000.p/1",
        "tile/entries/000",
        "tile/entries/001.p/244",
    ];
    let files: BTreeMap<_, _> = names
        .map(|name| (format!("log/{name}"), std::fs::read(folder.path().join("log").join(name)).unwrap()))
        .into();
    let copy = Disk::with(&files);
    assert_eq!(verify(&copy, &public, Some(&note)).unwrap().present, ENTRIES);
    for (name, bytes) in &files {
        for at in (0..bytes.len()).step_by(if bytes.len() > 1_000 { 61 } else { 1 }) {
            copy.change(name, |bytes| bytes[at] ^= 1 << (at % 8));
            found(&copy, &note, &format!("byte {at} of {name}"));
            copy.change(name, |bytes| bytes[at] ^= 1 << (at % 8));
        }
        let without: BTreeMap<_, _> = files.clone().into_iter().filter(|(other, _)| other != name).collect();
        found(&Disk::with(&without), &note, &format!("{name} deleted"));
    }
}
