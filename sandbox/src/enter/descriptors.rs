//! The first layer: nothing is inherited but what the server means to give.

use super::{EnterError, Layer};
use crate::status_page::Pages;
use rustix::fs::{FileType, fstat, major, minor};
use rustix::io::retry_on_intr;
use rustix::net::{AddressFamily, RecvFlags, SocketType, recv, sockopt};
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// The link's number in every program.
pub(crate) const LINK: RawFd = 3;
/// The longest first packet: a path, which is refused as too long if it is this long.
const FIRST_WORDS_BYTES_MAX: usize = 8 * 1024;
/// The status page's.
pub(crate) const STATUS_PAGE: RawFd = 4;

/// The only variables that a program may find; all have small numbers as values.
const VARIABLES: [&str; 5] = [
    "CANDLE_NUM_THREADS",
    "MESA_SHADER_CACHE_DISABLE",
    "RAYON_NUM_THREADS",
    "RUST_BACKTRACE",
    "__GL_SHADER_DISK_CACHE",
];
const DIGITS_MAX: usize = 5;

pub(super) fn check_environment() -> Result<(), EnterError> {
    let known = |name: &str, value: &str| {
        VARIABLES.contains(&name)
            && (1..=DIGITS_MAX).contains(&value.len())
            && value.bytes().all(|byte| byte.is_ascii_digit())
    };
    for (name, value) in std::env::vars_os() {
        if !matches!((name.to_str(), value.to_str()), (Some(name), Some(value)) if known(name, value)) {
            return Err(EnterError::Environment(name));
        }
    }
    Ok(())
}

/// Checks descriptors 0 to 4, closes all others, and maps the status page. The map is all that stays of the page.
pub(super) fn take() -> Result<Pages, EnterError> {
    check_threads()?;
    check(0, "the null device", is_null)?;
    check(1, "a pipe", is_pipe)?;
    check(2, "a pipe", is_pipe)?;
    check(LINK, "a sequenced unix socket", is_link)?;
    close_from(STATUS_PAGE + 1)?;
    let wrong = EnterError::Descriptor { number: STATUS_PAGE, expected: "a status page" };
    // SAFETY: the descriptor is only borrowed, for a call that fails if it is not open.
    let pages = Pages::map(unsafe { BorrowedFd::borrow_raw(STATUS_PAGE) }).map_err(|_| wrong)?;
    close_from(STATUS_PAGE)?;
    Ok(pages)
}

/// The link, after [`take`] has checked it.
pub(super) fn link() -> OwnedFd {
    // SAFETY: `take` found the link open at this number, nothing has closed it, and `enter` makes one owner.
    unsafe { OwnedFd::from_raw_fd(LINK) }
}

/// The first packet on the link, as text: what whoever started the program has to say before it locks itself in. Words of a
/// command line would be everybody's to read.
pub(super) fn first_words() -> Result<String, EnterError> {
    let wrong =
        || EnterError::Descriptor { number: LINK, expected: "a link with a path as its first packet" };
    let mut bytes = [0; FIRST_WORDS_BYTES_MAX + 1];
    // SAFETY: `take` has found the link open at this number, and nothing closes it meanwhile.
    let link = unsafe { BorrowedFd::borrow_raw(LINK) };
    let (_, length) =
        retry_on_intr(|| recv(link, &mut bytes[..], RecvFlags::empty())).map_err(|_| wrong())?;
    if !(1..=FIRST_WORDS_BYTES_MAX).contains(&length) {
        return Err(wrong());
    }
    String::from_utf8(bytes[..length].to_vec()).map_err(|_| wrong())
}

/// Closes every descriptor from this number on.
pub(super) fn close_from(first: RawFd) -> Result<(), EnterError> {
    // SAFETY: nothing in this process owns a descriptor from `first` on: `enter` is the first thing in `main`.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) };
    super::privileges::returned(result, Layer::Descriptors, "close_range")
}

#[expect(clippy::disallowed_methods, reason = "our own row of /proc; no name comes from outside")]
fn check_threads() -> Result<(), EnterError> {
    let tasks = std::fs::File::open("/proc/self/stat").and_then(std::io::read_to_string);
    // The name in brackets may hold anything but is the only bracketed field; num_threads is the 18th after it.
    let threads = tasks.ok().and_then(|stat| {
        stat.rsplit_once(')').and_then(|(_, fields)| fields.split_whitespace().nth(17)?.parse().ok())
    });
    if threads == Some(1) { Ok(()) } else { Err(EnterError::Threads) }
}

fn check(
    number: RawFd,
    expected: &'static str,
    is: fn(BorrowedFd<'_>) -> rustix::io::Result<bool>,
) -> Result<(), EnterError> {
    // SAFETY: the descriptor is only borrowed, for calls that fail if it is not open.
    match is(unsafe { BorrowedFd::borrow_raw(number) }) {
        Ok(true) => Ok(()),
        Ok(false) | Err(_) => Err(EnterError::Descriptor { number, expected }),
    }
}

fn is_null(descriptor: BorrowedFd<'_>) -> rustix::io::Result<bool> {
    let facts = fstat(descriptor)?;
    let device = (major(facts.st_rdev), minor(facts.st_rdev));
    Ok(FileType::from_raw_mode(facts.st_mode) == FileType::CharacterDevice && device == (1, 3))
}

fn is_pipe(descriptor: BorrowedFd<'_>) -> rustix::io::Result<bool> {
    Ok(FileType::from_raw_mode(fstat(descriptor)?.st_mode) == FileType::Fifo)
}

fn is_link(descriptor: BorrowedFd<'_>) -> rustix::io::Result<bool> {
    Ok(sockopt::socket_type(descriptor)? == SocketType::SEQPACKET
        && sockopt::socket_domain(descriptor)? == AddressFamily::UNIX)
}
