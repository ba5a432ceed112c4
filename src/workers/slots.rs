//! What a serving worker may say: the table of its slots. Anything else is illegal, and the worker is killed.

use super::writing::{Answer, Writing};
use ringfence_protocol::{
    AUDIO_MS_MAX, CHUNK_BYTES_MAX, FromWorker, ITEMS_MAX, JobError, LANGUAGE_BYTES_MAX, Listened, Passage,
    SEGMENT_TEXT_BYTES_MAX, SEGMENTS_MAX, SLOTS_MAX, Segment, StreamPublic, TextPiece,
};
use ringfence_scheduler::JobId;
use std::collections::BTreeMap;

/// Bytes that a job's segments may have together, texts and tokens.
const SPEECH_BYTES_MAX: usize = 8 * 1024 * 1024;

/// The slots of one worker.
#[derive(Debug)]
pub(crate) struct Slots {
    running: BTreeMap<u32, Running>,
    shape: Shape,
    usage: Usage,
}

/// What a worker has of its device's memory, by its own word: for people, nothing is decided by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Handed out at the end of the last job, or once it was loaded.
    pub(crate) used_bytes: u64,
    /// The most at one time.
    pub(crate) peak_bytes: u64,
}

/// What the worker said of its model when it was ready; later messages must agree with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Floats per embedding.
    pub(crate) dimensions: u32,
    /// Longest input in tokens.
    pub(crate) max_tokens: u32,
    /// Token ids are below it.
    pub(crate) vocabulary: u32,
}

#[derive(Debug)]
struct Running {
    job: JobId,
    output: Growing,
}

/// What has come of a job until now.
#[derive(Debug)]
enum Growing {
    Vectors(Vectors),
    /// Nothing, until the worker has heard the audio.
    Speech(Option<Speech>),
    /// Given on as it comes.
    Live(Live),
    Text(Writing),
}

/// What has come of a live job.
#[derive(Debug, Default)]
struct Live {
    /// Its worker has made its key.
    listens: bool,
    segments: u32,
    /// Where the last one begins.
    start_ms: u64,
    /// That texts and tokens took.
    bytes: usize,
    listened: Listened,
}

#[derive(Debug)]
struct Vectors {
    items: Items,
    data: Vec<u8>,
    next_chunk: u32,
}

/// What a job is to bring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Expected {
    /// A vector for each item.
    Vectors(Items),
    /// What is said in its audio.
    Speech,
    /// What is being said in its stream.
    Live,
    /// An answer to its prompt.
    Text {
        /// Whether it is to be there as a whole at the end, because nobody is told it before.
        is_kept: bool,
    },
}

impl Expected {
    /// Items, as far as they are known.
    pub(crate) fn items(&self) -> u32 {
        match self {
            Self::Vectors(items) => items.count().unwrap_or(1),
            Self::Speech | Self::Live | Self::Text { .. } => 1,
        }
    }
}

/// What a job has brought.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Made {
    /// A vector for each item.
    Vectors {
        /// Little-endian f32, item by item.
        data: Vec<u8>,
        /// What the items are, where the worker has split the input.
        passages: Option<Vec<Passage>>,
        /// Items that were cut.
        truncated: u32,
    },
    /// What is said in its audio.
    Speech(Speech),
    /// All of it was given on before.
    Live,
    /// An answer to its prompt.
    Text(Answer),
}

/// What is said in audio.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Speech {
    /// How long it is.
    pub(crate) audio_ms: u64,
    /// What is spoken.
    pub(crate) language: String,
    /// In their order.
    pub(crate) segments: Vec<Segment>,
    /// That their texts and tokens take.
    bytes: usize,
}

impl Speech {
    /// Of audio that was read to its end.
    pub(crate) fn new(audio_ms: u64, language: String, segments: Vec<Segment>) -> Self {
        Self { audio_ms, language, segments, bytes: 0 }
    }
}

/// How many items a job has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Items {
    /// As the client sent them.
    Given(u32),
    /// The worker has yet to say.
    Awaited,
    /// As the worker split them.
    Split(Vec<Passage>),
}

