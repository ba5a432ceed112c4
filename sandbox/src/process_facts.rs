//! What the kernel says about a sandboxed program, so that the server need not believe the program.

/// From `/proc/PID/status` and `uid_map`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessFacts {
    /// 2 is filter mode.
    pub seccomp_mode: u32,
    /// Filters installed.
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
    #[error("/proc/{pid} can't be read; if /proc is mounted with hidepid, the server needs `gid=` of its group there")]
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

/// Reads them.
pub fn process_facts(pid: i32) -> Result<ProcessFacts, ProcessFactsError> {
    let _ = pid;
    todo!()
}

impl ProcessFacts {
    /// Whether these are the facts of a sealed program.
    pub fn check_sealed(&self) -> Result<(), Unsealed> {
        todo!()
    }
}
