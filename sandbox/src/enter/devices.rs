//! Device nodes that a program is given: each has to be the very device that the policy means.

use super::EnterError;
use crate::policy::{DeviceNumber, Major};
use rustix::fs::{Mode, OFlags, major, minor, open};
use rustix::io::Errno;
use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// Why a device node is not given to a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceFault {
    /// A file, a folder, a block device or whatever else.
    #[error("it is no character device")]
    NotADevice,
    /// The kernel has no driver of the name that the policy gives.
    #[error("the driver `{0}` is not loaded: load it (`modprobe {0}`)")]
    NoDriver(&'static str),
    /// A node, but of something else.
    #[error(
        "it is device {}:{}, and {}:{} was meant: look with `ls -l` which card it is",
        found.0, found.1, meant.0, meant.1
    )]
    OtherDevice {
        /// Major and minor number.
        found: (u32, u32),
        /// The same, as they had to be.
        meant: (u32, u32),
    },
    /// The user may not open it.
    #[error(
        "it can't be opened ({0}): put the server's user into the group that owns it, most often `render` or `video`"
    )]
    Closed(Errno),
}

/// Looks whether it is the one that is meant.
pub(super) fn check(path: &Path, metadata: &Metadata, number: DeviceNumber) -> Result<(), EnterError> {
    let fault = |fault| EnterError::Device { path: path.to_owned(), fault };
    if !metadata.file_type().is_char_device() {
        return Err(fault(DeviceFault::NotADevice));
    }
    let meant = (major_of(number.major).map_err(fault)?, number.minor);
    let found = (major(metadata.rdev()), minor(metadata.rdev()));
    if found == meant { Ok(()) } else { Err(fault(DeviceFault::OtherDevice { found, meant })) }
}

/// A node that can't be opened is told here, where it can be said why; a driver would only see no card.
pub(super) fn try_open(path: &Path, place: &Path) -> Result<(), EnterError> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let closed = |error| EnterError::Device { path: path.to_owned(), fault: DeviceFault::Closed(error) };
    open(place, flags, Mode::empty()).map(drop).map_err(closed)
}

fn major_of(major: Major) -> Result<u32, DeviceFault> {
    match major {
        Major::Number(number) => Ok(number),
        Major::Named(name) => {
            let devices = std::fs::read_to_string("/proc/devices").unwrap_or_default();
            number_of(&devices, name).ok_or(DeviceFault::NoDriver(name))
        }
    }
}

/// The number of a character device's driver in the text of `/proc/devices`.
fn number_of(devices: &str, name: &str) -> Option<u32> {
    let of_characters = devices.split("Block devices:").next()?;
    let numbers = of_characters.lines().filter_map(|line| line.trim().split_once(' '));
    numbers.filter(|(_, driver)| driver.trim() == name).find_map(|(number, _)| number.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_to_be_the_one_that_is_meant() {
        let check = |path: &str, major, minor| {
            let path = Path::new(path);
            match check(path, &std::fs::metadata(path).unwrap(), DeviceNumber { major, minor }) {
                Ok(()) => None,
                Err(EnterError::Device { fault, .. }) => Some(fault),
                Err(other) => panic!("{other}"),
            }
        };
        let null = Major::Number(1);
        assert_eq!(check("/dev/null", null, 3), None);
        let other = DeviceFault::OtherDevice { found: (1, 5), meant: (1, 3) };
        assert_eq!(check("/dev/zero", null, 3), Some(other));
        assert_eq!(check("/", null, 3), Some(DeviceFault::NotADevice));
        assert_eq!(check("/proc/version", null, 3), Some(DeviceFault::NotADevice));
        let unloaded = Major::Named("no-such-driver");
        assert_eq!(check("/dev/null", unloaded, 0), Some(DeviceFault::NoDriver("no-such-driver")));
    }

    #[test]
    fn a_driver_s_number_is_that_of_its_character_devices() {
        let devices = "Character devices:\n  1 mem\n195 nvidia\n510 nvidia-uvm\n\nBlock devices:\n  8 sd\n";
        assert_eq!(number_of(devices, "nvidia-uvm"), Some(510));
        assert_eq!(number_of(devices, "nvidia-caps"), None);
        assert_eq!(number_of(devices, "sd"), None);
        assert_eq!(number_of("", "mem"), None);
    }
}
