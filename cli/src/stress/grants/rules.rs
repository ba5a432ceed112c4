//! The operator's rules about grants: ours stand before them for the time of the stress, then they are what they were.

use super::failed;
use crate::clock;
use crate::error::CliError;
use crate::output::utc;
use rustix::fs::{Gid, Mode, OFlags, Uid, fchmod, fchown};
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The longest text that is read and put back, as long as the server's bound.
const RULES_BYTES_MAX: u64 = 1024 * 1024;
/// How long our rules count if they are left behind: to the end of the next day.
const DAY_SECONDS: u64 = 24 * 60 * 60;
/// Who may read a file of rules where there was none.
const MODE: u32 = 0o644;

/// The rules as they were.
#[derive(Debug)]
pub(in crate::stress) struct Original {
    path: PathBuf,
    /// None where there was no file.
    text: Option<String>,
    /// Mode, owner and group.
    facts: Option<(u32, u32, u32)>,
    /// The text that counts meanwhile.
    ours: String,
}

impl Original {
    /// Puts rules before those that are there.
    pub(in crate::stress) fn precede(path: PathBuf, rules: &str) -> Result<Self, CliError> {
        let failed = |source| CliError::io(path.display().to_string(), source);
        let text = read(&path).map_err(failed)?;
        let facts = match text {
            None => None,
            Some(_) => {
                let facts = fs::metadata(&path).map_err(failed)?;
                Some((facts.mode() & 0o7777, facts.uid(), facts.gid()))
            }
        };
        let ours = format!("{rules}\n{}", text.as_deref().unwrap_or_default());
        replace(&path, &ours, facts).map_err(failed)?;
        Ok(Self { path, text, facts, ours })
    }

    /// Puts the file back. One that somebody has changed meanwhile is left alone, and is an error.
    pub(in crate::stress) fn restore(&self) -> Result<(), CliError> {
        let io = |source| CliError::io(self.path.display().to_string(), source);
        if read(&self.path).map_err(io)?.as_deref() != Some(&self.ours) {
            return Err(failed(
                "rules_not_restored",
                "grants.toml was changed meanwhile: take the rules of the clients stress-* out of it",
            ));
        }
        match &self.text {
            Some(text) => replace(&self.path, text, self.facts).map_err(io),
            None => fs::remove_file(&self.path).map_err(io),
        }
    }
}

/// One rule of `grants.toml` for files to read, until tomorrow.
pub(super) fn rule(client: &str, decision: &str, below: &Path) -> String {
    let quoted = |text: &str| toml_edit::Value::from(text).to_string();
    let day = until_tomorrow();
    let below = quoted(&below.display().to_string());
    format!(
        "[[rule]]\nclient = {}\nkind = \"file_read\"\ndecision = {}\nbelow = {below}\nuntil = {day}\n",
        quoted(client),
        quoted(decision)
    )
}

/// The day until which our rules count.
pub(in crate::stress) fn until_tomorrow() -> String {
    utc(clock::unix_seconds() + DAY_SECONDS).split(' ').next().unwrap_or_default().to_owned()
}

fn read(path: &Path) -> io::Result<Option<String>> {
    let file = match OpenOptions::new().read(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let mut text = String::new();
    file.take(RULES_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > RULES_BYTES_MAX {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(Some(text))
}

/// As one step: the server never reads a part, and never a file that it may not read.
fn replace(path: &Path, text: &str, facts: Option<(u32, u32, u32)>) -> io::Result<()> {
    let temporary = path.with_extension("toml.stress");
    let (mode, owner) = match facts {
        None => (MODE, None),
        Some((mode, uid, gid)) => (mode, Some((uid, gid))),
    };
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(text.as_bytes())?;
    if let Some((uid, gid)) = owner {
        fchown(&file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    }
    fchmod(&file, Mode::from_raw_mode(mode))?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::DIRECTORY.bits().cast_signed())
        .open(folder)?
        .sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_file_is_what_it_was_unless_somebody_has_changed_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("grants.toml");
        let rules = rule("stress-a", "allow", Path::new("/tmp/a \"b\""));
        let original = Original::precede(path.clone(), &rules).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{rules}\n"));
        original.restore().unwrap();
        assert!(!path.exists());

        fs::write(&path, "# mine\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let original = Original::precede(path.clone(), &rules).unwrap();
        assert!(fs::read_to_string(&path).unwrap().ends_with("\n# mine\n"));
        original.restore().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "# mine\n");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);

        let original = Original::precede(path.clone(), &rules).unwrap();
        fs::write(&path, "# other\n").unwrap();
        assert_eq!(original.restore().unwrap_err().code(), "rules_not_restored");
        assert_eq!(fs::read_to_string(&path).unwrap(), "# other\n");
    }

    #[test]
    fn a_rule_is_one_that_the_server_reads() {
        let text = rule("stress-a", "allow", Path::new("/tmp/a \"b\""));
        ringfence_grants::Rules::parse(&text).unwrap();
    }
}
