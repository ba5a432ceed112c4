//! The link between server and worker: who may say what, with which descriptors.
//!
//! ```text
//! worker                              server
//!   Hello{digest}             ->                 first message; its credentials tell the worker's pid
//!                             <-  Start          trusted numbers only; the worker warms up on random weights
//!   Sealed{layers}            ->                 every layer is on; the server checks it in /proc
//!                             <-  Load + fds     the first descriptors that a stranger filled
//!   Ready | LoadFailed        ->                 LoadFailed also instead of Sealed: no room even for the warm-up
//!                             <-  Run [+ fd]     for a slot that is free
//!   Chunk* Done | Failed      ->                 in order; the slot is free again after Done or Failed
//!                             <-  Transcribe + fd  instead of Run, for a model of speech
//!   Heard Segment* Done | Failed  ->             in order, as for Run
//!                             <-  Generate [+ fds]  instead of Run, for a model of text
//!   Prompted Text* Finished Done | Failed  ->    in order, as for Run
//!                             <-  LoadDetector + fds  once, before the first Listen
//!                             <-  Listen + fd    instead of Run, for a stream of live sound
//!   Listens                   ->                 its key; the stream may begin
//!   Partial* Segment* Listened* Done | Failed  ->  in any order until the end
//!                             <-  Cancel         the slot stays legal until its end arrives
//!                             <-  Drill          no answer
//!   DeviceFailed              ->                 at any time after Start
//!                             <-  Stop           finish the step, then exit 0
//! ```

use crate::convert::BlockType;
use crate::generate::{FinishReason, GenerateData, GrantedText, Precedence, TextPiece};
use crate::link::Link;
use crate::stream::StreamPublic;
use crate::transcribe::{Audio, AudioFault, Listened, Segment, StreamFault, TranscribeOptions};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The server's end of a worker's link.
pub type WorkerLink = Link<ToWorker, FromWorker>;
/// The worker's end.
pub type WorkerSideLink = Link<FromWorker, ToWorker>;

/// The model architectures that a worker can run. The manifest names one; the warm-up needs it before any weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Architecture {
    /// BERT-family sentence embedders.
    Bert,
    /// Whisper, which turns speech into text.
    Whisper,
    /// Llama-family text generators.
    Llama,
}

/// Where a worker computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Device {
    /// On the processor, in the memory of its lease.
    Cpu,
    /// On the first Vulkan device that its sandbox shows it.
    Wgpu {
        /// Bytes of device memory that it may have reserved, beside the lease of its own memory.
        lease_bytes: u64,
    },
}

/// What a worker is to become. Everything in it comes from the server, nothing from a package or a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// What to warm up.
    pub architecture: Architecture,
    /// Where to.
    pub device: Device,
    /// Compute threads.
    pub threads: u16,
    /// Bytes that the worker's allocator may hand out before it refuses.
    pub lease_bytes: u64,
    /// Longest input in tokens, special tokens included.
    pub max_tokens: u32,
    /// Most tokens in one step.
    pub step_tokens: u32,
    /// Most jobs at a time: what a generator makes room for in its lease.
    pub slots: u16,
    /// How long a step should last, by the worker's own measure, in microseconds: fewer tokens are taken where as many
    /// would last longer.
    pub step_us: u32,
    /// Jobs come one at a time, and each is to be measured alone: the worker gives back the former one's buffers and
    /// counts the peak anew when the next comes.
    pub calibrate: bool,
}

