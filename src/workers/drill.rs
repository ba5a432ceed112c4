//! The kernel's limits of a worker, lowered on purpose: what its machine would be like without memory.

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde::Deserialize;
use std::io;
use utoipa::ToSchema;

/// What the kernel gives a worker no more of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Starve {
    /// Memory of its own (RLIMIT_DATA).
    Data,
    /// Addresses (RLIMIT_AS), and so whatever a driver maps.
    AddressSpace,
    /// Nothing: both limits are again what they were.
    Nothing,
}

/// What is left to a worker that is starved before it loads: enough for small things.
const LOAD_BYTES: u64 = 16 << 20;

/// Leaves a worker next to nothing for its package, as a full machine or device would.
///
/// # Errors
/// As for [`starve`].
pub(crate) fn starve_load(pid: i32) -> io::Result<()> {
    limit(pid, &DATA, Some(LOAD_BYTES))
}

/// A limit, and the kernel's names of what a process has and may have of it.
struct Limited {
    resource: Resource,
    has: &'static str,
    may: &'static str,
}

const DATA: Limited = Limited { resource: Resource::Data, has: "VmData:", may: "Max data size" };
const ADDRESS_SPACE: Limited = Limited { resource: Resource::As, has: "VmSize:", may: "Max address space" };

/// Sets the soft limit to what the process has now, or back to the hard one.
///
/// # Errors
/// The process has gone, or its limits can't be set.
pub(crate) fn starve(pid: i32, of: Starve) -> io::Result<()> {
    match of {
        Starve::Data => limit(pid, &DATA, Some(0)),
        Starve::AddressSpace => limit(pid, &ADDRESS_SPACE, Some(0)),
        Starve::Nothing => limit(pid, &DATA, None).and(limit(pid, &ADDRESS_SPACE, None)),
    }
}

/// Sets a soft limit to so much more than the process has, or to the hard one.
fn limit(pid: i32, of: &Limited, more: Option<u64>) -> io::Result<()> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let gone = || io::Error::from(io::ErrorKind::NotFound);
    // Of the two numbers the second is the hard limit; "unlimited" is none.
    let hard = line(&limits, of.may).and_then(|line| line.split_whitespace().nth(1)).ok_or_else(gone)?;
    let maximum = hard.parse().ok();
    let has = line(&status, of.has).and_then(bytes).ok_or_else(gone)?;
    let current = more.map_or(maximum, |more| Some(has.saturating_add(more)));
    let process = Pid::from_raw(pid).ok_or_else(gone)?;
    Ok(prlimit(Some(process), of.resource, Rlimit { current, maximum }).map(drop)?)
}

fn line<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    text.lines().find_map(|line| line.strip_prefix(name))
}

/// `N kB` in bytes.
fn bytes(text: &str) -> Option<u64> {
    text.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_has_gone_is_an_error() {
        assert_eq!(starve(i32::MAX, Starve::Data).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
