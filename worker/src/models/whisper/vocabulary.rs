//! The tokens of a Whisper: those of text, and the special ones by which a task is asked for and times are told.

use crate::memory::{Memory, load_error};
use crate::package::whisper::WhisperConfig;
use crate::package::{Files, malformed, tokenizer};
use ringfence_protocol::LoadError;
use tokenizers::Tokenizer;

/// The tokeniser library's tables take about this many times the bytes of their file; reading it takes as much again.
const TABLES_FACTOR: u64 = 40;
/// Timestamps are so many seconds apart.
pub(super) const TIMESTAMP_SECONDS: f64 = 0.02;
/// Frames from one timestamp to the next.
pub(super) const TIMESTAMP_FRAMES: usize = 2;

/// What to write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Task {
    /// What is said, in its language.
    #[default]
    Transcribe,
    /// What is said, in English.
    Translate,
}

/// A model's tokens. Those of text are below `end`; timestamps are the last ones.
#[derive(Debug)]
pub struct Vocabulary {
    tokenizer: Tokenizer,
    size: u32,
    /// Ends a text.
    end: u32,
    /// Begins a text.
    start: u32,
    /// Languages by code, where the model knows more than English.
    languages: Vec<(String, u32)>,
    translate: u32,
    transcribe: u32,
    /// Begins what was said before.
    previous: u32,
    /// Says that nobody speaks.
    no_speech: u32,
    no_timestamps: u32,
    /// What a text may not begin with: a lone space, or its end.
    blank: Vec<u32>,
    /// What is never said, sorted.
    suppressed: Vec<u32>,
}

impl Vocabulary {
    /// Reads a package's tokeniser.
    ///
    /// # Errors
    /// It can't be used, has no room in memory, or lacks a special token.
    pub fn read(files: &Files, config: &WhisperConfig, memory: &dyn Memory) -> Result<Self, LoadError> {
        // The library's own allocations can't be refused one by one.
        let bytes = files.require(tokenizer::FILE, tokenizer::BYTES_MAX)?.len() as u64;
        memory.check(bytes * TABLES_FACTOR).map_err(load_error)?;
        Self::new(tokenizer::read_bpe(files, config.vocabulary)?, config)
    }

    fn new(mut tokenizer: Tokenizer, config: &WhisperConfig) -> Result<Self, LoadError> {
        // What a client wrote is text, also where it looks like a special token.
        tokenizer.set_encode_special_tokens(true);
        let find = |name: &str| {
            let missing = || malformed(tokenizer::FILE, format!("it has no token <|{name}|>"));
            tokenizer.token_to_id(&format!("<|{name}|>")).ok_or_else(missing)
        };
        let (end, start) = (find("endoftext")?, find("startoftranscript")?);
        let (translate, transcribe, previous) =
            (find("translate")?, find("transcribe")?, find("startofprev")?);
        // The first is OpenAI's name, the other that of older tokenisers.
        let no_speech = find("nospeech").or_else(|_| find("nocaptions"))?;
        let (model, no_timestamps) = (find("startoflm")?, find("notimestamps")?);
        let ordered = end < start && start < translate && translate < no_timestamps;
        if !ordered || no_timestamps as usize + 1 >= config.vocabulary {
            return Err(malformed(tokenizer::FILE, "its special tokens are not in Whisper's order"));
        }
        let languages = languages(&tokenizer, config.multilingual, start, translate);
        if config.multilingual && languages.is_empty() {
            return Err(malformed(tokenizer::FILE, "it has no languages"));
        }
        let space = tokenizer::encode(&tokenizer, " ", false);
        let space = space.ok_or_else(|| malformed(tokenizer::FILE, "it can't encode a space"))?;
        let mut suppressed = config.suppressed.clone();
        suppressed.extend([translate, transcribe, start, previous, model, no_speech]);
        suppressed.sort_unstable();
        suppressed.dedup();
        let blank = space.get_ids().iter().copied().chain([end]).collect();
        let size = u32::try_from(config.vocabulary).expect("the configuration bounds it");
        Ok(Self {
            tokenizer,
            size,
            end,
            start,
            languages,
            translate,
            transcribe,
            previous,
            no_speech,
            no_timestamps,
            blank,
            suppressed,
        })
    }

    /// How many tokens there are.
    pub fn size(&self) -> usize {
        self.size as usize
    }

    /// The codes of the languages that are told apart; none where the model knows English only.
    pub fn languages(&self) -> impl Iterator<Item = &str> {
        self.languages.iter().map(|(code, _)| code.as_str())
    }

    /// Whether the model knows more than English.
    pub fn is_multilingual(&self) -> bool {
        !self.languages.is_empty()
    }

    pub(super) fn end(&self) -> u32 {
        self.end
    }

    pub(super) fn start(&self) -> u32 {
        self.start
    }

    pub(super) fn no_speech(&self) -> u32 {
        self.no_speech
    }

    pub(super) fn no_timestamps(&self) -> u32 {
        self.no_timestamps
    }

    /// The first timestamp; all tokens from it on are timestamps.
    pub(super) fn timestamps(&self) -> u32 {
        self.no_timestamps + 1
    }

    pub(super) fn is_timestamp(&self, id: u32) -> bool {
        id >= self.timestamps()
    }

    pub(super) fn blank(&self) -> &[u32] {
        &self.blank
    }

    pub(super) fn suppressed(&self) -> &[u32] {
        &self.suppressed
    }

    pub(super) fn has_language(&self, code: &str) -> bool {
        self.languages().any(|known| known == code)
    }