/// From the server to a worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToWorker {
    /// The first message.
    Start(Start),
    /// The package: `files[i]` is the name of the i-th descriptor, a sealed memfd.
    Load {
        /// Names relative to the package, with `/`.
        files: Vec<String>,
        /// Tensors of it that are in quantised blocks; at most [`crate::BLOCKS_BYTES_MAX`] encoded.
        blocks: Vec<KeptBlocks>,
    },
    /// A job for a free slot. With [`Data::Descriptor`] exactly one sealed memfd comes along.
    Run {
        /// The worker's number for this job until its end.
        slot: u32,
        /// Caches must not be shared across domains.
        domain: u64,
        /// The domain's share of steps beside other domains in the worker; at least 1.
        weight: u16,
        /// The job's input.
        input: Data,
    },
    /// A job of speech recognition for a free slot. With [`Audio::Sealed`] exactly one sealed memfd comes along, with
    /// [`Audio::File`] a socket.
    Transcribe {
        /// The worker's number for this job until its end.
        slot: u32,
        /// Caches must not be shared across domains.
        domain: u64,
        /// As in [`ToWorker::Run`].
        weight: u16,
        /// How.
        options: TranscribeOptions,
        /// What.
        audio: Audio,
    },
    /// A job of text generation for a free slot. The input's descriptor comes along, if it has one, then the granted
    /// file's.
    Generate {
        /// The worker's number for this job until its end.
        slot: u32,
        /// Caches must not be shared across domains.
        domain: u64,
        /// As in [`ToWorker::Run`].
        weight: u16,
        /// Who gives way where there is too little room.
        precedence: Precedence,
        /// What.
        input: GenerateData,
        /// Where the file of [`crate::ChatContent::File`] is. What comes of it is kept for no other job.
        file: Option<GrantedText>,
    },
    /// Stop the job in this slot at the next step; answered by `Done` or `Failed`.
    Cancel {
        /// Which.
        slot: u32,
    },
    /// Take this much memory past the allocator and keep it, as a worker would that somebody has taken over: the
    /// operator wants to see what stops it. The worker lives on where nothing does.
    Drill {
        /// How much.
        bytes: u64,
    },
    /// Exit with 0 after the step that runs.
    Stop,
    /// The package of a voice detector, by which live sound is cut into phrases: `files[i]` is the name of the i-th
    /// descriptor, a sealed memfd. Once, after `Ready`, before the first `Listen`; nothing answers it.
    LoadDetector {
        /// Names relative to the package, with `/`.
        files: Vec<String>,
    },
    /// Live sound for a free slot, whose job lasts as long as the stream. The reader's end of a [`crate::stream_pair`] comes
    /// along. Answered by `Listens`, or by `Failed`.
    Listen {
        /// The worker's number for this job until its end.
        slot: u32,
        /// Caches must not be shared across domains.
        domain: u64,
        /// As in [`ToWorker::Run`].
        weight: u16,
        /// How.
        options: TranscribeOptions,
        /// The key of the program that captures.
        audio: StreamPublic,
    },
}

/// A tensor in quantised blocks, which are U8 in the weights.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptBlocks {
    /// Its name.
    pub tensor: String,
    /// Of which kind.
    pub kind: BlockType,
    /// Its shape before it was quantised, outermost dimension first.
    pub shape: Vec<u64>,
}

impl KeptBlocks {
    /// Upper bound of the bytes that it takes in a message.
    pub fn bytes_max(&self) -> usize {
        // A length of up to three bytes each for name and shape, one for the kind, up to ten for a number.
        self.tensor.len() + 7 + 10 * self.shape.len()
    }
}

/// Where the encoded input of a job is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Data {
    /// In the message, at most `INLINE_INPUT_BYTES_MAX` once encoded.
    Inline(EmbedInput),
    /// In the sealed memfd that came with the message: postcard of an [`EmbedInput`], this many bytes.
    Descriptor {
        /// Length of the encoding.
        bytes: u64,
    },
    /// A copy of a granted file, one text: a sealed memfd with its bytes came with the message.
    Text {
        /// How many bytes.
        bytes: u64,
        /// What becomes of the text.
        split: Split,
    },
    /// A granted file, one text: a [`crate::FileLink`] came with the message, non-blocking.
    File {
        /// What becomes of the text.
        split: Split,
    },
}

/// What becomes of a granted file's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Split {
    /// It is one item.
    Whole {
        /// Cut a text that is too long instead of failing the job.
        truncate: bool,
    },
    /// It is as many items as it takes, at most [`crate::ITEMS_MAX`]; the worker says where they are.
    Passages {
        /// The most tokens of one, without special ones; at least 1. No more than the model takes counts.
        tokens_max: u32,
    },
}

