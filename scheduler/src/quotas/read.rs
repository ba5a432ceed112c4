//! From the text to the values, with the line of what is wrong.

use super::rule::{GpuDriver, ModelDevice, Section, is_gpu_name};
use super::sections::Gpu;
use super::{DEFAULT, Quotas, join};
use crate::config::GPUS_MAX;
use std::collections::{BTreeMap, BTreeSet};
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

/// Why a file is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuotaError {
    /// The line, from 1.
    pub line: Option<usize>,
    /// The key, as in `clients.notes.weight`; empty where the text is no TOML.
    pub field: String,
    /// What is wrong; reads on after the field.
    pub reason: String,
}

impl std::fmt::Display for QuotaError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        if !self.field.is_empty() {
            write!(f, "{} ", self.field)?;
        }
        f.write_str(&self.reason)
    }
}

impl std::error::Error for QuotaError {}

/// Reads the whole text; of several things that are wrong, the first by line is said.
pub(super) fn read(text: &str) -> Result<Quotas, QuotaError> {
    let mut reader = Reader { text, lines: BTreeMap::new(), errors: Vec::new() };
    let document = DeTable::parse(text).map_err(|error| QuotaError {
        line: error.span().map(|span| reader.line(span.start)),
        field: String::new(),
        reason: error.message().trim().replace('\n', ", "),
    })?;
    let quotas = reader.document(document.get_ref());
    if reader.errors.is_empty() {
        reader.reserve(&quotas);
        reader.bursts(&quotas);
        reader.cards(&quotas);
        reader.model_devices(&quotas);
        reader.fallbacks(&quotas);
    }
    reader.errors.sort_by_key(|error| error.line);
    reader.errors.into_iter().next().map_or(Ok(quotas), Err)
}

struct Reader<'t> {
    text: &'t str,
    /// Where each field stands.
    lines: BTreeMap<String, usize>,
    errors: Vec<QuotaError>,
}

type Entry<'a, 't> = (&'a Spanned<DeString<'t>>, &'a Spanned<DeValue<'t>>);

impl<'t> Reader<'t> {
    fn line(&self, offset: usize) -> usize {
        self.text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count() + 1
    }

    fn wrong(&mut self, line: Option<usize>, field: &str, reason: impl Into<String>) {
        self.errors.push(QuotaError { line, field: field.to_owned(), reason: reason.into() });
    }

    fn unknown(&mut self, key: &Spanned<DeString<'t>>, field: &str, known: &[&str]) {
        let line = self.line(key.span().start);
        self.wrong(Some(line), field, format!("is unknown; there are {}", known.join(", ")));
    }

    fn document(&mut self, document: &DeTable<'t>) -> Quotas {
        let mut quotas = Quotas::default();
        for (key, value) in document {
            let name: &str = key.get_ref();
            match name {
                "devices" => self.devices(&mut quotas, (key, value)),
                "queues" => quotas.queues = self.section(name, (key, value)),
                "models" => quotas.models = self.named(name, (key, value), |_| None),
                "clients" => quotas.clients = self.named(name, (key, value), client_name),
                other => self.unknown(key, &join("", other), &["devices", "queues", "models", "clients"]),
            }
        }
        quotas
    }

    fn devices(&mut self, quotas: &mut Quotas, entry: Entry<'_, 't>) {
        let Some(table) = self.table("devices", entry) else { return };
        let mut gpus = BTreeMap::new();
        for (key, value) in table {
            let field = join("devices", key.get_ref());
            match key.get_ref().as_ref() {
                "cpu" => quotas.cpu = self.section(&field, (key, value)),
                "host" => quotas.host = self.section(&field, (key, value)),
                name if is_gpu_name(name) => {
                    gpus.insert(name.to_owned(), self.section::<Gpu>(&field, (key, value)));
                }
                _ => self.unknown(key, &field, &["cpu", "host", "a GPU's name of a-z 0-9 -"]),
            }
            if gpus.len() > GPUS_MAX {
                let line = self.line(key.span().start);
                return self.wrong(Some(line), &field, format!("is one GPU more than {GPUS_MAX}"));
            }
        }
        if !gpus.is_empty() {
            quotas.gpus = gpus;
        }
    }

    /// Sections by name; `refuse` says what is wrong with a name.
    fn named<S: Section>(
        &mut self,
        parent: &str,
        entry: Entry<'_, 't>,
        refuse: impl Fn(&str) -> Option<&'static str>,
    ) -> BTreeMap<String, S> {
        let mut sections = BTreeMap::new();
        for (key, value) in self.table(parent, entry).into_iter().flatten() {
            let name: &str = key.get_ref();
            let field = join(parent, name);
            if let Some(reason) = refuse(name) {
                let line = self.line(key.span().start);
                self.wrong(Some(line), &field, reason);
            }
            let section = self.section(&field, (key, value));
            sections.insert(name.to_owned(), section);
        }
        sections
    }

