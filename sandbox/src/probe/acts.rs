//! Every act that a sandboxed program must not get away with, each as the one system call that does it.

use super::{Expected, Outcome};
use crate::enter::is_sealed;
use crate::{Map, Policy, SealedFile};
use rustix::io::Errno;
use std::str::FromStr;
use std::sync::OnceLock;

/// A system call with its arguments.
struct Call {
    number: i64,
    arguments: [u64; 6],
}

/// The closed list: variant, name, system call and arguments.
macro_rules! acts {
    ($($(#[$doc:meta])+ $variant:ident $name:literal: $number:expr, [$($argument:expr),*];)+) => {
        /// A forbidden act.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Act {
            $($(#[$doc])+ $variant,)+
        }

        impl Act {
            /// Every act.
            pub const ALL: &[Act] = &[$(Act::$variant),+];

            /// Its name on the command line, such as `open-file`.
            pub fn name(self) -> &'static str {
                match self {
                    $(Act::$variant => $name,)+
                }
            }

            fn call(self) -> Call {
                match self {
                    $(Act::$variant => call($number, &[$($argument as u64),*]),)+
                }
            }
        }
    };
}

/// Here and below, a pointer that is never followed where the act is stopped.
const NOWHERE: u64 = 0;
const HERE: i32 = libc::AT_FDCWD;
const LINK: i32 = crate::enter::LINK;
const WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;
const PRIVATE: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
const SHARED: i32 = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
const THREAD: i32 =
    libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_SIGHAND | libc::CLONE_THREAD;
/// The bit that marks a call of the x32 interface.
const X32: i64 = 0x4000_0000;

acts! {
    /// Opens a file by path.
    OpenFile "open-file": libc::SYS_openat, [HERE, path(c"/etc/passwd"), libc::O_RDONLY];
    /// The same by the oldest call.
    OpenFileOld "open-file-old": libc::SYS_open, [path(c"/etc/passwd"), libc::O_RDONLY];
    /// The same by the newest.
    OpenFileNew "open-file-new": libc::SYS_openat2, [HERE, path(c"/etc/passwd"), buffer(), 24];
    /// Opens a file from a thread that is older than the filter.
    OpenFileInOlderThread "open-file-in-older-thread": libc::SYS_openat, [HERE, path(c"/etc/passwd"), libc::O_RDONLY];
    /// Opens a descriptor of its own again, with other rights.
    ReopenDescriptor "reopen-descriptor": libc::SYS_openat, [HERE, path(c"/proc/self/fd/3"), libc::O_RDWR];
    /// Opens a file by handle.
    OpenByHandle "open-by-handle": libc::SYS_open_by_handle_at, [HERE, NOWHERE, libc::O_RDONLY];
    /// Makes a file.
    CreateFile "create-file": libc::SYS_creat, [path(c"/planted"), 0o600];
    /// Looks whether a path exists.
    Stat "stat": libc::SYS_newfstatat, [HERE, path(c"/"), buffer(), 0];
    /// The same by the newer call.
    Statx "statx": libc::SYS_statx, [HERE, path(c"/"), 0, 0xfff, buffer()];
    /// The same by another.
    Access "access": libc::SYS_faccessat, [HERE, path(c"/"), 0];
    /// Lists a folder.
    ListFolder "list-folder": libc::SYS_getdents64, [LINK, buffer(), 4096];
    /// Reads where a link leads.
    ReadLink "read-link": libc::SYS_readlinkat, [HERE, path(c"/proc/self/exe"), buffer(), 4096];
    /// Removes a file.
    Unlink "unlink": libc::SYS_unlinkat, [HERE, path(c"/planted"), 0];
    /// Renames a file.
    Rename "rename": libc::SYS_renameat2, [HERE, path(c"/a"), HERE, path(c"/b"), 0];
    /// Makes a second name of a file.
    HardLink "hard-link": libc::SYS_linkat, [HERE, path(c"/a"), HERE, path(c"/b"), 0];
    /// Makes a symbolic link.
    SymbolicLink "symbolic-link": libc::SYS_symlinkat, [path(c"/a"), HERE, path(c"/b")];
    /// Makes a folder.
    MakeFolder "make-folder": libc::SYS_mkdirat, [HERE, path(c"/folder"), 0o700];
    /// Makes a device.
    MakeDevice "make-device": libc::SYS_mknodat, [HERE, path(c"/null"), libc::S_IFCHR | 0o600, 0x103];
    /// Changes rights.
    ChangeMode "change-mode": libc::SYS_fchmod, [LINK, 0o777];
    /// Changes the length of what a descriptor names.
    Truncate "truncate": libc::SYS_ftruncate, [LINK, 0];
    /// Goes to another folder.
    ChangeFolder "change-folder": libc::SYS_chdir, [path(c"/")];
    /// Changes the root.
    ChangeRoot "change-root": libc::SYS_chroot, [path(c"/")];
    /// Swaps the root.
    PivotRoot "pivot-root": libc::SYS_pivot_root, [path(c"/"), path(c"/")];
    /// Mounts.
    Mount "mount": libc::SYS_mount, [path(c"none"), path(c"/"), path(c"tmpfs"), 0, NOWHERE];
    /// Unmounts.
    Unmount "unmount": libc::SYS_umount2, [path(c"/"), libc::MNT_DETACH];
    /// Mounts by the newer calls.
    MountNew "mount-new": libc::SYS_fsopen, [path(c"tmpfs"), 0];
    /// Makes a TCP socket.
    TcpSocket "tcp-socket": libc::SYS_socket, [libc::AF_INET, libc::SOCK_STREAM, 0];
    /// Makes a UDP socket.
    UdpSocket "udp-socket": libc::SYS_socket, [libc::AF_INET, libc::SOCK_DGRAM, 0];
    /// Makes a TCP socket of IPv6.
    Tcp6Socket "tcp6-socket": libc::SYS_socket, [libc::AF_INET6, libc::SOCK_STREAM, 0];
    /// Makes a unix socket.
    UnixSocket "unix-socket": libc::SYS_socket, [libc::AF_UNIX, libc::SOCK_STREAM, 0];
    /// Makes a netlink socket.
    NetlinkSocket "netlink-socket": libc::SYS_socket, [libc::AF_NETLINK, libc::SOCK_RAW, 0];
    /// Makes a pair of sockets.
    SocketPair "socket-pair": libc::SYS_socketpair, [libc::AF_UNIX, libc::SOCK_STREAM, 0, buffer()];
    /// Connects a socket.
    Connect "connect": libc::SYS_connect, [LINK, buffer(), 16];
    /// Gives a socket an address.
    Bind "bind": libc::SYS_bind, [LINK, buffer(), 16];
    /// Listens.
    Listen "listen": libc::SYS_listen, [LINK, 1];
    /// Accepts a connection.
    Accept "accept": libc::SYS_accept4, [LINK, NOWHERE, NOWHERE, 0];
    /// Sends to an address of its choice.
    SendTo "send-to": libc::SYS_sendto, [LINK, buffer(), 1, 0, NOWHERE, 0];
    /// Changes options of a socket.
    SocketOption "socket-option": libc::SYS_setsockopt, [LINK, libc::SOL_SOCKET, libc::SO_SNDBUF, buffer(), 4];
    /// Runs another program.
    Exec "exec": libc::SYS_execve, [path(c"/bin/sh"), NOWHERE, NOWHERE];
    /// Runs what a descriptor names.
    ExecDescriptor "exec-descriptor": libc::SYS_execveat, [LINK, path(c""), NOWHERE, NOWHERE, libc::AT_EMPTY_PATH];
    /// Forks.
    Fork "fork": libc::SYS_fork, [];
    /// Forks by clone.
    Clone "clone": libc::SYS_clone, [libc::SIGCHLD, 0, 0, 0, 0];
    /// The same by the newest call.
    Clone3 "clone3": libc::SYS_clone3, [buffer(), 88];
    /// Starts a thread after the filter.
    NewThread "new-thread": libc::SYS_clone, [THREAD, 0, 0, 0, 0];
    /// Traces its parent.
    Ptrace "ptrace": libc::SYS_ptrace, [libc::PTRACE_ATTACH, 1, 0, 0];
    /// Reads another process's memory.
    ReadMemory "read-memory": libc::SYS_process_vm_readv, [1, buffer(), 1, buffer(), 1, 0];
    /// Writes another process's memory.
    WriteMemory "write-memory": libc::SYS_process_vm_writev, [1, buffer(), 1, buffer(), 1, 0];
    /// Kills its parent.
    KillParent "kill-parent": libc::SYS_kill, [1, libc::SIGKILL];
    /// Kills everything that it can see.
    KillAll "kill-all": libc::SYS_kill, [-1_i64, libc::SIGKILL];
    /// Kills its parent's thread.
    KillParentThread "kill-parent-thread": libc::SYS_tgkill, [1, 1, libc::SIGKILL];
    /// Aborts its parent, with the signal that it may send itself.
    AbortParent "abort-parent": libc::SYS_tgkill, [1, 1, libc::SIGABRT];
    /// Signals any thread.
    KillThread "kill-thread": libc::SYS_tkill, [1, libc::SIGKILL];
    /// Queues a signal.
    QueueSignal "queue-signal": libc::SYS_rt_sigqueueinfo, [1, libc::SIGTERM, buffer()];
    /// Gets hold of a process.
    OpenProcess "open-process": libc::SYS_pidfd_open, [1, 0];
    /// Takes a descriptor from a process.
    TakeDescriptor "take-descriptor": libc::SYS_pidfd_getfd, [LINK, 0, 0];
    /// Catches signals.
    SignalHandler "signal-handler": libc::SYS_rt_sigaction, [libc::SIGTERM, buffer(), NOWHERE, 8];
    /// Sets up an io_uring.
    IoUring "io-uring": libc::SYS_io_uring_setup, [1, buffer()];
    /// Handles page faults of its own.
    Userfaultfd "userfaultfd": libc::SYS_userfaultfd, [0];
    /// Loads a BPF program.
    Bpf "bpf": libc::SYS_bpf, [0, buffer(), 64];
    /// Measures other processes.
    PerfEvent "perf-event": libc::SYS_perf_event_open, [buffer(), 0, -1_i64, -1_i64, 0];
    /// Stores a key.
    AddKey "add-key": libc::SYS_add_key, [path(c"user"), path(c"name"), buffer(), 1, -3_i64];
    /// Loads a kernel module.
    LoadModule "load-module": libc::SYS_finit_module, [LINK, path(c""), 0];
    /// Reads the kernel's log.
    KernelLog "kernel-log": libc::SYS_syslog, [3, buffer(), 4096];
    /// Makes a new user namespace.
    NewUserNamespace "new-user-namespace": libc::SYS_unshare, [libc::CLONE_NEWUSER];
    /// Enters a namespace.
    EnterNamespace "enter-namespace": libc::SYS_setns, [LINK, 0];
    /// Makes a memfd.
    MakeMemfd "make-memfd": libc::SYS_memfd_create, [path(c"m"), 0];
    /// Makes secret memory.
    SecretMemory "secret-memory": libc::SYS_memfd_secret, [0];
    /// Maps memory that can be run.
    MapExecutable "map-executable": libc::SYS_mmap, [NOWHERE, 4096, WRITE | libc::PROT_EXEC, PRIVATE, -1_i64, 0];
    /// Makes its own memory runnable.
    MakeExecutable "make-executable": libc::SYS_mprotect, [buffer(), 4096, libc::PROT_READ | libc::PROT_EXEC];
    /// The same by the call with protection keys.
    MakeExecutableByKey "make-executable-by-key": libc::SYS_pkey_mprotect, [buffer(), 4096, libc::PROT_EXEC, -1_i64];
    /// Maps memory that others could share and write.
    MapSharedWritable "map-shared-writable": libc::SYS_mmap, [NOWHERE, 4096, WRITE, SHARED, -1_i64, 0];
    /// Maps a sealed file and makes the map writable: the kernel's to refuse.
    WriteSealedMap "write-sealed-map": libc::SYS_mprotect, [sealed_map(), 4096, WRITE];
    /// Makes shared memory by the oldest calls.
    SharedMemory "shared-memory": libc::SYS_shmget, [0, 4096, 0o600 | libc::IPC_CREAT];
    /// Makes a message queue.
    MessageQueue "message-queue": libc::SYS_msgget, [0, 0o600 | libc::IPC_CREAT];
    /// Opens a named message queue.
    OpenMessageQueue "open-message-queue": libc::SYS_mq_open, [path(c"q"), libc::O_CREAT, 0o600, NOWHERE];
    /// Duplicates a descriptor.
    Duplicate "duplicate": libc::SYS_dup3, [LINK, 60, 0];
    /// The same by fcntl.
    DuplicateByFcntl "duplicate-by-fcntl": libc::SYS_fcntl, [LINK, libc::F_DUPFD, 50];
    /// Takes close-on-exec off a descriptor.
    KeepOverExec "keep-over-exec": libc::SYS_fcntl, [LINK, libc::F_SETFD, 0];
    /// Adds seals.
    AddSeals "add-seals": libc::SYS_fcntl, [LINK, libc::F_ADD_SEALS, 0];
    /// Speaks to a device.
    DeviceControl "device-control": libc::SYS_ioctl, [2, libc::TIOCSTI, buffer()];
    /// Makes a pipe.
    Pipe "pipe": libc::SYS_pipe2, [buffer(), 0];
    /// Raises a limit.
    RaiseLimit "raise-limit": libc::SYS_prlimit64, [0, libc::RLIMIT_NOFILE, buffer(), NOWHERE];
    /// The same by the older call.
    RaiseLimitOld "raise-limit-old": libc::SYS_setrlimit, [libc::RLIMIT_NOFILE, buffer()];
    /// Becomes dumpable again.
    BecomeDumpable "become-dumpable": libc::SYS_prctl, [libc::PR_SET_DUMPABLE, 1];
    /// Outlives its parent.
    OutliveParent "outlive-parent": libc::SYS_prctl, [libc::PR_SET_PDEATHSIG, 0];
    /// Puts another filter on.
    AnotherFilter "another-filter": libc::SYS_seccomp, [libc::SECCOMP_GET_ACTION_AVAIL, 0, buffer()];
    /// Becomes another user.
    ChangeUser "change-user": libc::SYS_setresuid, [0, 0, 0];
    /// Takes capabilities.
    TakeCapabilities "take-capabilities": libc::SYS_capset, [buffer(), buffer()];
    /// Changes its personality, which can make all memory runnable.
    ChangePersonality "change-personality": libc::SYS_personality, [0x0040_0000];
    /// Renames the host.
    RenameHost "rename-host": libc::SYS_sethostname, [path(c"x"), 1];
    /// Goes on in a session of its own.
    NewSession "new-session": libc::SYS_setsid, [];
    /// Chooses its processors.
    ChooseProcessors "choose-processors": libc::SYS_sched_setaffinity, [0, 8, buffer()];
    /// Takes a higher priority.
    RaisePriority "raise-priority": libc::SYS_setpriority, [0, 0, -20_i64];
    /// Makes the system call table of the x32 interface do what the filter knows by another number.
    X32Call "x32-call": X32 | libc::SYS_getpid, [];
    /// Calls the kernel by the 32-bit entry, where numbers mean other calls: the one act that is not made by number.
    Call32 "call-32": libc::SYS_fork, [];
}

impl Act {
    /// Makes what the act needs and the sandbox forbids to make. Leaves no descriptor and no thread.
    pub(super) fn prepare(self) {
        if self == Act::WriteSealedMap {
            sealed_map();
        }
    }

    /// Tries it, here and now.
    ///
    /// # Panics
    /// Outside a sealed process, where some acts would do great harm.
    pub fn attempt(self) -> Outcome {
        assert!(is_sealed(), "acts are tried in a sealed process only");
        if self.is_32_bit() {
            return call_32();
        }
        let Call { number, arguments: [a, b, c, d, e, f] } = self.call();
        // SAFETY: the filter is on, so none of these calls does anything. If one did in spite of it, it would act on
        // null, on a buffer of ours that outlives the process, or on this process, whose last deed this is.
        let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
        if result != -1 {
            return Outcome::Succeeded;
        }
        let raw = std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
        Outcome::Refused(Errno::from_raw_os_error(raw))
    }

    /// What must become of it under this policy.
    pub fn expected(self, policy: &Policy) -> Expected {
        let Call { number, arguments } = self.call();
        match self.refused_by_kernel() {
            Some(error) if policy.permits(number, &arguments) => Expected::Refused(error),
            Some(_) | None => Expected::Killed,
        }
    }

    /// The error by which the kernel refuses an act whose system call a policy may rightly let through.
    fn refused_by_kernel(self) -> Option<Errno> {
        match self {
            Act::WriteSealedMap => Some(Errno::ACCESS),
            // The program's root has nothing but what it was started for.
            Act::OpenFileNew => Some(Errno::NOENT),
            // The probe has let go of the link.
            Act::ListFolder | Act::SendTo => Some(Errno::BADF),
            Act::Unlink | Act::Rename => Some(Errno::ROFS),
            _ => None,
        }
    }

    /// A kernel without 32-bit calls ends the process by SIGSEGV instead.
    pub(super) fn is_32_bit(self) -> bool {
        self == Act::Call32
    }
}

/// No act has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no act `{0}`")]
pub struct UnknownAct(pub String);

impl FromStr for Act {
    type Err = UnknownAct;

    fn from_str(name: &str) -> Result<Act, UnknownAct> {
        let known = Act::ALL.iter().copied().find(|act| act.name() == name);
        known.ok_or_else(|| UnknownAct(name.to_owned()))
    }
}

fn call(number: i64, given: &[u64]) -> Call {
    let mut arguments = [0; 6];
    arguments[..given.len()].copy_from_slice(given);
    Call { number, arguments }
}

fn path(path: &'static std::ffi::CStr) -> u64 {
    path.as_ptr() as u64
}

/// Zeroes that the kernel may read or write, aligned as a page.
fn buffer() -> u64 {
    static BUFFER: Page = Page(std::cell::UnsafeCell::new([0; 4096]));
    BUFFER.0.get() as u64
}

#[repr(align(4096))]
struct Page(std::cell::UnsafeCell<[u8; 4096]>);

// SAFETY: nothing in this program reads or writes the page; only the kernel does, for an act.
unsafe impl Sync for Page {}

/// The address of a read-only map of a sealed file.
fn sealed_map() -> u64 {
    static MAP: OnceLock<Map> = OnceLock::new();
    let map = MAP.get_or_init(|| {
        let file = SealedFile::from_bytes("act", &[0; 4096]).expect("made before the sandbox is entered");
        file.map().expect("a sealed file maps")
    });
    map.as_ptr() as u64
}

/// `getpid` by the 32-bit entry.
fn call_32() -> Outcome {
    const GETPID_32: i64 = 20;
    let result: i64;
    // SAFETY: the call takes no arguments and touches no memory; the 32-bit entry clobbers r8 to r11.
    unsafe {
        std::arch::asm!(
            "int 0x80",
            inlateout("rax") GETPID_32 => result,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    if result >= 0 { Outcome::Succeeded } else { Outcome::Refused(Errno::NOSYS) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::AudioKind;

    #[test]
    fn each_act_is_found_by_its_name() {
        for act in Act::ALL {
            assert_eq!(act.name().parse(), Ok(*act));
        }
        assert_eq!("open-sesame".parse::<Act>(), Err(UnknownAct("open-sesame".to_owned())));
    }

    #[test]
    #[should_panic(expected = "sealed process only")]
    fn no_act_is_tried_outside_a_sealed_process() {
        Act::Stat.attempt();
    }

    #[test]
    fn the_worker_s_policy_lets_no_act_through_but_those_that_the_kernel_refuses() {
        let policy = Policy::worker_cpu();
        for act in Act::ALL {
            let Call { number, arguments } = act.call();
            let let_through = policy.permits(number, &arguments);
            assert_eq!(let_through, *act == Act::WriteSealedMap, "{}", act.name());
        }
    }

    #[test]
    fn an_audio_program_may_send_on_sockets_that_it_has_and_nothing_else() {
        for kind in AudioKind::ALL {
            let policy = Policy::audio(kind);
            let through = |act: &&Act| {
                let Call { number, arguments } = act.call();
                policy.permits(number, &arguments)
            };
            let acts: Vec<Act> = Act::ALL.iter().filter(through).copied().collect();
            let expected: &[Act] = match kind {
                AudioKind::Pulse => &[Act::SendTo, Act::WriteSealedMap],
                AudioKind::Alsa | AudioKind::Pushed => &[Act::WriteSealedMap],
            };
            assert_eq!(acts, expected, "{kind:?}");
        }
    }

    #[test]
    fn fileguard_s_policy_lets_through_what_works_on_its_root_only() {
        let policy = Policy::fileguard();
        let through = |act: &&Act| {
            let Call { number, arguments } = act.call();
            policy.permits(number, &arguments)
        };
        let acts: Vec<Act> = Act::ALL.iter().filter(through).copied().collect();
        let refused_by_kernel =
            [Act::OpenFileNew, Act::ListFolder, Act::Unlink, Act::Rename, Act::WriteSealedMap];
        assert_eq!(acts, refused_by_kernel);
        assert!(acts.iter().all(|act| act.refused_by_kernel().is_some()));
    }
}