impl Items {
    /// None where the worker has yet to say.
    pub(crate) fn count(&self) -> Option<u32> {
        match self {
            Self::Given(items) => Some(*items),
            Self::Awaited => None,
            Self::Split(passages) => Some(passages.len() as u32),
        }
    }
}

/// What a legal message means.
#[derive(Debug, PartialEq)]
pub(crate) enum Effect {
    /// More of an output that is not complete.
    Progress,
    /// The worker knows how long a job's audio is.
    Heard {
        /// Whose.
        job: JobId,
        /// In milliseconds.
        audio_ms: u64,
    },
    /// More of what is said in a job's audio.
    Segment {
        /// Whose.
        job: JobId,
        /// What.
        segment: Segment,
    },
    /// What a live job's worker has to say.
    Live {
        /// Whose.
        job: JobId,
        /// What.
        said: Said,
    },
    /// A prompt was read.
    Prompted {
        /// Whose.
        job: JobId,
        /// Its tokens.
        tokens: u32,
        /// Of these, those that were known.
        cached: u32,
    },
    /// More of an answer.
    Text {
        /// Whose.
        job: JobId,
        /// What.
        piece: TextPiece,
    },
    /// A step ended.
    Step {
        /// As the worker states it; the server bounds it by its own clock.
        busy_us: u64,
        /// Tokens by job.
        tokens: Vec<(JobId, u32)>,
    },
    /// A job ended.
    End {
        /// Which.
        job: JobId,
        /// How.
        end: End,
    },
}

/// What a worker says of a live job until its end.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Said {
    /// The key that it has made for the stream.
    Listens(StreamPublic),
    /// What is being said, instead of what it said before.
    Partial {
        /// Where the phrase begins, in milliseconds.
        start_ms: u64,
        /// As far as it was heard.
        text: String,
    },
    /// What was said, for good.
    Final(Segment),
    /// How far it is.
    Listened(Listened),
}

/// How a job ended in a worker.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum End {
    /// With its whole output.
    Done {
        /// It.
        made: Made,
        /// Tokens run.
        tokens: u32,
        /// The worker's own figure.
        compute_us: u64,
    },
    /// Typed.
    Failed(JobError),
}

/// Why a message is not legal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Illegal {
    #[error("it does not decode")]
    Malformed,
    #[error("it carries descriptors")]
    Descriptors,
    #[error("it is not expected in this state")]
    State,
    #[error("it names a slot that is free")]
    SlotFree,
    #[error("it names a slot twice")]
    SlotTwice,
    #[error("a chunk is out of order")]
    ChunkOrder,
    #[error("a chunk has no bytes or too many")]
    ChunkLength,
    #[error("the output is longer or shorter than the model's width says")]
    OutputLength,
    #[error("it counts more tokens or items than the job can have")]
    Count,
    #[error("it states another protocol")]
    Digest,
    #[error("a number in it is out of its range")]
    Range,
}

impl Slots {
    /// All free.
    pub(crate) fn new(shape: Shape, usage: Usage) -> Self {
        Self { running: BTreeMap::new(), shape, usage }
    }

    /// What it last said that it has of its device's memory.
    pub(crate) fn usage(&self) -> Usage {
        self.usage
    }

    /// Whether no job is in the worker.
    pub(crate) fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    /// Takes the lowest free slot for a job.
    pub(crate) fn occupy(&mut self, job: JobId, expected: Expected) -> u32 {
        let free = (0..SLOTS_MAX).find(|slot| !self.running.contains_key(slot));
        let slot = free.expect("the scheduler keeps a worker's jobs below SLOTS_MAX");
        let output = match expected {
            Expected::Vectors(items) => Growing::Vectors(Vectors { items, data: Vec::new(), next_chunk: 0 }),
            Expected::Speech => Growing::Speech(None),
            Expected::Live => Growing::Live(Live::default()),
            Expected::Text { is_kept } => Growing::Text(Writing::new(is_kept)),
        };
        self.running.insert(slot, Running { job, output });
        slot
    }

    /// The slot of a job that runs here.
    pub(crate) fn of(&self, job: JobId) -> Option<u32> {
        self.running.iter().find(|(_, running)| running.job == job).map(|(slot, _)| *slot)
    }

