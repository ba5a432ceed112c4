//! The closed lists of names that a policy file may use.

use rustix::process::Resource;

/// A system call: its name, its number and the names of the arguments that a condition may look at.
pub(crate) struct Call {
    pub(crate) name: &'static str,
    pub(crate) number: i64,
    pub(crate) arguments: &'static [&'static str],
}

const fn plain(name: &'static str, number: i64) -> Call {
    Call { name, number, arguments: &[] }
}

/// Calls that a policy may name. Those that no sandboxed program should ever make are not in it.
pub(crate) const CALLS: &[Call] = &[
    plain("brk", libc::SYS_brk),
    plain("clock_gettime", libc::SYS_clock_gettime),
    plain("clock_nanosleep", libc::SYS_clock_nanosleep),
    plain("close", libc::SYS_close),
    plain("epoll_wait", libc::SYS_epoll_wait),
    plain("exit", libc::SYS_exit),
    plain("exit_group", libc::SYS_exit_group),
    Call { name: "fcntl", number: libc::SYS_fcntl, arguments: &["descriptor", "command", "argument"] },
    plain("fstat", libc::SYS_fstat),
    plain("fsync", libc::SYS_fsync),
    plain("futex", libc::SYS_futex),
    plain("getdents64", libc::SYS_getdents64),
    plain("getpid", libc::SYS_getpid),
    plain("getrandom", libc::SYS_getrandom),
    plain("gettid", libc::SYS_gettid),
    Call { name: "ioctl", number: libc::SYS_ioctl, arguments: &["descriptor", "request"] },
    Call {
        name: "linkat",
        number: libc::SYS_linkat,
        arguments: &["old_folder", "old_path", "new_folder", "new_path", "flags"],
    },
    Call { name: "madvise", number: libc::SYS_madvise, arguments: &["address", "length", "advice"] },
    Call { name: "memfd_create", number: libc::SYS_memfd_create, arguments: &["name", "flags"] },
    Call { name: "mmap", number: libc::SYS_mmap, arguments: &["address", "length", "protection", "flags"] },
    Call { name: "mprotect", number: libc::SYS_mprotect, arguments: &["address", "length", "protection"] },
    plain("mremap", libc::SYS_mremap),
    plain("munmap", libc::SYS_munmap),
    // Its flags lie in memory, which no filter sees: only for a program that mounts and Landlock hold.
    plain("openat2", libc::SYS_openat2),
    Call { name: "pidfd_send_signal", number: libc::SYS_pidfd_send_signal, arguments: &["pidfd", "signal"] },
    plain("poll", libc::SYS_poll),
    plain("ppoll", libc::SYS_ppoll),
    plain("pread64", libc::SYS_pread64),
    plain("pwrite64", libc::SYS_pwrite64),
    plain("read", libc::SYS_read),
    Call {
        name: "recvfrom",
        number: libc::SYS_recvfrom,
        arguments: &["descriptor", "buffer", "length", "flags", "address"],
    },
    plain("recvmsg", libc::SYS_recvmsg),
    plain("renameat2", libc::SYS_renameat2),
    plain("restart_syscall", libc::SYS_restart_syscall),
    plain("rseq", libc::SYS_rseq),
    plain("rt_sigprocmask", libc::SYS_rt_sigprocmask),
    plain("rt_sigreturn", libc::SYS_rt_sigreturn),
    plain("sched_getaffinity", libc::SYS_sched_getaffinity),
    plain("sched_yield", libc::SYS_sched_yield),
    plain("sendmsg", libc::SYS_sendmsg),
    Call {
        name: "sendto",
        number: libc::SYS_sendto,
        arguments: &["descriptor", "buffer", "length", "flags", "address"],
    },
    plain("set_robust_list", libc::SYS_set_robust_list),
    plain("sigaltstack", libc::SYS_sigaltstack),
    Call { name: "tgkill", number: libc::SYS_tgkill, arguments: &["pid", "tid", "signal"] },
    Call { name: "unlinkat", number: libc::SYS_unlinkat, arguments: &["folder", "path", "flags"] },
    plain("wait4", libc::SYS_wait4),
    plain("write", libc::SYS_write),
];

/// Numbers that have a name.
pub(crate) const NUMBERS: &[(&str, u64)] = &[
    ("AT_EMPTY_PATH", libc::AT_EMPTY_PATH as u64),
    ("F_ADD_SEALS", libc::F_ADD_SEALS as u64),
    ("F_GETFD", libc::F_GETFD as u64),
    ("F_GET_SEALS", libc::F_GET_SEALS as u64),
    ("F_SETFL", libc::F_SETFL as u64),
    // Write, grow, shrink and seal: what a sealed file has.
    ("SEALS", (libc::F_SEAL_SEAL | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE) as u64),
    // A memfd that can be sealed, and one that can't be run either, which kernels from 6.3 on have.
    ("MEMFD", (libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) as u64),
    ("MEMFD_NOEXEC", (libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING | libc::MFD_NOEXEC_SEAL) as u64),
    // With O_LARGEFILE (`asm-generic/fcntl.h`), which means nothing to a socket and which rustix adds.
    ("SOCKET_NONBLOCK", (libc::O_RDWR | libc::O_NONBLOCK | 0o100_000) as u64),
    // The byte of an ioctl's request that says whose it is (`linux/ioctl.h`), and its values for drivers of cards.
    ("IOC_TYPE", 0xff00),
    ("IOC_DRM", (b'd' as u64) << 8),
    ("IOC_NVIDIA", (b'F' as u64) << 8),
    // Those of sound devices (`sound/asound.h`).
    ("IOC_PCM", (b'A' as u64) << 8),
    ("MAP_ANONYMOUS", libc::MAP_ANONYMOUS as u64),
    ("MAP_PRIVATE", libc::MAP_PRIVATE as u64),
    ("MAP_SHARED", libc::MAP_SHARED as u64),
    ("MAP_TYPE", libc::MAP_TYPE as u64),
    ("PROT_EXEC", libc::PROT_EXEC as u64),
    ("PROT_READ", libc::PROT_READ as u64),
    ("SIGABRT", libc::SIGABRT as u64),
    ("SIGKILL", libc::SIGKILL as u64),
];

/// Drivers whose character devices have another major number on each host.
pub(crate) const DRIVERS: &[&str] = &["nvidia-uvm"];

/// Limits that a policy may set.
pub(crate) const LIMITS: &[(&str, Resource)] = &[
    ("CORE", Resource::Core),
    ("FSIZE", Resource::Fsize),
    ("MEMLOCK", Resource::Memlock),
    ("MSGQUEUE", Resource::Msgqueue),
    ("NOFILE", Resource::Nofile),
    ("NPROC", Resource::Nproc),
    ("RTPRIO", Resource::Rtprio),
];
