//! The log in order: clocks, checkpoints, bounds, pruning.

use crate::disk::Disk;
use crate::{entry, keys, word};
use ringfence_audit::{
    CHECKPOINT_ENTRIES, CHECKPOINT_MS, Clock, Entry, Event, Fault, Log, LogError, Masked, NameMap, OpenError,
    Reader, TAIL_ENTRIES_MAX, verify,
};

fn open(disk: &Disk) -> Log<Disk> {
    Log::open(disk.restarted(), keys(), None).unwrap().0
}

fn at(time_ms: u64) -> Entry {
    Entry { time_ms, ..entry(0) }
}

fn used(path: Masked) -> Event {
    Event::GrantUsed { grant: 1, path }
}

fn clocks(disk: &Disk) -> Vec<(u64, Option<Clock>)> {
    let entries = Reader::open(disk, None).unwrap();
    let decoded = entries.entries(0).map(|entry| Entry::decode(&entry.unwrap().1).unwrap());
    decoded.map(|entry| (entry.time_ms, entry.clock)).collect()
}

#[test]
fn a_clock_that_goes_back_is_written_as_it_is_and_marked() {
    let disk = Disk::default();
    let (mut log, _) = Log::open(disk.clone(), keys(), None).unwrap();
    for time_ms in [5_000, 9_000_000, 4_000, 4_000] {
        log.append(at(time_ms)).unwrap();
    }
    log.commit().unwrap();
    log.checkpoint().unwrap();
    drop(log);
    // Nor is it forgotten over a restart.
    let disk = disk.restarted();
    let (mut log, _) = Log::open(disk.clone(), keys(), None).unwrap();
    log.append(at(3_999)).unwrap();
    log.append(at(4_000)).unwrap();
    log.commit().unwrap();
    let back = Some(Clock::Back);
    let expected =
        [(5_000, None), (9_000_000, None), (4_000, back), (4_000, None), (3_999, back), (4_000, None)];
    assert_eq!(clocks(&disk), expected);
}

#[test]
fn a_checkpoint_is_due_after_64_entries_a_second_or_a_jump() {
    let mut log = open(&Disk::default());
    assert!(!log.checkpoint_due(u64::MAX));
    log.append(at(10_000)).unwrap();
    assert!(!log.checkpoint_due(u64::MAX), "what is not durable is not signed");
    log.commit().unwrap();
    assert!(!log.checkpoint_due(10_000 + CHECKPOINT_MS - 1));
    assert!(log.checkpoint_due(10_000 + CHECKPOINT_MS) && log.checkpoint_due(9_999));
    assert_eq!(log.checkpoint().unwrap().size, 1);
    assert!(!log.checkpoint_due(u64::MAX));
    for _ in 0..CHECKPOINT_ENTRIES {
        assert!(!log.checkpoint_due(10_000));
        log.append(at(10_000)).unwrap();
        log.commit().unwrap();
    }
    assert!(log.checkpoint_due(10_000));
}

#[test]
fn what_waits_is_bounded_and_a_checkpoint_makes_room() {
    let disk = Disk::default();
    let (mut log, _) = Log::open(disk.clone(), keys(), None).unwrap();
    for _ in 0..TAIL_ENTRIES_MAX {
        log.append(at(0)).unwrap();
    }
    assert!(matches!(log.append(at(0)), Err(LogError::Full)));
    log.commit().unwrap();
    assert!(matches!(log.append(at(0)), Err(LogError::Full)));
    log.checkpoint().unwrap();
    assert_eq!(log.append(at(0)).unwrap(), TAIL_ENTRIES_MAX as u64);
    assert_eq!(log.commit().unwrap(), TAIL_ENTRIES_MAX as u64 + 1);
    log.checkpoint().unwrap();
    assert_eq!(verify(&disk, &keys().public(), None).unwrap().present, TAIL_ENTRIES_MAX as u64 + 1);
}

#[test]
fn a_torn_end_is_dropped_and_said_and_anything_below_the_checkpoint_refuses() {
    let disk = Disk::default();
    let (mut log, _) = Log::open(disk.clone(), keys(), None).unwrap();
    for number in 0..10 {
        log.append(entry(number)).unwrap();
        log.commit().unwrap();
        if number == 6 {
            log.checkpoint().unwrap();
        }
    }
    drop(log);
    let tail = disk.files()["log/pending"].clone();
    let record = (tail.len() - 8) / 10;
    for kept in 0..tail.len() {
        let cut = disk.restarted();
        cut.change("log/pending", |bytes| bytes.truncate(kept));
        let whole = kept.saturating_sub(8) / record;
        match Log::open(cut, keys(), None) {
            Ok((log, recovery)) => {
                assert!(whole >= 7, "{kept}");
                assert_eq!(recovery.dropped_bytes, (kept - 8) % record, "{kept}");
                assert_eq!((recovery.size, recovery.uncovered), (whole as u64, whole as u64 - 7), "{kept}");
                assert_eq!(log.size(), recovery.size);
            }
            Err(OpenError::Fault(Fault::CutOff { index, size: 7, .. })) => assert_eq!(index, whole as u64),
            Err(OpenError::Fault(Fault::Form { .. })) => assert!(kept < 8),
            Err(other) => panic!("{kept}: {other}"),
        }
    }
    // The same file while it is written is no fault, but said.
    disk.change("log/pending", |bytes| bytes.truncate(tail.len() - 1));
    let verified = verify(&disk, &keys().public(), None).unwrap();
    assert_eq!((verified.present, verified.newer, verified.torn_bytes), (7, 2, record - 1));
}