    /// The jobs in it.
    pub(crate) fn jobs(&self) -> impl Iterator<Item = JobId> {
        self.running.values().map(|running| running.job)
    }

    /// Takes a message of a serving worker.
    pub(crate) fn take(&mut self, message: FromWorker) -> Result<Effect, Illegal> {
        match message {
            FromWorker::Passages { slot, passages } => self.vectors(slot)?.passages(passages),
            FromWorker::Chunk { slot, sequence, data } => {
                let dimensions = self.shape.dimensions;
                self.vectors(slot)?.chunk(sequence, &data.0, dimensions)
            }
            FromWorker::Heard { slot, audio_ms, language } => self.heard(slot, audio_ms, language),
            FromWorker::Segment { slot, sequence, segment } => self.segment(slot, sequence, segment),
            FromWorker::Step { busy_us, tokens } => self.step(busy_us, &tokens),
            FromWorker::Done { slot, tokens, truncated, compute_us, used_bytes, peak_bytes } => {
                let Running { job, output } = self.running.remove(&slot).ok_or(Illegal::SlotFree)?;
                if u64::from(tokens) > self.tokens_max(&output).ok_or(Illegal::State)? {
                    return Err(Illegal::Count);
                }
                let made = match output {
                    Growing::Vectors(vectors) => vectors.done(truncated, self.shape.dimensions)?,
                    Growing::Speech(speech) => Made::Speech(speech.ok_or(Illegal::State)?),
                    Growing::Live(Live { listens: true, .. }) => Made::Live,
                    Growing::Live(Live { listens: false, .. }) => return Err(Illegal::State),
                    Growing::Text(writing) => Made::Text(writing.done()?),
                };
                self.usage = Usage { used_bytes, peak_bytes };
                Ok(Effect::End { job, end: End::Done { made, tokens, compute_us } })
            }
            FromWorker::Failed { slot, error } => {
                let Running { job, output } = self.running.remove(&slot).ok_or(Illegal::SlotFree)?;
                // While a text is being split, it is the one item.
                let items = match output {
                    Growing::Vectors(vectors) => vectors.items.count().unwrap_or(1),
                    Growing::Speech(_) | Growing::Live(_) | Growing::Text(_) => 1,
                };
                if item_of(&error).is_some_and(|item| item >= items) {
                    return Err(Illegal::Count);
                }
                Ok(Effect::End { job, end: End::Failed(error) })
            }
            FromWorker::Hello { .. }
            | FromWorker::Sealed { .. }
            | FromWorker::Ready { .. }
            | FromWorker::LoadFailed { .. }
            | FromWorker::DeviceFailed { .. } => Err(Illegal::State),
            FromWorker::Listens { slot, key } => self.live(slot, |live| {
                if std::mem::replace(&mut live.listens, true) {
                    Err(Illegal::State)
                } else {
                    Ok(Said::Listens(key))
                }
            }),
            FromWorker::Partial { slot, start_ms, text } => {
                self.live(slot, |live| live.partial(start_ms, text))
            }
            FromWorker::Listened { slot, listened } => self.live(slot, |live| live.listened(listened)),
            FromWorker::Prompted { slot, tokens, cached } => {
                let max_tokens = self.shape.max_tokens;
                let (job, writing) = self.writing(slot)?;
                writing.prompted(tokens, cached, max_tokens)?;
                Ok(Effect::Prompted { job, tokens, cached })
            }
            FromWorker::Text { slot, sequence, piece } => {
                let Shape { max_tokens, vocabulary, .. } = self.shape;
                let (job, writing) = self.writing(slot)?;
                writing.text(sequence, &piece, max_tokens, vocabulary)?;
                Ok(Effect::Text { job, piece })
            }
            FromWorker::Finished { slot, reason } => {
                let (_, writing) = self.writing(slot)?;
                writing.finished(reason)?;
                Ok(Effect::Progress)
            }
        }
    }

