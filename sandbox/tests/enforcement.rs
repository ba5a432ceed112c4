//! The real kernel, under the real policy: what a sandboxed program can't do, and how its end is told.
//!
//! Each scenario of `examples/spawner.rs` runs as an ordinary user, and where the tests run as root also as root
//! that is then dropped.
#![allow(clippy::unwrap_used, reason = "what is not as it must be ends the test")]

use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const NOBODY: u32 = 65534;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum As {
    OrdinaryUser,
    RootThenDropped,
}

/// Copies of the two programs where any user may run them.
struct Programs {
    folder: tempfile::TempDir,
}

impl Programs {
    fn new() -> Programs {
        let folder = tempfile::tempdir_in("/tmp").unwrap();
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
        for name in ["spawner", "sandboxed"] {
            let copy = folder.path().join(name);
            std::fs::copy(built(name), &copy).unwrap();
            std::fs::set_permissions(copy, PermissionsExt::from_mode(0o755)).unwrap();
        }
        Programs { folder }
    }

    fn spawner(&self, who: As, scenario: &str) -> Command {
        let mut command = Command::new(self.folder.path().join("spawner"));
        let program = self.folder.path().join("sandboxed");
        let user = if who == As::RootThenDropped { "nobody" } else { "-" };
        command.arg(program).arg(user).arg(scenario);
        if who == As::OrdinaryUser && is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    }
}

/// Examples lie beside the folder of the test executables.
fn built(name: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let program = own.parent().and_then(Path::parent).unwrap().join("examples").join(name);
    assert!(program.exists(), "`cargo build -p ringfence-sandbox --examples` makes {}", program.display());
    program
}

fn is_root() -> bool {
    rustix::process::getuid().is_root()
}

fn everyone() -> &'static [As] {
    if is_root() { &[As::OrdinaryUser, As::RootThenDropped] } else { &[As::OrdinaryUser] }
}

fn check(scenario: &str) {
    let programs = Programs::new();
    for who in everyone() {
        let output = programs.spawner(*who, scenario).output().unwrap();
        assert!(output.status.success(), "{who:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn every_forbidden_act_is_stopped_as_the_policy_says() {
    check("probes");
}

#[test]
fn a_sealed_program_computes_and_its_layers_are_seen_from_outside() {
    check("serves");
}

#[test]
fn a_program_sees_the_paths_of_its_policy_and_nothing_else() {
    check("looks");
}

#[test]
fn a_sealed_file_maps_inside_the_filter_and_an_unsealed_one_is_refused() {
    check("maps");
}

#[test]
fn the_raw_wait_status_of_the_program_reaches_the_server() {
    check("ends");
}

#[test]
fn the_lease_is_enforced_typed_where_it_can_be_and_told_by_the_page_where_not() {
    check("leases");
}

#[test]
fn leaks_are_closed_and_a_wrong_environment_descriptor_or_thread_is_refused() {
    check("refuses");
}

#[test]
fn a_kill_ends_all_and_is_told_when_all_is_gone() {
    check("kills");
}

#[test]
fn a_program_joins_the_cgroup_that_the_server_was_given() {
    if is_root() && Path::new("/sys/fs/cgroup/pids/cgroup.procs").exists() {
        let programs = Programs::new();
        let mut spawner = programs.spawner(As::RootThenDropped, "cgroup");
        let spawner = spawner.stderr(Stdio::piped()).spawn().unwrap();
        let made = format!("/sys/fs/cgroup/pids/ringfence-test-{}", spawner.id());
        let output = spawner.wait_with_output().unwrap();
        let removed = std::fs::remove_dir(made);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        // A cgroup can be removed only when nothing is left in it.
        removed.unwrap();
    }
}

#[test]
fn nothing_is_left_when_the_server_is_killed() {
    let programs = Programs::new();
    for who in everyone() {
        let mut spawner = programs.spawner(*who, "orphan").stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(spawner.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let pidfds: Vec<_> = line
            .split_whitespace()
            .map(|pid| pidfd_open(Pid::from_raw(pid.parse().unwrap()).unwrap(), PidfdFlags::empty()).unwrap())
            .collect();
        assert_eq!(pidfds.len(), 2, "{who:?}: {line}");
        let spawner_pid = Pid::from_raw(spawner.id().cast_signed()).unwrap();
        kill_process(spawner_pid, Signal::KILL).unwrap();
        spawner.wait().unwrap();
        for pidfd in &pidfds {
            let mut polled = [rustix::event::PollFd::new(pidfd, rustix::event::PollFlags::IN)];
            let one_second = rustix::event::Timespec { tv_sec: 1, tv_nsec: 0 };
            assert_eq!(rustix::event::poll(&mut polled, Some(&one_second)), Ok(1), "{who:?}: an orphan");
        }
    }
}

#[test]
fn a_server_that_is_still_root_gets_no_program() {
    if is_root() {
        let programs = Programs::new();
        let mut command = Command::new(programs.folder.path().join("spawner"));
        command.arg(programs.folder.path().join("sandboxed")).args(["-", "serves"]);
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains("uid or gid of root"), "{said}");
    }
}
