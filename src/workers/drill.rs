//! The kernel's limit of a worker, lowered on purpose: what it would be like on a machine without memory.

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use std::io;

/// What is left to a worker that is to find no memory for its package: enough for small things.
pub(crate) const LOAD_BYTES: u64 = 16 << 20;

/// Sets the soft limit of a worker's own memory (RLIMIT_DATA) to so much more than it has.
///
/// # Errors
/// The process has gone, or its limit can't be set.
pub(crate) fn leave_memory(pid: i32, bytes: u64) -> io::Result<()> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let gone = || io::Error::from(io::ErrorKind::NotFound);
    // Of the two numbers the second is the hard limit; "unlimited" is none.
    let hard = line(&limits, "Max data size").and_then(|line| line.split_whitespace().nth(1));
    let maximum = hard.ok_or_else(gone)?.parse().ok();
    let has = line(&status, "VmData:").and_then(kib).ok_or_else(gone)?;
    let process = Pid::from_raw(pid).ok_or_else(gone)?;
    let limit = Rlimit { current: Some(has.saturating_add(bytes)), maximum };
    Ok(prlimit(Some(process), Resource::Data, limit).map(drop)?)
}

fn line<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    text.lines().find_map(|line| line.strip_prefix(name))
}

/// `N kB` in bytes.
fn kib(text: &str) -> Option<u64> {
    text.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_has_gone_is_an_error() {
        assert_eq!(leave_memory(i32::MAX, 0).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
