//! `ringfence trust`: whose signature counts for which models, until when, and what is revoked.

mod change;
mod rotate;
mod show;

use super::model::{describe, tell_server};
use crate::clock;
use crate::error::CliError;
use crate::home::Home;
use crate::operator::{Config, OperatorArgs};
use crate::output::Output;
use crate::trust::{Installed, Lock, own_copy};
use clap::{Args, Subcommand};
use ringfence_models::{Glob, KeyId, Trust};
use serde::Serialize;
use std::path::PathBuf;

/// The most days for which something can be made valid: a century.
const DAYS_MAX: u64 = 36_500;
/// The days that a key holds which is added without a time.
const KEY_DAYS: u64 = 365;

/// Show and change whose signature counts for which models
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  ringfence trust show
  ringfence trust key add supplier.pem --models 'whisper-*'
  ringfence trust digest revoke minilm

Each change makes a new version of the trust file, signed by the root key. Versions only count up: an older \
file that is put back is refused by the server, and noticed by this command, which keeps its own copy of the newest.")]
pub struct TrustArgs {
    #[command(subcommand)]
    command: TrustCommand,
}

#[derive(Debug, Subcommand)]
enum TrustCommand {
    /// Show the trust file: version, expiry, keys and their scopes, what is revoked
    #[command(after_help = "Examples:\n  ringfence trust show\n  ringfence trust show --json")]
    Show {
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// Add and revoke keys that may sign models
    #[command(after_help = "\
Examples:
  ringfence trust key add supplier.pem --models 'whisper-*'
  ringfence trust key revoke 0a1b2c3d")]
    Key(KeyArgs),
    /// Revoke packages, whoever signed them
    #[command(after_help = "Examples:\n  ringfence trust digest revoke minilm")]
    Digest(DigestArgs),
    /// Replace the operator's key: models that it signed are signed with a new one, then it is revoked
    #[command(after_help = "\
Examples:
  ringfence trust rotate
  ringfence trust rotate --keep-old
  ringfence trust rotate --root

When it was cut off, run it again: it goes on where it was.")]
    Rotate(RotateArgs),
    /// Give the trust file and the operator's key a new expiry
    #[command(after_help = "Examples:\n  ringfence trust renew\n  ringfence trust renew --days 365")]
    Renew {
        /// Days from now
        #[arg(long, value_name = "N", default_value_t = super::init::VALID_DAYS, value_parser = days())]
        days: u64,
        #[command(flatten)]
        operator: OperatorArgs,
    },
    /// Put the operator's copy of the newest trust file into the home: after a rollback, a loss, or a change that was
    /// cut off
    #[command(after_help = "Examples:\n  ringfence trust restore")]
    Restore {
        #[command(flatten)]
        config: ConfigArgs,
    },
}

/// Where the operator's copy is, for commands that open no key.
#[derive(Args, Debug)]
struct ConfigArgs {
    /// Folder of the operator's keys [default: /etc/ringfence as root, else $XDG_CONFIG_HOME/ringfence]
    #[arg(long, value_name = "DIR")]
    config: Option<PathBuf>,
}

#[derive(Args, Debug)]
struct KeyArgs {
    #[command(subcommand)]
    command: KeyCommand,
}

#[derive(Debug, Subcommand)]
enum KeyCommand {
    /// Let a key sign models of some names
    #[command(after_help = "\
Examples:
  ringfence trust key add supplier.pem --models 'whisper-*'
  ringfence trust key add supplier.pem --models minilm,minilm-f16 --days 90
  ringfence trust key add supplier.pem --models '*' --not-before 2027-01-01 --not-after 2028-01-01")]
    Add(AddArgs),
    /// Revoke a key: no model that it signed is run any more
    #[command(after_help = "Examples:\n  ringfence trust key revoke 0a1b2c3d")]
    Revoke {
        /// The key's id, or its first 8 or more digits
        #[arg(value_parser = key_prefix)]
        id: String,
        #[command(flatten)]
        operator: OperatorArgs,
    },
}

#[derive(Args, Debug)]
struct AddArgs {
    /// The public key, in PEM
    #[arg(value_name = "PUBLIC.pem")]
    file: PathBuf,
    /// Names of models that it may sign; `*` stands for any run of characters
    #[arg(long, value_name = "GLOB", value_delimiter = ',', required = true, value_parser = glob)]
    models: Vec<Glob>,
    /// First day on which its signatures count, in UTC [default: now]
    #[arg(long, value_name = "YYYY-MM-DD", value_parser = date)]
    not_before: Option<u64>,
    /// First day on which they count no more, in UTC
    #[arg(long, value_name = "YYYY-MM-DD", value_parser = date, conflicts_with = "days")]
    not_after: Option<u64>,
    /// Days for which they count
    #[arg(long, value_name = "N", default_value_t = KEY_DAYS, value_parser = days())]
    days: u64,
    #[command(flatten)]
    operator: OperatorArgs,
}

#[derive(Args, Debug)]
struct DigestArgs {
    #[command(subcommand)]
    command: DigestCommand,
}

#[derive(Debug, Subcommand)]
enum DigestCommand {
    /// Revoke a package: it is not run any more, whoever signs it
    #[command(after_help = "\
Examples:
  ringfence trust digest revoke minilm
  ringfence trust digest revoke ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")]
    Revoke {
        /// The package's digest, or the name of a model whose package holds
        #[arg(value_name = "DIGEST|MODEL")]
        package: String,
        #[command(flatten)]
        operator: OperatorArgs,
    },
}

#[derive(Args, Debug)]
struct RotateArgs {
    /// Replace the root key instead
    #[arg(long, conflicts_with = "keep_old")]
    root: bool,
    /// Leave the old key valid, and its file as operator.key.old
    #[arg(long)]
    keep_old: bool,
    #[command(flatten)]
    operator: OperatorArgs,
}

/// What a change led to.
#[derive(Serialize)]
struct Changed<T: Serialize> {
    /// The version that is in force now.
    version: u64,
    #[serde(flatten)]
    what: T,
}

/// Runs it.
///
/// # Errors
/// [`CliError::Verification`] where the home's trust files do not hold or are old; others as they are named.
pub fn run(args: TrustArgs, home: &Home, output: &Output) -> Result<(), CliError> {
    match args.command {
        TrustCommand::Show { config } => {
            let installed = Installed::compared(home, &Config::resolve(config.config)?)?;
            show::show(&installed, clock::unix_seconds(), output)
        }
        TrustCommand::Key(KeyArgs { command: KeyCommand::Add(args) }) => change::add_key(args, home, output),
        TrustCommand::Key(KeyArgs { command: KeyCommand::Revoke { id, operator } }) => {
            change::revoke_key(&id, &operator, home, output)
        }
        TrustCommand::Digest(DigestArgs { command: DigestCommand::Revoke { package, operator } }) => {
            change::revoke_digest(&package, &operator, home, output)
        }
        TrustCommand::Rotate(args) if args.root => rotate::root(&args.operator, home, output),
        TrustCommand::Rotate(args) => rotate::operator(&args, home, output),
        TrustCommand::Renew { days, operator } => change::renew(days, &operator, home, output),
        TrustCommand::Restore { config } => restore(&Config::resolve(config.config)?, home, output),
    }
}

fn restore(config: &Config, home: &Home, output: &Output) -> Result<(), CliError> {
    #[derive(Serialize)]
    struct Restored {
        restored: bool,
    }
    let _lock = Lock::take(config)?;
    let copy = own_copy(config)?;
    copy.restore(home)?;
    finish(home, &copy.trust, Restored { restored: true }, "the operator's copy is in force", output)
}

/// Tells the server, and the operator what is in force now.
fn finish<T: Serialize>(
    home: &Home,
    trust: &Trust,
    what: T,
    done: &str,
    output: &Output,
) -> Result<(), CliError> {
    let server = tell_server(home);
    let changed = Changed { version: trust.version, what };
    output.answer(&changed, |_| {
        format!("{done}; trust file version {} ({})", trust.version, describe(&server))
    })?;
    server.map(drop)
}

/// Nothing was changed, because of what the command line asks for.
fn refused(subject: impl ToString, code: &'static str, why: &str, advice: &str) -> CliError {
    CliError::Failed { subject: subject.to_string(), code, source: why.into(), advice: advice.to_owned() }
}

/// Enough of an id to tell keys apart by eye and to name one in a command.
fn short(id: &KeyId) -> String {
    id.to_string().chars().take(16).collect()
}

fn days() -> clap::builder::RangedU64ValueParser {
    clap::value_parser!(u64).range(1..=DAYS_MAX)
}

fn glob(text: &str) -> Result<Glob, &'static str> {
    Glob::new(text).map_err(|_| "a pattern is 1 to 128 of a-z 0-9 . _ - *")
}

