//! The probe: a process that enters, seals, tries one forbidden act, and tells by its end what became of it.

mod acts;

use crate::{EnterError, Entered, Exit, Policy, RootAccess, enter, enter_with_root};
use rustix::io::Errno;
use std::fmt;
use std::process::ExitCode;
use std::sync::mpsc;

pub use acts::{Act, UnknownAct};

/// What became of an attempt that its process survived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The system call did what it was asked.
    Succeeded,
    /// It was refused.
    Refused(Errno),
}

/// What must become of an act under a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Death by SIGSYS: the filter does not let the call through.
    Killed,
    /// The filter lets the call through and the kernel refuses it with this error.
    Refused(Errno),
}

/// An act that was not stopped in the way that the policy says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeFailure {
    /// Which.
    pub act: Act,
    /// What had to happen.
    pub expected: Expected,
    /// What did.
    pub exit: Exit,
}

/// The probe's code where the sandbox could not be entered or sealed; above every error number.
const NOT_SEALED: u8 = 250;

/// The whole of `ringfence-worker probe ACT`: enters, seals, attempts. Code 0 says that the act succeeded, 1 to 249
/// is the error number of the refusal, 250 that the sandbox could not be entered (the reason is on standard error).
pub fn probe(policy: &Policy, act: Act) -> ExitCode {
    probe_in(act, || enter(policy))
}

/// The same in the sandbox of a program that is started for one root.
pub fn probe_with_root(policy: &Policy, access: RootAccess, act: Act) -> ExitCode {
    probe_in(act, || enter_with_root(policy, access).map(|(entered, _)| entered))
}

fn probe_in(act: Act, enter: impl FnOnce() -> Result<Entered, EnterError>) -> ExitCode {
    match attempt_sealed(act, enter) {
        Ok(Outcome::Succeeded) => ExitCode::SUCCESS,
        Ok(Outcome::Refused(error)) => {
            ExitCode::from(u8::try_from(error.raw_os_error()).unwrap_or(NOT_SEALED))
        }
        Err(error) => {
            eprintln!("{}", causes(&error));
            ExitCode::from(NOT_SEALED)
        }
    }
}

fn attempt_sealed(
    act: Act,
    enter: impl FnOnce() -> Result<Entered, EnterError>,
) -> Result<Outcome, EnterError> {
    act.prepare();
    let entered = enter()?;
    match act {
        Act::OpenFileInOlderThread => {
            let older = OlderThread::start();
            entered.seal()?;
            Ok(older.attempt(act))
        }
        act => {
            entered.seal()?;
            Ok(act.attempt())
        }
    }
}

fn causes(error: &dyn std::error::Error) -> String {
    let source = error.source().map(|source| format!(": {}", causes(source)));
    format!("{error}{}", source.unwrap_or_default())
}

/// A thread from before the filter, which the filter must cover all the same.
struct OlderThread {
    acts: mpsc::Sender<Act>,
    outcomes: mpsc::Receiver<Outcome>,
}

impl OlderThread {
    fn start() -> OlderThread {
        let (acts, to_do) = mpsc::channel::<Act>();
        let (done, outcomes) = mpsc::channel();
        let (begun, begins) = mpsc::channel();
        std::thread::spawn(move || {
            let mut alive = begun.send(()).is_ok();
            while let (true, Ok(act)) = (alive, to_do.recv()) {
                alive = done.send(act.attempt()).is_ok();
            }
        });
        begins.recv().expect("the thread says that it has begun before it does anything else");
        OlderThread { acts, outcomes }
    }

    fn attempt(&self, act: Act) -> Outcome {
        self.acts.send(act).expect("the thread waits for acts");
        self.outcomes.recv().expect("the thread answers, unless the process is killed")
    }
}

/// Judges how a probe ended. The failure's text says which act, what happened and what to do.
pub fn judge(policy: &Policy, act: Act, exit: Exit) -> Result<(), ProbeFailure> {
    let expected = act.expected(policy);
    let stopped = match expected {
        Expected::Killed => {
            exit == Exit::Signal(libc::SIGSYS) || (act.is_32_bit() && exit == Exit::Signal(libc::SIGSEGV))
        }
        Expected::Refused(error) => exit == Exit::Code(error.raw_os_error()),
    };
    if stopped { Ok(()) } else { Err(ProbeFailure { act, expected, exit }) }
}

impl std::error::Error for ProbeFailure {}

impl fmt::Display for ProbeFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ProbeFailure { act, expected, exit } = self;
        write!(f, "the sandbox does not stop the act `{}`: ", act.name())?;
        match expected {
            Expected::Killed => f.write_str("it must end by SIGSYS")?,
            Expected::Refused(error) => write!(f, "it must be refused ({error})")?,
        }
        match exit {
            Exit::Code(0) => f.write_str(
                " but succeeded. This kernel, or what runs instead of one, does not enforce the filter: run the server \
                 on another host",
            ),
            Exit::Code(code) if *code == i32::from(NOT_SEALED) => f.write_str(
                " but the probe could not enter the sandbox: its standard error says which layer failed and what to do",
            ),
            Exit::Code(code) => write!(
                f,
                " but the probe ended with code {code}. If that is an error number, another layer refused first: \
                 install a server and a worker of one build",
            ),
            Exit::Signal(signal) => write!(
                f,
                " but the probe ended by signal {signal}: if that is SIGKILL, see whether the host is out of memory, \
                 then start the server again",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_end_that_the_policy_names_is_accepted() {
        let policy = Policy::worker_cpu();
        let killed = Exit::Signal(libc::SIGSYS);
        assert_eq!(judge(&policy, Act::OpenFile, killed), Ok(()));
        for exit in
            [Exit::Code(0), Exit::Code(13), Exit::Code(250), Exit::Signal(9), Exit::Signal(libc::SIGSEGV)]
        {
            let failure = judge(&policy, Act::OpenFile, exit).unwrap_err();
            assert_eq!(failure.exit, exit);
            assert!(failure.to_string().contains("`open-file`"), "{failure}");
        }
        assert_eq!(judge(&policy, Act::WriteSealedMap, Exit::Code(libc::EACCES)), Ok(()));
        assert!(judge(&policy, Act::WriteSealedMap, killed).is_err());
        assert!(judge(&policy, Act::WriteSealedMap, Exit::Code(0)).is_err());
    }

    #[test]
    fn the_probe_s_own_failure_is_no_error_number() {
        assert!(Act::ALL.iter().all(|act| match act.expected(&Policy::worker_cpu()) {
            Expected::Killed => true,
            Expected::Refused(error) => error.raw_os_error() < i32::from(NOT_SEALED),
        }));
    }
}
