//! A stand-in for the server, for the tests: `spawner PROGRAM USER SCENARIO` drops root to USER (`-` keeps the user)
//! and plays the scenario with `sandboxed`. It panics, and so ends with a code, where something is not as it must be.
#![allow(clippy::unwrap_used, reason = "one half of a test: what is not as it must be ends it")]

use ringfence_sandbox::{
    Act, Child, Environment, Exit, Layer, Policy, SealedFile, SpawnRequest, StatusPage, VulkanDriver,
    drop_to_user, judge, preflight, process_facts, raise_nofile, spawn,
};
use rustix::fs::{MemfdFlags, Mode, OFlags, memfd_create, open};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair, sockopt,
};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::io::{IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, program, user, scenario] = &arguments[..] else { panic!("spawner PROGRAM USER SCENARIO") };
    let program = open(program.as_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    let cgroup = (scenario == "cgroup").then(|| made_cgroup(user));
    if user != "-" {
        drop_to_user(user).unwrap();
        assert!(std::fs::read("/etc/shadow").is_err(), "root is given up");
    }
    raise_nofile().unwrap();
    match scenario.as_str() {
        "probes" => probes(&program),
        "serves" => serves(&program),
        "looks" => looks(&program),
        "maps" => maps(&program),
        "ends" => ends(&program),
        "leases" => leases(&program),
        "refuses" => refuses(&program),
        "kills" => kills(&program),
        "cgroup" => joins(&program, cgroup.as_deref().unwrap()),
        "orphan" => orphan(&program),
        "times" => times(&program),
        _ => panic!("no such scenario"),
    }
}

struct Running {
    child: Child,
    page: StatusPage,
    link: OwnedFd,
}

fn start(program: &OwnedFd, arguments: &[&str], cgroup: Option<BorrowedFd<'_>>) -> Running {
    let (link, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    sockopt::set_socket_passcred(&link, true).unwrap();
    let page = StatusPage::create().unwrap();
    let child = spawn(SpawnRequest {
        program: program.as_fd(),
        arguments,
        environment: Environment { threads: Some(2) },
        link: theirs,
        status_page: &page,
        cgroup,
        user: None,
        data_bytes_max: None,
    });
    Running { child: child.unwrap(), page, link }
}

impl Running {
    fn end(&self) -> Exit {
        self.child.wait().unwrap()
    }

    /// What the program says next and its pid; nothing once it has ended.
    fn hear(&self) -> (String, Option<i32>) {
        let mut bytes = [0; 1024];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let packet =
            recvmsg(&self.link, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::empty())
                .map_or(0, |p| p.bytes);
        let pid = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmCredentials(credentials) => Some(credentials.pid.as_raw_nonzero().get()),
            _ => None,
        });
        (String::from_utf8_lossy(&bytes[..packet]).into_owned(), pid)
    }

    fn order(&self, text: &str, descriptors: &[BorrowedFd<'_>]) -> String {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
        }
        sendmsg(&self.link, &[IoSlice::new(text.as_bytes())], &mut control, SendFlags::NOSIGNAL).unwrap();
        self.hear().0
    }

    fn errors(&self) -> String {
        let mut said = String::new();
        let stderr = self.child.stderr.try_clone().unwrap();
        std::fs::File::from(stderr).read_to_string(&mut said).unwrap();
        said
    }
}

/// A program that serves, sealed; its report and pid.
fn served(program: &OwnedFd) -> (Running, String, i32) {
    let running = start(program, &["serve"], None);
    let (first, pid) = running.hear();
    if first != "unsealed" {
        panic!("{:?}: {}", running.end(), running.errors());
    }
    let report = running.hear().0;
    (running, report, pid.expect("credentials were asked for"))
}