/// The fewest digits of a key's id that may stand for it.
const PREFIX_MIN: usize = 8;

fn key_prefix(text: &str) -> Result<String, &'static str> {
    let is_hex = text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    let is_prefix = is_hex && (PREFIX_MIN..=64).contains(&text.len());
    if is_prefix {
        Ok(text.to_owned())
    } else {
        Err("give 8 to 64 hexadecimal digits; `ringfence trust show` has them")
    }
}

/// A day in UTC as the Unix seconds of its beginning. The calendar is Howard Hinnant's `days_from_civil`.
fn date(text: &str) -> Result<u64, &'static str> {
    const WRONG: &str = "give a day from 1970-01-01 to 2999-12-31 as YYYY-MM-DD";
    let shape = text.len() == 10
        && text.bytes().enumerate().all(|(at, byte)| match at {
            4 | 7 => byte == b'-',
            _ => byte.is_ascii_digit(),
        });
    if !shape {
        return Err(WRONG);
    }
    let number = |range: std::ops::Range<usize>| text[range].parse::<u64>().map_err(|_| WRONG);
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    if !(1970..3000).contains(&year) || !(1..=12).contains(&month) {
        return Err(WRONG);
    }
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year / 400, year % 400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day.checked_sub(1).ok_or(WRONG)?;
    let days = era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let seconds = days.checked_sub(719_468).ok_or(WRONG)? * super::DAY_SECONDS;
    // A day that its month does not have comes back as another one.
    if crate::output::utc(seconds).starts_with(text) { Ok(seconds) } else { Err(WRONG) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_a_day_of_the_calendar() {
        let check = |text, seconds| assert_eq!(date(text), Ok(seconds), "{text}");
        check("1970-01-01", 0);
        check("2000-02-29", 951_782_400);
        check("2024-03-01", 1_709_251_200);
        check("2100-01-01", 4_102_444_800);
        for wrong in [
            "",
            "2024",
            "2023-02-29",
            "2024-00-01",
            "2024-13-01",
            "2024-01-00",
            "2024-04-31",
            "1969-12-31",
            "3000-01-01",
            "2024-1-01",
            "2024-01-0é",
            "+024-01-01",
            "0000-00-00",
        ] {
            assert!(date(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_key_is_named_by_enough_of_its_id() {
        for right in ["0a1b2c3d", &"f".repeat(64)] {
            assert_eq!(key_prefix(right).as_deref(), Ok(right));
        }
        for wrong in ["", "0a1b2c3", "0A1B2C3D", "0a1b2c3g", &"f".repeat(65)] {
            assert!(key_prefix(wrong).is_err(), "{wrong}");
        }
    }
}
