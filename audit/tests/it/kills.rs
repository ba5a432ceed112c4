//! A process that writes is killed at random moments: what it said was written is there.

use crate::{Random, count, entry, keys};
use ringfence_audit::{Folder, Log, verify};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Names the folder to the process that writes, which is this test executable once more.
const FOLDER: &str = "RINGFENCE_AUDIT_WRITER";

/// The process that is killed; a test that does nothing otherwise.
#[test]
fn the_writer() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let files = Folder::open(Path::new(&folder)).unwrap();
    let (mut log, _) = Log::open(files, keys(), None).unwrap();
    let mut out = std::io::stdout().lock();
    for batch in 1.. {
        for number in 0..batch % 7 + 1 {
            log.mask(&format!("{batch} {number}"));
            log.append(entry(number)).unwrap();
        }
        writeln!(out, "\nacknowledged {}", log.commit().unwrap()).unwrap();
        if log.checkpoint_due(0) {
            log.checkpoint().unwrap();
        }
    }
}

/// The last size that it said, whole lines only.
fn killed_after(folder: &Path, wait: Duration) -> u64 {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["kills::the_writer", "--exact", "--nocapture"]).env(FOLDER, folder);
    let mut writer = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let said = BufReader::new(writer.stdout.take().unwrap());
    let reader = std::thread::spawn(move || {
        let sizes = said.lines().map_while(Result::ok);
        let sizes = sizes.filter_map(|line| line.strip_prefix("acknowledged ")?.parse().ok());
        sizes.last().unwrap_or(0)
    });
    std::thread::sleep(wait);
    writer.kill().unwrap();
    writer.wait().unwrap();
    reader.join().unwrap()
}

#[test]
fn nothing_acknowledged_is_lost_when_the_writer_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let (mut random, mut acknowledged, mut progress) = (Random(7), 0, 0);
    let kills = count("RINGFENCE_AUDIT_KILLS", 20);
    for kill in 0..kills {
        let said = killed_after(folder.path(), Duration::from_millis(20 + random.below(120)));
        progress += u64::from(said > acknowledged);
        acknowledged = said.max(acknowledged);
        let files = Folder::open(folder.path()).unwrap();
        let (log, recovery) = Log::open(files, keys(), None).unwrap();
        assert!(recovery.size >= acknowledged, "kill {kill}: {acknowledged} were acknowledged, {recovery:?}");
        drop(log);
        let files = Folder::open(folder.path()).unwrap();
        assert_eq!(verify(&files, &keys().public(), None).unwrap().present, recovery.size, "kill {kill}");
    }
    assert!(progress * 2 > kills, "the writer wrote in {progress} of {kills} lives only");
    println!("{acknowledged} entries acknowledged over {kills} kills");
}
