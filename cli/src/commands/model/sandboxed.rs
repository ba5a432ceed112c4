//! Programs that this command starts in their sandbox: what the converter and a worker that is measured have in common.

use super::fetch::tail;
use crate::error::{CliError, Source};
use crate::home::Home;
use ringfence_protocol::{Link, LinkError, connected_pair};
use ringfence_sandbox::{Child, Environment, Exit, SpawnRequest, StatusPage, User, process_facts, spawn};
use rustix::fs::{Mode, OFlags, open};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::thread::JoinHandle;
use std::time::Duration;

/// How long a program may say nothing.
const SILENCE_MAX: Duration = Duration::from_secs(300);
/// Memory beside the lease that the kernel's limit (RLIMIT_DATA) leaves a program: its stacks, the allocator's slack.
const BACKSTOP_SLACK_BYTES: u64 = 64 * 1024 * 1024;
/// The most of a program's output that is kept.
const PRINTED_BYTES_MAX: u64 = 64 * 1024;

/// The user that a program for strangers' files runs as: the one who owns what the server owns in this home, where this
/// command runs as root; its own otherwise.
pub(crate) fn user(home: &Home) -> Result<Option<User>, CliError> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let run = home.path().join("run");
    let owner = std::fs::metadata(&run).map_err(|source| CliError::io(run.display().to_string(), source))?;
    if owner.uid() == 0 || owner.gid() == 0 {
        return Err(CliError::Failed {
            subject: run.display().to_string(),
            code: "user_is_root",
            source: "it belongs to root, and nothing that reads strangers' files runs as root".into(),
            advice: "make the home for another user: ringfence init --user NAME".to_owned(),
        });
    }
    Ok(Some(User { uid: owner.uid(), gid: owner.gid() }))
}

/// What `ringfence-worker` is started as, and how its failures are named.
#[derive(Debug)]
pub(super) struct Role {
    /// Its words, and the noun for messages.
    pub(super) arguments: &'static [&'static str],
    pub(super) noun: &'static str,
    /// Codes.
    pub(super) not_started: &'static str,
    pub(super) illegal: &'static str,
    pub(super) silent: &'static str,
    pub(super) died: &'static str,
    /// What it means where it breaks its protocol or dies.
    pub(super) suspicion: &'static str,
}

/// A started program; dropping it kills it.
pub(super) struct Program<'a, S, R> {
    subject: &'a str,
    role: &'static Role,
    child: Child,
    page: StatusPage,
    link: Link<S, R>,
    printed: Option<JoinHandle<Vec<u8>>>,
}

