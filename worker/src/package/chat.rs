//! How a model of text is spoken to: its chat template and special tokens, from `tokenizer_config.json` and
//! `chat_template.jinja`, and the tokens that end what it says.

use super::{Files, config, json, malformed, whisper};
use crate::generation::template::{ChatTemplate, SpecialTokens, TEMPLATE_BYTES_MAX};
use ringfence_protocol::LoadError;
use serde::Deserialize;
use tokenizers::Tokenizer;

/// What a tokeniser's package says about it.
pub const FILE: &str = "tokenizer_config.json";
/// Where newer packages have the template; it counts before the other one.
pub const TEMPLATE_FILE: &str = "chat_template.jinja";
/// It lists every added token once more.
const BYTES_MAX: usize = 4 * 1024 * 1024;
/// The most templates with names.
const TEMPLATES_MAX: usize = 16;
/// The longest text of a special token, in bytes.
const TOKEN_BYTES_MAX: usize = 256;
/// The most tokens that end an answer.
const END_TOKENS_MAX: usize = 16;

/// How a model is spoken to.
#[derive(Clone, Debug, Default)]
pub struct Chat {
    /// None where the package has none: then the model was not made for chats. Nothing is assumed instead.
    pub template: Option<ChatTemplate>,
    /// What the template writes.
    pub tokens: SpecialTokens,
}

#[derive(Default, Deserialize)]
struct Raw {
    chat_template: Option<Templates>,
    bos_token: Option<Token>,
    eos_token: Option<Token>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Named(Vec<Named>),
}

#[derive(Deserialize)]
struct Named {
    name: String,
    template: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Token {
    Text(String),
    Added { content: String },
}

impl Chat {
    /// Reads a package's.
    ///
    /// # Errors
    /// A file is malformed, or the template can't be parsed.
    pub fn read(files: &Files) -> Result<Self, LoadError> {
        let raw = raw(files)?;
        let tokens = SpecialTokens { bos: token(raw.bos_token)?, eos: token(raw.eos_token)? };
        if let Some(bytes) = files.find(TEMPLATE_FILE, TEMPLATE_BYTES_MAX)? {
            let text = std::str::from_utf8(bytes).map_err(|_| malformed(TEMPLATE_FILE, "it is no UTF-8"))?;
            return Ok(Self { template: Some(parse(TEMPLATE_FILE, text)?), tokens });
        }
        let template = match raw.chat_template {
            None => None,
            Some(Templates::One(text)) => Some(text),
            Some(Templates::Named(named)) if named.len() > TEMPLATES_MAX => {
                return Err(malformed(FILE, "it has too many chat templates"));
            }
            Some(Templates::Named(named)) => default_of(named)?,
        };
        Ok(Self { template: template.map(|text| parse(FILE, &text)).transpose()?, tokens })
    }
}

fn raw(files: &Files) -> Result<Raw, LoadError> {
    match files.find(FILE, BYTES_MAX)? {
        Some(bytes) => json::parse(FILE, bytes),
        None => Ok(Raw::default()),
    }
}

fn default_of(named: Vec<Named>) -> Result<Option<String>, LoadError> {
    let mut defaults = named.into_iter().filter(|template| template.name == "default");
    let found = defaults.next().map(|template| template.template);
    match defaults.next() {
        Some(_) => Err(malformed(FILE, "it has two chat templates named `default`")),
        None => Ok(found),
    }
}

fn parse(file: &str, text: &str) -> Result<ChatTemplate, LoadError> {
    ChatTemplate::parse(text).map_err(|error| malformed(file, error.to_string()))
}

fn token(token: Option<Token>) -> Result<Option<String>, LoadError> {
    let text = token.map(|token| match token {
        Token::Text(text) | Token::Added { content: text } => text,
    });
    match text {
        Some(text) if text.len() > TOKEN_BYTES_MAX => Err(malformed(FILE, "a special token is too long")),
        text => Ok(text.filter(|text| !text.is_empty())),
    }
}

/// The tokens that end an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndTokens(Vec<u32>);

#[derive(Default, Deserialize)]
struct Ends {
    eos_token_id: Option<Ids>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Ids {
    One(u32),
    Several(Vec<u32>),
}

impl EndTokens {
    /// Those of `generation_config.json`, else those of `config.json`; and the tokeniser's own.
    ///
    /// # Errors
    /// A file is malformed, there are too many, or one is beyond the model's vocabulary.
    pub fn read(files: &Files, tokenizer: &Tokenizer, vocabulary: usize) -> Result<Self, LoadError> {
        let (file, ids) = match stated(files, whisper::GENERATION_FILE)? {
            Some(ids) => (whisper::GENERATION_FILE, ids),
            None => (config::FILE, stated(files, config::FILE)?.unwrap_or(Ids::Several(Vec::new()))),
        };
        let mut ids = match ids {
            Ids::One(id) => vec![id],
            Ids::Several(ids) => ids,
        };
        if ids.len() > END_TOKENS_MAX {
            return Err(malformed(file, "it has too many end tokens"));
        }
        let own = token(raw(files)?.eos_token)?.and_then(|text| tokenizer.token_to_id(&text));
        ids.extend(own);
        if ids.iter().any(|id| *id as usize >= vocabulary) {
            return Err(malformed(file, "an end token is outside the vocabulary of `config.json`"));
        }
        ids.sort_unstable();
        ids.dedup();
        Ok(Self(ids))
    }

    /// Whether this token ends an answer.
    pub fn contains(&self, id: u32) -> bool {
        self.0.contains(&id)
    }

    /// All of them, ascending. There may be none: then only a limit or a stop string ends an answer.
    pub fn ids(&self) -> &[u32] {
        &self.0
    }
}

impl FromIterator<u32> for EndTokens {
    fn from_iter<I: IntoIterator<Item = u32>>(ids: I) -> Self {
        let mut ids: Vec<u32> = ids.into_iter().collect();
        ids.sort_unstable();
        ids.dedup();
        Self(ids)
    }
}

fn stated(files: &Files, file: &str) -> Result<Option<Ids>, LoadError> {
    match files.find(file, BYTES_MAX)? {
        Some(bytes) => Ok(json::parse::<Ends>(file, bytes)?.eos_token_id),
        None => Ok(None),
    }
}