/// Where a passage is in its file, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passage {
    /// The first.
    pub start: u32,
    /// Behind the last.
    pub end: u32,
}

/// The input of an embedding job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EmbedInput {
    /// What to embed, in order; at least one, at most `ITEMS_MAX`.
    pub items: Vec<Item>,
    /// Cut an item that is too long instead of failing the job.
    pub truncate: bool,
}

impl EmbedInput {
    /// The bytes that a descriptor carries.
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("numbers and texts encode into memory")
    }

    /// Reads what [`EmbedInput::encode`] wrote; `None` if it is anything else, or out of bounds.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (input, rest) = postcard::take_from_bytes::<Self>(bytes).ok()?;
        (rest.is_empty() && input.is_legal()).then_some(input)
    }

    /// Whether the number of items is within bounds.
    pub fn is_legal(&self) -> bool {
        (1..=crate::ITEMS_MAX).contains(&self.items.len())
    }
}

/// One text to embed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Item {
    /// UTF-8 text, tokenised in the worker.
    Text(String),
    /// Token ids, special tokens included or not as the client chose.
    Tokens(Vec<u32>),
}

/// From a worker to the server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FromWorker {
    /// The first message.
    Hello {
        /// [`crate::DIGEST`] of the worker's build.
        digest: String,
    },
    /// Warm-up is over and every sandbox layer is on.
    Sealed {
        /// The layers, in the order in which they were applied.
        layers: Vec<Layer>,
        /// Landlock's ABI on this kernel.
        landlock_abi: u32,
        /// Time from `main` to the filter, less the warm-up, in microseconds.
        setup_us: u64,
        /// Time of the warm-up in microseconds.
        warm_up_us: u64,
    },
    /// The package is loaded and jobs may come.
    Ready {
        /// Width of the model's output: floats per embedding.
        dimensions: u32,
        /// Upper bound of the bytes that one token of a step takes.
        bytes_per_token: u64,
        /// Bytes that the allocator has handed out after the load.
        used_bytes: u64,
        /// The most of them at one time until now.
        peak_bytes: u64,
        /// Longest input: the smaller of the manifest's and the weights' own bound.
        max_tokens: u32,
        /// Size of the vocabulary: token ids are below it.
        vocabulary: u32,
    },
    /// The package can't be run. The worker exits after this.
    LoadFailed {
        /// Why.
        error: LoadError,
    },
    /// What the text of a slot was split into: once, before its first chunk, where [`Split::Passages`] asked for it.
    Passages {
        /// Whose.
        slot: u32,
        /// In the order of the text, none over another, none empty; at most [`crate::ITEMS_MAX`].
        passages: Vec<Passage>,
    },
    /// The next bytes of a slot's output: little-endian f32, item by item.
    Chunk {
        /// Whose.
        slot: u32,
        /// From 0, without gaps.
        sequence: u32,
        /// At most `CHUNK_BYTES_MAX`, never empty.
        data: ChunkBytes,
    },
    /// The audio of a slot was read to its end: once, before its first segment.
    Heard {
        /// Whose.
        slot: u32,
        /// How long it is; at most [`crate::AUDIO_MS_MAX`].
        audio_ms: u64,
        /// What is spoken, as the client said or the model found; at most [`crate::LANGUAGE_BYTES_MAX`].
        language: String,
    },
    /// The next piece of a slot's text.
    Segment {
        /// Whose.
        slot: u32,
        /// From 0, without gaps; below [`crate::SEGMENTS_MAX`].
        sequence: u32,
        /// Not before the one before it ends.
        segment: Segment,
    },
    /// The prompt of a slot was read: once, before its first piece.
    Prompted {
        /// Whose.
        slot: u32,
        /// Its length in tokens; at least 1.
        tokens: u32,
        /// Of these, what was known from jobs of the same domain.
        cached: u32,
    },
    /// The next piece of a slot's answer.
    Text {
        /// Whose.
        slot: u32,
        /// From 0, without gaps.
        sequence: u32,
        /// It.
        piece: TextPiece,
    },
    /// A slot's answer is over: once, before its `Done`.
    Finished {
        /// Whose.
        slot: u32,
        /// Why.
        reason: FinishReason,
    },
    /// One step of the device ended.
    Step {
        /// How long the device worked, in microseconds.
        busy_us: u64,
        /// Tokens of each slot in this step: how the server splits what it measured.
        tokens: Vec<(u32, u32)>,
    },
    /// A job's end: all of its output has been sent.
    Done {
        /// Which.
        slot: u32,
        /// Tokens run, special tokens included, after truncation.
        tokens: u32,
        /// Items that were cut.
        truncated: u32,
        /// Time in tokeniser and device on behalf of this job, in microseconds.
        compute_us: u64,
        /// Bytes of its device's memory that it has handed out now.
        used_bytes: u64,
        /// The most of that at one time so far; in a calibration, since this job came.
        peak_bytes: u64,
    },
    /// The device can't be used, or no longer. The worker exits after this.
    DeviceFailed {
        /// The driver's word, at most [`crate::REASON_BYTES_MAX`] of it.
        reason: String,
    },
    /// A job's end without output.
    Failed {
        /// Which.
        slot: u32,
        /// Why.
        error: JobError,
    },
    /// A live job waits for its stream.
    Listens {
        /// Whose.
        slot: u32,
        /// The key of this end, made for this stream.
        key: StreamPublic,
    },
    /// What is being said, as far as it was heard: in place of the one before it, until a `Segment` says it for good. Without
    /// a text: it was nothing, and there will be no segment. A `Listened` that reaches as far is before it, as before a
    /// live job's `Segment`.
    Partial {
        /// Whose.
        slot: u32,
        /// Where the phrase begins in the stream, in milliseconds.
        start_ms: u64,
        /// At most [`crate::SEGMENT_TEXT_BYTES_MAX`].
        text: String,
    },
    /// How a live job stands: at least every [`crate::LISTENED_MS`] of sound, and once before its end.
    Listened {
        /// Whose.
        slot: u32,
        /// Counts since the stream began.
        listened: Listened,
    },
}

