//! How an exec'd program locks itself in: every layer but the last in `enter`, the system call filter in `seal`.

mod audio;
mod descriptors;
mod devices;
mod host_root;
mod landlock;
mod namespaces;
mod privileges;
mod waiters;

use crate::Policy;
use crate::allocator::count_on;
use audio::HostAudio;
use rustix::io::Errno;
use rustix::process::{Rlimit, setrlimit};
use seccompiler::BpfProgram;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

pub use audio::{AudioKind, GivenAudio, UnknownAudioKind};
pub(crate) use descriptors::{LINK, STATUS_PAGE};
pub use devices::DeviceFault;
pub use host_root::{FileId, GRANTED, HostRoot, RootAccess, RootFault};
pub(crate) use landlock::{ABI_MIN, abi, missing};
pub(crate) use namespaces::{INNER_ID, OWNER_ID, try_in_child};

/// A layer of the sandbox, in the order in which they are applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layer {
    /// A closed environment and only the descriptors that belong to the program.
    Descriptors,
    /// User, mount, pid, net, ipc, uts and cgroup namespaces, with a read-only root that is empty but for the paths of
    /// the policy.
    Namespaces,
    /// Resource limits.
    Rlimits,
    /// A memory cgroup; only where [`crate::SpawnRequest::cgroup`] named one.
    Cgroup,
    /// No new privileges, not dumpable, no capabilities, dies with its parent.
    Privileges,
    /// Landlock.
    Landlock,
    /// The system call filter.
    Seccomp,
}

/// Something that this kernel's Landlock can't do. [`Missing::compensation`] says what covers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Missing {
    /// ABI 3: truncation.
    LandlockTruncate,
    /// ABI 4: TCP bind and connect.
    LandlockTcp,
    /// ABI 5: ioctl on devices.
    LandlockIoctlDevice,
    /// ABI 6: abstract unix sockets and signals.
    LandlockScopes,
    /// ABI 9: pathname unix sockets.
    LandlockUnixSockets,
}

impl Missing {
    /// A stable name for status pages.
    pub fn name(self) -> &'static str {
        match self {
            Missing::LandlockTruncate => "landlock_truncate",
            Missing::LandlockTcp => "landlock_tcp",
            Missing::LandlockIoctlDevice => "landlock_ioctl_device",
            Missing::LandlockScopes => "landlock_scopes",
            Missing::LandlockUnixSockets => "landlock_unix_sockets",
        }
    }

    /// What covers it, in a phrase.
    pub fn compensation(self) -> &'static str {
        match self {
            Missing::LandlockTruncate => "the root is empty and read-only, and the filter denies truncate",
            Missing::LandlockTcp => "the network namespace is empty, and the filter denies socket",
            Missing::LandlockIoctlDevice => {
                "the root has no device but the policy's own, and the filter denies ioctl, or all but its driver's"
            }
            Missing::LandlockScopes => {
                "the pid and network namespaces, and the filter denies socket and kill"
            }
            Missing::LandlockUnixSockets => "the root is empty, and the filter denies socket and connect",
        }
    }
}