    fn vectors(&mut self, slot: u32) -> Result<&mut Vectors, Illegal> {
        match &mut self.running.get_mut(&slot).ok_or(Illegal::SlotFree)?.output {
            Growing::Vectors(vectors) => Ok(vectors),
            Growing::Speech(_) | Growing::Live(_) | Growing::Text(_) => Err(Illegal::State),
        }
    }

    fn writing(&mut self, slot: u32) -> Result<(JobId, &mut Writing), Illegal> {
        let Running { job, output } = self.running.get_mut(&slot).ok_or(Illegal::SlotFree)?;
        match output {
            Growing::Text(writing) => Ok((*job, writing)),
            Growing::Vectors(_) | Growing::Speech(_) | Growing::Live(_) => Err(Illegal::State),
        }
    }

    fn live(
        &mut self,
        slot: u32,
        take: impl FnOnce(&mut Live) -> Result<Said, Illegal>,
    ) -> Result<Effect, Illegal> {
        let running = self.running.get_mut(&slot).ok_or(Illegal::SlotFree)?;
        let Growing::Live(live) = &mut running.output else { return Err(Illegal::State) };
        Ok(Effect::Live { job: running.job, said: take(live)? })
    }

    fn heard(&mut self, slot: u32, audio_ms: u64, language: String) -> Result<Effect, Illegal> {
        let running = self.running.get_mut(&slot).ok_or(Illegal::SlotFree)?;
        let Growing::Speech(speech @ None) = &mut running.output else { return Err(Illegal::State) };
        let named = language.bytes().all(|byte| byte.is_ascii_lowercase());
        if audio_ms > AUDIO_MS_MAX || !(1..=LANGUAGE_BYTES_MAX).contains(&language.len()) || !named {
            return Err(Illegal::Range);
        }
        *speech = Some(Speech::new(audio_ms, language, Vec::new()));
        Ok(Effect::Heard { job: running.job, audio_ms })
    }

    fn segment(&mut self, slot: u32, sequence: u32, segment: Segment) -> Result<Effect, Illegal> {
        let vocabulary = self.shape.vocabulary;
        let running = self.running.get_mut(&slot).ok_or(Illegal::SlotFree)?;
        let known = segment.tokens.iter().all(|token| *token < vocabulary);
        let speech = match &mut running.output {
            Growing::Speech(Some(speech)) => speech,
            Growing::Live(live) if known => {
                let said = Said::Final(live.segment(sequence, segment)?);
                return Ok(Effect::Live { job: running.job, said });
            }
            Growing::Live(_) => return Err(Illegal::Range),
            Growing::Speech(None) | Growing::Vectors(_) | Growing::Text(_) => return Err(Illegal::State),
        };
        if u32::try_from(speech.segments.len()) != Ok(sequence) || sequence >= SEGMENTS_MAX {
            return Err(Illegal::ChunkOrder);
        }
        let before = speech.segments.last().map_or(0, |last| last.start_ms);
        if !segment.is_legal(speech.audio_ms) || segment.start_ms < before || !known {
            return Err(Illegal::Range);
        }
        let bytes = segment.text.len() + 4 * segment.tokens.len();
        speech.bytes += bytes;
        if speech.bytes > SPEECH_BYTES_MAX {
            return Err(Illegal::OutputLength);
        }
        speech.segments.push(segment.clone());
        Ok(Effect::Segment { job: running.job, segment })
    }

    fn step(&self, busy_us: u64, tokens: &[(u32, u32)]) -> Result<Effect, Illegal> {
        let mut jobs: Vec<(JobId, u32)> = Vec::with_capacity(tokens.len().min(self.running.len()));
        for &(slot, count) in tokens {
            let running = self.running.get(&slot).ok_or(Illegal::SlotFree)?;
            if jobs.iter().any(|(job, _)| *job == running.job) {
                return Err(Illegal::SlotTwice);
            }
            if u64::from(count) > self.tokens_max(&running.output).ok_or(Illegal::State)? {
                return Err(Illegal::Count);
            }
            jobs.push((running.job, count));
        }
        Ok(Effect::Step { busy_us, tokens: jobs })
    }

