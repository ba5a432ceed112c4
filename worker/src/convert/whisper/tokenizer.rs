//! Whisper's tokeniser: a byte-level BPE whose tokens are ranked in the order of their merges, so that the ranks alone
//! say the merges; special tokens follow. `tokenizer.json` is always written anew, and holds nothing of a stranger's but
//! the tokens.

use crate::convert::{denied, malformed, refused};
use crate::memory::Memory;
use crate::package::{Files, json, tokenizer};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ringfence_protocol::ConvertError;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// The file with a token in base64 and its rank in each line, as OpenAI's packages have it.
pub(super) const RANKS_FILE: &str = "vocabulary.tiktoken";
const RANKS_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Bytes of memory for each byte of a vocabulary's file: tokens, their ranks, their merges and the text of them.
const GROWTH: u64 = 48;

/// The most tokens of text.
pub(super) const TOKENS_MAX: usize = 65_536;
/// The longest token in bytes, that of GPT-2; merging takes its square.
pub(super) const TOKEN_BYTES_MAX: usize = 128;
/// Bytes of memory for a token besides its own.
const TOKEN_OVERHEAD: usize = 16;
/// How many tokens English-only models have, those of GPT-2; every other vocabulary is multilingual.
const ENGLISH_TOKENS: usize = 50_256;

/// In the order of their tokens. Models know 99 of them, newer ones 100.
const LANGUAGES: [&str; 100] = [
    "en", "zh", "de", "es", "ru", "ko", "fr", "ja", "pt", "tr", "pl", "ca", "nl", "ar", "sv", "it", "id",
    "hi", "fi", "vi", "he", "uk", "el", "ms", "cs", "ro", "da", "hu", "ta", "no", "th", "ur", "hr", "bg",
    "lt", "la", "mi", "ml", "cy", "sk", "te", "fa", "lv", "bn", "sr", "az", "sl", "kn", "et", "mk", "br",
    "eu", "is", "hy", "ne", "mn", "bs", "kk", "sq", "sw", "gl", "mr", "pa", "si", "km", "sn", "yo", "so",
    "af", "oc", "ka", "be", "tg", "sd", "gu", "am", "yi", "lo", "uz", "fo", "ht", "ps", "tk", "nn", "mt",
    "sa", "lb", "my", "bo", "tl", "mg", "as", "tt", "haw", "ln", "ha", "ba", "jw", "su", "yue",
];
const LANGUAGES_MIN: usize = 99;
/// After the languages.
const TASKS: [&str; 6] = [
    "<|translate|>",
    "<|transcribe|>",
    "<|startoflm|>",
    "<|startofprev|>",
    "<|nospeech|>",
    "<|notimestamps|>",
];
/// Every 20 ms from 0 to 30 s.
const TIMESTAMPS: usize = 1501;

/// The tokens of text by rank.
pub(super) struct Vocabulary {
    /// Where they come from, for refusals.
    file: &'static str,
    tokens: Vec<Vec<u8>>,
    ranks: HashMap<Vec<u8>, usize>,
    languages: usize,
}

/// Ids of special tokens.
pub(super) struct Specials {
    pub(super) end: usize,
    pub(super) start: usize,
    pub(super) translate: usize,
    pub(super) transcribe: usize,
    pub(super) no_timestamps: usize,
}

impl Vocabulary {
    /// The vocabulary of a file of its own, if there is one, for a model of `size` tokens in all.
    pub(super) fn find(
        files: &Files,
        memory: &dyn Memory,
        size: usize,
    ) -> Result<Option<Self>, ConvertError> {
        if let Some(bytes) = files.find(RANKS_FILE, RANKS_BYTES_MAX).map_err(refused)? {
            memory.check(bytes.len() as u64 * GROWTH).map_err(denied)?;
            return Self::new(RANKS_FILE, ranked(bytes)?, size, memory).map(Some);
        }
        let Some(bytes) = files.find(tokenizer::FILE, tokenizer::BYTES_MAX).map_err(refused)? else {
            return Ok(None);
        };
        memory.check(bytes.len() as u64 * GROWTH).map_err(denied)?;
        Self::new(tokenizer::FILE, from_tokenizer(bytes)?, size, memory).map(Some)
    }

