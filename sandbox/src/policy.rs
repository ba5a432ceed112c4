//! What a sandboxed program may do, parsed from a reviewed data file with one right and its reason a line.

use crate::enter::AudioKind;
use crate::names::{CALLS, Call, DRIVERS, LIMITS, NUMBERS};
use rustix::process::Resource;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

/// A parsed policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// By number, the alternatives under which a call is let through.
    calls: BTreeMap<i64, Vec<Rule>>,
    limits: Vec<(Resource, u64)>,
    paths: Vec<PathRight>,
}

/// A path that the program's root has, and what may be done with it and below.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PathRight {
    pub(crate) access: PathAccess,
    pub(crate) paths: Paths,
}

/// Which of the named paths are meant. The host must have at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Paths {
    /// The first that the host has.
    First(Vec<PathBuf>),
    /// Each that the host has.
    Each(Vec<PathBuf>),
}

impl Paths {
    pub(crate) fn all(&self) -> &[PathBuf] {
        match self {
            Self::First(paths) | Self::Each(paths) => paths,
        }
    }
}

/// What may be done with a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PathAccess {
    /// Files are read, folders listed.
    Read,
    /// A device node is read, written and asked by ioctl; only if it is this one.
    Device(DeviceNumber),
}

/// What a device node must be a name of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DeviceNumber {
    pub(crate) major: Major,
    pub(crate) minor: u32,
}

/// A character device's driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Major {
    /// By a number that is the same on every host.
    Number(u32),
    /// By its name in `/proc/devices`.
    Named(&'static str),
}

/// Conditions that hold together; none means always.
type Rule = Vec<Condition>;

/// `argument & mask == value`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Condition {
    argument: u8,
    mask: u64,
    value: u64,
}

/// The line of a policy file that is wrong, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("policy line {line}: {fault}")]
pub struct PolicyError {
    /// Counted from 1.
    pub line: usize,
    /// What is wrong with it.
    pub fault: PolicyFault,
}

/// What can be wrong with a line of a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyFault {
    /// No `# reason` after the right.
    #[error("the right has no reason")]
    NoReason,
    /// A right before the first section.
    #[error("the right is in no section")]
    NoSection,
    /// Not one of `[syscalls]`, `[rlimits]`, `[paths]`, or the second of its name.
    #[error("the section is unknown or stands twice")]
    Section,
    /// A section that must be there, if only to say that it is empty.
    #[error("the file ends without `[syscalls]`, `[rlimits]` or `[paths]`")]
    MissingSection,
    /// Not in the closed list of system calls.
    #[error("the system call is unknown, or none that a policy may allow")]
    UnknownCall,
    /// The call has no argument of this name.
    #[error("the system call has no such argument")]
    UnknownArgument,
    /// Neither a number nor one of the named ones.
    #[error("the number is unknown")]
    UnknownNumber,
    /// Not of the form that the section has.
    #[error("the line can't be parsed")]
    Malformed,
    /// A value with bits outside its mask, or two conditions that exclude each other.
    #[error("the conditions can't hold")]
    NeverTrue,
    /// Another line gives this right already.
    #[error("another line covers this one")]
    Redundant,
    /// Not in the closed list of limits.
    #[error("the limit is unknown")]
    UnknownLimit,
    /// Not `read` or `device MAJOR:MINOR` with absolute paths that name one place.
    #[error("the path is none that a policy may name")]
    Path,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Section {
    Calls,
    Limits,
    Paths,
}

impl Policy {
    /// The policy of `ringfence-worker` on the CPU device.
    pub fn worker_cpu() -> Policy {
        Policy::parse(include_str!("../policies/worker-cpu.policy")).expect("a test parses this file")
    }

    /// The policy of `ringfence-worker convert`.
    pub fn converter() -> Policy {
        Policy::parse(include_str!("../policies/converter.policy")).expect("a test parses this file")
    }

    /// The policy of `ringfence-fileguard`. What it sees of the host is no part of it, but the one root that the program is
    /// started for: [`crate::enter_with_root`].
    pub fn fileguard() -> Policy {
        Policy::parse(include_str!("../policies/fileguard.policy")).expect("a test parses this file")
    }

