//! A program that locks itself in, for the tests: what it does is its first argument, what it saw it says on the link.
#![allow(unsafe_code, reason = "descriptors are closed and looked at by number")]

use ringfence_sandbox::{
    CountingAllocator, Denial, Entered, Policy, SealedFile, check_headroom, clear_denial, enter,
    keep_freed_memory, probe,
};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendFlags, recvmsg, sendmsg,
};
use std::collections::HashMap;
use std::error::Error;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use std::sync::{Arc, Barrier, mpsc};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const LEASE_BYTES: u64 = 64 << 20;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let words: Vec<&str> = arguments.iter().skip(1).map(String::as_str).collect();
    let outcome = match words[..] {
        ["probe", act] => return probe(&Policy::worker_cpu(), act.parse().expect("the test names an act")),
        ["probe-mesa", act] => {
            return on_a_card(include_str!("../policies/worker-vulkan-mesa.policy"), act);
        }
        ["probe-nvidia", act] => {
            return on_a_card(include_str!("../policies/worker-vulkan-nvidia.policy"), act);
        }
        ["again-with-variable", name] => Err(again(Command::new("/proc/self/exe").env(name, "1"))),
        ["again-with-leaks"] => again_with_leaks(),
        ["again-without", number] => again_without(number),
        ["threaded"] => threaded(),
        ["serve"] => serve(),
        ["look", paths] => look(paths),
        _ => Err("no such role".into()),
    };
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(251)
        }
    }
}

/// Becomes `serve` once more, by way of a command that has something wrong with it.
fn again(command: &mut Command) -> Box<dyn Error> {
    command.arg("serve").exec().into()
}

fn again_with_leaks() -> Result<u8, Box<dyn Error>> {
    for _ in 0..3 {
        let leak = rustix::fs::open("/", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty())?;
        std::mem::forget(leak);
    }
    Err(again(&mut Command::new("/proc/self/exe")))
}

fn again_without(number: &str) -> Result<u8, Box<dyn Error>> {
    // SAFETY: nothing in this program owns the number, and all that follows is exec.
    unsafe { libc::close(number.parse()?) };
    Err(again(&mut Command::new("/proc/self/exe")))
}

fn threaded() -> Result<u8, Box<dyn Error>> {
    let (_end, waits) = mpsc::channel::<()>();
    std::thread::spawn(move || waits.recv());
    serve()
}

fn serve() -> Result<u8, Box<dyn Error>> {
    keep_freed_memory();
    let mut entered = enter(&Policy::worker_cpu())?;
    let link = entered.link();
    let before = report(&entered);
    let pool = Pool::start(4);
    CountingAllocator::set_lease(LEASE_BYTES);
    say(&link, "unsealed")?;
    let sealed = entered.seal()?;
    say(
        &link,
        &format!(
            "{before} layers={:?} abi={} missing={:?}",
            sealed.layers, sealed.landlock_abi, sealed.missing
        ),
    )?;
    loop {
        let (order, descriptors) = hear(&link)?;
        let answer = match order.split_once(' ').unwrap_or((&order, "")) {
            ("", _) => return Ok(0),
            ("exit", code) => return Ok(code.parse()?),
            ("abort", _) => std::process::abort(),
            ("panic", _) => caught_panic(),
            ("compute", _) => pool.compute().to_string(),
            ("map", _) => mapped(descriptors),
            ("try-reserve", bytes) => try_reserve(bytes.parse()?),
            ("headroom", bytes) => said(check_headroom(bytes.parse()?)),
            ("allocate", bytes) => allocate(bytes.parse()?),
            ("allocate-on-all-threads", bytes) => pool.allocate(bytes.parse()?),
            ("overflow-stack", _) => deeper(0).to_string(),
            ("fault", _) => fault(),
            _ => return Err("no such order".into()),
        };
        say(&link, &answer)?;
    }
}

/// A probe under the calls that a driver of hardware needs beside those of the CPU, with a harmless node for the card.
fn on_a_card(driver: &str, act: &str) -> ExitCode {
    let (_, calls) = driver.split_once("[syscalls]").expect("a policy has this section");
    let (calls, _) = calls.split_once("[rlimits]").expect("and this one after it");
    let cpu = include_str!("../policies/worker-cpu.policy");
    let text = cpu.replace("[rlimits]", &format!("{calls}[rlimits]"));
    let policy = Policy::parse(&format!("{text}\ndevice 1:3 /dev/null # no card")).expect("both files parse");
    probe(&policy, act.parse().expect("the test names an act"))
}

/// What a policy that names these paths lets the program do with them, and with others.
fn look(paths: &str) -> Result<u8, Box<dyn Error>> {
    let policy = include_str!("../policies/worker-cpu.policy");
    let mut entered = enter(&Policy::parse(&format!("{policy}\n{paths}"))?)?;
    let read = |path: &str| std::fs::read(path).is_ok_and(|bytes| !bytes.is_empty());
    let opens = |path: &str| std::fs::OpenOptions::new().write(true).open(path).is_ok();
    let seen = format!(
        "file={} listed={} others={} root={} written={} made={} run={} null={} zero={} kernel={}",
        read("/usr/lib/os-release"),
        std::fs::read_dir("/usr/bin").is_ok_and(|names| names.count() > 9),
        read("/etc/passwd") || read("/usr/lib/os-release/../../../etc/passwd") || read("/usr/share/doc"),
        std::fs::read_dir("/").is_ok(),
        opens("/usr/lib/os-release") || opens("/usr/bin/env"),
        std::fs::write("/usr/bin/planted", "x").is_ok() || std::fs::create_dir("/planted").is_ok(),
        Command::new("/usr/bin/env").output().is_ok(),
        std::fs::write("/dev/null", "x").is_ok(),
        opens("/dev/zero"),
        read("/proc/version") && read("/sys/dev/char/1:3/uevent") && !read("/proc/cpuinfo"),
    );
    say(&entered.link(), &seen)?;
    Ok(0)
}