    /// Tokens by rank, from `file`, for a model of `size` tokens in all.
    pub(super) fn new(
        file: &'static str,
        tokens: Vec<Vec<u8>>,
        size: usize,
        memory: &dyn Memory,
    ) -> Result<Self, ConvertError> {
        let bytes: usize = tokens.iter().map(|token| token.len() + TOKEN_OVERHEAD).sum();
        memory.check(bytes as u64 * GROWTH).map_err(denied)?;
        let languages = size.checked_sub(tokens.len() + 2 + TASKS.len() + TIMESTAMPS);
        let languages = languages.filter(|count| (LANGUAGES_MIN..=LANGUAGES.len()).contains(count));
        let languages = languages.ok_or_else(|| {
            let reason =
                format!("{} tokens don't make a model of {size} with the special ones", tokens.len());
            malformed(file, reason)
        })?;
        if tokens.iter().any(|token| token.len() > TOKEN_BYTES_MAX) {
            return Err(malformed(file, format!("a token has more than {TOKEN_BYTES_MAX} bytes")));
        }
        let ranks: HashMap<_, _> = tokens.iter().cloned().zip(0..).collect();
        if ranks.len() != tokens.len() {
            return Err(malformed(file, "a token is doubled"));
        }
        if (0..=u8::MAX).any(|byte| !ranks.contains_key(&[byte][..])) {
            return Err(malformed(file, "a byte is no token"));
        }
        Ok(Self { file, tokens, ranks, languages })
    }

    /// Whether the model knows more than English.
    pub(super) fn is_multilingual(&self) -> bool {
        self.tokens.len() > ENGLISH_TOKENS
    }

    pub(super) fn specials(&self) -> Specials {
        let end = self.tokens.len();
        let tasks = end + 2 + self.languages;
        Specials {
            end,
            start: end + 1,
            translate: tasks,
            transcribe: tasks + 1,
            no_timestamps: tasks + TASKS.len() - 1,
        }
    }

    /// The tokens of languages with their ids.
    pub(super) fn languages(&self) -> impl Iterator<Item = (String, usize)> {
        let first = self.specials().start + 1;
        LANGUAGES[..self.languages].iter().map(|code| format!("<|{code}|>")).zip(first..)
    }

    /// What is never said: signs that captions use for other things than speech, and special tokens. Sorted.
    pub(super) fn suppressed(&self) -> BTreeSet<usize> {
        let specials = self.specials();
        let alone = SYMBOLS.split(' ').chain(SIGNS.split(' '));
        let forms = alone.flat_map(|symbol| [(symbol, symbol.to_owned()), (symbol, format!(" {symbol}"))]);
        let said = forms.filter_map(|(symbol, text)| {
            let ids = self.encode(text.as_bytes());
            (ids.len() == 1 || SIGNS.split(' ').any(|sign| sign == symbol)).then(|| ids[0])
        });
        let hyphens = [" -", " '"].map(|text| self.encode(text.as_bytes())[0]);
        said.chain(hyphens)
            .chain([specials.start])
            .chain(specials.translate..specials.no_timestamps)
            .collect()
    }

    /// What speech does not begin with: a space and the end.
    pub(super) fn suppressed_first(&self) -> [usize; 2] {
        [self.encode(b" ")[0], self.specials().end]
    }

    /// The tokens of a text that is one word.
    fn encode(&self, word: &[u8]) -> Vec<usize> {
        self.split(word, usize::MAX).windows(2).map(|edges| self.ranks[&word[edges[0]..edges[1]]]).collect()
    }

    /// Merges neighbours, the lowest rank below `limit` first, until none is left; gives the edges of the parts.
    fn split(&self, word: &[u8], limit: usize) -> Vec<usize> {
        let mut edges: Vec<usize> = (0..=word.len()).collect();
        let rank = |edges: &[usize], at: usize| {
            let pair = edges.get(at + 2).map(|end| &word[edges[at]..*end]);
            pair.and_then(|pair| self.ranks.get(pair)).copied().filter(|rank| *rank < limit)
        };
        let mut ranks: Vec<Option<usize>> = (0..word.len()).map(|at| rank(&edges, at)).collect();
        while let Some((_, at)) = ranks.iter().zip(0..).filter_map(|(rank, at)| Some(((*rank)?, at))).min() {
            edges.remove(at + 1);
            ranks.remove(at + 1);
            ranks[at] = rank(&edges, at);
            if let Some(before) = at.checked_sub(1) {
                ranks[before] = rank(&edges, before);
            }
        }
        edges
    }

    /// The merges in order: the rank of each longer token, and where the two tokens before it meet that it is made of.
    fn merges(&self) -> Result<Vec<(usize, usize)>, ConvertError> {
        let longer = self.tokens.iter().enumerate().filter(|(_, token)| token.len() > 1);
        let merge = |(rank, token): (usize, &Vec<u8>)| match self.split(token, rank)[..] {
            [0, edge, _] => Ok((rank, edge)),
            _ => Err(malformed(self.file, format!("token {rank} is not made of two tokens before it"))),
        };
        longer.map(merge).collect()
    }