    /// The policy of `ringfence-audio` with this interface. What it sees of the host is no part of it:
    /// [`crate::enter_with_audio`].
    pub fn audio(kind: AudioKind) -> Policy {
        let parse = |text| Policy::parse(text).expect("a test parses this file");
        let common = parse(include_str!("../policies/audio.policy"));
        match kind {
            AudioKind::Pulse => common.and(parse(include_str!("../policies/audio-pulse.policy"))),
            AudioKind::Alsa => common.and(parse(include_str!("../policies/audio-alsa.policy"))),
            AudioKind::Pushed => common,
        }
    }

    /// The policy of the processes that wait for a program.
    pub(crate) fn waiter() -> Policy {
        Policy::parse(include_str!("../policies/waiter.policy")).expect("a test parses this file")
    }

    /// Parses a policy file. Unknown names, rights that others cover and rights without a reason are refused.
    pub fn parse(text: &str) -> Result<Policy, PolicyError> {
        let mut parser = Parser {
            policy: Policy { calls: BTreeMap::new(), limits: vec![], paths: vec![] },
            sections: vec![],
        };
        let mut line = 0;
        for content in text.lines() {
            line += 1;
            parser.line(content.trim()).map_err(|fault| PolicyError { line, fault })?;
        }
        if parser.sections.len() < 3 {
            return Err(PolicyError { line, fault: PolicyFault::MissingSection });
        }
        Ok(parser.policy)
    }

    /// What this policy allows, and what the other does. Of a limit that both name, the other's value counts.
    pub(crate) fn and(mut self, other: Policy) -> Policy {
        for (number, rules) in other.calls {
            self.calls.entry(number).or_default().extend(rules);
        }
        self.limits.retain(|(resource, _)| !other.limits.iter().any(|(named, _)| named == resource));
        self.limits.extend(other.limits);
        self.paths.extend(other.paths);
        self
    }

    /// Whether the filter lets a call through.
    pub(crate) fn permits(&self, number: i64, arguments: &[u64; 6]) -> bool {
        let holds = |condition: &Condition| {
            arguments[usize::from(condition.argument)] & condition.mask == condition.value
        };
        self.calls.get(&number).is_some_and(|rules| rules.iter().any(|rule| rule.iter().all(holds)))
    }

    /// What the program's root holds; everything else is not there.
    pub(crate) fn paths(&self) -> &[PathRight] {
        &self.paths
    }

    /// The limits, soft and hard alike.
    pub(crate) fn limits(&self) -> &[(Resource, u64)] {
        &self.limits
    }

    /// The program for the kernel: what is not let through, or made for another architecture, kills the process.
    pub(crate) fn filter(&self) -> Result<BpfProgram, BackendError> {
        let rules = self
            .calls
            .iter()
            .map(|(number, rules)| Ok((*number, compiled(rules)?)))
            .collect::<Result<BTreeMap<_, _>, BackendError>>()?;
        SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, TargetArch::x86_64)?
            .try_into()
    }
}

/// No rules stand for "always" in a filter.
fn compiled(rules: &[Rule]) -> Result<Vec<SeccompRule>, BackendError> {
    if rules.iter().any(Vec::is_empty) {
        return Ok(Vec::new());
    }
    rules.iter().map(|rule| SeccompRule::new(rule.iter().map(compare).collect::<Result<_, _>>()?)).collect()
}

fn compare(condition: &Condition) -> Result<SeccompCondition, BackendError> {
    let equal = SeccompCmpOp::MaskedEq(condition.mask);
    SeccompCondition::new(condition.argument, SeccompCmpArgLen::Qword, equal, condition.value)
}

struct Parser {
    policy: Policy,
    /// Those begun, the current one last.
    sections: Vec<Section>,
}

impl Parser {
    fn line(&mut self, line: &str) -> Result<(), PolicyFault> {
        if line.is_empty() || line.starts_with('#') {
            return Ok(());
        }
        if line.starts_with('[') {
            return self.section(line);
        }
        let (right, reason) = line.split_once('#').ok_or(PolicyFault::NoReason)?;
        if reason.trim().is_empty() {
            return Err(PolicyFault::NoReason);
        }
        match self.sections.last().ok_or(PolicyFault::NoSection)? {
            Section::Calls => self.call(right.trim()),
            Section::Limits => self.limit(right.trim()),
            Section::Paths => self.path(right.trim()),
        }
    }

