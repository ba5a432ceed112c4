//! `config.json` of Silero's voice detector: a network of one shape, whose numbers it repeats.

use super::{Files, config, json, malformed};
use ringfence_protocol::LoadError;
use serde::{Deserialize, Serialize};

const BYTES_MAX: usize = 64 * 1024;

/// Samples a second.
pub const SAMPLE_RATE: usize = 16_000;
/// New samples of a look.
pub const CHUNK: usize = 512;
/// Samples of the look before that it begins with.
pub const CONTEXT: usize = 64;
/// Samples that reflection adds at the end.
pub const PADDING: usize = 64;
/// Samples of a window of the transform.
pub const WINDOW: usize = 256;
/// Samples from one window to the next.
pub const HOP: usize = 128;
/// Frequencies of a window.
pub const FREQUENCIES: usize = WINDOW / 2 + 1;
/// Steps of the four convolutions.
pub const STRIDES: [usize; 4] = [1, 2, 2, 1];
/// Channels before, between and after them.
pub const CHANNELS: [usize; 5] = [FREQUENCIES, 128, 64, 64, HIDDEN];
/// Taps of each.
pub const KERNEL: usize = 3;
/// Floats of the recurrent cell's state.
pub const HIDDEN: usize = 128;
/// Gates of the cell, in PyTorch's order: input, forget, cell, output.
pub const GATES: usize = 4;

/// The file's contents.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SileroConfig {
    model_type: String,
    sample_rate: usize,
    chunk_samples: usize,
    context_samples: usize,
    padding_samples: usize,
    window_samples: usize,
    hop_samples: usize,
    encoder_strides: [usize; 4],
    hidden_size: usize,
}

impl Default for SileroConfig {
    fn default() -> Self {
        Self {
            model_type: "silero-vad".to_owned(),
            sample_rate: SAMPLE_RATE,
            chunk_samples: CHUNK,
            context_samples: CONTEXT,
            padding_samples: PADDING,
            window_samples: WINDOW,
            hop_samples: HOP,
            encoder_strides: STRIDES,
            hidden_size: HIDDEN,
        }
    }
}

impl SileroConfig {
    /// Holds a package's file against the one shape that there is.
    ///
    /// # Errors
    /// It is missing, malformed, or another network's.
    pub fn check(files: &Files) -> Result<(), LoadError> {
        let found: Self = json::parse(config::FILE, files.require(config::FILE, BYTES_MAX)?)?;
        if found == Self::default() {
            return Ok(());
        }
        Err(malformed(config::FILE, "it is not that of Silero's network for 16 kHz"))
    }
}