    /// `tokenizer.json`.
    ///
    /// # Errors
    /// The order of the tokens is not one of merges.
    pub(super) fn json(&self) -> Result<Value, ConvertError> {
        let characters = characters();
        let text = |token: &[u8]| token.iter().map(|byte| characters[usize::from(*byte)]).collect::<String>();
        let vocabulary: Map<_, _> =
            self.tokens.iter().zip(0..).map(|(token, id)| (text(token), Value::from(id))).collect();
        let pair = |(rank, edge): (usize, usize)| {
            let (left, right) = self.tokens[rank].split_at(edge);
            [text(left), text(right)]
        };
        let merges: Vec<_> = self.merges()?.into_iter().map(pair).collect();
        let bytes =
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        Ok(json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": self.added(),
            "normalizer": null,
            "pre_tokenizer": bytes.clone(),
            "post_processor": null,
            "decoder": bytes,
            "model": {
                "type": "BPE",
                "dropout": null,
                "unk_token": null,
                "continuing_subword_prefix": "",
                "end_of_word_suffix": "",
                "fuse_unk": false,
                "byte_fallback": false,
                "vocab": vocabulary,
                "merges": merges,
            },
        }))
    }

    fn added(&self) -> Vec<Value> {
        let names = ["<|endoftext|>", "<|startoftranscript|>"].map(str::to_owned).into_iter();
        let names = names.chain(self.languages().map(|(name, _)| name)).chain(TASKS.map(str::to_owned));
        let timestamps = (0..TIMESTAMPS).map(|place| format!("<|{}.{:02}|>", place / 50, place % 50 * 2));
        let token = |(content, id): (String, usize)| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        };
        names.chain(timestamps).zip(self.tokens.len()..).map(token).collect()
    }
}

/// Texts that are not speech where they are one token; openai/whisper's tokeniser lists them.
const SYMBOLS: &str = "\" # ( ) * + / : ; < = > @ [ \\ ] ^ _ ` { | } ~ 「 」 『 』 \
    << >> <<< >>> -- --- -( -[ (' (\" (( )) ((( ))) [[ ]] {{ }} ♪♪ ♪♪♪";
/// Signs whose first token is enough: they share it with other signs only.
const SIGNS: &str = "♩ ♪ ♫ ♬ ♭ ♮ ♯";

/// The tokens of a file of ranks, which must be in order.
fn ranked(bytes: &[u8]) -> Result<Vec<Vec<u8>>, ConvertError> {
    let mut tokens = Vec::new();
    for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let token = if tokens.len() < TOKENS_MAX { ranked_token(line, tokens.len()) } else { None };
        let odd = || malformed(RANKS_FILE, format!("line {} is no token of its rank", tokens.len() + 1));
        let token = token.ok_or_else(odd)?;
        tokens.push(token);
    }
    Ok(tokens)
}

fn ranked_token(line: &[u8], rank: usize) -> Option<Vec<u8>> {
    let space = line.iter().position(|byte| *byte == b' ')?;
    if line[space + 1..] != *rank.to_string().as_bytes() {
        return None;
    }
    // The multilingual vocabulary ends with a token of no bytes, written so.
    if line[..space] == *b"=" { Some(Vec::new()) } else { STANDARD.decode(&line[..space]).ok() }
}

#[derive(Deserialize)]
struct Outline {
    added_tokens: Vec<Added>,
    model: Model,
}

#[derive(Deserialize)]
struct Added {
    content: String,
}

#[derive(Deserialize)]
struct Model {
    vocab: BTreeMap<String, usize>,
}

/// The tokens of a `tokenizer.json`; everything else in it is left behind.
fn from_tokenizer(bytes: &[u8]) -> Result<Vec<Vec<u8>>, ConvertError> {
    let Outline { added_tokens, model } = json::parse(tokenizer::FILE, bytes).map_err(refused)?;
    let added: HashSet<_> = added_tokens.iter().map(|token| token.content.as_str()).collect();
    let bytes: HashMap<char, u8> = characters().into_iter().zip(0..=u8::MAX).collect();
    let mut tokens = BTreeMap::new();
    for (text, id) in model.vocab.iter().filter(|(text, _)| !added.contains(text.as_str())) {
        let token = text.chars().map(|character| bytes.get(&character).copied()).collect::<Option<Vec<u8>>>();
        let token = token.ok_or_else(|| malformed(tokenizer::FILE, format!("token {id} is not of bytes")))?;
        if tokens.insert(*id, token).is_some() {
            return Err(malformed(tokenizer::FILE, format!("two tokens have the id {id}")));
        }
    }
    if tokens.len() > TOKENS_MAX || tokens.keys().zip(0..).any(|(id, rank)| *id != rank) {
        return Err(malformed(tokenizer::FILE, "the ids of its tokens have gaps, or are too many"));
    }
    Ok(tokens.into_values().collect())
}

/// The character that stands for each byte in a byte-level BPE: itself where it is printable, else one from U+0100 on.
fn characters() -> [char; 256] {
    let mut next = 0x100_u32..;
    std::array::from_fn(|byte| {
        let byte = u8::try_from(byte).expect("there are 256");
        match byte {
            b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
            _ => next.next().and_then(char::from_u32).expect("they end far below the surrogates"),
        }
    })
}
