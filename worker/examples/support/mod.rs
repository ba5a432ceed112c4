//! A worker that was started in its sandbox, and the server's end of its link.
#![allow(dead_code, clippy::unwrap_used, reason = "one half of a test; each program uses its part")]

use ringfence_protocol::{
    Architecture, DIGEST, Device, FromWorker, Start, ToWorker, WorkerLink, connected_pair,
};
use ringfence_sandbox::{Child, Environment, Exit, SealedFile, SpawnRequest, StatusPage, spawn};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

const THREADS: u16 = 2;

pub(crate) struct Worker {
    pub(crate) child: Child,
    _page: StatusPage,
    pub(crate) link: WorkerLink,
}

impl Worker {
    /// Started, and told what to become.
    pub(crate) fn starting(
        program: &OwnedFd,
        architecture: Architecture,
        device: Device,
        lease_bytes: u64,
    ) -> Self {
        let arguments: &[&str] = match device {
            Device::Cpu => &["serve"],
            Device::Wgpu { .. } => &["serve", "vulkan-software"],
        };
        let (ours, theirs) = connected_pair().unwrap();
        let page = StatusPage::create().unwrap();
        let child = spawn(SpawnRequest {
            program: program.as_fd(),
            arguments,
            environment: Environment { threads: Some(THREADS) },
            link: theirs,
            status_page: &page,
            cgroup: None,
            user: None,
            data_bytes_max: None,
        });
        let worker = Self { child: child.unwrap(), _page: page, link: WorkerLink::new(ours) };
        assert_eq!(worker.hear(), FromWorker::Hello { digest: DIGEST.to_owned() });
        worker.say(ToWorker::Start(Start {
            architecture,
            device,
            threads: THREADS,
            lease_bytes,
            max_tokens: 256,
            step_tokens: 512,
            slots: 8,
            step_us: 50_000,
            calibrate: false,
        }));
        worker
    }

    /// Until every layer is on.
    pub(crate) fn sealed(self) -> Self {
        match self.hear() {
            FromWorker::Sealed { layers, landlock_abi, setup_us, warm_up_us } => {
                println!(
                    "sealed: {layers:?}, Landlock ABI {landlock_abi}, set-up {setup_us} us, warm-up {warm_up_us} us"
                );
            }
            other => panic!("{other:?}"),
        }
        self
    }

    pub(crate) fn say(&self, message: ToWorker) {
        self.link.send(&message, &[]).unwrap();
    }

    pub(crate) fn hear(&self) -> FromWorker {
        let ended = |error| {
            let exit = self.child.wait();
            let mut said = String::new();
            let stderr = self.child.stderr.try_clone().unwrap();
            std::fs::File::from(stderr).read_to_string(&mut said).unwrap();
            panic!("{error}: {exit:?}: {said}")
        };
        self.link.receive().unwrap_or_else(ended).message
    }

    /// Says something with these files.
    pub(crate) fn hand_over(&self, message: &ToWorker, files: &[SealedFile]) {
        let descriptors: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        self.link.send(message, &descriptors).unwrap();
    }

    pub(crate) fn stop(self) {
        self.say(ToWorker::Stop);
        assert_eq!(self.child.wait().unwrap(), Exit::Code(0));
    }
}
