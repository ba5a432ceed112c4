//! Where sound is captured from, as a client writes it and an approver reads it.

use crate::SOURCE_BYTES_MAX;
use crate::visible::hides;
use serde::Deserialize;
use std::fmt;

/// A source of sound. Its text is `pulse` or `pulse:SOURCE`, `alsa` or `alsa:DEVICE`, or `pushed`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// A sound server's source of this name, or its default.
    Pulse(Option<String>),
    /// A device of the kernel, as libasound names it, or its default.
    Alsa(Option<String>),
    /// What the client itself sends.
    Pushed,
}

/// A text names no source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a source of sound is `pulse`, `pulse:SOURCE`, `alsa`, `alsa:DEVICE` or `pushed`, of at most {SOURCE_BYTES_MAX} bytes, without \
     control or direction characters"
)]
pub struct SourceRefusal;

impl Source {
    /// The source that a text names.
    ///
    /// # Errors
    /// It names none. Nothing is repaired.
    pub fn parse(text: &str) -> Result<Self, SourceRefusal> {
        if text.len() > SOURCE_BYTES_MAX || text.chars().any(hides) {
            return Err(SourceRefusal);
        }
        let (interface, name) = match text.split_once(':') {
            None => (text, None),
            Some((_, "")) => return Err(SourceRefusal),
            Some((interface, name)) => (interface, Some(name.to_owned())),
        };
        match (interface, name) {
            ("pulse", name) => Ok(Self::Pulse(name)),
            ("alsa", name) => Ok(Self::Alsa(name)),
            ("pushed", None) => Ok(Self::Pushed),
            _ => Err(SourceRefusal),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pulse(None) => f.write_str("pulse"),
            Self::Pulse(Some(name)) => write!(f, "pulse:{name}"),
            Self::Alsa(None) => f.write_str("alsa"),
            Self::Alsa(Some(name)) => write!(f, "alsa:{name}"),
            Self::Pushed => f.write_str("pushed"),
        }
    }
}

/// What is done to sound before it leaves the program that captures it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Transform {
    /// Takes away what lies below this frequency.
    HighPass {
        /// In Hz, from 20 to 2000.
        hz: u16,
    },
    /// Brings speech to one loudness.
    GainControl,
    /// Changes the sound of the voice.
    Obfuscate,
    /// Leaves what a lower sampling rate holds.
    Decimate {
        /// 2 or 4.
        factor: u8,
    },
}

impl Transform {
    /// Whether its number is within its range.
    pub fn is_legal(self) -> bool {
        match self {
            Self::HighPass { hz } => (20..=2_000).contains(&hz),
            Self::Decimate { factor } => matches!(factor, 2 | 4),
            Self::GainControl | Self::Obfuscate => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_one_of_a_few_words_and_a_plain_name() {
        for text in ["pulse", "pulse:fakemic.monitor", "alsa", "alsa:hw:1,0", "pushed"] {
            assert_eq!(Source::parse(text).map(|source| source.to_string()).as_deref(), Ok(text));
        }
        let long = format!("pulse:{}", "x".repeat(SOURCE_BYTES_MAX));
        for text in [
            "",
            "jack",
            "Pulse",
            "pulse:",
            "pushed:x",
            "/dev/snd",
            "alsa:a\0b",
            "pulse:a\u{202e}b",
            "pulse:a\n",
            &long,
        ] {
            assert_eq!(Source::parse(text), Err(SourceRefusal), "{text:?}");
        }
    }
}