    /// The most that a job can have; none where the worker has yet to say how many items it is.
    fn tokens_max(&self, output: &Growing) -> Option<u64> {
        match output {
            Growing::Vectors(vectors) => {
                Some(u64::from(vectors.items.count()?) * u64::from(self.shape.max_tokens))
            }
            // Frames are counted as well, and a window may be decoded at several temperatures.
            Growing::Speech(_) => Some(AUDIO_MS_MAX),
            // A phrase may be heard several times over, for the text as far as it goes.
            Growing::Live(_) => Some(u64::from(u32::MAX)),
            Growing::Text(_) => Some(u64::from(self.shape.max_tokens)),
        }
    }
}

impl Live {
    fn partial(&mut self, start_ms: u64, text: String) -> Result<Said, Illegal> {
        self.has_begun()?;
        if text.len() > SEGMENT_TEXT_BYTES_MAX || start_ms > AUDIO_MS_MAX {
            return Err(Illegal::Range);
        }
        Ok(Said::Partial { start_ms, text })
    }

    fn segment(&mut self, sequence: u32, segment: Segment) -> Result<Segment, Illegal> {
        self.has_begun()?;
        if sequence != self.segments || sequence >= SEGMENTS_MAX {
            return Err(Illegal::ChunkOrder);
        }
        if !segment.is_legal(AUDIO_MS_MAX) || segment.start_ms < self.start_ms {
            return Err(Illegal::Range);
        }
        self.segments += 1;
        self.start_ms = segment.start_ms;
        self.bytes += segment.text.len() + 4 * segment.tokens.len();
        if self.bytes > SPEECH_BYTES_MAX { Err(Illegal::OutputLength) } else { Ok(segment) }
    }

    fn listened(&mut self, listened: Listened) -> Result<Said, Illegal> {
        self.has_begun()?;
        let before = std::mem::replace(&mut self.listened, listened);
        if listened.audio_ms < before.audio_ms || listened.audio_ms > AUDIO_MS_MAX {
            return Err(Illegal::Range);
        }
        Ok(Said::Listened(listened))
    }

    fn has_begun(&self) -> Result<(), Illegal> {
        if self.listens { Ok(()) } else { Err(Illegal::State) }
    }
}

impl Vectors {
    fn passages(&mut self, passages: Vec<Passage>) -> Result<Effect, Illegal> {
        if self.items != Items::Awaited {
            return Err(Illegal::State);
        }
        if passages.len() > ITEMS_MAX {
            return Err(Illegal::Count);
        }
        let ordered = passages.windows(2).all(|pair| pair[0].end <= pair[1].start);
        if !ordered || passages.iter().any(|passage| passage.start >= passage.end) {
            return Err(Illegal::Range);
        }
        self.items = Items::Split(passages);
        Ok(Effect::Progress)
    }

    fn chunk(&mut self, sequence: u32, data: &[u8], dimensions: u32) -> Result<Effect, Illegal> {
        let bytes_max = output_bytes(self.items.count().ok_or(Illegal::State)?, dimensions);
        if sequence != self.next_chunk {
            return Err(Illegal::ChunkOrder);
        }
        if data.is_empty() || data.len() > CHUNK_BYTES_MAX {
            return Err(Illegal::ChunkLength);
        }
        if self.data.len() + data.len() > bytes_max {
            return Err(Illegal::OutputLength);
        }
        self.next_chunk += 1;
        self.data.extend_from_slice(data);
        Ok(Effect::Progress)
    }

    fn done(self, truncated: u32, dimensions: u32) -> Result<Made, Illegal> {
        let items = self.items.count().ok_or(Illegal::State)?;
        if self.data.len() != output_bytes(items, dimensions) {
            return Err(Illegal::OutputLength);
        }
        if truncated > items {
            return Err(Illegal::Count);
        }
        let passages = match self.items {
            Items::Split(passages) => Some(passages),
            Items::Given(_) | Items::Awaited => None,
        };
        Ok(Made::Vectors { data: self.data, passages, truncated })
    }
}

fn output_bytes(items: u32, dimensions: u32) -> usize {
    items as usize * dimensions as usize * 4
}

