//! What a value of the file may be, said once: from it come the reading, the messages and the documentation.

use super::pattern::Pattern;
use crate::config::{Class, Order};
use serde::Serialize;
use std::fmt;
use toml::de::DeValue;

/// What a value may be, what it is where nobody says, and what it counts.
pub(super) struct Rule<T> {
    default: T,
    /// In words, where there is no value that stands for the default.
    words: Option<Words>,
    legal: Legal,
    unit: &'static str,
}

/// A default in words.
#[derive(Clone, Copy)]
struct Words {
    default: &'static str,
    /// A legal value, for the documentation.
    example: &'static str,
}

/// Legal values.
#[derive(Clone, Copy)]
pub(super) enum Legal {
    /// Whole numbers, both ends included.
    Number { least: u64, most: u64 },
    /// One of these.
    Word(&'static [&'static str]),
    /// A list of names of models, with stars.
    Patterns,
    /// The name of a model.
    Model,
    /// Where a model computes.
    Device,
    /// The card of a GPU's driver.
    Node,
}

/// A key of a section, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Its name.
    pub name: &'static str,
    /// What it is for, in one sentence or two.
    pub doc: &'static str,
    /// What it counts; empty where it counts nothing.
    pub unit: &'static str,
    /// The values that it may have, in words.
    pub legal: String,
    /// The default as it would stand in the file; `None` where the default is no single value.
    pub default: Option<String>,
    /// The default in words, where it is no single value, and an example of a value.
    pub words: Option<(&'static str, &'static str)>,
}

/// A value that counts now: the file's, a default, or a default in words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Shown {
    /// A number.
    Number(u64),
    /// A word, or a default in words.
    Text(String),
    /// Names with stars.
    List(Vec<String>),
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Text(text) => f.write_str(text),
            Self::List(list) => f.write_str(&list.join(" ")),
        }
    }
}

/// A type of values.
pub(super) trait Value: Sized + Clone {
    /// From the file; else what is wrong, to follow the name of the field.
    fn read(value: &DeValue<'_>, legal: Legal) -> Result<Self, String>;
    /// For people; `None` where nothing is set.
    fn shown(&self) -> Option<Shown>;
}

/// A number with its default and range.
pub(super) const fn number<T>(default: T, least: u64, most: u64, unit: &'static str) -> Rule<T> {
    Rule { default, words: None, legal: Legal::Number { least, most }, unit }
}

/// A number that need not be there, with what is done then and an example.
pub(super) const fn optional<T>(
    default: &'static str,
    example: &'static str,
    (least, most): (u64, u64),
    unit: &'static str,
) -> Rule<Option<T>> {
    let words = Some(Words { default, example });
    Rule { default: None, words, legal: Legal::Number { least, most }, unit }
}

/// One of a few words.
pub(super) const fn word<T>(default: T, words: &'static [&'static str]) -> Rule<T> {
    Rule { default, words: None, legal: Legal::Word(words), unit: "" }
}

/// Names of models.
pub(super) fn patterns() -> Rule<Vec<Pattern>> {
    Rule { default: vec![Pattern::any()], words: None, legal: Legal::Patterns, unit: "" }
}

/// The name of a model that need not be there.
pub(super) const fn model(default: &'static str, example: &'static str) -> Rule<Option<String>> {
    Rule { default: None, words: Some(Words { default, example }), legal: Legal::Model, unit: "" }
}

/// Where a model computes.
pub(super) const fn device() -> Rule<ModelDevice> {
    Rule { default: ModelDevice::Cpu, words: None, legal: Legal::Device, unit: "" }
}

/// The card of a GPU's driver.
pub(super) const fn node() -> Rule<Option<String>> {
    let words = Some(Words { default: "none", example: "\"/dev/dri/renderD128\"" });
    Rule { default: None, words, legal: Legal::Node, unit: "" }
}

impl<T: Value> Rule<T> {
    pub(super) fn default(self) -> T {
        self.default
    }

    pub(super) fn read(&self, value: &DeValue<'_>) -> Result<T, String> {
        T::read(value, self.legal)
    }

    pub(super) fn shown(&self, value: &T) -> Shown {
        let words = || Shown::Text(self.words.map_or("none", |words| words.default).to_owned());
        value.shown().unwrap_or_else(words)
    }