    fn path(&mut self, right: &str) -> Result<(), PolicyFault> {
        let (access, paths) = right.split_once(char::is_whitespace).ok_or(PolicyFault::Path)?;
        let (access, paths) = match access {
            "read" => (PathAccess::Read, paths),
            "device" => parse_device(paths.trim()).ok_or(PolicyFault::Path)?,
            _ => return Err(PolicyFault::Path),
        };
        let paths = parse_paths(paths);
        if !paths.all().iter().all(|path| is_plain(path)) {
            return Err(PolicyFault::Path);
        }
        let others = self.policy.paths.iter().flat_map(|right| right.paths.all());
        let within = |a: &Path, b: &Path| a.starts_with(b) || b.starts_with(a);
        if others.clone().any(|other| paths.all().iter().any(|path| within(path, other))) {
            return Err(PolicyFault::Redundant);
        }
        self.policy.paths.push(PathRight { access, paths });
        Ok(())
    }

    fn section(&mut self, line: &str) -> Result<(), PolicyFault> {
        let section = match line {
            "[syscalls]" => Section::Calls,
            "[rlimits]" => Section::Limits,
            "[paths]" => Section::Paths,
            _ => return Err(PolicyFault::Section),
        };
        if self.sections.contains(&section) {
            return Err(PolicyFault::Section);
        }
        self.sections.push(section);
        Ok(())
    }

    fn call(&mut self, right: &str) -> Result<(), PolicyFault> {
        let (name, conditions) = right.split_once(char::is_whitespace).unwrap_or((right, ""));
        let call = CALLS.iter().find(|call| call.name == name).ok_or(PolicyFault::UnknownCall)?;
        let rule = parse_rule(call, conditions.trim())?;
        let others = self.policy.calls.entry(call.number).or_default();
        if others.iter().any(|other| covers(other, &rule) || covers(&rule, other)) {
            return Err(PolicyFault::Redundant);
        }
        others.push(rule);
        Ok(())
    }

    fn limit(&mut self, right: &str) -> Result<(), PolicyFault> {
        let (name, value) = right.split_once(char::is_whitespace).ok_or(PolicyFault::Malformed)?;
        let (_, resource) =
            LIMITS.iter().find(|(known, _)| *known == name).ok_or(PolicyFault::UnknownLimit)?;
        let value = value.trim().parse().map_err(|_| PolicyFault::UnknownNumber)?;
        if self.policy.limits.iter().any(|(other, _)| other == resource) {
            return Err(PolicyFault::Redundant);
        }
        self.policy.limits.push((*resource, value));
        Ok(())
    }
}

/// `MAJOR:MINOR`, and the paths behind it.
fn parse_device(text: &str) -> Option<(PathAccess, &str)> {
    let (number, paths) = text.split_once(char::is_whitespace)?;
    let (major, minor) = number.split_once(':')?;
    let named = DRIVERS.iter().find(|name| **name == major).map(|name| Major::Named(name));
    let major = named.or_else(|| Some(Major::Number(major.parse().ok()?)))?;
    Some((PathAccess::Device(DeviceNumber { major, minor: minor.parse().ok()? }), paths))
}

fn parse_paths(text: &str) -> Paths {
    let split = |by| text.split(by).map(|path| PathBuf::from(path.trim())).collect();
    if text.contains('&') { Paths::Each(split('&')) } else { Paths::First(split('|')) }
}

/// Absolute, below the root, without a step back or a character that could mean something else.
fn is_plain(path: &Path) -> bool {
    let mut components = path.components();
    let rest = |component| matches!(component, Component::Normal(_));
    let text = path.to_str().unwrap_or_default();
    let harmless = |byte: u8| byte.is_ascii_alphanumeric() || b"/._:-".contains(&byte);
    components.next() == Some(Component::RootDir)
        && components.clone().next().is_some()
        && components.all(rest)
        && text.bytes().all(harmless)
        && !text.contains("//")
        && !text.contains("/./")
        && !text.ends_with(['/', '.'])
}