fn item_of(error: &JobError) -> Option<u32> {
    match error {
        JobError::InputTooLong { item, .. }
        | JobError::InputEmpty { item }
        | JobError::TokenUnknown { item, .. }
        | JobError::Tokenizer { item }
        | JobError::NotFinite { item } => Some(*item),
        JobError::OutOfMemory { .. }
        | JobError::InputRefused { .. }
        | JobError::InputUnavailable
        | JobError::InputTooLarge { .. }
        | JobError::PassagesTooMany { .. }
        | JobError::InputNotText { .. }
        | JobError::AudioRefused { .. }
        | JobError::StreamRefused { .. }
        | JobError::LanguageUnknown { .. }
        | JobError::ContextTooLong { .. }
        | JobError::Template { .. }
        | JobError::Schema { .. }
        | JobError::Cancelled => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringfence_protocol::ChunkBytes;

    const JOB: JobId = JobId(7);
    const LOADED: Usage = Usage { used_bytes: 6, peak_bytes: 7 };

    fn slots() -> Slots {
        let mut slots = Slots::new(Shape { dimensions: 2, max_tokens: 8, vocabulary: 100 }, LOADED);
        assert_eq!(slots.occupy(JOB, Expected::Vectors(Items::Given(2))), 0);
        slots
    }

    fn chunk(slot: u32, sequence: u32, bytes: usize) -> FromWorker {
        FromWorker::Chunk { slot, sequence, data: ChunkBytes(vec![1; bytes]) }
    }

    fn done(slot: u32) -> FromWorker {
        FromWorker::Done { slot, tokens: 6, truncated: 0, compute_us: 5, used_bytes: 8, peak_bytes: 9 }
    }

    #[test]
    fn a_job_ends_with_all_of_its_output_and_its_slot_is_free_again() {
        let mut slots = slots();
        assert_eq!(slots.take(chunk(0, 0, 10)), Ok(Effect::Progress));
        assert_eq!(slots.take(chunk(0, 1, 6)), Ok(Effect::Progress));
        let step = FromWorker::Step { busy_us: 3, tokens: vec![(0, 6)] };
        assert_eq!(slots.take(step), Ok(Effect::Step { busy_us: 3, tokens: vec![(JOB, 6)] }));
        let made = Made::Vectors { data: vec![1; 16], passages: None, truncated: 0 };
        let end = End::Done { made, tokens: 6, compute_us: 5 };
        assert_eq!(slots.usage(), LOADED);
        assert_eq!(slots.take(done(0)), Ok(Effect::End { job: JOB, end }));
        assert_eq!(slots.usage(), Usage { used_bytes: 8, peak_bytes: 9 });
        assert_eq!(slots.take(done(0)), Err(Illegal::SlotFree));
    }

    fn passages(of: &[(u32, u32)]) -> FromWorker {
        let passages = of.iter().map(|(start, end)| Passage { start: *start, end: *end }).collect();
        FromWorker::Passages { slot: 0, passages }
    }

    #[test]
    fn a_text_that_is_split_has_as_many_items_as_the_worker_says_once_and_before_any_output() {
        let awaited = || {
            let mut slots = Slots::new(Shape { dimensions: 2, max_tokens: 8, vocabulary: 100 }, LOADED);
            slots.occupy(JOB, Expected::Vectors(Items::Awaited));
            slots
        };
        for early in [chunk(0, 0, 8), done(0), FromWorker::Step { busy_us: 1, tokens: vec![(0, 1)] }] {
            assert_eq!(awaited().take(early), Err(Illegal::State));
        }
        let cases = [
            (passages(&[(0, 0)]), Illegal::Range),
            (passages(&[(0, 5), (4, 6)]), Illegal::Range),
            (passages(&vec![(0, 1); ITEMS_MAX + 1]), Illegal::Count),
        ];
        for (message, expected) in cases {
            assert_eq!(awaited().take(message), Err(expected));
        }
        assert_eq!(slots().take(passages(&[(0, 5)])), Err(Illegal::State));
        let mut slots = awaited();
        assert_eq!(slots.take(passages(&[(0, 5), (6, 9)])), Ok(Effect::Progress));
        assert_eq!(slots.take(passages(&[(0, 5)])), Err(Illegal::State));
        assert_eq!(slots.take(chunk(0, 0, 16)), Ok(Effect::Progress));
        let Ok(Effect::End { end: End::Done { made: Made::Vectors { passages, .. }, .. }, .. }) =
            slots.take(done(0))
        else {
            panic!("a legal end");
        };
        assert_eq!(passages, Some(vec![Passage { start: 0, end: 5 }, Passage { start: 6, end: 9 }]));
    }

    #[test]
    fn every_other_message_is_illegal() {
        let failed = |item| FromWorker::Failed { slot: 0, error: JobError::InputEmpty { item } };
        let ready = FromWorker::Ready {
            dimensions: 2,
            bytes_per_token: 1,
            used_bytes: 1,
            peak_bytes: 1,
            max_tokens: 8,
            vocabulary: 100,
        };
        let cases = [
            (chunk(1, 0, 4), Illegal::SlotFree),
            (chunk(0, 1, 4), Illegal::ChunkOrder),
            (chunk(0, 0, 0), Illegal::ChunkLength),
            (chunk(0, 0, CHUNK_BYTES_MAX + 1), Illegal::ChunkLength),
            (chunk(0, 0, 17), Illegal::OutputLength),
            (done(0), Illegal::OutputLength),
            (done(3), Illegal::SlotFree),
            (failed(2), Illegal::Count),
            (FromWorker::Step { busy_us: 1, tokens: vec![(1, 1)] }, Illegal::SlotFree),
            (FromWorker::Step { busy_us: 1, tokens: vec![(0, 1), (0, 1)] }, Illegal::SlotTwice),
            (FromWorker::Step { busy_us: 1, tokens: vec![(0, 17)] }, Illegal::Count),
            (FromWorker::Hello { digest: String::new() }, Illegal::State),
            (ready, Illegal::State),
        ];
        for (message, expected) in cases {
            let text = format!("{message:?}");
            assert_eq!(slots().take(message), Err(expected), "{text}");
        }
    }

    fn segment(sequence: u32, start_ms: u64, end_ms: u64) -> FromWorker {
        let segment = Segment {
            seek_ms: 0,
            start_ms,
            end_ms,
            text: "Hello".to_owned(),
            tokens: vec![1, 99],
            temperature: 0.0,
            avg_logprob: -0.1,
            compression_ratio: 1.0,
            no_speech_prob: 0.0,
        };
        FromWorker::Segment { slot: 0, sequence, segment }
    }

    fn heard(audio_ms: u64, language: &str) -> FromWorker {
        FromWorker::Heard { slot: 0, audio_ms, language: language.to_owned() }
    }

    fn listening() -> Slots {
        let mut slots = Slots::new(Shape { dimensions: 2, max_tokens: 8, vocabulary: 100 }, LOADED);
        slots.occupy(JOB, Expected::Speech);
        slots
    }

    fn said(slots: &mut Slots, message: FromWorker) {
        let FromWorker::Segment { segment, .. } = message.clone() else { panic!("a segment") };
        assert_eq!(slots.take(message), Ok(Effect::Segment { job: JOB, segment }));
    }

    #[test]
    fn what_is_said_comes_after_how_long_the_audio_is_and_in_its_order() {
        let mut slots = listening();
        for early in [segment(0, 0, 1), done(0), chunk(0, 0, 4), passages(&[(0, 1)])] {
            assert_eq!(listening().take(early), Err(Illegal::State));
        }
        for wrong in [heard(AUDIO_MS_MAX + 1, "en"), heard(1, ""), heard(1, "englishes"), heard(1, "e\n")] {
            assert_eq!(listening().take(wrong), Err(Illegal::Range));
        }
        assert_eq!(slots.take(heard(5_000, "en")), Ok(Effect::Heard { job: JOB, audio_ms: 5_000 }));
        let after = |message| {
            let mut slots = listening();
            assert_eq!(slots.take(heard(5_000, "en")), Ok(Effect::Heard { job: JOB, audio_ms: 5_000 }));
            said(&mut slots, segment(0, 100, 900));
            slots.take(message)
        };
        assert_eq!(after(heard(5_000, "en")), Err(Illegal::State));
        assert_eq!(after(segment(2, 900, 1_000)), Err(Illegal::ChunkOrder));
        assert_eq!(after(segment(1, 99, 1_000)), Err(Illegal::Range));
        assert_eq!(after(segment(1, 900, 40_000)), Err(Illegal::Range));
        assert!(matches!(after(segment(1, 900, 1_000)), Ok(Effect::Segment { job: JOB, .. })));
        said(&mut slots, segment(0, 100, 900));
        let Ok(Effect::End { end: End::Done { made: Made::Speech(speech), .. }, .. }) = slots.take(done(0))
        else {
            panic!("a legal end");
        };
        assert_eq!((speech.audio_ms, speech.language.as_str(), speech.segments.len()), (5_000, "en", 1));
    }

    #[test]
    fn a_live_job_gives_its_key_first_and_what_is_said_in_its_order() {
        let key = FromWorker::Listens { slot: 0, key: StreamPublic([7; 32]) };
        let partial = |text: &str| FromWorker::Partial { slot: 0, start_ms: 100, text: text.to_owned() };
        let listened = |audio_ms| FromWorker::Listened {
            slot: 0,
            listened: Listened { audio_ms, ..Listened::default() },
        };
        let live = || {
            let mut slots = Slots::new(Shape { dimensions: 2, max_tokens: 8, vocabulary: 100 }, LOADED);
            slots.occupy(JOB, Expected::Live);
            slots
        };
        for early in [partial("a"), listened(1), segment(0, 0, 1), done(0), heard(1, "en"), chunk(0, 0, 4)] {
            assert_eq!(live().take(early), Err(Illegal::State));
        }
        let mut slots = live();
        let said = |said| Ok(Effect::Live { job: JOB, said });
        assert_eq!(slots.take(key.clone()), said(Said::Listens(StreamPublic([7; 32]))));
        assert_eq!(
            slots.take(listened(1_000)),
            said(Said::Listened(Listened { audio_ms: 1_000, ..Listened::default() }))
        );
        assert!(slots.take(partial("he")).is_ok() && slots.take(segment(0, 100, 900)).is_ok());
        let after = |message| {
            let mut slots = live();
            for before in [key.clone(), listened(1_000), segment(0, 100, 900)] {
                slots.take(before).unwrap();
            }
            slots.take(message)
        };
        assert_eq!(after(key.clone()), Err(Illegal::State));
        assert_eq!(after(segment(0, 900, 1_000)), Err(Illegal::ChunkOrder));
        assert_eq!(after(segment(1, 99, 1_000)), Err(Illegal::Range));
        assert_eq!(after(listened(999)), Err(Illegal::Range));
        assert_eq!(after(listened(AUDIO_MS_MAX + 1)), Err(Illegal::Range));
        assert_eq!(after(partial(&"x".repeat(SEGMENT_TEXT_BYTES_MAX + 1))), Err(Illegal::Range));
        assert!(matches!(after(done(0)), Ok(Effect::End { end: End::Done { made: Made::Live, .. }, .. })));
    }

    #[test]
    fn a_text_without_end_is_stopped() {
        let mut slots = listening();
        slots.take(heard(AUDIO_MS_MAX, "en")).unwrap();
        let stopped = (0..).find_map(|sequence| {
            let FromWorker::Segment { slot, mut segment, .. } = segment(sequence, 0, 1) else { return None };
            segment.text = "x".repeat(ringfence_protocol::SEGMENT_TEXT_BYTES_MAX);
            slots.take(FromWorker::Segment { slot, sequence, segment }).err()
        });
        assert_eq!(stopped, Some(Illegal::OutputLength));
    }

    #[test]
    fn more_tokens_than_the_job_can_have_are_illegal() {
        let mut slots = slots();
        slots.take(chunk(0, 0, 16)).unwrap();
        let message = FromWorker::Done {
            slot: 0,
            tokens: 17,
            truncated: 0,
            compute_us: 1,
            used_bytes: 1,
            peak_bytes: 1,
        };
        assert_eq!(slots.take(message), Err(Illegal::Count));
    }
}