#[test]
fn old_bundles_are_pruned_their_hashes_stay_and_a_deletion_is_no_pruning() {
    let disk = Disk::default();
    let (mut log, _) = Log::open(disk.clone(), keys(), None).unwrap();
    for number in 0..3_000 {
        // The clock goes back once: what lies after a newer entry is kept.
        let time_ms = if number == 1_500 { 0 } else { number };
        log.append(at(time_ms)).unwrap();
        if number % 64 == 63 {
            log.commit().unwrap();
            log.checkpoint().unwrap();
        }
    }
    log.commit().unwrap();
    let outside = log.checkpoint().unwrap();
    let note = disk.files()["log/checkpoint"].clone();
    assert_eq!(log.older_than(1_000).unwrap(), 1_000);
    assert_eq!(log.prune(1_000, 5_000, word("r")).unwrap(), 768);
    assert_eq!(log.prune(1_000, 5_000, word("r")).unwrap(), 0);
    let check = |pruned: u64, size: u64| {
        let verified = verify(&disk, &keys().public(), Some(&note)).unwrap();
        assert_eq!((verified.pruned, verified.present + pruned), (pruned, size));
        assert_eq!(verified.outside, Some(outside.size));
        let first = Reader::open(&disk, None).unwrap().entries(0).next().unwrap().unwrap().0;
        assert_eq!(first, pruned);
    };
    check(768, 3_001);
    // Twice is once more, and the tail is never pruned.
    assert_eq!(log.older_than(2_000).unwrap(), 2_000);
    assert_eq!(log.prune(u64::MAX, 5_001, word("r")).unwrap(), 2_816 - 768);
    check(2_816, 3_002);
    let said = Reader::open(&disk, None).unwrap().entries(3_001).last().unwrap().unwrap().1;
    assert_eq!(Entry::decode(&said).unwrap().event, Event::Pruned { before: 2_816 });
    drop(log);
    let log = open(&disk);
    assert_eq!(log.size(), 3_002);
}

#[test]
fn names_go_with_the_last_entry_that_has_them() {
    let disk = Disk::default();
    let (mut log, _) = Log::open(disk.clone(), keys(), None).unwrap();
    let mut masks = Vec::new();
    for number in 0..600 {
        let mut mask = |name: String| log.mask(&name);
        let own = mask(format!("/home/anna/{number}"));
        let client = mask(if number == 0 { "once" } else { "always" }.to_owned());
        masks.push((own, client));
        let entry = Entry { client: Some(client), ..Entry::of_server(number, word("r"), used(own)) };
        log.append(entry).unwrap();
    }
    log.commit().unwrap();
    log.checkpoint().unwrap();
    let names = || NameMap::read(&disk, &keys()).unwrap();
    let known = |names: &NameMap| masks.iter().filter(|(own, _)| names.name(own).is_some()).count();
    assert_eq!(known(&names()), 600);
    assert_eq!(log.prune(600, 601, word("r")).unwrap(), 512);
    let left = names();
    assert_eq!(known(&left), 600 - 512);
    assert_eq!((left.name(&masks[0].1), left.name(&masks[1].1)), (None, Some("always")));
    // A name that comes again is kept again, once.
    let before = disk.files()["names"].len();
    for _ in 0..2 {
        log.mask("/home/anna/0");
        log.append(Entry::of_server(700, word("r"), used(masks[0].0))).unwrap();
        log.commit().unwrap();
    }
    assert_eq!(names().name(&masks[0].0), Some("/home/anna/0"));
    let after = disk.files()["names"].len();
    assert!((before + 1..before + 100).contains(&after), "{before} {after}");
    assert_eq!(log.names_left_out(), 0);
}

#[test]
fn a_bundle_that_nobody_pruned_is_missed() {
    let disk = Disk::default();
    let (mut log, _) = Log::open(disk.clone(), keys(), None).unwrap();
    for number in 0..1_500 {
        log.append(entry(number)).unwrap();
    }
    log.commit().unwrap();
    log.checkpoint().unwrap();
    log.prune(256, 5_000, word("r")).unwrap();
    drop(log);
    for (bundle, index) in [("001", 256), ("002", 512), ("004", 1_024)] {
        let mut files = disk.files();
        files.remove(&format!("log/tile/entries/{bundle}")).unwrap();
        let without = Disk::with(&files);
        let fault = verify(&without, &keys().public(), None).unwrap_err();
        assert!(matches!(fault, Fault::Deleted { index: found, .. } if found == index), "{fault}");
        let opened = Log::open(without, keys(), None).map(|_| ());
        assert!(matches!(opened, Err(OpenError::Fault(Fault::Deleted { .. }))), "{opened:?}");
    }
}