/// What can only be looked at before the filter.
fn report(_: &Entered) -> String {
    // Landlock refuses the list of names; looking at one is the mount namespace's to deny.
    let listed = std::fs::read_dir("/").is_ok();
    let seen =
        ["/etc", "/proc", "/dev/null", "/tmp"].iter().filter(|path| std::fs::metadata(path).is_ok()).count();
    let open = (3..64).filter(|number| is_open(*number)).count();
    let uid = rustix::process::getuid().as_raw();
    let planted = std::fs::write("/planted", "x").is_ok();
    format!("pid={} uid={uid} listed={listed} seen={seen} open={open} planted={planted}", std::process::id(),)
}

fn is_open(number: i32) -> bool {
    // SAFETY: numbers only; the call fails if the descriptor is not open.
    unsafe { libc::fcntl(number, libc::F_GETFD) >= 0 }
}

fn caught_panic() -> String {
    std::panic::set_hook(Box::new(|_| eprintln!("a panic, caught")));
    format!("{:?}", std::panic::catch_unwind(|| panic!("on order")).is_err())
}

fn mapped(descriptors: Vec<OwnedFd>) -> String {
    let Some(descriptor) = descriptors.into_iter().next() else { return "no descriptor".to_owned() };
    match SealedFile::from_descriptor(descriptor).and_then(|file| file.map()) {
        Ok(map) => String::from_utf8_lossy(&map).into_owned(),
        Err(error) => error.to_string(),
    }
}

fn try_reserve(bytes: usize) -> String {
    let reserved = Vec::<u8>::new().try_reserve_exact(bytes).is_ok();
    format!("{reserved} {}", clear_denial().map_or("no denial".to_owned(), |denial| denial.to_string()))
}

fn said(headroom: Result<(), Denial>) -> String {
    headroom.map_or_else(|denial| denial.to_string(), |()| "it fits".to_owned())
}

fn allocate(bytes: usize) -> String {
    let block = vec![1_u8; bytes];
    format!("{} {}", block.len(), CountingAllocator::used() >= bytes as u64)
}

fn deeper(depth: u64) -> u64 {
    let here = std::hint::black_box([depth; 512]);
    if here[0] == u64::MAX { 0 } else { deeper(depth + 1) + here[511] }
}

fn fault() -> String {
    // SAFETY: none: the first page is never mapped, and the fault is what is wanted.
    unsafe { std::ptr::with_exposed_provenance_mut::<u8>(8).write_volatile(1) };
    "no fault".to_owned()
}

/// Threads as a compute library has them: they wait on a channel, and all have run before the filter.
struct Pool(Vec<(mpsc::Sender<usize>, Arc<Barrier>)>, mpsc::Receiver<u64>);

impl Pool {
    fn start(threads: usize) -> Pool {
        let (answer, answers) = mpsc::channel();
        let barrier = Arc::new(Barrier::new(threads + 1));
        let workers = (0..threads).map(|_| Pool::thread(&barrier, answer.clone())).collect();
        barrier.wait();
        Pool(workers, answers)
    }

    fn thread(barrier: &Arc<Barrier>, answer: mpsc::Sender<u64>) -> (mpsc::Sender<usize>, Arc<Barrier>) {
        let (order, orders) = mpsc::channel::<usize>();
        let ready = barrier.clone();
        std::thread::spawn(move || {
            ready.wait();
            while let Ok(bytes) = orders.recv() {
                let block = vec![1_u8; bytes];
                let names: HashMap<usize, u64> = (0..100).map(|name| (name, 1)).collect();
                std::thread::yield_now();
                std::thread::sleep(std::time::Duration::from_micros(50));
                let sum =
                    names.values().sum::<u64>() + block.iter().map(|byte| u64::from(*byte)).sum::<u64>();
                if answer.send(sum).is_err() {
                    return;
                }
            }
        });
        (order, barrier.clone())
    }

    fn compute(&self) -> u64 {
        self.run(1 << 20)
    }

    fn allocate(&self, bytes: usize) -> String {
        self.run(bytes).to_string()
    }

    fn run(&self, bytes: usize) -> u64 {
        for (order, _) in &self.0 {
            order.send(bytes).expect("the thread waits for orders");
        }
        self.1.iter().take(self.0.len()).sum()
    }
}

fn say(link: &OwnedFd, text: &str) -> rustix::io::Result<()> {
    sendmsg(
        link,
        &[IoSlice::new(text.as_bytes())],
        &mut SendAncillaryBuffer::default(),
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

/// An order and its descriptors; no order at all when the link is closed.
fn hear(link: &OwnedFd) -> rustix::io::Result<(String, Vec<OwnedFd>)> {
    let mut bytes = [0; 256];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut waits = [rustix::event::PollFd::from_borrowed_fd(link.as_fd(), rustix::event::PollFlags::IN)];
    rustix::event::poll(&mut waits, None)?;
    let packet = recvmsg(link, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    Ok((String::from_utf8_lossy(&bytes[..packet.bytes]).into_owned(), descriptors))
}
