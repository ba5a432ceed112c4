//! Landlock: every right that this kernel can take away is taken away, on everything but the paths of the policy.

use super::audio::COOKIE_INSIDE;
use super::namespaces::Visible;
use super::{EnterError, GRANTED, Given, HostRoot, Missing, RootAccess};
use crate::policy::PathAccess;
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetStatus, Scope,
};
use std::path::Path;

/// The hard floor.
pub(crate) const ABI_MIN: u32 = 2;

/// From which ABI on each thing is there.
const SINCE: [(u32, Missing); 5] = [
    (3, Missing::LandlockTruncate),
    (4, Missing::LandlockTcp),
    (5, Missing::LandlockIoctlDevice),
    (6, Missing::LandlockScopes),
    (9, Missing::LandlockUnixSockets),
];

/// Landlock's ABI on this kernel; 0 where it is off.
pub(crate) fn abi() -> u32 {
    const VERSION: u32 = 1;
    // SAFETY: with this flag the call takes no memory and only returns the version.
    let abi =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0_usize, VERSION) };
    u32::try_from(abi).unwrap_or(0)
}

/// What a kernel with this ABI lacks.
pub(crate) fn missing(abi: u32) -> Vec<Missing> {
    SINCE.iter().filter(|(since, _)| abi < *since).map(|(_, missing)| *missing).collect()
}

/// Takes every right away from this process and its later children; returns the ABI. Before ABI 8 other threads are
/// not covered, so there must be none.
pub(super) fn restrict(paths: &[Visible], given: &Given) -> Result<u32, EnterError> {
    let version = abi();
    if version < ABI_MIN {
        return Err(EnterError::LandlockTooOld(version));
    }
    // Exactly the rights of this ABI, all of them required: nothing is left out silently.
    let abi = ABI::from(version.cast_signed());
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(abi))?;
    if version >= 4 {
        ruleset = ruleset.handle_access(AccessNet::from_all(abi))?;
    }
    if version >= 6 {
        ruleset = ruleset.scope(Scope::from_all(abi))?;
    }
    let mut created = ruleset.create()?;
    for path in paths {
        created = created.add_rule(PathBeneath::new(opened(&path.path)?, rights(path, abi)))?;
        // Who looks for a file lists its folder first. In the new root it holds what the policy names and nothing else.
        if let Some(parent) = path.path.parent().filter(|_| !path.folder) {
            created = created.add_rule(PathBeneath::new(opened(parent)?, AccessFs::ReadDir))?;
        }
    }
    if let Some(root) = given.root() {
        created = created.add_rule(PathBeneath::new(
            opened(Path::new(GRANTED))?,
            root_rights(root) & AccessFs::from_all(abi),
        ))?;
    }
    // No right of these ABIs is about connecting to a socket: the root holds one alone.
    if given.audio().is_some_and(|audio| audio.has_cookie()) {
        created =
            created.add_rule(PathBeneath::new(opened(Path::new(COOKIE_INSIDE))?, AccessFs::ReadFile))?;
    }
    let status = created.restrict_self()?;
    assert_eq!(status.ruleset, RulesetStatus::FullyEnforced, "a hard requirement is met or an error");
    Ok(version)
}

fn opened(path: &Path) -> Result<PathFd, EnterError> {
    PathFd::new(path).map_err(|_| EnterError::NoPath(vec![path.to_owned()]))
}

fn rights(path: &Visible, abi: ABI) -> BitFlags<AccessFs> {
    let wanted = match (path.access, path.folder) {
        (PathAccess::Read, true) => AccessFs::ReadFile | AccessFs::ReadDir,
        (PathAccess::Read, false) => AccessFs::ReadFile.into(),
        (PathAccess::Device(_), _) => AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev,
    };
    wanted & AccessFs::from_all(abi)
}

/// Making is for new contents, removing for what they replace and for those that are given up.
fn root_rights(root: &HostRoot) -> BitFlags<AccessFs> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    match (root.access, root.is_folder) {
        (RootAccess::Read, true) => read,
        (RootAccess::Read, false) => AccessFs::ReadFile.into(),
        (RootAccess::Write, _) => read | AccessFs::WriteFile | AccessFs::MakeReg | AccessFs::RemoveFile,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_abis_lack_what_came_later() {
        assert_eq!(missing(2).len(), 5);
        assert_eq!(
            missing(4),
            [Missing::LandlockIoctlDevice, Missing::LandlockScopes, Missing::LandlockUnixSockets]
        );
        assert_eq!(missing(9), []);
    }
}
