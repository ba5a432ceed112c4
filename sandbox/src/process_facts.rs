//! What the kernel says about a sandboxed program, so that the server need not believe the program.

use crate::enter::{INNER_ID, OWNER_ID};
use std::io::Read;

/// From `/proc/PID/status` and `uid_map`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessFacts {
    /// 2 is filter mode.
    pub seccomp_mode: u32,
    /// System call filters that it has and the reader has not: a service manager may have put some on both.
    pub filters: u32,
    /// Whether exec can't gain privileges.
    pub no_new_privs: bool,
    /// Inheritable, permitted, effective, bounding, ambient sets.
    pub capabilities: [u64; 5],
    /// Real uid as the reader sees it.
    pub uid: u32,
    /// Lines of the uid map: inside, outside (as the reader sees it), count.
    pub uid_map: Vec<[u32; 3]>,
    /// Threads now.
    pub threads: u32,
    /// Its pid in each namespace, the reader's first. A program in the sandbox has two and the second is 2.
    pub pids: Vec<u32>,
}

/// Why a process is not what a sealed program must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsealed {
    /// No system call filter.
    #[error("it has no system call filter")]
    NoFilter,
    /// Exec could gain privileges.
    #[error("it could gain privileges by exec")]
    MayGainPrivileges,
    /// A capability set is not empty.
    #[error("it has capabilities")]
    Capabilities,
    /// It shares the reader's pid or user namespace, or has the outer uid 0.
    #[error("it is not in namespaces of its own")]
    Namespaces,
}

/// Why the facts can't be had.
#[derive(Debug, thiserror::Error)]
pub enum ProcessFactsError {
    /// The process is gone, or /proc is hidden.
    #[error(
        "/proc/{pid} can't be read; if /proc is mounted with hidepid, the server needs `gid=` of its group there"
    )]
    Unreadable {
        /// Whose.
        pid: i32,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// A line is missing or is no number.
    #[error("/proc/{pid} has no `{field}` that can be read")]
    Field {
        /// Whose.
        pid: i32,
        /// Which.
        field: &'static str,
    },
}

/// Reads the facts of a process.
pub fn process_facts(pid: i32) -> Result<ProcessFacts, ProcessFactsError> {
    let unreadable = |source| ProcessFactsError::Unreadable { pid, source };
    let status = read(&format!("/proc/{pid}/status")).map_err(unreadable)?;
    let uid_map = read(&format!("/proc/{pid}/uid_map")).map_err(unreadable)?;
    let own_status = read("/proc/self/status").map_err(unreadable)?;
    let parsed = parse(&status, &uid_map).and_then(|facts| {
        let inherited: u32 = number(&own_status, "Seccomp_filters")?;
        Ok(ProcessFacts { filters: facts.filters.saturating_sub(inherited), ..facts })
    });
    parsed.map_err(|field| ProcessFactsError::Field { pid, field })
}

impl ProcessFacts {
    /// Whether these are the facts of a sealed program.
    pub fn check_sealed(&self) -> Result<(), Unsealed> {
        if self.seccomp_mode != libc::SECCOMP_MODE_FILTER || self.filters == 0 {
            return Err(Unsealed::NoFilter);
        }
        if !self.no_new_privs {
            return Err(Unsealed::MayGainPrivileges);
        }
        if self.capabilities != [0; 5] {
            return Err(Unsealed::Capabilities);
        }
        let own_pids = self.pids.len() == 2 && self.pids[1] == 2;
        let own_ids = matches!(self.uid_map[..], [[INNER_ID | OWNER_ID, _, 1]]);
        if !own_pids || !own_ids || self.uid == 0 {
            return Err(Unsealed::Namespaces);
        }
        Ok(())
    }
}

/// Far above what the kernel prints for a process.
const FILE_BYTES_MAX: u64 = 64 * 1024;

#[expect(clippy::disallowed_methods, reason = "the kernel's own files; no name comes from outside")]
fn read(path: &str) -> std::io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(path)?.take(FILE_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

fn parse(status: &str, uid_map: &str) -> Result<ProcessFacts, &'static str> {
    Ok(ProcessFacts {
        seccomp_mode: number(status, "Seccomp")?,
        filters: number(status, "Seccomp_filters")?,
        no_new_privs: number(status, "NoNewPrivs")? == 1,
        capabilities: [
            set(status, "CapInh")?,
            set(status, "CapPrm")?,
            set(status, "CapEff")?,
            set(status, "CapBnd")?,
            set(status, "CapAmb")?,
        ],
        uid: number(status, "Uid")?,
        uid_map: uid_map.lines().map(map_line).collect::<Option<_>>().ok_or("uid_map")?,
        threads: number(status, "Threads")?,
        pids: numbers(status, "NSpid").ok_or("NSpid")?,
    })
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

fn numbers(status: &str, name: &str) -> Option<Vec<u32>> {
    field(status, name)?.split_whitespace().map(|number| number.parse().ok()).collect()
}

/// The first number of a line.
fn number(status: &str, name: &'static str) -> Result<u32, &'static str> {
    numbers(status, name).and_then(|numbers| numbers.first().copied()).ok_or(name)
}

fn set(status: &str, name: &'static str) -> Result<u64, &'static str> {
    field(status, name).and_then(|bits| u64::from_str_radix(bits, 16).ok()).ok_or(name)
}

fn map_line(line: &str) -> Option<[u32; 3]> {
    let numbers: Vec<u32> =
        line.split_whitespace().map(|number| number.parse().ok()).collect::<Option<_>>()?;
    numbers.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed() -> ProcessFacts {
        ProcessFacts {
            seccomp_mode: 2,
            filters: 1,
            no_new_privs: true,
            capabilities: [0; 5],
            uid: 1000,
            uid_map: vec![[65534, 1000, 1]],
            threads: 3,
            pids: vec![71, 2],
        }
    }

    #[test]
    fn each_fact_that_is_wrong_is_told() {
        assert_eq!(sealed().check_sealed(), Ok(()));
        let cases = [
            (ProcessFacts { seccomp_mode: 0, ..sealed() }, Unsealed::NoFilter),
            (ProcessFacts { filters: 0, ..sealed() }, Unsealed::NoFilter),
            (ProcessFacts { no_new_privs: false, ..sealed() }, Unsealed::MayGainPrivileges),
            (ProcessFacts { capabilities: [0, 0, 0, 1, 0], ..sealed() }, Unsealed::Capabilities),
            (ProcessFacts { uid: 0, ..sealed() }, Unsealed::Namespaces),
            (ProcessFacts { pids: vec![71], ..sealed() }, Unsealed::Namespaces),
            (ProcessFacts { pids: vec![71, 3], ..sealed() }, Unsealed::Namespaces),
            (ProcessFacts { uid_map: vec![[0, 0, u32::MAX]], ..sealed() }, Unsealed::Namespaces),
        ];
        for (facts, expected) in cases {
            assert_eq!(facts.check_sealed(), Err(expected), "{facts:?}");
        }
    }

    #[test]
    fn this_process_is_not_taken_for_a_sealed_one() {
        let facts = process_facts(std::process::id().cast_signed()).unwrap();
        assert_eq!(facts.check_sealed(), Err(Unsealed::NoFilter));
    }

    #[test]
    fn a_process_that_is_gone_is_told_as_such() {
        assert!(matches!(process_facts(i32::MAX), Err(ProcessFactsError::Unreadable { .. })));
    }
}
