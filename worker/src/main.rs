//! `ringfence-worker`: the program around [`ringfence_worker`]. Only the server starts it.

use ringfence_protocol::WorkerSideLink;
use ringfence_sandbox::{Act, CountingAllocator, Policy, keep_freed_memory, probe};
use ringfence_worker::memory::Lease;
use ringfence_worker::serve::serve;
use ringfence_worker::shell::Sandbox;
use std::fmt::Display;
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
        ["serve"] => run(),
        ["probe", act] => match act.parse::<Act>() {
            Ok(act) => probe(&Policy::worker_cpu(), act),
            Err(error) => say(&error, USAGE),
        },
        ["--version"] => {
            println!("ringfence-worker {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        _ => {
            say(&"usage: ringfence-worker serve | probe ACT | --version (started by ringfence-server)", USAGE)
        }
    }
}

fn run() -> ExitCode {
    let (sandbox, link) = match Sandbox::enter() {
        Ok(entered) => entered,
        Err(error) => return say(&error, 1),
    };
    keep_freed_memory();
    // Where, but not what: a message may hold a client's text. And no backtrace, which would open files.
    std::panic::set_hook(Box::new(|panic| match panic.location() {
        Some(place) => eprintln!("panic at {}:{}", place.file(), place.line()),
        None => eprintln!("panic"),
    }));
    match serve(&WorkerSideLink::new(link), sandbox, &Lease) {
        Ok(()) => ExitCode::SUCCESS,
        Err(end) => say(&end, 1),
    }
}

fn say(what: &dyn Display, code: u8) -> ExitCode {
    eprintln!("{what}");
    ExitCode::from(code)
}