    pub(super) fn key(&self, name: &'static str, doc: &'static str) -> Key {
        Key {
            name,
            doc: doc.trim(),
            unit: self.unit,
            legal: self.legal.to_string(),
            default: self.default.shown().map(|shown| in_file(&shown)),
            words: self.words.map(|words| (words.default, words.example)),
        }
    }
}

/// As TOML.
fn in_file(shown: &Shown) -> String {
    match shown {
        Shown::Number(number) => number.to_string(),
        Shown::Text(text) => quoted(text),
        Shown::List(list) => {
            format!("[{}]", list.iter().map(|text| quoted(text)).collect::<Vec<_>>().join(", "))
        }
    }
}

/// A basic string of TOML.
pub(super) fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

impl fmt::Display for Legal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number { least, most } => write!(f, "from {least} to {most}"),
            Self::Word(words) => {
                let words: Vec<String> = words.iter().map(|word| format!("{word:?}")).collect();
                f.write_str(&words.join(" or "))
            }
            Self::Patterns => f.write_str("a list of names of models, with * for any part"),
            Self::Model => f.write_str("the name of a model"),
            Self::Device => {
                f.write_str("\"cpu\" or \"wgpu\" or the name of a section of devices that is a GPU")
            }
            Self::Node => f.write_str(
                "a render node, as in \"/dev/dri/renderD128\", or the number of a card, as in \"0\"",
            ),
        }
    }
}

/// `is VALUE; it must be LEGAL`.
fn wrong(value: &DeValue<'_>, legal: Legal) -> String {
    let is = match value {
        DeValue::Integer(integer) => integer.as_str().to_owned(),
        DeValue::Float(float) => float.as_str().to_owned(),
        DeValue::String(text) => format!("{:?}", text.chars().take(80).collect::<String>()),
        DeValue::Boolean(boolean) => boolean.to_string(),
        DeValue::Datetime(_) => "a date".to_owned(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a section".to_owned(),
    };
    format!("is {is}; it must be {legal}")
}

macro_rules! numbers {
    ($($type:ty),*) => { $(
        impl Value for $type {
            fn read(value: &DeValue<'_>, legal: Legal) -> Result<Self, String> {
                let number = value.as_integer().and_then(|integer| {
                    u64::from_str_radix(integer.as_str(), integer.radix()).ok()
                });
                let within = |number: &u64| match legal {
                    Legal::Number { least, most } => (least..=most).contains(number),
                    Legal::Word(_) | Legal::Patterns | Legal::Model | Legal::Device | Legal::Node => false,
                };
                let number = number.filter(within).and_then(|number| Self::try_from(number).ok());
                number.ok_or_else(|| wrong(value, legal))
            }

            fn shown(&self) -> Option<Shown> {
                Some(Shown::Number(u64::from(*self)))
            }
        }
    )* };
}

numbers!(u16, u32, u64);

impl<T: Value> Value for Option<T> {
    fn read(value: &DeValue<'_>, legal: Legal) -> Result<Self, String> {
        T::read(value, legal).map(Some)
    }

    fn shown(&self) -> Option<Shown> {
        self.as_ref().and_then(Value::shown)
    }
}

impl Value for String {
    fn read(value: &DeValue<'_>, legal: Legal) -> Result<Self, String> {
        let text = value.as_str().filter(|text| !text.is_empty());
        text.map(str::to_owned).ok_or_else(|| wrong(value, legal))
    }

    fn shown(&self) -> Option<Shown> {
        Some(Shown::Text(self.clone()))
    }
}

impl Value for ModelDevice {
    fn read(value: &DeValue<'_>, legal: Legal) -> Result<Self, String> {
        match value.as_str() {
            Some("cpu") => Ok(Self::Cpu),
            Some("wgpu") => Ok(Self::AnyGpu),
            Some(name) if is_gpu_name(name) => Ok(Self::Gpu(name.to_owned())),
            Some(_) | None => Err(wrong(value, legal)),
        }
    }

    fn shown(&self) -> Option<Shown> {
        Some(Shown::Text(self.name().to_owned()))
    }
}

impl Value for Vec<Pattern> {
    fn read(value: &DeValue<'_>, legal: Legal) -> Result<Self, String> {
        let list = value.as_array().ok_or_else(|| wrong(value, legal))?;
        let item = |item: &DeValue<'_>| {
            let text = item.as_str().filter(|text| !text.is_empty());
            text.map(Pattern::new).ok_or_else(|| format!("has an entry that {}", wrong(item, Legal::Model)))
        };
        list.iter().map(|entry| item(entry.get_ref())).collect()
    }

    fn shown(&self) -> Option<Shown> {
        Some(Shown::List(self.iter().map(|pattern| pattern.as_str().to_owned()).collect()))
    }
}

