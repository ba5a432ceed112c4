//! What an audio program is shown of the host: the sound server's socket, or the kernel's capture devices, or nothing.

use super::host_root::{FileId, RootFault, clone_of, id, is_own, walk};
use super::namespaces::Visible;
use super::{EnterError, Layer, os};
use crate::policy::{DeviceNumber, Major, PathAccess};
use rustix::fs::{CWD, FileType, Mode, OFlags, major, minor, mkdirat, open};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, move_mount};
use std::ffi::CStr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The folder of what is shown, in the program's root.
const FOLDER: &CStr = c"/proc/audio";
/// Where the sound server's socket and its cookie are, while the new root is still mounted over the stepping stone.
const SOCKET: &CStr = c"/proc/audio/pulse";
const COOKIE: &CStr = c"/proc/audio/.pulse-cookie";
/// The length of a cookie, as the protocol has it.
const COOKIE_BYTES: usize = 256;
/// What tells the sound interface so.
const VARIABLES: [(&str, &str); 2] = [("PULSE_SERVER", "unix:/audio/pulse"), ("HOME", "/audio")];
/// Where Landlock finds what may be read of it.
pub(super) const COOKIE_INSIDE: &str = "/audio/.pulse-cookie";

/// The kernel's sound devices, their major number (`sound/major.h`), and the library's settings and plugins.
const ALSA_DEVICES: &str = "/dev/snd";
const ALSA_MAJOR: u32 = 116;
const ALSA_SETTINGS: [&str; 5] = [
    "/etc/alsa",
    "/etc/asound.conf",
    "/usr/lib/x86_64-linux-gnu/alsa-lib",
    "/usr/lib64/alsa-lib",
    "/usr/share/alsa",
];
/// The most devices of a host that are looked at.
const ALSA_DEVICES_MAX: usize = 64;

/// By which interface a program gets its sound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AudioKind {
    /// A sound server that speaks PulseAudio's protocol.
    Pulse,
    /// The kernel's devices.
    Alsa,
    /// A descriptor that comes later; it is shown nothing.
    Pushed,
}

/// No interface has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no sound interface `{0}`")]
pub struct UnknownAudioKind(pub String);

impl AudioKind {
    /// Every one.
    pub const ALL: [AudioKind; 3] = [AudioKind::Pulse, AudioKind::Alsa, AudioKind::Pushed];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            AudioKind::Pulse => "pulse",
            AudioKind::Alsa => "alsa",
            AudioKind::Pushed => "pushed",
        }
    }
}

impl FromStr for AudioKind {
    type Err = UnknownAudioKind;

    fn from_str(name: &str) -> Result<Self, UnknownAudioKind> {
        let known = AudioKind::ALL.into_iter().find(|kind| kind.name() == name);
        known.ok_or_else(|| UnknownAudioKind(name.to_owned()))
    }
}

/// What was found on the host for the program.
#[derive(Debug)]
pub(super) struct HostAudio {
    files: Vec<HostFile>,
    pub(super) visible: Vec<Visible>,
    pub(super) given: GivenAudio,
}

/// What an audio program knows of what it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GivenAudio {
    /// The name of the device that is wanted; empty for the default.
    pub device: String,
    /// Why the sound server's socket is not shown: it is not there, or this user does not reach it.
    pub missing: Option<Errno>,
}

/// A socket or a file that is mounted in a place of its own.
#[derive(Debug)]
struct HostFile {
    path: String,
    id: FileId,
    kind: FileType,
    place: &'static CStr,
}

impl HostAudio {
    /// Looks by the first packet on the link, whose parts each end with a zero byte.
    pub(super) fn look(words: &str, kind: AudioKind) -> Result<Self, EnterError> {
        let parts: Vec<&str> = words.split_terminator('\0').collect();
        let wrong = || EnterError::Descriptor {
            number: super::LINK,
            expected: "a link with the sound's places as its first packet",
        };
        let found = |files, visible, device: &str, missing| {
            Ok(Self { files, visible, given: GivenAudio { device: device.to_owned(), missing } })
        };
        match (kind, &parts[..]) {
            (AudioKind::Pulse, [socket, cookie, device]) => {
                let mut files = match HostFile::look(socket, FileType::Socket, SOCKET) {
                    Ok(socket) => vec![socket],
                    Err(EnterError::Root(RootFault::Os { error, .. })) if is_absence(error) => {
                        return found(vec![], vec![], device, Some(error));
                    }
                    Err(fault) => return Err(fault),
                };
                if !cookie.is_empty() {
                    files.push(HostFile::look(cookie, FileType::RegularFile, COOKIE)?);
                }
                found(files, vec![], device, None)
            }
            (AudioKind::Alsa, [device]) => found(vec![], alsa(), device, None),
            (AudioKind::Pushed, [""]) => found(vec![], vec![], "", None),
            _ => Err(wrong()),
        }
    }