/// Why the sandbox could not be entered or sealed. The program must end.
#[derive(Debug, thiserror::Error)]
pub enum EnterError {
    /// A variable outside the closed list, or with a value that is no number.
    #[error("the environment holds `{}`: this program is started by the server only", .0.to_string_lossy())]
    Environment(OsString),
    /// A descriptor is not what it must be.
    #[error("descriptor {number} must be {expected}: this program is started by the server only")]
    Descriptor {
        /// Which.
        number: i32,
        /// What belongs there.
        expected: &'static str,
    },
    /// Threads run already: the layers would not cover them.
    #[error("the sandbox must be entered before any thread is started")]
    Threads,
    /// The outer uid or gid is 0, or the process could become another.
    #[error(
        "no program is sandboxed with the uid or gid of root, nor with more than one: start it from a server that has dropped them"
    )]
    Ids,
    /// The parent ended during the set-up.
    #[error("the parent ended")]
    ParentEnded,
    /// The program did not become pid 2 of its namespace.
    #[error("the program is pid {0} of its namespace and not 2")]
    Pid(i32),
    /// A layer can't be applied.
    #[error("{layer:?}: {call} failed{}", advice(*layer, *source))]
    Os {
        /// Which layer.
        layer: Layer,
        /// Which system call.
        call: &'static str,
        /// Its error.
        #[source]
        source: Errno,
    },
    /// The host has none of the places that the policy names for something.
    #[error("this program needs {}, which this machine does not have: {advice}", paths(.0), advice = PATHS_ADVICE)]
    NoPath(Vec<PathBuf>),
    /// A device node is not what it must be.
    #[error("{} is not given to the program: {fault}", path.display())]
    Device {
        /// Which.
        path: PathBuf,
        /// Why.
        fault: DeviceFault,
    },
    /// A path can't be made visible.
    #[error("Namespaces: {call} of {} failed", path.display())]
    Path {
        /// Which.
        path: PathBuf,
        /// What failed.
        call: &'static str,
        /// How.
        #[source]
        source: Errno,
    },
    /// What the program is started for is nothing that is given.
    #[error("this is not given to the program: {0}")]
    Root(RootFault),
    /// Landlock can't be applied in full.
    #[error("Landlock can't be applied in full")]
    Landlock(#[from] ::landlock::RulesetError),
    /// Landlock is older than the floor, or off.
    #[error(
        "Landlock has ABI {0}, at least {ABI_MIN} is needed: Linux 5.19 or later, with `landlock` in the kernel's `lsm=` list"
    )]
    LandlockTooOld(u32),
    /// The policy does not compile.
    #[error("the policy does not compile to a filter")]
    Policy(#[from] seccompiler::BackendError),
    /// The filter can't be applied to every thread.
    #[error("the filter can't be applied to every thread")]
    Filter(#[from] seccompiler::Error),
}

const PATHS_ADVICE: &str = "install the driver that the device needs (packaging/README.md)";

fn paths(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" or ")
}

fn advice(layer: Layer, error: Errno) -> &'static str {
    match (layer, error) {
        (Layer::Namespaces, Errno::PERM | Errno::ACCESS | Errno::NOSPC | Errno::USERS) => {
            ": unprivileged user namespaces are restricted here; packaging/README.md says how to allow them"
        }
        _ => "",
    }
}

pub(crate) fn os(layer: Layer, call: &'static str) -> impl Fn(Errno) -> EnterError {
    move |source| EnterError::Os { layer, call, source }
}

/// Whether this process is sealed. Asking the kernel is one of the things that the filter denies.
static SEALED: AtomicBool = AtomicBool::new(false);

pub(crate) fn is_sealed() -> bool {
    SEALED.load(Ordering::Acquire)
}

/// Inside every layer but the filter, as pid 2 of its own namespaces.
#[derive(Debug)]
pub struct Entered {
    link: Option<OwnedFd>,
    filter: BpfProgram,
    landlock_abi: u32,
    in_cgroup: bool,
}

/// Every layer is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// In the order in which they were applied.
    pub layers: Vec<Layer>,
    /// Landlock's ABI on this kernel.
    pub landlock_abi: u32,
    /// What this kernel lacks.
    pub missing: Vec<Missing>,
}

/// Applies every layer but the filter and returns in pid 2 of new namespaces; the calling process and pid 1 stay
/// behind and only wait. The first call of an exec'd program's `main`, before it starts a thread or opens anything.
///
/// # Errors
/// Any layer that can't be applied. Nothing is left out.
pub fn enter(policy: &Policy) -> Result<Entered, EnterError> {
    enter_with(policy, || Ok(Given::Nothing)).map(|(entered, _)| entered)
}

/// The same for a program that is started for one file or folder of the host, which it finds at [`GRANTED`] and of which
/// it may do what `access` says; of nothing else of the host. The path is the first packet on the link, as it is: a command
/// line could be read by everybody. It is opened before any namespace is entered. What is
/// mounted is the very object that was opened then, and the host's other mounts below it can't be written either. For
/// [`RootAccess::Write`] of a file it is the folder that the file is in ([`HostRoot::shows_folder_above`]), since new
/// contents are renamed into place there; the program has to keep to the one name.
///
/// # Errors
/// [`EnterError::Descriptor`] where no path comes; [`EnterError::Root`] where it is relative, not plain, has a symbolic link in it, or names what is neither a
/// folder nor a regular file with one name; and any layer that can't be applied.
pub fn enter_with_root(policy: &Policy, access: RootAccess) -> Result<(Entered, HostRoot), EnterError> {
    let look = || HostRoot::look(&descriptors::first_words()?, access).map_err(EnterError::Root);
    match enter_with(policy, || look().map(Given::Root))? {
        (entered, Given::Root(root)) => Ok((entered, root)),
        (_, Given::Nothing | Given::Audio(_)) => unreachable!("what was looked for is what comes back"),
    }
}