/// Values that are words: each word with what it means.
macro_rules! words {
    ($type:ty { $($word:literal => $value:path),* }) => {
        impl Value for $type {
            fn read(value: &DeValue<'_>, legal: Legal) -> Result<Self, String> {
                match value.as_str() {
                    $( Some($word) => Ok($value), )*
                    Some(_) | None => Err(wrong(value, legal)),
                }
            }

            fn shown(&self) -> Option<Shown> {
                let word = match self { $( $value => $word, )* };
                Some(Shown::Text(word.to_owned()))
            }
        }
    };
}

words!(Order { "fair" => Order::Fair, "arrival" => Order::Arrival });
words!(Class { "realtime" => Class::Realtime, "interactive" => Class::Interactive, "batch" => Class::Batch });
words!(GpuDriver { "software" => GpuDriver::Software, "mesa" => GpuDriver::Mesa, "nvidia" => GpuDriver::Nvidia });
words!(FallbackDevice { "none" => FallbackDevice::None, "cpu" => FallbackDevice::Cpu });
words!(OnDiskChange { "refuse_new" => OnDiskChange::RefuseNew, "ignore" => OnDiskChange::Ignore });

/// Where a model's workers compute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelDevice {
    /// On the processor.
    Cpu,
    /// On any GPU.
    AnyGpu,
    /// On the GPU of this name.
    Gpu(String),
}

impl ModelDevice {
    /// As in the file.
    pub fn name(&self) -> &str {
        match self {
            Self::Cpu => "cpu",
            Self::AnyGpu => "wgpu",
            Self::Gpu(name) => name,
        }
    }
}

/// Where a model runs that its own device can't run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FallbackDevice {
    /// Nowhere.
    None,
    /// On the processor.
    Cpu,
}

/// Whose Vulkan driver a GPU's workers use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GpuDriver {
    /// Mesa's in software, which needs no card.
    Software,
    /// One of Mesa's for a card.
    Mesa,
    /// NVIDIA's.
    Nvidia,
}

/// The longest name of a GPU, in bytes.
const GPU_NAME_MAX: usize = 32;

/// Whether a section of `devices` of this name is a GPU.
pub(super) fn is_gpu_name(name: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !["cpu", "host"].contains(&name) && (1..=GPU_NAME_MAX).contains(&name.len()) && name.bytes().all(legal)
}

/// What happens to new jobs while the files of a loaded package are not the running ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDiskChange {
    /// They are refused.
    RefuseNew,
    /// They run, with the verified bytes that are held in memory.
    Ignore,
}

/// A section of the file.
pub(super) trait Section: Default {
    /// Its keys, in the order of the documentation.
    fn keys() -> Vec<Key>;
    /// Takes a key from the file; `None` where there is none of this name.
    fn set(&mut self, name: &str, value: &DeValue<'_>) -> Option<Result<(), String>>;
    /// What counts, key by key.
    fn shown(&self) -> Vec<Shown>;
}

/// Declares a section: a key is its name, type, rule and documentation, and nothing else anywhere.
macro_rules! section {
    ($(#[$meta:meta])* $name:ident { $( $( #[doc = $doc:literal] )+ $key:ident: $type:ty = $rule:expr; )* }) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $name {
            $( $( #[doc = $doc] )+ pub $key: $type, )*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $( $key: { let rule: Rule<$type> = $rule; rule.default() }, )* }
            }
        }

        impl Section for $name {
            fn keys() -> Vec<Key> {
                vec![ $( { let rule: Rule<$type> = $rule; rule.key(stringify!($key), concat!($($doc),+)) }, )* ]
            }

            fn set(&mut self, name: &str, value: &DeValue<'_>) -> Option<Result<(), String>> {
                match name {
                    $( stringify!($key) => {
                        let rule: Rule<$type> = $rule;
                        Some(rule.read(value).map(|value| self.$key = value))
                    } )*
                    _ => None,
                }
            }

            fn shown(&self) -> Vec<Shown> {
                vec![ $( { let rule: Rule<$type> = $rule; rule.shown(&self.$key) }, )* ]
            }
        }
    };
}

pub(super) use section;