    /// Tells the sound interface where its socket will be. There is one thread yet.
    #[expect(clippy::disallowed_methods, reason = "the program has one thread, and nobody else could say it")]
    pub(super) fn set_variables(&self) {
        for (name, value) in VARIABLES {
            // SAFETY: `take` has made sure that no other thread exists that could read the environment meanwhile.
            unsafe { std::env::set_var(name, value) };
        }
    }

    /// Whether the program's root holds anything because of it.
    pub(super) fn is_empty(&self) -> bool {
        self.files.is_empty() && self.visible.is_empty()
    }

    /// Whether a cookie is to be read: with every socket there is one.
    pub(super) fn has_cookie(&self) -> bool {
        !self.files.is_empty()
    }

    /// Mounts of exactly those objects that are at no place yet.
    pub(super) fn trees(&self) -> Result<Vec<OwnedFd>, EnterError> {
        self.files.iter().map(HostFile::tree).collect()
    }

    /// Puts those into the new root.
    pub(super) fn show(&self, trees: &[OwnedFd]) -> Result<(), EnterError> {
        if self.files.is_empty() {
            return Ok(());
        }
        mkdirat(CWD, FOLDER, Mode::RWXU).map_err(os(Layer::Namespaces, "mkdir"))?;
        if !self.files.iter().any(|file| file.place == COOKIE) {
            // A server that asks for none hangs up on who has none of the right length.
            let cookie = make(COOKIE)?;
            rustix::io::write(&cookie, &[0; COOKIE_BYTES]).map_err(os(Layer::Namespaces, "write"))?;
        }
        self.files.iter().zip(trees).try_for_each(|(file, tree)| file.show(tree))
    }
}

impl HostFile {
    fn look(path: &str, kind: FileType, place: &'static CStr) -> Result<Self, EnterError> {
        let found = walk(path).map_err(EnterError::Root)?;
        let failed = |error| RootFault::Os { path: path.into(), call: "fstatfs", error };
        if is_own(&found.opened).map_err(failed).map_err(EnterError::Root)? {
            return Err(EnterError::Root(RootFault::HostsOwn));
        }
        if FileType::from_raw_mode(found.facts.st_mode) != kind {
            let fault = if kind == FileType::Socket { RootFault::NotASocket } else { RootFault::NotAFile };
            return Err(EnterError::Root(fault));
        }
        Ok(Self { path: path.to_owned(), id: id(&found.facts), kind, place })
    }

    /// As for a granted root: walked again in the new mount namespace, and the same object or none.
    fn tree(&self) -> Result<OwnedFd, EnterError> {
        let found = walk(&self.path).map_err(EnterError::Root)?;
        if id(&found.facts) != self.id || FileType::from_raw_mode(found.facts.st_mode) != self.kind {
            return Err(EnterError::Root(RootFault::Changed));
        }
        let tree = clone_of(&found.opened).map_err(os(Layer::Namespaces, "open_tree"))?;
        super::host_root::restrict_mount(&tree)?;
        Ok(tree)
    }

    fn show(&self, tree: &OwnedFd) -> Result<(), EnterError> {
        drop(make(self.place)?);
        let to = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(tree, c"", CWD, self.place, to).map_err(os(Layer::Namespaces, "move_mount"))
    }
}

fn make(place: &CStr) -> Result<OwnedFd, EnterError> {
    let create = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    open(place, create, Mode::RUSR).map_err(os(Layer::Namespaces, "open"))
}

/// Errors by which a path says that no sound server is there for this user.
fn is_absence(error: Errno) -> bool {
    matches!(error, Errno::NOENT | Errno::NOTDIR | Errno::ACCESS)
}