/// Bytes of a chunk; a type of its own so that they are encoded as one run and not number by number.
#[derive(Clone, PartialEq, Eq)]
pub struct ChunkBytes(pub Vec<u8>);

impl fmt::Debug for ChunkBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl Serialize for ChunkBytes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for ChunkBytes {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl serde::de::Visitor<'_> for Bytes {
            type Value = ChunkBytes;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<ChunkBytes, E> {
                Ok(ChunkBytes(bytes.to_vec()))
            }
        }
        deserializer.deserialize_bytes(Bytes)
    }
}

/// A layer of the sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layer {
    /// A cleared environment and only the descriptors that belong to the program.
    Descriptors,
    /// User, mount, pid, net, ipc, uts and cgroup namespaces, with an empty root.
    Namespaces,
    /// Resource limits.
    Rlimits,
    /// A memory cgroup, where the configuration names a parent.
    Cgroup,
    /// No new privileges, not dumpable, no capabilities, dies with its parent.
    Privileges,
    /// Landlock.
    Landlock,
    /// The system call filter.
    Seccomp,
}

/// Why a package can't be run; the message is for the operator and holds no file contents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum LoadError {
    /// A descriptor is not a memfd with all seals.
    #[error("file `{file}` is not sealed")]
    NotSealed {
        /// Which.
        file: String,
    },
    /// A file that the architecture needs is not in the package.
    #[error("the package has no `{file}`")]
    Missing {
        /// Which.
        file: String,
    },
    /// A file does not parse, or says something that this architecture can't be.
    #[error("`{file}`: {reason}")]
    Malformed {
        /// Which.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A tensor is missing or has another shape or type than the configuration says.
    #[error("tensor `{tensor}`: {reason}")]
    Tensor {
        /// Which.
        tensor: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The weights and what they need beside them don't fit in the lease.
    #[error("out of memory: {wanted} bytes wanted, {used} of {limit} in use")]
    OutOfMemory {
        /// The request that was refused, in bytes.
        wanted: u64,
        /// Bytes in use then.
        used: u64,
        /// The lease.
        limit: u64,
    },
    /// The device failed while the weights were put on it; the package may be as it must be.
    #[error("the device failed: {reason}")]
    Device {
        /// The driver's word.
        reason: String,
    },
}

/// Why a job failed in the worker. `item` counts from 0 in the job's input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum JobError {
    /// More tokens than the model takes, and the job did not ask for truncation.
    #[error("input {item} has {tokens} tokens, the model takes at most {max_tokens}")]
    InputTooLong {
        /// Which.
        item: u32,
        /// Its length with special tokens.
        tokens: u32,
        /// The bound.
        max_tokens: u32,
    },
    /// An item without any text or token.
    #[error("input {item} is empty")]
    InputEmpty {
        /// Which.
        item: u32,
    },
    /// A token id outside the vocabulary.
    #[error("input {item}: token {token} is outside the vocabulary of {vocabulary}")]
    TokenUnknown {
        /// Which.
        item: u32,
        /// The id.
        token: u32,
        /// Ids are below this.
        vocabulary: u32,
    },
    /// The tokeniser gave up on the item.
    #[error("input {item} can't be tokenised")]
    Tokenizer {
        /// Which.
        item: u32,
    },
    /// The job would pass the lease.
    #[error("out of memory: {wanted} bytes wanted, {used} of {limit} in use")]
    OutOfMemory {
        /// The request that was refused, in bytes.
        wanted: u64,
        /// Bytes in use then.
        used: u64,
        /// The lease.
        limit: u64,
    },
    /// The model computed a value that is not a number.
    #[error("the model's output for input {item} is not finite")]
    NotFinite {
        /// Which.
        item: u32,
    },
    /// The granted file can't be read.
    #[error("the granted file is refused: {refusal}")]
    InputRefused {
        /// Its service's word.
        refusal: crate::FileRefusal,
    },
    /// The granted file's service ended, or gave no bytes for too long.
    #[error("the granted file could not be read to its end")]
    InputUnavailable,
    /// The granted file is longer than an input may be.
    #[error("the granted file has more than the {limit} bytes that an input may have")]
    InputTooLarge {
        /// The bound.
        limit: u64,
    },
    /// The granted file has more passages than a job may have items.
    #[error("the granted file has more than {limit} passages; ask for longer ones")]
    PassagesTooMany {
        /// The bound.
        limit: u32,
    },
    /// The granted file is no UTF-8.
    #[error("the granted file is not UTF-8 at byte {byte}")]
    InputNotText {
        /// Where it stops being.
        byte: u64,
    },
    /// The audio can't be read.
    #[error("{fault}")]
    AudioRefused {
        /// Why.
        fault: AudioFault,
    },
    /// The stream of live sound can't be read.
    #[error("{fault}")]
    StreamRefused {
        /// Why.
        fault: StreamFault,
    },
    /// The model does not know this language, or not how to translate.
    #[error("the model can't do this: {what}")]
    LanguageUnknown {
        /// Which language, or that it can't translate.
        what: String,
    },
    /// The prompt leaves no room for the answer that is wanted.
    #[error(
        "the prompt has {tokens} tokens, with an answer of up to {answer} that is more than the {max_tokens} that the \
         model takes; shorten the prompt or lower max_tokens"
    )]
    ContextTooLong {
        /// Of the prompt.
        tokens: u32,
        /// The answer's `max_tokens`, or 1.
        answer: u32,
        /// The bound.
        max_tokens: u32,
    },
    /// The package has no chat template, or it can't be used for these messages.
    #[error("the chat can't be written down for the model: {reason}")]
    Template {
        /// At most [`crate::TEMPLATE_REASON_BYTES_MAX`].
        reason: String,
    },
    /// The JSON schema can't be followed.
    #[error("the schema of response_format can't be used: {reason}")]
    Schema {
        /// At most [`crate::TEMPLATE_REASON_BYTES_MAX`].
        reason: String,
    },
    /// The server asked for it.
    #[error("cancelled")]
    Cancelled,
}
