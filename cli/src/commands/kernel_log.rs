//! The kernel's log (`/dev/kmsg`): what GPU drivers and the out-of-memory killer say.

use super::logs::Line;
use crate::clock;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;

/// Messages that are about a GPU, or about memory: of NVIDIA's driver, of amdgpu, of Intel's drivers, of the kernel's
/// out-of-memory killer.
const WORDS: [&str; 7] = ["NVRM", "Xid", "amdgpu", "i915", "xe 0000", "oom-kill", "Out of memory"];
/// The longest record, as the kernel has it (`PRINTKRB_RECORD_MAX`), and room.
const RECORD_BYTES_MAX: usize = 8 * 1024;
/// Records of one look.
const RECORDS_MAX: usize = 100_000;

/// The kernel's log, read on from where it was left.
#[derive(Debug)]
pub(super) struct KernelLog {
    file: File,
    /// Milliseconds since 1970 at which the kernel's clock was 0.
    begun_ms: u64,
}

impl KernelLog {
    /// Opens it at its oldest record; says why it can't.
    pub(super) fn open() -> Result<Self, String> {
        let mut options = File::options();
        options.read(true).custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed());
        let file = options.open("/dev/kmsg").map_err(|error| format!("/dev/kmsg: {error}"))?;
        Ok(Self { file, begun_ms: (clock::unix_ms() as u64).saturating_sub(clock::monotonic_ms()) })
    }

    /// What has come since the last look, as far as it is about what we look for.
    pub(super) fn lines(&mut self) -> Vec<Line> {
        let (mut lines, mut record) = (Vec::new(), [0; RECORD_BYTES_MAX]);
        for _ in 0..RECORDS_MAX {
            match self.file.read(&mut record) {
                Ok(0) => break,
                Ok(count) => lines.extend(parse(&String::from_utf8_lossy(&record[..count]), self.begun_ms)),
                // Records that were overwritten before they were read.
                Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::Interrupted) => {}
                Err(_) => break,
            }
        }
        lines
    }
}

/// `PRIORITY,SEQUENCE,MICROSECONDS,FLAGS;TEXT`, then lines of its own with details.
fn parse(record: &str, begun_ms: u64) -> Option<Line> {
    let (head, text) = record.split_once(';')?;
    let text = text.lines().next()?;
    let us: u64 = head.split(',').nth(2)?.parse().ok()?;
    let about = WORDS.iter().any(|word| text.contains(word));
    about.then(|| Line {
        time_ms: begun_ms + us / 1_000,
        source: "kernel".to_owned(),
        worker: None,
        text: text.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_of_a_driver_is_a_line_with_its_time_and_others_are_none() {
        let xid =
            "4,1207,5140900,-;NVRM: Xid (PCI:0000:41:00): 79, GPU has fallen off the bus.\n SUBSYSTEM=pci\n";
        let line = parse(xid, 1_000_000).unwrap();
        assert_eq!((line.time_ms, line.source.as_str()), (1_005_140, "kernel"));
        assert_eq!(line.text, "NVRM: Xid (PCI:0000:41:00): 79, GPU has fallen off the bus.");
        assert!(parse("6,1,2,-;[drm] amdgpu kernel modesetting enabled", 0).is_some());
        for other in ["6,1,2,-;usb 1-1: new device", "no record", "6,1,x,-;NVRM", ""] {
            assert_eq!(parse(other, 0), None, "{other}");
        }
    }
}
