//! A worker that misbehaves on request, for `tests/hostile.rs`. Copied beside a copy of the server as
//! `ringfence-worker`. It is honest (and answers with zeros) until a text tells it otherwise:
//!
//! - `act:NAME` tries a forbidden act of the sandbox's list,
//! - `say:NAME` sends an illegal message,
//! - `do:NAME` hangs, dies, takes memory, floods its log.
//!
//! What it does before it serves is chosen by the last line of its own executable, which the test appends.
#![allow(clippy::disallowed_methods, reason = "it is hostile")]

use ringfence_protocol::{
    self as protocol, CHUNK_BYTES_MAX, ChunkBytes, Data, EmbedInput, FromWorker, Item, JobError, Layer, Link,
    REASON_BYTES_MAX, Received, ToWorker, WorkerSideLink,
};
use ringfence_sandbox::{Act, CountingAllocator, Outcome, Policy};
use rustix::net::{SendFlags, send};
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::time::Duration;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// What a mode or a text asks for, by its name.
const MODE_PREFIX: &str = "\nringfence-mode:";
const DIMENSIONS: u32 = 4;

fn main() -> ExitCode {
    let mode = mode().unwrap_or_default();
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.get(1).map(String::as_str) == Some("probe") {
        let act: Act = arguments[2].parse().expect("the server names an act");
        if mode == "probe-escapes" {
            return ExitCode::SUCCESS;
        }
        return ringfence_sandbox::probe(&Policy::worker_cpu(), act);
    }
    let mut entered = ringfence_sandbox::enter(&Policy::worker_cpu()).expect("the sandbox can be entered");
    let descriptor = entered.link();
    let raw = descriptor.try_clone().expect("a descriptor is free");
    let mut worker = Worker { link: Link::new(descriptor), raw };
    let digest = if mode == "other-protocol" { "0".repeat(64) } else { protocol::DIGEST.to_owned() };
    worker.say(&FromWorker::Hello { digest });
    let ToWorker::Start(start) = worker.hear().message else { panic!("Start comes first") };
    CountingAllocator::set_lease(start.lease_bytes);
    if mode == "never-ready" {
        std::thread::sleep(Duration::from_secs(3600));
    }
    if mode == "ready-at-once" {
        worker.ready(start.max_tokens);
    }
    if mode != "unsealed" {
        entered.seal().expect("the sandbox can be sealed");
    }
    worker.sealed(mode == "layer-missing");
    worker.hear();
    match mode.as_str() {
        "dies-at-load" => std::process::abort(),
        "width-zero" => worker.say(&FromWorker::Ready {
            dimensions: 0,
            bytes_per_token: 1,
            used_bytes: 1,
            peak_bytes: 1,
            max_tokens: start.max_tokens,
            vocabulary: 100,
        }),
        _ => worker.ready(start.max_tokens),
    }
    worker.serve();
    ExitCode::SUCCESS
}

/// The last line of the executable.
fn mode() -> Option<String> {
    let mut file = std::fs::File::open("/proc/self/exe").ok()?;
    file.seek(SeekFrom::End(-128)).ok()?;
    let mut end = Vec::new();
    file.read_to_end(&mut end).ok()?;
    let end = String::from_utf8_lossy(&end);
    let at = end.rfind(MODE_PREFIX)?;
    Some(end[at + MODE_PREFIX.len()..].trim().to_owned())
}

struct Worker {
    link: WorkerSideLink,
    raw: OwnedFd,
}

impl Worker {
    fn say(&self, message: &FromWorker) {
        self.link.send(message, &[]).expect("the server reads");
    }

    fn hear(&self) -> Received<ToWorker> {
        match self.link.receive() {
            Ok(received) => received,
            Err(_) => std::process::exit(0),
        }
    }

    fn sealed(&self, without_seccomp: bool) {
        let mut layers = vec![
            Layer::Descriptors,
            Layer::Namespaces,
            Layer::Rlimits,
            Layer::Privileges,
            Layer::Landlock,
            Layer::Seccomp,
        ];
        if without_seccomp {
            layers.pop();
        }
        self.say(&FromWorker::Sealed { layers, landlock_abi: 1, setup_us: 1, warm_up_us: 1 });
    }

    fn ready(&self, max_tokens: u32) {
        self.say(&FromWorker::Ready {
            dimensions: DIMENSIONS,
            bytes_per_token: 1,
            used_bytes: 1,
            peak_bytes: 1,
            max_tokens,
            vocabulary: 100,
        });
    }

    fn serve(&mut self) {
        loop {
            match self.hear().message {
                ToWorker::Run { slot, input: Data::Inline(input), .. } => self.run(slot, &input),
                ToWorker::Stop => return,
                ToWorker::Run { .. }
                | ToWorker::Transcribe { .. }
                | ToWorker::LoadDetector { .. }
                | ToWorker::Listen { .. }
                | ToWorker::Generate { .. }
                | ToWorker::Cancel { .. }
                | ToWorker::Drill { .. }
                | ToWorker::Start(_)
                | ToWorker::Load { .. } => {}
            }
        }
    }