/// The last two stand for a worker on a card: its filter, with a node in its root that is no card's.
fn probes(program: &OwnedFd) {
    let policies = [
        ("probe", Policy::worker_cpu()),
        ("probe-mesa", Policy::worker_vulkan(&VulkanDriver::Mesa { node: 128 })),
        ("probe-nvidia", Policy::worker_vulkan(&VulkanDriver::Nvidia { minor: 0 })),
    ];
    let mut failures = Vec::new();
    for (word, policy) in policies {
        for act in Act::ALL {
            let probe = start(program, &[word, act.name()], None);
            if let Err(failure) = judge(&policy, *act, probe.end()) {
                failures.push(format!("{word}: {failure}: {}", probe.errors()));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    println!("{} acts stopped", Act::ALL.len());
}

fn serves(program: &OwnedFd) {
    let host = preflight().unwrap();
    let (running, report, pid) = served(program);
    let layers = [
        Layer::Descriptors,
        Layer::Namespaces,
        Layer::Rlimits,
        Layer::Privileges,
        Layer::Landlock,
        Layer::Seccomp,
    ];
    let expected = format!(
        "pid=2 uid=65534 listed=false seen=0 open=1 planted=false layers={layers:?} abi={} missing={:?}",
        host.landlock_abi, host.missing
    );
    assert_eq!(report, expected);
    let facts = process_facts(pid).unwrap();
    assert_eq!(facts.check_sealed(), Ok(()));
    assert_eq!(facts.uid, rustix::process::getuid().as_raw());
    assert_eq!(facts.threads, 5);
    for _ in 0..20 {
        assert_eq!(running.order("compute", &[]), (4 * (100 + (1 << 20))).to_string());
    }
    assert_eq!(running.order("panic", &[]), "true");
    assert_eq!(running.child.try_wait().unwrap(), None);
    assert_eq!(running.order("exit 0", &[]), "");
    assert_eq!(running.end(), Exit::Code(0));
    let status = running.page.read();
    assert_eq!((status.wait_status, status.denial), (Some(0), None));
    assert!(status.peak_bytes > 4 << 20 && status.used_bytes < status.peak_bytes, "{status:?}");
}

fn looks(program: &OwnedFd) {
    let paths = "read /no/such/file | /usr/lib/os-release # a file\nread /usr/bin # a folder\n\
                 device 1:3 /dev/null # a node\nread /proc/version & /not/there & /sys/dev/char/1:3 # of the kernel";
    let running = start(program, &["look", paths], None);
    let expected = "file=true listed=true others=false root=false written=false made=false run=false null=true \
                    zero=false kernel=true";
    let seen = running.hear().0;
    assert_eq!(seen, expected, "{}", running.errors());
    assert_eq!(running.end(), Exit::Code(0));
    let refusals = [
        (
            "read /no/such/file | /nor/this # none",
            "/no/such/file or /nor/this, which this machine does not have",
        ),
        (
            "read /no/such/file & /nor/this # none",
            "/no/such/file or /nor/this, which this machine does not have",
        ),
        ("device 226:128 /dev/no-card # none", "/dev/no-card, which this machine does not have: install"),
        ("device 226:128 /dev/null # another", "it is device 1:3, and 226:128 was meant"),
        ("device 1:3 /usr/bin/env # a file", "it is no character device"),
        ("device nvidia-uvm:0 /dev/null # no driver", "is not loaded: load it"),
    ];
    for (paths, expected) in refusals {
        // A machine that has this driver has another answer to the last.
        if paths.contains("nvidia-uvm") && std::fs::metadata("/dev/nvidia-uvm").is_ok() {
            continue;
        }
        let running = start(program, &["look", paths], None);
        assert_eq!(running.end(), Exit::Code(251), "{paths}");
        let said = running.errors();
        assert!(said.contains(expected), "{paths}: {said}");
    }
}

fn maps(program: &OwnedFd) {
    let (running, ..) = served(program);
    let sealed = SealedFile::from_bytes("input", b"a stranger's bytes").unwrap();
    assert_eq!(running.order("map", &[sealed.as_fd()]), "a stranger's bytes");
    let unsealed = memfd_create("input", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::io::write(&unsealed, b"bytes that may change").unwrap();
    let refused = "the descriptor is not a memfd with all seals";
    assert_eq!(running.order("map", &[unsealed.as_fd()]), refused);
    let file = open("/etc/passwd", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    assert_eq!(running.order("map", &[file.as_fd()]), refused);
    assert_eq!(running.order("map", &[]), "no descriptor");
}

fn ends(program: &OwnedFd) {
    let ends = [
        ("exit 7", Exit::Code(7), 7 << 8),
        ("exit 0", Exit::Code(0), 0),
        ("abort", Exit::Signal(libc::SIGABRT), libc::SIGABRT),
        ("overflow-stack", Exit::Signal(libc::SIGABRT), libc::SIGABRT),
        // Rust's handler of a fault that is no overflow makes a call that the filter denies.
        ("fault", Exit::Signal(libc::SIGSYS), libc::SIGSYS),
    ];
    for (order, exit, raw) in ends {
        let (running, ..) = served(program);
        running.order(order, &[]);
        let ended = running.end();
        let status = running.page.read();
        assert_eq!((ended, status.wait_status), (exit, Some(raw)), "{order}");
        assert_eq!(status.denial, None, "{order}");
        assert_eq!(running.child.wait(), Ok(ended), "the answer stays");
    }
}

fn leases(program: &OwnedFd) {
    let (running, ..) = served(program);
    assert_eq!(running.order("allocate 1000000", &[]), "1000000 true");
    assert_eq!(running.order("headroom 1000000", &[]), "it fits");
    let refused = running.order("headroom 100000000", &[]);
    assert!(refused.starts_with("out of memory: 100000000 bytes wanted"), "{refused}");
    assert_eq!(running.page.read().denial, None, "a look leaves nothing");
    let reserved = running.order("try-reserve 100000000", &[]);
    assert!(reserved.starts_with("false out of memory: 100000000 bytes wanted"), "{reserved}");
    assert_eq!(running.page.read().denial, None, "what was handled is cleared");
    assert_eq!(running.order("try-reserve 1000", &[]), "true no denial");

    running.order("allocate 100000000", &[]);
    let ended = running.end();
    assert!(matches!(ended, Exit::Signal(libc::SIGABRT | libc::SIGSYS)), "{ended:?}");
    let denial = running.page.read().denial.expect("the page tells why");
    assert_eq!((denial.wanted, denial.limit), (100_000_000, 64 << 20));

    let (running, ..) = served(program);
    running.order("allocate-on-all-threads 40000000", &[]);
    let ended = running.end();
    assert!(matches!(ended, Exit::Signal(libc::SIGABRT | libc::SIGSYS)), "{ended:?}");
    assert_eq!(running.page.read().denial.expect("the page tells why").wanted, 40_000_000);
}

fn refuses(program: &OwnedFd) {
    let (leaky, report, _) = {
        let running = start(program, &["again-with-leaks"], None);
        let pid = running.hear().1;
        let report = running.hear().0;
        (running, report, pid)
    };
    assert!(report.contains(" open=1 "), "leaked descriptors are closed: {report}");
    drop(leaky);
    let refusals = [
        (vec!["again-with-variable", "LD_PRELOAD"], "`LD_PRELOAD`"),
        (vec!["again-with-variable", "LD_LIBRARY_PATH"], "`LD_LIBRARY_PATH`"),
        (vec!["again-with-variable", "CUDA_VISIBLE_DEVICES"], "`CUDA_VISIBLE_DEVICES`"),
        (vec!["again-with-variable", "VK_ICD_FILENAMES"], "`VK_ICD_FILENAMES`"),
        (vec!["again-with-variable", "HOME"], "`HOME`"),
        (vec!["again-with-variable", "MESA_SHADER_CACHE_DIR"], "`MESA_SHADER_CACHE_DIR`"),
        (vec!["again-without", "1"], "descriptor 1 must be a pipe"),
        (vec!["again-without", "3"], "descriptor 3 must be"),
        (vec!["again-without", "4"], "descriptor 4 must be"),
        (vec!["threaded"], "before any thread"),
    ];
    for (arguments, expected) in refusals {
        let running = start(program, &arguments, None);
        assert_eq!(running.hear().0, "", "{arguments:?}");
        assert_eq!(running.end(), Exit::Code(251), "{arguments:?}");
        let said = running.errors();
        assert!(said.contains(expected), "{arguments:?}: {said}");
    }
}

fn kills(program: &OwnedFd) {
    let (running, _, pid) = served(program);
    let whole = pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()).unwrap();
    running.child.kill().unwrap();
    assert_eq!(running.end(), Exit::Signal(libc::SIGKILL));
    assert!(has_ended(&whole), "the program is gone before the outer process");
    assert_eq!(running.errors(), "");
    running.child.kill().unwrap();

    let (running, _, pid) = served(program);
    let whole = pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()).unwrap();
    drop(running);
    await_end(&whole);
}

fn has_ended(process: &OwnedFd) -> bool {
    poll(process, 0)
}

/// The bound is only there to end a test that fails.
fn await_end(process: &OwnedFd) {
    assert!(poll(process, 10), "it outlives its parent");
}

fn poll(process: &OwnedFd, seconds: i64) -> bool {
    let mut polled = [rustix::event::PollFd::new(process, rustix::event::PollFlags::IN)];
    let time = rustix::event::Timespec { tv_sec: seconds, tv_nsec: 0 };
    rustix::event::poll(&mut polled, Some(&time)).unwrap() == 1
}

/// Says which processes there are, and waits to be killed.
fn orphan(program: &OwnedFd) {
    let (running, _, pid) = served(program);
    println!("{} {pid}", running.child.pid);
    running.hear();
}

/// A cgroup that the user may put its own processes into.
fn made_cgroup(user: &str) -> String {
    let folder = format!("/sys/fs/cgroup/pids/ringfence-test-{}", std::process::id());
    std::fs::create_dir(&folder).unwrap();
    let owner = std::process::Command::new("chown").args(["-R", user, &folder]).status().unwrap();
    assert!(owner.success());
    folder
}

fn joins(program: &OwnedFd, folder: &str) {
    let opened = open(folder, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    let running = start(program, &["serve"], Some(opened.as_fd()));
    let pid = running.hear().1.expect("credentials were asked for");
    let report = running.hear().0;
    assert!(report.contains("Cgroup"), "{report}");
    let processes = std::fs::read_to_string(format!("{folder}/cgroup.procs")).unwrap();
    assert!(processes.lines().any(|line| line == pid.to_string()), "{processes}");
    running.child.kill().unwrap();
    running.end();
}

/// Prints the medians of spawn, of the way to the filter, and of a probe; no test.
#[expect(clippy::disallowed_methods, reason = "it measures")]
fn times(program: &OwnedFd) {
    const ROUNDS: usize = 101;
    // The kernel takes network namespaces down in the background; a start right behind one waits for that.
    const PAUSE: std::time::Duration = std::time::Duration::from_millis(50);
    let (mut spawned, mut entered, mut probed) = (Vec::new(), Vec::new(), Vec::new());
    // A server with a heap must start programs as fast as one without.
    let heap = vec![1_u8; 1 << 30];
    for _ in 0..ROUNDS {
        let begun = std::time::Instant::now();
        let running = start(program, &["serve"], None);
        spawned.push(begun.elapsed());
        running.hear();
        entered.push(begun.elapsed());
        running.hear();
        drop(running);
        std::thread::sleep(PAUSE);
        let begun = std::time::Instant::now();
        start(program, &["probe", "open-file"], None).end();
        probed.push(begun.elapsed());
        std::thread::sleep(PAUSE);
    }
    drop(heap);
    for (what, times) in [("spawn", &mut spawned), ("entered", &mut entered), ("probe", &mut probed)] {
        times.sort();
        println!("{what}: p50 {:?}, p99 {:?}", times[ROUNDS / 2], times[ROUNDS * 99 / 100]);
    }
}
