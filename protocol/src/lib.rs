//! The messages of each link between two programs, and the typed socket that carries them with descriptors.
//!
//! A link is a `SOCK_SEQPACKET` pair: one packet is one message, encoded with postcard, and may carry
//! descriptors. Each direction has its own closed enum, so that the two ends can't be swapped.

mod audio;
mod convert;
mod fileguard;
mod generate;
mod link;
mod stream;
mod transcribe;
mod worker;

pub use audio::{
    AUDIO_CHANNELS_MAX, AUDIO_DATA_BYTES_MAX, AUDIO_RATES, AUDIO_RING_FRAMES_MAX, AUDIO_RING_FRAMES_MIN,
    AudioError, AudioHost, AudioLink, AudioSideLink, AudioStatistics, CaptureEnd, CaptureStart,
    DEVICE_NAME_BYTES_MAX, Framing, FromAudio, LEVEL_MS_MIN, Level, Notice, PUSHED_AHEAD_MS_MAX,
    PUSHED_HEAD_BYTES_MAX, Pace, Pushed, STATISTICS_MS, STREAM_HANDSHAKE_MS_MAX, SampleEncoding,
    TRANSFORMS_MAX, ToAudio, Transform, audio_places,
};
pub use convert::{
    Archive, ArchiveKind, BLOCK_TENSORS_MAX, BlockType, CONVERT_NAME_BYTES_MAX, Content, ConvertError,
    ConverterLink, ConverterSideLink, Facts, FromConverter, MEMBERS_MAX, Member, ModelArchitecture,
    OUTPUTS_MAX, SOURCES_MAX, SourceForm, ToConverter,
};
pub use fileguard::{
    EXCLUDED_MAX, EntryKind, FILE_NAME_BYTES_MAX, FILE_PATH_BYTES_MAX, FILE_STEP_BYTES_MAX, FILE_STEPS_MAX,
    FILEGUARD_DATA_BYTES_MAX, FileAccess, FileEnd, FileEntry, FileLink, FileRefusal, FileReply, FileRequest,
    FileSideLink, FileguardLink, FileguardSideLink, FromFileguard, Identity, LIST_ENTRIES_MAX,
    LIST_FOLDER_ENTRIES_MAX, OPEN_FILES_MAX, RootKind, SNAPSHOT_BYTES_MAX, ToFileguard, WRITE_BYTES_MAX,
};
pub use generate::{
    CHAT_MESSAGES_MAX, ChatContent, ChatMessage, FinishReason, GenerateData, GenerateInput, GenerateOptions,
    GrantedText, LOGIT_BIAS_MAX, LikelyToken, Precedence, Prompt, ROLE_BYTES_MAX, SCHEMA_BYTES_MAX,
    STOP_BYTES_MAX, STOPS_MAX, TEMPLATE_REASON_BYTES_MAX, TEXT_BYTES_MAX, TEXT_TOKENS_MAX, TOKEN_BYTES_MAX,
    TOP_LOGPROBS_MAX, TextPiece, TokenLogprob,
};
pub use link::{CarriesBytes, Link, LinkError, Packet, Received, connected_pair};
pub use stream::{
    FRAME_BYTES, FRAME_SAMPLES, FRAME_US, Jitter, STREAM_PACKET_BYTES_MAX, STREAM_RATE, StreamError,
    StreamEvent, StreamFrame, StreamKey, StreamOpening, StreamPublic, StreamReader, StreamReceiver,
    StreamSender, StreamStatistics, frame_captured_us, frame_samples, receive_packet, send_packet,
    stream_pair, write_frame_head,
};
pub use transcribe::{
    AUDIO_BYTES_MAX, AUDIO_MS_MAX, Audio, AudioFault, LANGUAGE_BYTES_MAX, LISTENED_MS, Listened,
    PROMPT_BYTES_MAX, SEGMENT_TEXT_BYTES_MAX, SEGMENT_TOKENS_MAX, SEGMENTS_MAX, Segment, StreamFault,
    TranscribeOptions,
};
pub use worker::{
    Architecture, ChunkBytes, Data, Device, EmbedInput, FromWorker, Item, JobError, KeptBlocks, Layer,
    LoadError, Passage, Split, Start, ToWorker, WorkerLink, WorkerSideLink,
};

/// SHA-256 of this crate's sources, in hex. Both ends of a link state it first; a difference ends the program.
pub const DIGEST: &str = env!("RINGFENCE_PROTOCOL_DIGEST");

/// The largest message in bytes. Well below the default `SO_SNDBUF` of 212,992, so that one always fits.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// The largest payload of a [`FromWorker::Chunk`]; the rest of a message is its few numbers.
pub const CHUNK_BYTES_MAX: usize = MESSAGE_BYTES_MAX - 64;

/// The most descriptors that one message carries.
pub const DESCRIPTORS_MAX: usize = 32;

/// Inputs up to this many encoded bytes travel inside the message, larger ones as a sealed memfd.
pub const INLINE_INPUT_BYTES_MAX: usize = 32 * 1024;

/// The largest encoded input of one job, in bytes, inline or by descriptor.
pub const INPUT_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The most texts or token arrays in one job, as the OpenAI interface has it.
pub const ITEMS_MAX: usize = 2048;

/// The longest word of a driver in a message, in bytes.
pub const REASON_BYTES_MAX: usize = 1024;

/// The most encoded bytes of a package's tensors in quantised blocks, names and shapes: they travel in one message, beside
/// the names of its files.
pub const BLOCKS_BYTES_MAX: usize = 48 * 1024;

/// The most slots that one worker holds at a time.
pub const SLOTS_MAX: u32 = 256;
