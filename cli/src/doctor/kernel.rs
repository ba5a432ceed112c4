//! The floors of the sandbox, and what backs memory leases.

use super::Finding;
use ringfence_sandbox::{PreflightError, preflight};
use std::path::Path;

/// Without these no worker starts.
pub(super) fn floors() -> Vec<Finding> {
    let host = match preflight() {
        Ok(host) => host,
        Err(error) => {
            let name = match error {
                PreflightError::Landlock(_) => "landlock",
                PreflightError::Seccomp(_) => "seccomp",
                PreflightError::Namespaces { .. } => "namespaces",
            };
            return vec![Finding::no("kernel", name, "missing", error.to_string())];
        }
    };
    let abi = host.landlock_abi;
    let mut findings = vec![
        Finding::yes("kernel", "landlock", format!("ABI {abi}")),
        Finding::yes("kernel", "seccomp", "filters that kill a process"),
        Finding::yes("kernel", "namespaces", format!("user namespaces that can mount, tried {}", as_whom())),
    ];
    findings.extend(host.missing.into_iter().map(|missing| {
        let covered =
            format!("nothing: {}; a newer kernel adds it as one more layer", missing.compensation());
        Finding::absent("kernel", missing.name(), format!("not in ABI {abi}"), covered)
    }));
    findings
}

fn as_whom() -> &'static str {
    if rustix::process::geteuid().is_root() {
        "as root (the server drops to its user before it starts workers)"
    } else {
        "as this user"
    }
}

/// What holds a worker to its lease, from the strongest.
pub(super) fn caps() -> Vec<Finding> {
    vec![
        Finding::yes("caps", "rlimit", "tier kernel for workers on the CPU: RLIMIT_DATA set from outside"),
        memory_cgroup(),
    ]
}

fn memory_cgroup() -> Finding {
    const NAME: &str = "memory_cgroup";
    let controllers = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    if controllers.split_whitespace().any(|controller| controller == "memory") {
        return Finding::yes("caps", NAME, "version 2");
    }
    if Path::new("/sys/fs/cgroup/memory/memory.limit_in_bytes").exists() {
        return Finding::yes("caps", NAME, "version 1");
    }
    Finding::absent(
        "caps",
        NAME,
        "no memory controller is mounted",
        "leases hold without it; to count page cache and kernel memory too, mount cgroup2 with the memory controller",
    )
}