    fn run(&mut self, slot: u32, input: &EmbedInput) {
        let items = u32::try_from(input.items.len()).expect("few");
        let Item::Text(text) = &input.items[0] else { return self.answer(slot, items, 0.0) };
        match text.split_once(':') {
            Some(("act", name)) => {
                let act: Act = name.parse().expect("an act");
                let number = match act.attempt() {
                    Outcome::Succeeded => 1.0,
                    Outcome::Refused(_) => 0.0,
                };
                self.answer(slot, items, number);
            }
            Some(("say", name)) => {
                self.illegal(name, slot);
                self.answer(slot, items, 0.0);
            }
            Some(("do", "lose-device")) => {
                self.say(&FromWorker::DeviceFailed { reason: "it fell off the bus".to_owned() });
                std::process::exit(1);
            }
            Some(("do", name)) => {
                misbehave(name);
                self.answer(slot, items, 0.0);
            }
            _ => self.answer(slot, items, 0.0),
        }
    }

    fn answer(&self, slot: u32, items: u32, number: f32) {
        let data = number.to_le_bytes().repeat((items * DIMENSIONS) as usize);
        self.say(&FromWorker::Chunk { slot, sequence: 0, data: ChunkBytes(data) });
        self.done(slot, items);
    }

    fn done(&self, slot: u32, tokens: u32) {
        self.say(&FromWorker::Done {
            slot,
            tokens,
            truncated: 0,
            compute_us: 1,
            used_bytes: 1,
            peak_bytes: 1,
        });
    }

    fn raw(&self, bytes: &[u8]) {
        let _ = send(&self.raw, bytes, SendFlags::NOSIGNAL);
    }

    fn illegal(&self, name: &str, slot: u32) {
        let chunk = |slot, sequence, bytes: usize| FromWorker::Chunk {
            slot,
            sequence,
            data: ChunkBytes(vec![0; bytes]),
        };
        match name {
            "garbage" => self.raw(&[0xff; 100]),
            "one-byte" => self.raw(&[0x7f]),
            "too-long" => self.raw(&vec![0; protocol::MESSAGE_BYTES_MAX + 1]),
            "trailing" => self.raw(&[4, 1, 0, 0]),
            "descriptors" => {
                let fd = self.raw.as_fd();
                let step = FromWorker::Step { busy_us: 1, tokens: Vec::new() };
                drop(self.link.send(&step, &[fd, fd, fd]));
            }
            "hello-again" => self.say(&FromWorker::Hello { digest: protocol::DIGEST.to_owned() }),
            "sealed-again" => self.sealed(false),
            "ready-again" => self.ready(8),
            "chunk-free-slot" => self.say(&chunk(slot + 7, 0, 4)),
            "chunk-out-of-order" => self.say(&chunk(slot, 1, 4)),
            "chunk-empty" => self.say(&chunk(slot, 0, 0)),
            "chunk-too-much" => self.say(&chunk(slot, 0, CHUNK_BYTES_MAX)),
            "done-without-output" => self.done(slot, 1),
            "done-free-slot" => self.done(slot + 7, 1),
            "done-too-many-tokens" => {
                self.say(&chunk(slot, 0, (DIMENSIONS * 4) as usize));
                self.done(slot, u32::MAX);
            }
            "step-free-slot" => self.say(&FromWorker::Step { busy_us: 1, tokens: vec![(slot + 7, 1)] }),
            "step-twice" => self.say(&FromWorker::Step { busy_us: 1, tokens: vec![(slot, 1), (slot, 1)] }),
            "failed-other-item" => {
                self.say(&FromWorker::Failed { slot, error: JobError::InputEmpty { item: 1_000 } });
            }
            "failed-free-slot" => {
                self.say(&FromWorker::Failed { slot: slot + 7, error: JobError::InputEmpty { item: 0 } });
            }
            "device-failed-at-length" => {
                let reason = "x".repeat(REASON_BYTES_MAX + 1);
                self.say(&FromWorker::DeviceFailed { reason });
            }
            "cancelled-unasked" => self.say(&FromWorker::Failed { slot, error: JobError::Cancelled }),
            other => panic!("no illegal message {other}"),
        }
    }
}

fn misbehave(name: &str) {
    match name {
        "hang" => loop {
            std::thread::sleep(Duration::from_secs(1));
        },
        "abort" => std::process::abort(),
        "panic" => panic!("as asked"),
        "exit" => std::process::exit(7),
        "take-memory" => take_memory(),
        "take-memory-uncounted" => {
            CountingAllocator::set_lease(u64::MAX);
            take_memory();
        }
        "log-bomb" => {
            for _ in 0..2_000 {
                eprintln!("{}", "x".repeat(1_000));
            }
        }
        "slow" => std::thread::sleep(Duration::from_millis(300)),
        other => panic!("no misbehaviour {other}"),
    }
}

fn take_memory() {
    let mut held = Vec::new();
    loop {
        held.push(vec![1_u8; 1 << 20]);
        std::hint::black_box(&held);
    }
}
