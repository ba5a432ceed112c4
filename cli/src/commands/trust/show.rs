//! The trust file for people and scripts.

use crate::commands::DAY_SECONDS;
use crate::error::CliError;
use crate::output::{Output, Style, table, utc};
use crate::trust::Installed;
use ringfence_models::{Glob, KeyId, Trust, TrustedKey};
use serde::Serialize;

#[derive(Serialize)]
struct Shown {
    version: u64,
    /// The version below which the server takes no trust file.
    floor: u64,
    /// Unix seconds.
    expires: u64,
    expired: bool,
    root: String,
    keys: Vec<Key>,
    revoked_keys: Vec<String>,
    revoked_digests: Vec<String>,
}

/// A key, as `show` and the commands that change it print it.
#[derive(Serialize)]
pub(super) struct Key {
    id: String,
    alg: &'static str,
    models: Vec<String>,
    /// Unix seconds.
    not_before: u64,
    /// Unix seconds.
    not_after: u64,
    /// `valid`, `revoked`, `expired` or `not_yet_valid`.
    state: &'static str,
}

/// `ringfence trust show`.
pub(super) fn show(installed: &Installed, now: u64, output: &Output) -> Result<(), CliError> {
    let trust = &installed.trust;
    let shown = Shown {
        version: trust.version,
        floor: installed.floor,
        expires: trust.expires,
        expired: now >= trust.expires,
        root: installed.root.id().to_string(),
        keys: trust.keys.iter().map(|key| Key::new(key, trust, now)).collect(),
        revoked_keys: trust.revoked_keys.iter().map(KeyId::to_string).collect(),
        revoked_digests: trust.revoked_digests.iter().map(ToString::to_string).collect(),
    };
    output.answer(&shown, |style| shown.page(style, now))
}

impl Key {
    pub(super) fn new(key: &TrustedKey, trust: &Trust, now: u64) -> Self {
        let id = key.public.id();
        let state = match () {
            () if trust.revoked_keys.contains(&id) => "revoked",
            () if now < key.not_before => "not_yet_valid",
            () if now >= key.not_after => "expired",
            () => "valid",
        };
        Self {
            id: id.to_string(),
            alg: key.public.algorithm().name(),
            models: key.models.iter().map(|glob| Glob::as_str(glob).to_owned()).collect(),
            not_before: key.not_before,
            not_after: key.not_after,
            state,
        }
    }

    /// One line about it.
    pub(super) fn summary(&self) -> String {
        let (id, models) = (&self.id[..16], self.models.join(", "));
        format!("key {id} for {models} from {} until {}", utc(self.not_before), utc(self.not_after))
    }

    fn row(&self) -> Vec<String> {
        let text = |text: &str| text.to_owned();
        let (from, until) = (utc(self.not_before), utc(self.not_after));
        vec![self.id[..16].to_owned(), text(self.alg), self.models.join(","), from, until, text(self.state)]
    }
}

impl Shown {
    fn page(&self, style: Style, now: u64) -> String {
        let field = |name: &str, value: &str| format!("{} {value}", style.bold(&format!("{name:<8}")));
        let left = match self.expires.saturating_sub(now) {
            0 => style.red("expired"),
            seconds => format!("{} days left", seconds / DAY_SECONDS),
        };
        let mut lines = vec![
            field("version", &format!("{} (none below {} counts)", self.version, self.floor)),
            field("expires", &format!("{} ({left})", utc(self.expires))),
            field("root", &self.root),
            String::new(),
            table(
                style,
                &["KEY", "ALG", "MODELS", "FROM", "UNTIL", "STATE"],
                &self.keys.iter().map(Key::row).collect::<Vec<_>>(),
            ),
        ];
        let unlisted = self.revoked_keys.iter().filter(|id| !self.keys.iter().any(|key| key.id == **id));
        lines.extend(unlisted.map(|id| format!("revoked key {id}")));
        lines.extend(self.revoked_digests.iter().map(|digest| format!("revoked package {digest}")));
        lines.join("\n")
    }
}
