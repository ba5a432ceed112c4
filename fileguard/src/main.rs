//! `ringfence-fileguard`: the program around [`ringfence_fileguard`]. The server starts one for each granted root.

use ringfence_fileguard::clock::boot_ms;
use ringfence_fileguard::root::Root;
use ringfence_fileguard::serve::{End, Serving, set_nonblocking};
use ringfence_protocol::{DIGEST, FileguardSideLink, FromFileguard, Identity, Layer, RootKind};
use ringfence_sandbox::{
    Act, Entered, GRANTED, HostRoot, Policy, RootAccess, Sealed, enter_with_root, probe_with_root,
};
use rustix::fs::Mode;
use std::fmt::Display;
use std::process::ExitCode;

/// The command line is wrong.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let arguments: Result<Vec<String>, _> =
        std::env::args_os().skip(1).map(|word| word.into_string()).collect();
    let arguments = arguments.unwrap_or_default();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["read"] => run(RootAccess::Read),
        ["write"] => run(RootAccess::Write),
        ["probe", "read", act] => probe(RootAccess::Read, act),
        ["probe", "write", act] => probe(RootAccess::Write, act),
        ["--version"] => {
            println!("ringfence-fileguard {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        _ => say(
            &"usage: ringfence-fileguard read | write | probe read|write ACT | --version (started by ringfence-server, which says over \
              the link for which path)",
            USAGE,
        ),
    }
}

fn probe(access: RootAccess, act: &str) -> ExitCode {
    match act.parse::<Act>() {
        Ok(act) => probe_with_root(&Policy::fileguard(), access, act),
        Err(error) => say(&error, USAGE),
    }
}

fn run(access: RootAccess) -> ExitCode {
    let (entered, host) = match enter_with_root(&Policy::fileguard(), access) {
        Ok(entered) => entered,
        Err(error) => return say(&error, 1),
    };
    // Where, but not what: a message may hold a client's words. And no backtrace, which would open files.
    std::panic::set_hook(Box::new(|panic| match panic.location() {
        Some(place) => eprintln!("panic at {}:{}", place.file(), place.line()),
        None => eprintln!("panic"),
    }));
    match serve(entered, &host) {
        Ok(()) => ExitCode::SUCCESS,
        Err(end) => say(&end, 1),
    }
}

fn serve(mut entered: Entered, host: &HostRoot) -> Result<(), Box<dyn Display>> {
    let link = FileguardSideLink::new(entered.link());
    let root = Root::open(host, GRANTED, rustix::process::getuid().as_raw())
        .map_err(|error| boxed(End::Os { call: "open", error }))?;
    // The rights of files that are made are those that are named.
    rustix::process::umask(Mode::empty());
    // Finds the fast clock while it may still look for it.
    boot_ms();
    let tell = |message: FromFileguard| link.send(&message, &[]).map_err(boxed);
    tell(FromFileguard::Hello { digest: DIGEST.to_owned() })?;
    tell(described(host))?;
    set_nonblocking(&link).map_err(|error| boxed(End::Os { call: "fcntl", error }))?;
    let Sealed { layers, landlock_abi, .. } = entered.seal().map_err(boxed)?;
    tell(FromFileguard::Sealed { layers: layers.into_iter().map(layer).collect(), landlock_abi })?;
    Serving::new(&link, root).run().map_err(boxed)
}

fn described(host: &HostRoot) -> FromFileguard {
    FromFileguard::Root {
        kind: if host.is_folder { RootKind::Folder } else { RootKind::File },
        identity: Identity { device: host.id.device, inode: host.id.inode },
        owner: host.owner,
        size: host.size,
        modified: host.modified,
        path: host.path.clone(),
    }
}

/// A layer in the link's words.
fn layer(layer: ringfence_sandbox::Layer) -> Layer {
    match layer {
        ringfence_sandbox::Layer::Descriptors => Layer::Descriptors,
        ringfence_sandbox::Layer::Namespaces => Layer::Namespaces,
        ringfence_sandbox::Layer::Rlimits => Layer::Rlimits,
        ringfence_sandbox::Layer::Cgroup => Layer::Cgroup,
        ringfence_sandbox::Layer::Privileges => Layer::Privileges,
        ringfence_sandbox::Layer::Landlock => Layer::Landlock,
        ringfence_sandbox::Layer::Seccomp => Layer::Seccomp,
    }
}

fn boxed(end: impl Display + 'static) -> Box<dyn Display> {
    Box::new(end)
}

fn say(what: &dyn Display, code: u8) -> ExitCode {
    eprintln!("{what}");
    ExitCode::from(code)
}