fn parse_rule(call: &Call, text: &str) -> Result<Rule, PolicyFault> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let rule: Rule =
        text.split(',').map(|condition| parse_condition(call, condition)).collect::<Result<_, _>>()?;
    let contradict =
        |a: &Condition, b: &Condition| a.argument == b.argument && (a.value ^ b.value) & a.mask & b.mask != 0;
    if rule.iter().any(|a| a.value & !a.mask != 0 || rule.iter().any(|b| contradict(a, b))) {
        return Err(PolicyFault::NeverTrue);
    }
    Ok(rule)
}

fn parse_condition(call: &Call, text: &str) -> Result<Condition, PolicyFault> {
    let (left, value) = text.split_once("==").ok_or(PolicyFault::Malformed)?;
    let (name, mask) = match left.split_once('&') {
        Some((name, mask)) => (name, parse_number(mask)?),
        None => (left, u64::MAX),
    };
    let argument = call.arguments.iter().position(|known| *known == name.trim());
    let argument = argument.ok_or(PolicyFault::UnknownArgument)?;
    let argument = u8::try_from(argument).expect("a system call has at most six arguments");
    Ok(Condition { argument, mask, value: parse_number(value)? })
}

fn parse_number(text: &str) -> Result<u64, PolicyFault> {
    let text = text.trim();
    let named = NUMBERS.iter().find(|(name, _)| *name == text).map(|(_, number)| *number);
    named.or_else(|| text.parse().ok()).ok_or(PolicyFault::UnknownNumber)
}

