//! A disk that is full, read-only or fails on fsync, at each step in turn, and power cuts at random.

use crate::disk::{Disk, Fault};
use crate::{Random, count, entry, keys};
use ringfence_audit::{Entry, Log, LogError, OpenError, Reader, verify};

/// Appends and commits until something fails, and says how many entries were acknowledged by then.
fn work(log: &mut Log<Disk>, until: u64, batches: &mut Random) -> (u64, Option<LogError>) {
    let mut acknowledged = log.size();
    let mut step = |log: &mut Log<Disk>| -> Result<(), LogError> {
        for _ in 0..=batches.below(40) {
            let next = log.size();
            log.mask(&format!("name {next}"));
            let index = log.append(entry(0))?;
            assert!(index >= next);
        }
        acknowledged = log.commit()?;
        if log.checkpoint_due(0) {
            log.checkpoint()?;
        }
        Ok(())
    };
    while log.size() < until {
        if let Err(error) = step(log) {
            return (acknowledged, Some(error));
        }
    }
    (acknowledged, None)
}

/// The log opens, has all that was acknowledged, and holds.
fn check(disk: &Disk, acknowledged: u64, at: &str) -> Log<Disk> {
    let (log, recovery) =
        Log::open(disk.clone(), keys(), None).unwrap_or_else(|error| panic!("{at}: {error}"));
    assert!(recovery.size >= acknowledged, "{at}: {acknowledged} were acknowledged, {recovery:?}");
    let verified = verify(disk, &keys().public(), None).unwrap_or_else(|fault| panic!("{at}: {fault}"));
    assert_eq!((verified.present, verified.torn_bytes), (recovery.size, 0), "{at}");
    for found in Reader::open(disk, None).unwrap().entries(0) {
        Entry::decode(&found.unwrap().1).unwrap();
    }
    log
}

#[test]
fn after_any_failed_step_nothing_is_written_and_nothing_acknowledged_is_lost() {
    let run = |fault: Option<(usize, Fault)>| {
        let disk = Disk::default();
        let (mut log, _) = Log::open(disk.clone(), keys(), None).unwrap();
        let before = disk.steps();
        if let Some((after, fault)) = fault {
            disk.fail(after, fault);
        }
        let (acknowledged, error) = work(&mut log, 600, &mut Random(1));
        (disk.clone(), log, acknowledged, error, disk.steps() - before)
    };
    let (.., error, steps) = run(None);
    assert!(error.is_none() && steps > 100, "{steps}");
    for fault in [Fault::Full, Fault::ReadOnly, Fault::Sync] {
        for after in 0..steps {
            let at = format!("{fault:?} after {after} steps");
            let (disk, mut log, acknowledged, error, _) = run(Some((after, fault)));
            match error {
                Some(LogError::Io { .. }) => {}
                // No step was left that could fail to sync.
                None if fault == Fault::Sync && after > steps - 3 => continue,
                other => panic!("{at}: {other:?}"),
            }
            let steps = disk.steps();
            assert!(matches!(log.append(entry(0)), Err(LogError::Poisoned)), "{at}");
            assert!(matches!(log.commit(), Err(LogError::Poisoned)), "{at}");
            assert!(matches!(log.checkpoint(), Err(LogError::Poisoned)), "{at}");
            assert_eq!(disk.steps(), steps, "{at}: a failed log touches the disk no more");
            check(&disk.restarted(), acknowledged, &at);
            check(&disk.after_power_cut(&mut Random(after as u64)), acknowledged, &at);
        }
    }
}

#[test]
fn an_open_that_fails_says_so_and_can_be_tried_again() {
    for fault in [Fault::Full, Fault::ReadOnly, Fault::Sync] {
        for after in 0..10 {
            let disk = Disk::default();
            disk.fail(after, fault);
            if let Err(error) = Log::open(disk.clone(), keys(), None) {
                assert!(matches!(error, OpenError::Io { .. }), "{error:?}");
            }
            check(&disk.restarted(), 0, "restarted");
            check(&disk.after_power_cut(&mut Random(after as u64)), 0, "after a power cut");
        }
    }
}

#[test]
fn power_cuts_at_random_lose_nothing_that_was_acknowledged() {
    for seed in 0..count("RINGFENCE_AUDIT_CUTS", 300) {
        let mut random = Random(seed);
        let (mut disk, mut acknowledged) = (Disk::default(), 0);
        for cut in 0..6 {
            let at = format!("seed {seed}, cut {cut}");
            // Some cuts come while the log is opened.
            let most = if random.below(3) == 0 { 12 } else { 160 };
            let after = random.below(most);
            disk.fail(usize::try_from(after).unwrap(), Fault::ReadOnly);
            if let Ok((mut log, recovery)) = Log::open(disk.clone(), keys(), None) {
                assert!(
                    recovery.size >= acknowledged,
                    "{at}: {acknowledged} were acknowledged, {recovery:?}"
                );
                acknowledged = work(&mut log, u64::MAX, &mut random).0;
            }
            disk = disk.after_power_cut(&mut random);
        }
        check(&disk, acknowledged, &format!("seed {seed}"));
    }
}

#[test]
fn a_second_opener_is_told_so() {
    let folder = tempfile::tempdir().unwrap();
    let open = || Log::open(ringfence_audit::Folder::open(folder.path()).unwrap(), keys(), None);
    let first = open().unwrap();
    assert!(matches!(open(), Err(OpenError::Locked)));
    drop(first);
    assert!(open().is_ok());
}
