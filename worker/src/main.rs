//! `ringfence-worker`: the program around [`ringfence_worker`]. The server starts it to serve a model, the command line to convert one.

use ringfence_protocol::{ConverterSideLink, WorkerSideLink};
use ringfence_sandbox::{Act, CountingAllocator, Policy, VulkanDriver, keep_freed_memory, probe};
use ringfence_worker::convert;
use ringfence_worker::devices;
use ringfence_worker::memory::Lease;
use ringfence_worker::serve::serve;
use ringfence_worker::shell::{Sandbox, Shell};
use std::fmt::Display;
use std::os::fd::OwnedFd;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// The command line is wrong.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let arguments: Vec<String> =
        std::env::args_os().skip(1).filter_map(|word| word.into_string().ok()).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["serve"] => run(&Policy::worker_cpu(), serve_link),
        ["serve", ref driver @ ..] => match VulkanDriver::parse(driver) {
            Ok(driver) => run(&Policy::worker_vulkan(&driver), serve_link),
            Err(error) => say(&error, USAGE),
        },
        ["devices", ref driver @ ..] => match VulkanDriver::parse(driver) {
            Ok(driver) => print_devices(&Policy::worker_vulkan(&driver)),
            Err(error) => say(&error, USAGE),
        },
        ["convert"] => run(&Policy::converter(), convert_link),
        ["probe", act] => probe_under(&Policy::worker_cpu(), act),
        ["probe", "convert", act] => probe_under(&Policy::converter(), act),
        ["probe", ref driver @ .., act] => match VulkanDriver::parse(driver) {
            Ok(driver) => probe_under(&Policy::worker_vulkan(&driver), act),
            Err(error) => say(&error, USAGE),
        },
        ["--version"] => {
            println!("ringfence-worker {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        _ => say(
            &"usage: ringfence-worker serve [DRIVER] | devices DRIVER | convert | probe [convert | DRIVER] ACT | --version, where DRIVER is \
              vulkan-software, vulkan-mesa NODE or vulkan-nvidia MINOR (started by ringfence-server and ringfence)",
            USAGE,
        ),
    }
}

fn probe_under(policy: &Policy, act: &str) -> ExitCode {
    match act.parse::<Act>() {
        Ok(act) => probe(policy, act),
        Err(error) => say(&error, USAGE),
    }
}

/// One JSON line for each device, from inside the whole sandbox: the filter goes on before a word is said.
fn print_devices(policy: &Policy) -> ExitCode {
    let (sandbox, _link) = match Sandbox::enter(policy) {
        Ok(entered) => entered,
        Err(error) => return say(&error, 1),
    };
    let seen = match devices::seen() {
        Ok(seen) => seen,
        Err(error) => return say(&error, 1),
    };
    if let Err(error) = sandbox.seal() {
        return say(&error, 1);
    }
    for device in &seen.devices {
        println!("{}", serde_json::to_string(device).expect("texts and numbers are JSON"));
    }
    // Its driver is not taken down here: see there.
    std::mem::forget(seen);
    ExitCode::SUCCESS
}

/// Locks itself in, then does its one task over the link.
fn run(policy: &Policy, task: fn(OwnedFd, Sandbox) -> Result<(), Box<dyn Display>>) -> ExitCode {
    let (sandbox, link) = match Sandbox::enter(policy) {
        Ok(entered) => entered,
        Err(error) => return say(&error, 1),
    };
    keep_freed_memory();
    // Where, but not what: a message may hold a client's text. And no backtrace, which would open files.
    std::panic::set_hook(Box::new(|panic| match panic.location() {
        Some(place) => eprintln!("panic at {}:{}", place.file(), place.line()),
        None => eprintln!("panic"),
    }));
    match task(link, sandbox) {
        Ok(()) => ExitCode::SUCCESS,
        Err(end) => say(&end, 1),
    }
}

fn serve_link(link: OwnedFd, sandbox: Sandbox) -> Result<(), Box<dyn Display>> {
    serve(&WorkerSideLink::new(link), sandbox, &Lease).map_err(boxed)
}

fn convert_link(link: OwnedFd, sandbox: Sandbox) -> Result<(), Box<dyn Display>> {
    convert::link::run(&ConverterSideLink::new(link), sandbox, &Lease).map_err(boxed)
}

fn boxed(end: impl Display + 'static) -> Box<dyn Display> {
    Box::new(end)
}

fn say(what: &dyn Display, code: u8) -> ExitCode {
    eprintln!("{what}");
    ExitCode::from(code)
}