    fn section<S: Section>(&mut self, field: &str, entry: Entry<'_, 't>) -> S {
        let mut section = S::default();
        for (key, value) in self.table(field, entry).into_iter().flatten() {
            let line = self.line(value.span().start);
            let name: &str = key.get_ref();
            let field = join(field, name);
            match section.set(name, value.get_ref()) {
                Some(Ok(())) => {}
                Some(Err(reason)) => self.wrong(Some(line), &field, reason),
                None => {
                    let known: Vec<&str> = S::keys().iter().map(|key| key.name).collect();
                    self.unknown(key, &field, &known);
                }
            }
            self.lines.insert(field, line);
        }
        section
    }

    fn table<'a>(&mut self, field: &str, (key, value): Entry<'a, 't>) -> Option<&'a DeTable<'t>> {
        let table = value.get_ref().as_table();
        if table.is_none() {
            let line = self.line(key.span().start);
            self.wrong(Some(line), field, format!("must be a section: [{field}]"));
        }
        table
    }

    /// Says that a field is wrong in view of another one.
    fn contradiction(&mut self, field: &str, reason: String) {
        let line = self.lines.get(field).copied();
        self.wrong(line, field, reason);
    }

    fn reserve(&mut self, quotas: &Quotas) {
        let (reserve, Some(memory)) = (quotas.cpu.reserve_mib, quotas.cpu.memory_mib) else { return };
        if reserve >= memory {
            let reason =
                format!("is {reserve}; it must be less than devices.cpu.memory_mib, which is {memory}");
            self.contradiction("devices.cpu.reserve_mib", reason);
        }
    }

    /// Each driver of hardware has a card of its own.
    fn cards(&mut self, quotas: &Quotas) {
        let mut taken = BTreeMap::new();
        for (name, gpu) in &quotas.gpus {
            let field = join("devices", name);
            match (gpu.driver, &gpu.node) {
                (GpuDriver::Software, None) => {}
                (GpuDriver::Software, Some(_)) => {
                    self.contradiction(
                        &format!("{field}.node"),
                        "is set, but the driver is in software".to_owned(),
                    );
                }
                (GpuDriver::Mesa | GpuDriver::Nvidia, None) => {
                    let reason = format!("needs {field}.node, the card");
                    self.contradiction(&format!("{field}.driver"), reason);
                }
                (GpuDriver::Mesa | GpuDriver::Nvidia, Some(node)) => {
                    if let Some(other) = taken.insert(node, name) {
                        let reason = format!("is that of devices.{other} already");
                        self.contradiction(&format!("{field}.node"), reason);
                    }
                }
            }
        }
    }

    /// A model's device is one that there is.
    fn model_devices(&mut self, quotas: &Quotas) {
        for (name, model) in &quotas.models {
            if let ModelDevice::Gpu(gpu) = &model.device
                && !quotas.gpus.contains_key(gpu)
            {
                let known: Vec<&str> = quotas.gpus.keys().map(String::as_str).collect();
                let reason = format!("is {gpu:?}; there are cpu, wgpu for any GPU, and {}", known.join(", "));
                self.contradiction(&format!("{}.device", join("models", name)), reason);
            }
        }
    }

    fn bursts(&mut self, quotas: &Quotas) {
        for (name, client) in &quotas.clients {
            let section = join("clients", name);
            for (what, rate, burst) in client.rates() {
                if burst.is_some() && rate.is_none() {
                    let reason = format!("is set without {section}.{what}_per_minute");
                    self.contradiction(&format!("{section}.{what}_burst"), reason);
                }
            }
        }
    }

    /// A model that nobody can answer for would be looked for in a circle.
    fn fallbacks(&mut self, quotas: &Quotas) {
        for (name, model) in &quotas.models {
            let Some(first) = model.fallback.as_deref() else { continue };
            let mut seen = BTreeSet::from([name.as_str()]);
            let mut next = Some(first);
            while let Some(model) = next {
                if !seen.insert(model) {
                    let reason = format!("is {first:?}, and that leads back to {model}");
                    self.contradiction(&format!("{}.fallback", join("models", name)), reason);
                    break;
                }
                next = quotas.fallback(model);
            }
        }
    }
}

/// The server's grammar of clients: a name, or `uid:N` on the common socket.
fn client_name(name: &str) -> Option<&'static str> {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let legal = |byte: u8| alphanumeric(byte) || b"._-".contains(&byte);
    let first = name.bytes().next().is_some_and(alphanumeric);
    let plain = first && name.len() <= 64 && name.bytes().all(legal) && name != "system";
    let uid = name.strip_prefix("uid:").and_then(|number| number.parse::<u32>().ok());
    let known = plain || name == DEFAULT || uid.is_some_and(|uid| format!("uid:{uid}") == name);
    (!known).then_some("is no client: NAME of a-z 0-9 . _ -, \"uid:N\", or default")
}
