//! The file for people: all of it with its documentation, what counts, and what a change changes.

use super::rule::{Key, Section, Shown};
use super::sections::{ClientQuota, Cpu, Gpu, Host, ModelQuota, Queues};
use super::{DEFAULT, Quotas, join};
use serde::Serialize;
use std::collections::BTreeSet;

/// A value that counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Effective {
    /// As in `clients.notes.weight`.
    pub field: String,
    /// The file's value, or the default.
    pub value: Shown,
    /// What it counts; empty where it counts nothing.
    pub unit: &'static str,
    /// What it is for.
    pub doc: &'static str,
}

/// A value that is another one in another file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// As in `clients.notes.weight`.
    pub field: String,
    /// What it is.
    pub from: Shown,
    /// What it will be.
    pub to: Shown,
}

/// Every section with its keys, as `default` where it has names.
pub fn sections() -> [(&'static str, Vec<Key>); 6] {
    [
        ("devices.cpu", Cpu::keys()),
        ("devices.wgpu", Gpu::keys()),
        ("devices.host", Host::keys()),
        ("queues", Queues::keys()),
        ("models.default", ModelQuota::keys()),
        ("clients.default", ClientQuota::keys()),
    ]
}

const HEAD: &str = "\
# What devices, models and clients may take. Every value has a default.
#
# A line like `#name = value` is a default that can be set by taking the # away, with that of its [section]. `# name =
# value` is an example: its default is in words. [models.NAME] and [clients.NAME] are for one model or client, and
# replace the section `default` whole; a client is its name or \"uid:1000\". `ringfence quota apply` takes a changed
# file, `ringfence quota set` one value, both while jobs run.
";

/// The whole file with every key, commented out, at its default.
pub fn documented() -> String {
    let mut text = HEAD.to_owned();
    for (name, keys) in sections() {
        text.push_str(&format!("\n#[{name}]\n"));
        keys.iter().for_each(|key| text.push_str(&documented_key(key)));
    }
    text
}

fn documented_key(key: &Key) -> String {
    let Key { name, doc, unit, legal, default, words } = key;
    let unit = if unit.is_empty() { String::new() } else { format!("{unit}, ") };
    match (default, words) {
        (Some(default), _) => format!("# {doc} ({unit}{legal})\n#{name} = {default}\n"),
        (None, words) => {
            let (default, example) = words.unwrap_or(("none", "\"\""));
            format!("# {doc} ({unit}{legal}; default: {default})\n# {name} = {example}\n")
        }
    }
}

impl Quotas {
    /// Every value that counts, section by section.
    pub fn effective(&self) -> Vec<Effective> {
        self.effective_for(&self.names())
    }

    /// What changes when `new` takes the place of this.
    pub fn changes(&self, new: &Self) -> Vec<Change> {
        let (old, new_names) = (self.names(), new.names());
        let names = Names {
            gpus: &old.gpus | &new_names.gpus,
            models: &old.models | &new_names.models,
            clients: &old.clients | &new_names.clients,
        };
        let (before, after) = (self.effective_for(&names), new.effective_for(&names));
        let pairs = before.into_iter().zip(after).filter(|(before, after)| before.value != after.value);
        pairs
            .map(|(before, after)| Change { field: before.field, from: before.value, to: after.value })
            .collect()
    }

    fn names(&self) -> Names<'_> {
        Names {
            gpus: self.gpus.keys().map(String::as_str).collect(),
            models: self.models.keys().map(String::as_str).collect(),
            clients: self.clients.keys().map(String::as_str).collect(),
        }
    }

    /// For `default` and these names, in an order that depends on them alone.
    fn effective_for(&self, Names { gpus, models, clients }: &Names<'_>) -> Vec<Effective> {
        let mut all = Vec::new();
        list(&mut all, "devices.cpu", &self.cpu);
        for name in gpus {
            list(&mut all, &join("devices", name), &self.gpus.get(*name).cloned().unwrap_or_default());
        }
        list(&mut all, "devices.host", &self.host);
        list(&mut all, "queues", &self.queues);
        for name in with_default(models) {
            list(&mut all, &join("models", name), &self.model(name));
        }
        for name in with_default(clients) {
            list(&mut all, &join("clients", name), &self.client_quota(name));
        }
        all
    }
}

/// What sections have names.
struct Names<'n> {
    gpus: BTreeSet<&'n str>,
    models: BTreeSet<&'n str>,
    clients: BTreeSet<&'n str>,
}

fn with_default<'n>(names: &BTreeSet<&'n str>) -> impl Iterator<Item = &'n str> {
    let named: Vec<&str> = names.iter().copied().filter(|name| *name != DEFAULT).collect();
    std::iter::once(DEFAULT).chain(named)
}

fn list<S: Section>(all: &mut Vec<Effective>, field: &str, section: &S) {
    for (key, value) in S::keys().into_iter().zip(section.shown()) {
        all.push(Effective { field: join(field, key.name), value, unit: key.unit, doc: key.doc });
    }
}
