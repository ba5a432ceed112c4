//! Where sound could be captured from, as the server would look for it.

use super::Finding;
use std::env;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

/// The kernel's sound devices.
const ALSA_DEVICES: &str = "/dev/snd";

pub(super) fn all() -> Vec<Finding> {
    vec![pulse(&socket()), alsa(Path::new(ALSA_DEVICES))]
}

/// By the same custom as the server, where its options say nothing.
fn socket() -> PathBuf {
    let set = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
    let named = set("PULSE_SERVER").and_then(|servers| {
        let path = |server: &str| server.trim_start_matches("unix:").to_owned();
        servers.split_whitespace().map(path).find(|path| path.starts_with('/'))
    });
    let of_user = || {
        let uid = rustix::process::geteuid().as_raw();
        let folder = set("XDG_RUNTIME_DIR").unwrap_or_else(|| format!("/run/user/{uid}"));
        format!("{folder}/pulse/native")
    };
    PathBuf::from(named.unwrap_or_else(of_user))
}

fn pulse(socket: &Path) -> Finding {
    let is_socket = socket.metadata().is_ok_and(|facts| facts.file_type().is_socket());
    if is_socket {
        return Finding::yes("sound", "sound-server", socket.display().to_string());
    }
    let advice = "for live sound start PulseAudio or PipeWire (pipewire-pulse) as the server's user, or name its socket: \
                  ringfence serve -- --pulse-server SOCKET; clients can push sound without one";
    Finding::absent("sound", "sound-server", format!("no socket at {}", socket.display()), advice)
}

fn alsa(folder: &Path) -> Finding {
    let names = folder
        .read_dir()
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok());
    // A device that captures ends in a c: `pcmC0D0c`.
    let capture: Vec<String> = names.filter(|name| name.starts_with("pcm") && name.ends_with('c')).collect();
    if capture.is_empty() {
        let advice = "plug a microphone in, and put the server's user into the group audio; only for sources that begin with alsa";
        return Finding::absent("sound", "alsa", "no device that captures", advice);
    }
    Finding::yes("sound", "alsa", capture.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Answer;

    #[test]
    fn devices_that_capture_are_told_from_those_that_play() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(alsa(folder.path()).answer, Answer::Absent);
        for name in ["pcmC0D0p", "controlC0"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        assert_eq!(alsa(folder.path()).answer, Answer::Absent);
        std::fs::write(folder.path().join("pcmC0D0c"), "").unwrap();
        assert_eq!(
            (alsa(folder.path()).answer, alsa(folder.path()).found),
            (Answer::Yes, "pcmC0D0c".to_owned())
        );
    }

    #[test]
    fn a_file_at_the_socket_s_place_is_no_sound_server() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("native");
        std::fs::write(&place, "").unwrap();
        assert_eq!(pulse(&place).answer, Answer::Absent);
        std::fs::remove_file(&place).unwrap();
        let _listening = std::os::unix::net::UnixListener::bind(&place).unwrap();
        assert_eq!(pulse(&place).answer, Answer::Yes);
    }
}
