//! Sandbox policies as data, `spawn` and `enter`, maps of sealed memfds, the counting allocator: the unsafe corner.
//!
//! ```text
//! server (one thread that never ends)        program
//!   preflight()                                 main:
//!   spawn(SpawnRequest) ──────────────────────>   enter(&policy)   every layer up to Landlock; goes on as pid 2
//!   child.pidfd, status_page                      ... builds its pools, warms up ...
//!   process_facts(pid)                            entered.seal()   the system call filter, on every thread
//!   probe results: judge(act, exit)               ... only now receives what strangers filled ...
//! ```
#![allow(unsafe_code, reason = "system calls, shared memory and the global allocator; each use under SAFETY")]

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
compile_error!("the sandbox exists on Linux x86-64 only, and nothing runs without it");

mod allocator;
mod enter;
mod hoard;
mod locked;
mod names;
mod policy;
mod preflight;
mod probe;
mod process_facts;
mod sealed_file;
mod spawn;
mod status_page;
mod user;
mod vulkan;
mod wiping;

pub use allocator::{CountingAllocator, check_headroom, clear_denial, keep_freed_memory};
pub use enter::{
    AudioKind, DeviceFault, EnterError, Entered, FileId, GRANTED, GivenAudio, HostRoot, Layer, Missing,
    RootAccess, RootFault, Sealed, UnknownAudioKind, enter, enter_with_audio, enter_with_root,
};
pub use hoard::hoard;
pub use locked::{LockError, Locked, Plain};
pub use policy::{Policy, PolicyError, PolicyFault};
pub use preflight::{Host, PreflightError, preflight};
pub use probe::{Act, Expected, Outcome, ProbeFailure, UnknownAct, judge, probe, probe_with_root};
pub use process_facts::{ProcessFacts, ProcessFactsError, Unsealed, process_facts};
pub use sealed_file::{Filling, Map, Place, SealedFile, SealedFileError};
pub use spawn::{Child, Environment, Exit, SpawnError, SpawnRequest, User, spawn};
pub use status_page::{Denial, Status, StatusPage};
pub use user::{DropError, drop_to_user, raise_nofile};
pub use vulkan::{UnknownDriver, VulkanDriver};
pub use wiping::WipingAllocator;