/// Whether every call that `narrow` lets through, `wide` lets through too.
fn covers(wide: &Rule, narrow: &Rule) -> bool {
    let implied = |a: &Condition, b: &Condition| {
        a.argument == b.argument && a.mask & b.mask == a.mask && b.value & a.mask == a.value
    };
    wide.iter().all(|a| narrow.iter().any(|b| implied(a, b)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(syscalls: &str, expected: Option<PolicyFault>) {
        let text = format!("[rlimits]\n[paths]\n[syscalls]\n{syscalls}\n");
        let fault = Policy::parse(&text).err().map(|error| error.fault);
        assert_eq!(fault, expected, "{syscalls}");
    }

    #[test]
    fn bad_lines_are_refused_with_what_is_wrong() {
        check("read # reads", None);
        check("read", Some(PolicyFault::NoReason));
        check("read #", Some(PolicyFault::NoReason));
        check("reed # reads", Some(PolicyFault::UnknownCall));
        check("execve # runs others", Some(PolicyFault::UnknownCall));
        check("openat # opens", Some(PolicyFault::UnknownCall));
        check("read # a\nread # b", Some(PolicyFault::Redundant));
        check("read descriptor == 3 # only the link", Some(PolicyFault::UnknownArgument));
        check("fcntl commnd == F_GET_SEALS # a", Some(PolicyFault::UnknownArgument));
        check("fcntl command == F_SEALS # a", Some(PolicyFault::UnknownNumber));
        check("fcntl command = 3 # a", Some(PolicyFault::Malformed));
        check("fcntl command == -1 # a", Some(PolicyFault::UnknownNumber));
        check("mmap protection & PROT_EXEC == PROT_READ # a", Some(PolicyFault::NeverTrue));
        check("mmap protection == 1, protection == 2 # a", Some(PolicyFault::NeverTrue));
        check("mmap protection == 1 # a\nmmap # b", Some(PolicyFault::Redundant));
        check("mmap # b\nmmap protection == 1 # a", Some(PolicyFault::Redundant));
        check("mmap protection & 4 == 0 # a\nmmap protection == 1 # b", Some(PolicyFault::Redundant));
        check("mmap protection == 1 # a\nmmap protection == 2 # b", None);
        check("[syscalls]", Some(PolicyFault::Section));
        check("[network]", Some(PolicyFault::Section));
    }

    #[test]
    fn limits_and_paths_are_as_strict() {
        let check = |text: &str, expected| {
            assert_eq!(Policy::parse(text).err(), expected, "{text}");
        };
        let fault = |line, fault| Some(PolicyError { line, fault });
        check("[syscalls]\n[paths]\n[rlimits]\nCORE 0 # no cores", None);
        check("[syscalls]\n[paths]\n[rlimits]\nCORE 0", fault(4, PolicyFault::NoReason));
        check("[syscalls]\n[paths]\n[rlimits]\nCORES 0 # a", fault(4, PolicyFault::UnknownLimit));
        check("[syscalls]\n[paths]\n[rlimits]\nCORE none # a", fault(4, PolicyFault::UnknownNumber));
        check("[syscalls]\n[paths]\n[rlimits]\nCORE # a", fault(4, PolicyFault::Malformed));
        check("[syscalls]\n[paths]\n[rlimits]\nCORE 0 # a\nCORE 1 # b", fault(5, PolicyFault::Redundant));
        let path = |text: &str, expected: Option<PolicyFault>| {
            let text = format!("[syscalls]\n[rlimits]\n[paths]\n{text}");
            assert_eq!(Policy::parse(&text).err().map(|error| error.fault), expected, "{text}");
        };
        path("read /usr/lib # a", None);
        path("read /usr/lib/a.so.1 | /usr/lib64/a.so.1 # a\ndevice 226:128 /dev/dri/renderD128 # b", None);
        path("read /a & /b # a\ndevice nvidia-uvm:0 /dev/nvidia-uvm # b\nread /sys/dev/char/1:3 # c", None);
        for wrong in [
            "/etc # a",
            "write /etc # a",
            "read etc # a",
            "read / # a",
            "read /a/../b # a",
            "read /a/./b # a",
            "read /a//b # a",
            "read /a/ # a",
            "read /a | # a",
            "read /a b # a",
            "read /proc/$x # a",
            "read /a | /b & /c # a",
            "device /dev/null # a",
            "device 1 /dev/null # a",
            "device 1:3 # a",
            "device mem:3 /dev/null # a",
            "device 1:-3 /dev/null # a",
        ] {
            path(wrong, Some(PolicyFault::Path));
        }
        path("read /usr # a\nread /usr/lib # b", Some(PolicyFault::Redundant));
        path("read /usr/lib # a\nread /x | /usr # b", Some(PolicyFault::Redundant));
        path("read /usr", Some(PolicyFault::NoReason));
        check("[syscalls]\n[rlimits]", fault(2, PolicyFault::MissingSection));
        check("", fault(0, PolicyFault::MissingSection));
        check("read # a", fault(1, PolicyFault::NoSection));
    }

    #[test]
    fn the_files_parse_and_compile() {
        let audio = AudioKind::ALL.map(Policy::audio);
        let others = [Policy::worker_cpu(), Policy::converter(), Policy::fileguard(), Policy::waiter()];
        for policy in others.into_iter().chain(audio) {
            assert!(!policy.filter().unwrap().is_empty());
        }
    }

    #[test]
    fn a_converter_may_make_no_call_that_a_worker_may_not() {
        let (converter, worker) = (Policy::converter(), Policy::worker_cpu());
        for (number, rules) in &converter.calls {
            let allowed = worker.calls.get(number).unwrap_or_else(|| panic!("call {number}"));
            assert!(rules.iter().all(|rule| allowed.contains(rule)), "call {number}");
        }
        let differs = |limit: &&(Resource, u64)| !worker.limits.contains(limit);
        let other: Vec<_> = converter.limits.iter().filter(differs).map(|(resource, _)| *resource).collect();
        assert_eq!(other, [Resource::Fsize, Resource::Nofile, Resource::Nproc]);
    }

    #[test]
    fn conditions_decide_what_is_permitted() {
        let policy = Policy::worker_cpu();
        let mmap = |protection: i32, flags: i32| {
            policy.permits(libc::SYS_mmap, &[0, 0, protection as u64, flags as u64, 0, 0])
        };
        assert!(mmap(libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS));
        assert!(mmap(libc::PROT_READ, libc::MAP_SHARED));
        assert!(!mmap(libc::PROT_READ | libc::PROT_EXEC, libc::MAP_PRIVATE));
        assert!(!mmap(libc::PROT_READ | libc::PROT_EXEC, libc::MAP_SHARED));
        assert!(!mmap(libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED));
        assert!(!mmap(libc::PROT_READ, libc::MAP_SHARED_VALIDATE));
        assert!(!policy.permits(libc::SYS_tgkill, &[1, 1, libc::SIGABRT as u64, 0, 0, 0]));
        assert!(!policy.permits(libc::SYS_openat, &[0; 6]));
    }
}
