//! Which tensors models take and give, by architecture.

use super::tensor::Datatype;
use crate::api::ApiError;
use ringfence_protocol::Architecture;
use serde::Serialize;
use utoipa::ToSchema;

/// A tensor as metadata has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub(super) struct TensorMetadata {
    /// Its name.
    pub(super) name: &'static str,
    /// What its elements are.
    pub(super) datatype: Datatype,
    /// Its dimensions; -1 is any size.
    pub(super) shape: &'static [i64],
}

/// What goes in and what comes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Signature {
    pub(super) inputs: &'static [TensorMetadata],
    pub(super) outputs: &'static [TensorMetadata],
}

/// Texts, one embedding each.
pub(super) const TEXT: TensorMetadata =
    TensorMetadata { name: "text", datatype: Datatype::Bytes, shape: &[-1] };
/// The same for one text as tokens. Metadata leaves it out: clients that send all that is listed would send both.
pub(super) const INPUT_IDS: TensorMetadata =
    TensorMetadata { name: "input_ids", datatype: Datatype::Int64, shape: &[-1] };
/// One row for each text. How wide it is stands in the package, which the server does not read.
pub(super) const EMBEDDING: TensorMetadata =
    TensorMetadata { name: "embedding", datatype: Datatype::Fp32, shape: &[-1, -1] };
/// The bytes of a file.
pub(super) const AUDIO: TensorMetadata =
    TensorMetadata { name: "audio", datatype: Datatype::Uint8, shape: &[-1] };
/// What was said in it.
pub(super) const TRANSCRIPT: TensorMetadata =
    TensorMetadata { name: "text", datatype: Datatype::Bytes, shape: &[1] };

/// What was written.
pub(super) const ANSWER: TensorMetadata =
    TensorMetadata { name: "text", datatype: Datatype::Bytes, shape: &[1] };
/// One prompt, which the answer goes on from.
pub(super) const PROMPT: TensorMetadata =
    TensorMetadata { name: "text", datatype: Datatype::Bytes, shape: &[1] };

impl Signature {
    /// Of models of this architecture.
    pub(super) fn of(architecture: Architecture) -> Self {
        match architecture {
            Architecture::Bert => Self { inputs: &[TEXT], outputs: &[EMBEDDING] },
            Architecture::Whisper => Self { inputs: &[AUDIO], outputs: &[TRANSCRIPT] },
            Architecture::Llama => Self { inputs: &[PROMPT], outputs: &[ANSWER] },
        }
    }

    /// The output of this name.
    pub(super) fn output(&self, name: &str) -> Result<&'static TensorMetadata, ApiError> {
        self.outputs.iter().find(|output| output.name == name).ok_or_else(|| {
            let name: String = name.chars().take(64).collect();
            let known: Vec<_> = self.outputs.iter().map(|output| output.name).collect();
            let message = format!("there is no output {name:?}; the model gives {}", known.join(", "));
            ApiError::invalid("tensor_invalid", &name, message)
        })
    }
}