/// What of the kernel's sound is there: controls, timers and devices that capture, none that plays, and settings. Nothing
/// is no fault: the interface then says that there is no device.
fn alsa() -> Vec<Visible> {
    let entries = std::fs::read_dir(ALSA_DEVICES).into_iter().flatten().flatten();
    let mut devices: Vec<Visible> =
        entries.take(ALSA_DEVICES_MAX).filter_map(|entry| capture_device(entry.path())).collect();
    devices.sort_by(|a, b| a.path.cmp(&b.path));
    let settings = ALSA_SETTINGS.iter().filter_map(|path| setting(Path::new(path)));
    devices.into_iter().chain(settings).collect()
}

fn capture_device(path: PathBuf) -> Option<Visible> {
    let name = path.file_name()?.to_str()?;
    let is_wanted =
        name.starts_with("controlC") || name == "timer" || (name.starts_with("pcmC") && name.ends_with('c'));
    let facts = std::fs::symlink_metadata(&path).ok()?;
    let number = (major(facts.rdev()), minor(facts.rdev()));
    let access = PathAccess::Device(DeviceNumber { major: Major::Number(number.0), minor: number.1 });
    let taken = is_wanted && facts.file_type().is_char_device() && number.0 == ALSA_MAJOR;
    taken.then_some(Visible { path, access, folder: false })
}

fn setting(path: &Path) -> Option<Visible> {
    let facts = std::fs::symlink_metadata(path).ok()?;
    let taken = facts.is_dir() || facts.is_file();
    taken.then(|| Visible { path: path.to_owned(), access: PathAccess::Read, folder: facts.is_dir() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(words: &str, kind: AudioKind) -> String {
        HostAudio::look(words, kind).expect_err("it is none").to_string()
    }

    #[test]
    fn each_interface_has_its_words_and_no_others() {
        assert_eq!(HostAudio::look("\0", AudioKind::Pushed).unwrap().given.device, "");
        assert_eq!(HostAudio::look("hw:0\0", AudioKind::Alsa).unwrap().given.device, "hw:0");
        for (words, kind) in [
            ("", AudioKind::Pushed),
            ("a\0", AudioKind::Pushed),
            ("\0\0", AudioKind::Pushed),
            ("\0\0", AudioKind::Alsa),
            ("/run/pulse\0", AudioKind::Pulse),
            ("/run/pulse\0\0\0\0", AudioKind::Pulse),
        ] {
            assert!(fault(words, kind).contains("the sound's places"), "{words:?}");
        }
    }

    #[test]
    fn a_socket_has_to_be_one_and_a_cookie_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().canonicalize().unwrap();
        let at = |name: &str| base.join(name).to_str().unwrap().to_owned();
        let _socket = std::os::unix::net::UnixListener::bind(base.join("socket")).unwrap();
        std::fs::write(base.join("cookie"), [0; 256]).unwrap();
        std::os::unix::fs::symlink(base.join("socket"), base.join("link")).unwrap();
        let words = |socket: &str, cookie: &str| format!("{socket}\0{cookie}\0mic\0");
        let found = HostAudio::look(&words(&at("socket"), &at("cookie")), AudioKind::Pulse).unwrap();
        assert!(found.has_cookie() && found.given.device == "mic" && !found.is_empty());
        let without = HostAudio::look(&words(&at("socket"), ""), AudioKind::Pulse).unwrap();
        assert!(without.has_cookie() && without.files.len() == 1);
        assert!(fault(&words(&at("cookie"), ""), AudioKind::Pulse).contains("no socket"));
        assert!(fault(&words(&at("socket"), &at("socket")), AudioKind::Pulse).contains("regular file"));
        assert!(fault(&words(&at("link"), ""), AudioKind::Pulse).contains("symbolic link"));
        assert!(fault(&words("", ""), AudioKind::Pulse).contains("not absolute"));
    }

    #[test]
    fn only_capture_is_shown_of_the_kernel_s_devices() {
        // A device of another kind does not come in by its name.
        assert!(capture_device(PathBuf::from("/dev/null")).is_none());
        assert!(alsa().iter().all(|shown| !shown.path.to_string_lossy().ends_with('p')));
    }

    #[test]
    fn an_interface_is_found_by_its_name() {
        for kind in AudioKind::ALL {
            assert_eq!(kind.name().parse(), Ok(kind));
        }
        assert!("jack".parse::<AudioKind>().is_err());
    }

    #[test]
    fn no_sound_server_is_told_and_no_fault() {
        let found = HostAudio::look("/usr/no-such-socket\0\0\0", AudioKind::Pulse).unwrap();
        assert!(found.is_empty() && found.given.missing == Some(Errno::NOENT));
    }
}