    /// The language that these logits say, behind the start.
    pub(super) fn language_of(&self, logits: &[f32]) -> Option<&str> {
        let likely =
            |a: &&(String, u32), b: &&(String, u32)| logits[a.1 as usize].total_cmp(&logits[b.1 as usize]);
        self.languages.iter().max_by(likely).map(|(code, _)| code.as_str())
    }

    /// What a window's text begins with: what was said before, then the task.
    pub(super) fn prompt(
        &self,
        before: &[u32],
        language: Option<&str>,
        task: Task,
        timestamps: bool,
    ) -> Prompt {
        let mut ids = Vec::new();
        if !before.is_empty() {
            ids.push(self.previous);
            ids.extend_from_slice(before);
        }
        let start = ids.len();
        ids.push(self.start);
        if let Some((_, id)) = self.languages.iter().find(|(code, _)| Some(code.as_str()) == language) {
            ids.push(*id);
            ids.push(match task {
                Task::Transcribe => self.transcribe,
                Task::Translate => self.translate,
            });
        }
        if !timestamps {
            ids.push(self.no_timestamps);
        }
        Prompt { ids, start }
    }

    /// The tokens of what is said to have been said before; `None` if the tokeniser fails.
    pub(super) fn encode(&self, text: &str) -> Option<Vec<u32>> {
        let encoding = tokenizer::encode(&self.tokenizer, text, false)?;
        Some(encoding.get_ids().iter().copied().filter(|id| *id < self.end).collect())
    }

    /// The text of tokens, special ones left out.
    pub(super) fn text(&self, ids: &[u32]) -> Option<String> {
        let text: Vec<u32> = ids.iter().copied().filter(|id| *id < self.end).collect();
        tokenizer::decode(&self.tokenizer, &text)
    }
}

/// What a window's text begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Prompt {
    pub(super) ids: Vec<u32>,
    /// Where in it the start token is.
    pub(super) start: usize,
}

fn languages(tokenizer: &Tokenizer, multilingual: bool, start: u32, translate: u32) -> Vec<(String, u32)> {
    if !multilingual {
        return Vec::new();
    }
    let code = |id: u32| {
        let name = tokenizer.id_to_token(id)?;
        Some((name.strip_prefix("<|")?.strip_suffix("|>")?.to_owned(), id))
    };
    (start + 1..translate).filter_map(code).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::tiny;
    use super::*;
    use crate::memory::Lease;
    use crate::package::FileBytes;
    use serde_json::Value;
    use std::sync::Arc;

    fn read(multilingual: bool, tokenizer: &Value) -> Result<Vocabulary, LoadError> {
        let files = [
            ("config.json", tiny::config()),
            ("generation_config.json", tiny::generation(multilingual)),
            ("tokenizer.json", tokenizer.clone()),
        ];
        let bytes = |value: Value| Arc::new(value.to_string().into_bytes()) as FileBytes;
        let files: Files = files.map(|(name, value)| (name.to_owned(), bytes(value))).into_iter().collect();
        Vocabulary::read(&files, &WhisperConfig::read(&files)?, &Lease)
    }

    /// That of the tiny model.
    pub(in crate::models::whisper) fn vocabulary(multilingual: bool) -> Vocabulary {
        read(multilingual, &tiny::tokenizer()).unwrap()
    }

    #[test]
    fn prompts_are_those_of_openai() {
        let english = vocabulary(false);
        let prompt = |before: &[u32], timestamps| english.prompt(before, None, Task::Transcribe, timestamps);
        assert_eq!(prompt(&[], true), Prompt { ids: vec![tiny::START], start: 0 });
        let expected = vec![tiny::PREVIOUS, 5, 6, tiny::START, tiny::TIMESTAMPS - 1];
        assert_eq!(prompt(&[5, 6], false), Prompt { ids: expected, start: 3 });
        let all = vocabulary(true);
        let ids = all.prompt(&[], Some("de"), Task::Translate, true).ids;
        assert_eq!(ids, [tiny::START, tiny::START + 2, tiny::TRANSLATE]);
        assert_eq!(all.prompt(&[], Some("fr"), Task::Transcribe, true).ids[2], tiny::TRANSLATE + 1);
        assert_eq!(
            (all.languages().collect::<Vec<_>>(), all.is_multilingual()),
            (tiny::LANGUAGES.to_vec(), true)
        );
        assert_eq!((english.languages().count(), english.is_multilingual()), (0, false));
    }

    #[test]
    fn what_a_client_wrote_is_text() {
        let ids = vocabulary(true).encode(" hi<|endoftext|>").unwrap();
        assert_eq!(ids.len(), " hi<|endoftext|>".len());
        assert_eq!(vocabulary(true).text(&ids).unwrap(), " hi<|endoftext|>");
        assert_eq!(vocabulary(true).text(&[104, tiny::TIMESTAMPS, 105, tiny::END]).unwrap(), "hi");
    }

    #[test]
    fn a_tokenizer_without_the_special_tokens_is_refused() {
        for name in ["endoftext", "startofprev", "nospeech", "notimestamps"] {
            let text = tiny::tokenizer().to_string().replace(&format!("<|{name}|>"), "<|else|>");
            let error = read(true, &serde_json::from_str(&text).unwrap()).unwrap_err();
            assert!(
                matches!(&error, LoadError::Malformed { file, .. } if file == tokenizer::FILE),
                "{error}"
            );
        }
        let old = tiny::tokenizer().to_string().replace("nospeech", "nocaptions");
        assert!(read(true, &serde_json::from_str(&old).unwrap()).is_ok());
    }
}
