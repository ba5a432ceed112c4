//! Where the sound server is: by the server's options, or where such servers are by custom.

use std::env;
use std::path::{Path, PathBuf};

/// The socket of a sound server that speaks PulseAudio's protocol, and the cookie that it wants to see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SoundPlaces {
    pulse_socket: PathBuf,
    pulse_cookie: Option<PathBuf>,
}

impl SoundPlaces {
    /// As the options say; else as the environment does; else those of the user that the server runs as.
    pub(crate) fn find(socket: Option<&Path>, cookie: Option<&Path>) -> Self {
        let uid = rustix::process::geteuid().as_raw();
        let set = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
        let of_user = || {
            let folder =
                set("XDG_RUNTIME_DIR").map_or_else(|| format!("/run/user/{uid}").into(), PathBuf::from);
            folder.join("pulse/native")
        };
        let named = || set("PULSE_SERVER").as_deref().and_then(socket_of);
        let of_home = || Some(PathBuf::from(set("HOME")?).join(".config/pulse/cookie"));
        Self {
            pulse_socket: socket.map(Path::to_owned).or_else(named).unwrap_or_else(of_user),
            pulse_cookie: cookie
                .map(Path::to_owned)
                .or_else(|| set("PULSE_COOKIE").map(PathBuf::from))
                .or_else(of_home),
        }
    }

    /// The socket's path. Whether anything is there is seen when it is wanted.
    pub(crate) fn socket(&self) -> String {
        self.pulse_socket.display().to_string()
    }

    /// The cookie's, where there is one now.
    pub(crate) fn cookie(&self) -> String {
        let there = self.pulse_cookie.as_ref().filter(|path| path.is_file());
        there.map(|path| path.display().to_string()).unwrap_or_default()
    }
}

/// The path in a value of `PULSE_SERVER`: the first server of its list that is a Unix socket.
fn socket_of(servers: &str) -> Option<PathBuf> {
    let path = |server: &str| {
        // A server may stand behind the machine for which it counts: `{id}unix:/path`.
        let server = server.rsplit_once('}').map_or(server, |(_, server)| server);
        let path = server.strip_prefix("unix:").unwrap_or(server);
        path.starts_with('/').then(|| PathBuf::from(path))
    };
    servers.split_whitespace().find_map(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sound_server_is_found_where_the_environment_says() {
        for (value, path) in [
            ("unix:/tmp/pa.sock", Some("/tmp/pa.sock")),
            ("/tmp/pa.sock", Some("/tmp/pa.sock")),
            ("{0123}unix:/run/p tcp:host", Some("/run/p")),
            ("tcp:host:4713 unix:/run/p", Some("/run/p")),
            ("host", None),
        ] {
            assert_eq!(socket_of(value), path.map(PathBuf::from), "{value}");
        }
    }

    #[test]
    fn options_go_first_and_a_cookie_that_is_not_there_is_none() {
        let places = SoundPlaces::find(Some(Path::new("/a")), Some(Path::new("/no/such/cookie")));
        assert_eq!((places.socket(), places.cookie()), ("/a".to_owned(), String::new()));
    }
}