/// The same for a program that is given sound by this interface, and of the host what that needs and nothing else. The
/// first packet on the link says where that is, in parts that each end with a zero byte: for [`AudioKind::Pulse`] the path
/// of the sound server's socket, the path of its cookie or nothing, and the name of the source or nothing; for
/// [`AudioKind::Alsa`] the name of the device or nothing; for [`AudioKind::Pushed`] one empty part. No socket at that path is no
/// fault here, but told.
///
/// The sound server's socket and cookie are mounted at places of their own, and the environment names those; of the
/// kernel's devices those that capture are shown, and none that plays.
///
/// # Errors
/// [`EnterError::Descriptor`] where the packet is another; [`EnterError::Root`] where a path has a symbolic link in it or
/// names what is no socket, or no file; and any layer that can't be applied.
pub fn enter_with_audio(policy: &Policy, kind: AudioKind) -> Result<(Entered, GivenAudio), EnterError> {
    let look = || HostAudio::look(&descriptors::first_words()?, kind);
    match enter_with(policy, || look().map(Given::Audio))? {
        (entered, Given::Audio(audio)) => Ok((entered, audio.given)),
        (_, Given::Nothing | Given::Root(_)) => unreachable!("what was looked for is what comes back"),
    }
}

/// What of the host a program is started for.
enum Given {
    Nothing,
    Root(HostRoot),
    Audio(HostAudio),
}

impl Given {
    fn root(&self) -> Option<&HostRoot> {
        match self {
            Given::Root(root) => Some(root),
            Given::Nothing | Given::Audio(_) => None,
        }
    }

    fn audio(&self) -> Option<&HostAudio> {
        match self {
            Given::Audio(audio) => Some(audio),
            Given::Nothing | Given::Root(_) => None,
        }
    }
}

fn enter_with(
    policy: &Policy,
    look: impl FnOnce() -> Result<Given, EnterError>,
) -> Result<(Entered, Given), EnterError> {
    let filter = policy.filter()?;
    let waiter_filter = Policy::waiter().filter()?;
    let parent = privileges::parent();
    descriptors::check_environment()?;
    let pages = descriptors::take()?;
    let in_cgroup = pages.in_cgroup();
    let given = look()?;
    let paths = namespaces::enter(policy.paths(), &given)?;
    limit(policy)?;
    privileges::drop_all()?;
    privileges::die_with(parent)?;
    let landlock_abi = landlock::restrict(&paths, &given)?;
    waiters::leave_behind(&pages, &waiter_filter)?;
    if let Some(audio) = given.audio() {
        audio.set_variables();
    }
    let page = pages.into_program_page().map_err(os(Layer::Descriptors, "munmap"))?;
    count_on(page);
    Ok((Entered { link: Some(descriptors::link()), filter, landlock_abi, in_cgroup }, given))
}

fn limit(policy: &Policy) -> Result<(), EnterError> {
    for (resource, value) in policy.limits() {
        let limit = Rlimit { current: Some(*value), maximum: Some(*value) };
        setrlimit(*resource, limit).map_err(os(Layer::Rlimits, "setrlimit"))?;
    }
    Ok(())
}

impl Entered {
    /// The link to the server (descriptor 3), a `SOCK_SEQPACKET` socket.
    ///
    /// # Panics
    /// On the second call: the link has one owner.
    pub fn link(&mut self) -> OwnedFd {
        self.link.take().expect("the link is taken once")
    }

    /// Applies the system call filter to every thread. Call it when all pool threads have run a job: one that is
    /// still starting would be killed.
    pub fn seal(self) -> Result<Sealed, EnterError> {
        seccompiler::apply_filter_all_threads(&self.filter)?;
        SEALED.store(true, Ordering::Release);
        let mut layers = vec![Layer::Descriptors, Layer::Namespaces, Layer::Rlimits];
        layers.extend(self.in_cgroup.then_some(Layer::Cgroup));
        layers.extend([Layer::Privileges, Layer::Landlock, Layer::Seccomp]);
        Ok(Sealed { layers, landlock_abi: self.landlock_abi, missing: missing(self.landlock_abi) })
    }
}