/// Why a conversation ended without its result.
pub(super) enum Over<E> {
    /// What was asked for can't be: the program says why.
    Refused(E),
    /// Something on this machine did not work.
    System(&'static str, Source),
    /// The program said something that it may not say now, or that can't be.
    Illegal(&'static str),
    /// It closed the link, or was silent for too long.
    Link(LinkError),
}

impl<E> From<LinkError> for Over<E> {
    fn from(error: LinkError) -> Self {
        Self::Link(error)
    }
}

/// A failure of the machine.
pub(super) fn system<E: Into<Source>, R>(what: &'static str) -> impl Fn(E) -> Over<R> {
    move |error| Over::System(what, error.into())
}

impl<'a, S: Serialize, R: DeserializeOwned> Program<'a, S, R> {
    /// Starts it under a memory lease, in bytes.
    pub(super) fn start(
        subject: &'a str,
        role: &'static Role,
        user: Option<User>,
        threads: Option<u16>,
        lease_bytes: u64,
    ) -> Result<Self, CliError> {
        let own = std::env::current_exe().map_err(|source| CliError::io("own executable", source))?;
        let path = own.with_file_name("ringfence-worker");
        let failed = |source: Source| CliError::Failed {
            subject: path.display().to_string(),
            code: role.not_started,
            source,
            advice: "install ringfence-worker in the same folder as ringfence, of the same build".to_owned(),
        };
        let program = open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let program = program.map_err(|errno| failed(io::Error::from(errno).into()))?;
        let (ours, theirs) = connected_pair().map_err(|errno| failed(errno.into()))?;
        let link = Link::new(ours);
        // Before it can say anything: credentials are attached when a message is sent.
        link.receive_credentials().map_err(|errno| failed(errno.into()))?;
        for side in [Timeout::Recv, Timeout::Send] {
            set_socket_timeout(&link, side, Some(SILENCE_MAX)).map_err(|errno| failed(errno.into()))?;
        }
        let page = StatusPage::create().map_err(|errno| failed(errno.into()))?;
        let child = spawn(SpawnRequest {
            program: program.as_fd(),
            arguments: role.arguments,
            environment: Environment { threads },
            link: theirs,
            status_page: &page,
            cgroup: None,
            user,
            data_bytes_max: Some(lease_bytes.saturating_add(BACKSTOP_SLACK_BYTES)),
        });
        let child = child.map_err(|error| failed(error.into()))?;
        let printed = Some(follow(child.stderr.try_clone().map_err(|error| failed(error.into()))?));
        drop(follow(child.stdout.try_clone().map_err(|error| failed(error.into()))?));
        Ok(Self { subject, role, child, page, link, printed })
    }

    pub(super) fn send<E>(&self, message: &S, descriptors: &[BorrowedFd<'_>]) -> Result<(), Over<E>> {
        Ok(self.link.send(message, descriptors)?)
    }

    pub(super) fn receive<E>(&self) -> Result<R, Over<E>> {
        Ok(self.link.receive()?.message)
    }

    /// Its first message, which must be the hello of this build, and its pid.
    pub(super) fn hello<E>(&self, digest: impl Fn(R) -> Option<String>) -> Result<i32, Over<E>> {
        let hello = self.link.receive()?;
        match digest(hello.message) {
            Some(digest) if digest == ringfence_protocol::DIGEST => {}
            Some(_) => return Err(Over::Illegal("it is of another build")),
            None => return Err(Over::Illegal("something before its hello")),
        }
        hello.pid.ok_or(Over::Illegal("the kernel does not say who it is"))
    }

    /// Ends the process. Only then is what it made taken: nobody else holds it any more.
    pub(super) fn end<T, E>(
        &mut self,
        outcome: Result<T, Over<E>>,
        refused: impl Fn(E) -> (&'static str, Source, &'static str),
    ) -> Result<T, CliError> {
        let exit = match &outcome {
            // It has closed the link, so it is ending by itself: how says why.
            Err(Over::Link(LinkError::Closed)) => self.child.wait(),
            Ok(_) | Err(_) => self.child.kill().and_then(|()| self.child.wait()),
        };
        let exit = exit.map_err(|errno| CliError::io(format!("the {}'s end", self.role.noun), errno))?;
        outcome.map_err(|over| self.explain(over, exit, refused))
    }

    fn explain<E>(
        &mut self,
        over: Over<E>,
        exit: Exit,
        refused: impl Fn(E) -> (&'static str, Source, &'static str),
    ) -> CliError {
        let Role { noun, illegal, silent, suspicion, .. } = *self.role;
        match over {
            Over::Refused(error) => {
                let (code, source, advice) = refused(error);
                self.failed(code, source, advice)
            }
            Over::System(what, error) => self.failed("io_error", format!("{what}: {error}").into(), ""),
            Over::Illegal(what) => {
                self.failed(illegal, format!("the {noun} was stopped: {what}").into(), suspicion)
            }
            Over::Link(LinkError::WouldBlock) => {
                let waited = SILENCE_MAX.as_secs();
                let text = format!("the {noun} said nothing for {waited} s and was stopped");
                self.failed(silent, text.into(), "try again on a machine that is less busy")
            }
            Over::Link(error) => self.died(&error, exit),
        }
    }

    fn died(&mut self, error: &LinkError, exit: Exit) -> CliError {
        if let Some(denial) = self.page.read().denial {
            let advice = "it needs more memory than files of this size may take; report it";
            return self.failed("out_of_memory", denial.into(), advice);
        }
        let printed = self.printed.take().and_then(|thread| thread.join().ok()).unwrap_or_default();
        let how = match exit {
            Exit::Code(code) => format!("the {} ended with code {code}", self.role.noun),
            Exit::Signal(signal) => format!("the {} was killed by signal {signal}", self.role.noun),
        };
        let text = match tail(&printed) {
            text if text.is_empty() => format!("{how} ({error})"),
            text => format!("{how}: {text}"),
        };
        self.failed(self.role.died, text.into(), self.role.suspicion)
    }

    pub(super) fn failed(&self, code: &'static str, source: Source, advice: &str) -> CliError {
        CliError::Failed { subject: self.subject.to_owned(), code, source, advice: advice.to_owned() }
    }
}

/// No byte of a stranger's before the kernel itself says that the sandbox is on.
pub(super) fn check_sealed<E>(pid: i32) -> Result<(), Over<E>> {
    let facts = process_facts(pid).map_err(system("its sandbox"))?;
    facts.check_sealed().map_err(system("its sandbox"))
}

/// Reads what the program prints, so that it never waits for us, and keeps the first of it.
fn follow(pipe: OwnedFd) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let (mut pipe, mut kept) = (File::from(pipe), Vec::new());
        let read = pipe.by_ref().take(PRINTED_BYTES_MAX).read_to_end(&mut kept);
        drop(read.and_then(|_| io::copy(&mut pipe, &mut io::sink())));
        kept
    })
}
