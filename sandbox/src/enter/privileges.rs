//! Rights that the program gives up, and its tie to its parent.

use super::{EnterError, Layer};
use rustix::io::Errno;
use rustix::process::{Pid, getppid};

/// Gives up every capability for good: sets, bounding set, ambient set, and what exec could bring back.
pub(super) fn drop_all() -> Result<(), EnterError> {
    prctl("prctl (securebits)", libc::PR_SET_SECUREBITS, SECUREBITS)?;
    drop_bounding_set()?;
    prctl("prctl (ambient)", libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong)?;
    prctl("prctl (no new privileges)", libc::PR_SET_NO_NEW_PRIVS, 1)?;
    drop_sets()?;
    prctl("prctl (dumpable)", libc::PR_SET_DUMPABLE, 0)
}

/// `SECBIT_NOROOT`, `NO_SETUID_FIXUP`, `NO_CAP_AMBIENT_RAISE`, each with its lock (`linux/securebits.h`).
const SECUREBITS: libc::c_ulong = 0b1100_1111;

/// Far above the number of capabilities there are.
const CAPABILITIES_MAX: libc::c_ulong = 64;

fn drop_bounding_set() -> Result<(), EnterError> {
    for capability in 0..CAPABILITIES_MAX {
        match prctl("prctl (bounding set)", libc::PR_CAPBSET_DROP, capability) {
            // One past the last that this kernel knows.
            Err(EnterError::Os { source: Errno::INVAL, .. }) if capability > 0 => return Ok(()),
            dropped => dropped?,
        }
    }
    Ok(())
}

/// `struct __user_cap_header_struct` and, twice, `__user_cap_data_struct` of `linux/capability.h`.
fn drop_sets() -> Result<(), EnterError> {
    const VERSION_3: u32 = 0x2008_0522;
    let header: [u32; 2] = [VERSION_3, 0];
    let none: [u32; 6] = [0; 6];
    // SAFETY: header and data have the layout and length of version 3, and the kernel only reads them.
    let result = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) };
    returned(result, Layer::Privileges, "capset")
}

/// The parent at the start of the set-up; the spawning side made sure that its death kills us until here.
pub(super) fn parent() -> Option<Pid> {
    getppid()
}

/// From now on the parent's death kills this process; a change of credentials may have undone that.
pub(super) fn die_with(parent: Option<Pid>) -> Result<(), EnterError> {
    prctl("prctl (parent death)", libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong)?;
    if getppid() == parent { Ok(()) } else { Err(EnterError::ParentEnded) }
}

fn prctl(call: &'static str, option: i32, argument: libc::c_ulong) -> Result<(), EnterError> {
    // SAFETY: every option used here takes numbers only.
    let result =
        unsafe { libc::prctl(option, argument, 0 as libc::c_ulong, 0 as libc::c_ulong, 0 as libc::c_ulong) };
    returned(i64::from(result), Layer::Privileges, call)
}

pub(super) fn returned(result: i64, layer: Layer, call: &'static str) -> Result<(), EnterError> {
    if result >= 0 { Ok(()) } else { Err(EnterError::Os { layer, call, source: last_errno() }) }
}

pub(super) fn last_errno() -> Errno {
    let raw = std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
    Errno::from_raw_os_error(raw)
}
