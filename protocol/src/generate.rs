//! What a job of text generation is, and what comes of it.

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// The most messages of a chat.
pub const CHAT_MESSAGES_MAX: usize = 1_024;
/// The longest name of a role, in bytes.
pub const ROLE_BYTES_MAX: usize = 32;
/// The most texts that end an answer.
pub const STOPS_MAX: usize = 16;
/// The longest of them, in bytes.
pub const STOP_BYTES_MAX: usize = 256;
/// The most tokens whose chances a job may change.
pub const LOGIT_BIAS_MAX: usize = 300;
/// The most likely tokens that are told beside each token of an answer.
pub const TOP_LOGPROBS_MAX: u8 = 20;
/// The longest JSON schema of an answer, in bytes.
pub const SCHEMA_BYTES_MAX: usize = 64 * 1024;
/// The longest piece of an answer's text, in bytes.
pub const TEXT_BYTES_MAX: usize = 16 * 1024;
/// The most tokens of one piece.
pub const TEXT_TOKENS_MAX: usize = 64;
/// The longest text of one token where chances are told, in bytes.
pub const TOKEN_BYTES_MAX: usize = 256;
/// The longest word about a template or a schema that can't be used, in bytes.
pub const TEMPLATE_REASON_BYTES_MAX: usize = 512;

/// The input of a job of text generation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GenerateInput {
    /// What the answer follows.
    pub prompt: Prompt,
    /// How.
    pub options: GenerateOptions,
}

/// What an answer follows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Prompt {
    /// A text, as it is.
    Text(String),
    /// Token ids, as they are.
    Tokens(Vec<u32>),
    /// Messages, which the package's template makes a text of; at least one, at most [`CHAT_MESSAGES_MAX`].
    Chat(Vec<ChatMessage>),
}

/// One message of a chat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatMessage {
    /// Whose: `system`, `user`, `assistant`, or what else the template knows; at most [`ROLE_BYTES_MAX`].
    pub role: String,
    /// What was said, piece by piece.
    pub content: Vec<ChatContent>,
}

/// A piece of a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChatContent {
    /// It.
    Text(String),
    /// The granted file of the job, as text.
    File,
}

/// How an answer is made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GenerateOptions {
    /// The most tokens of the answer; without it as many as there is room for.
    pub max_tokens: Option<u32>,
    /// From 0, which always takes the likeliest token, to 2.
    pub temperature: f32,
    /// Only so many of the likeliest tokens; 0 for all.
    pub top_k: u32,
    /// Only the likeliest tokens that are this likely together; above 0, at most 1.
    pub top_p: f32,
    /// Only tokens at least so likely, where the likeliest is 1; from 0 to 1.
    pub min_p: f32,
    /// Tokens of the prompt and the answer become less likely by this factor; from 0.01 to 10; 1 for none.
    pub repetition_penalty: f32,
    /// Taken from the logits of tokens that the answer has; from -2 to 2.
    pub presence_penalty: f32,
    /// The same for each time that the answer has them; from -2 to 2.
    pub frequency_penalty: f32,
    /// Added to logits, by token, each once, from -100 to 100; at most [`LOGIT_BIAS_MAX`].
    pub logit_bias: Vec<(u32, f32)>,
    /// Texts that end the answer, of which they are no part; at most [`STOPS_MAX`].
    pub stops: Vec<String>,
    /// Whether the model's own end of an answer does not end it.
    pub ignore_end: bool,
    /// How many of the likeliest tokens are told beside each token, at most [`TOP_LOGPROBS_MAX`]; without it no chances are.
    pub logprobs: Option<u8>,
    /// The same seed gives the same answer.
    pub seed: u64,
    /// The JSON schema that the answer is to follow; at most [`SCHEMA_BYTES_MAX`].
    pub schema: Option<String>,
}

impl Default for GenerateOptions {
    /// What OpenAI's interface means where nothing is said, with the seed 0.
    fn default() -> Self {
        Self {
            max_tokens: None,
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            stops: Vec::new(),
            ignore_end: false,
            logprobs: None,
            seed: 0,
            schema: None,
        }
    }
}

impl GenerateOptions {
    /// What is out of its bounds, in OpenAI's word for it; nothing if all is within.
    pub fn out_of_bounds(&self) -> Option<&'static str> {
        let within = |value: f32, least: f32, most: f32| (least..=most).contains(&value);
        let positive = |value: f32, most: f32| value > 0.0 && value <= most;
        let stop = |stop: &String| (1..=STOP_BYTES_MAX).contains(&stop.len());
        let bias = |(_, bias): &(u32, f32)| within(*bias, -100.0, 100.0);
        let biased: BTreeSet<u32> = self.logit_bias.iter().map(|(token, _)| *token).collect();
        let each_once = biased.len() == self.logit_bias.len();
        let legal = [
            ("max_tokens", self.max_tokens != Some(0)),
            ("temperature", within(self.temperature, 0.0, 2.0)),
            ("top_p", positive(self.top_p, 1.0)),
            ("min_p", within(self.min_p, 0.0, 1.0)),
            ("repetition_penalty", within(self.repetition_penalty, 0.01, 10.0)),
            ("presence_penalty", within(self.presence_penalty, -2.0, 2.0)),
            ("frequency_penalty", within(self.frequency_penalty, -2.0, 2.0)),
            ("logit_bias", each_once && biased.len() <= LOGIT_BIAS_MAX && self.logit_bias.iter().all(bias)),
            ("stop", self.stops.len() <= STOPS_MAX && self.stops.iter().all(stop)),
            ("top_logprobs", self.logprobs.is_none_or(|top| top <= TOP_LOGPROBS_MAX)),
            ("response_format", self.schema.as_ref().is_none_or(|schema| schema.len() <= SCHEMA_BYTES_MAX)),
        ];
        legal.into_iter().find(|(_, is_legal)| !is_legal).map(|(name, _)| name)
    }

    /// What an option may be, for people; options as [`GenerateOptions::out_of_bounds`] names them.
    pub fn bounds_of(option: &str) -> String {
        match option {
            "max_tokens" => "is at least 1".to_owned(),
            "temperature" => "is from 0 to 2".to_owned(),
            "top_p" => "is above 0 and at most 1".to_owned(),
            "min_p" => "is from 0 to 1".to_owned(),
            "repetition_penalty" => "is from 0.01 to 10".to_owned(),
            "presence_penalty" | "frequency_penalty" => "is from -2 to 2".to_owned(),
            "logit_bias" => format!("has at most {LOGIT_BIAS_MAX} tokens, each once and from -100 to 100"),
            "stop" => format!("has at most {STOPS_MAX} texts, each of 1 to {STOP_BYTES_MAX} bytes"),
            "top_logprobs" => format!("is from 0 to {TOP_LOGPROBS_MAX}"),
            _ => format!("has a schema of at most {SCHEMA_BYTES_MAX} bytes"),
        }
    }
}

impl GenerateInput {
    /// The bytes that a descriptor carries.
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("numbers and texts encode into memory")
    }

    /// Reads what [`GenerateInput::encode`] wrote; `None` if it is anything else, or out of bounds.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (input, rest) = postcard::take_from_bytes::<Self>(bytes).ok()?;
        (rest.is_empty() && input.is_legal()).then_some(input)
    }

    /// Whether everything is within its bounds, and the granted file stands in it at most once.
    pub fn is_legal(&self) -> bool {
        let prompt = match &self.prompt {
            Prompt::Text(_) | Prompt::Tokens(_) => true,
            Prompt::Chat(messages) => {
                (1..=CHAT_MESSAGES_MAX).contains(&messages.len())
                    && messages.iter().all(|message| message.role.len() <= ROLE_BYTES_MAX)
                    && self.files() <= 1
            }
        };
        prompt && self.options.out_of_bounds().is_none()
    }

    /// How often the granted file stands in it.
    pub fn files(&self) -> usize {
        let Prompt::Chat(messages) = &self.prompt else { return 0 };
        messages
            .iter()
            .flat_map(|message| &message.content)
            .filter(|piece| **piece == ChatContent::File)
            .count()
    }
}

/// Where the encoded input of a job of text generation is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum GenerateData {
    /// In the message, at most [`crate::INLINE_INPUT_BYTES_MAX`] once encoded.
    Inline(GenerateInput),
    /// In the first sealed memfd that came with the message: postcard of a [`GenerateInput`].
    Descriptor {
        /// Length of the encoding.
        bytes: u64,
    },
}

/// Where a job's granted file is: the last descriptor that came with the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GrantedText {
    /// A copy in sealed memory.
    Copy {
        /// How many bytes.
        bytes: u64,
    },
    /// A [`crate::FileLink`], non-blocking.
    Link,
}

/// Whose blocks of keys and values are taken for whom where there are too few: a later class gives way to an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Precedence {
    /// Gives way to nobody.
    Realtime,
    /// Gives way to the former.
    Interactive,
    /// Gives way to both.
    Batch,
}

/// A piece of an answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TextPiece {
    /// Whole characters; empty where tokens gave none yet. At most [`TEXT_BYTES_MAX`].
    pub text: String,
    /// Tokens that were written since the piece before; at most [`TEXT_TOKENS_MAX`].
    pub tokens: u32,
    /// One for each of them, where the job wants chances; else none.
    pub logprobs: Vec<TokenLogprob>,
}

/// How likely a token was.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprob {
    /// The one that was taken.
    pub token: LikelyToken,
    /// The likeliest, likeliest first; at most [`TOP_LOGPROBS_MAX`].
    pub top: Vec<LikelyToken>,
}

/// A token and its natural logarithm of probability.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LikelyToken {
    /// Its id.
    pub id: u32,
    /// Its text, perhaps a part of a character; at most [`TOKEN_BYTES_MAX`].
    #[serde(with = "bytes")]
    pub bytes: Vec<u8>,
    /// Never above 0.
    pub logprob: f32,
}

/// Bytes as one run and not number by number.
mod bytes {
    use crate::ChunkBytes;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        ChunkBytes(bytes.to_vec()).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        Ok(ChunkBytes::deserialize(deserializer)?.0)
    }
}

impl TextPiece {
    /// Whether everything is within its bounds for a model of this vocabulary.
    pub fn is_legal(&self, vocabulary: u32) -> bool {
        let likely = |token: &LikelyToken| {
            token.id < vocabulary && token.bytes.len() <= TOKEN_BYTES_MAX && token.logprob <= 0.0
        };
        let legal = |one: &TokenLogprob| {
            likely(&one.token) && one.top.len() <= usize::from(TOP_LOGPROBS_MAX) && one.top.iter().all(likely)
        };
        self.text.len() <= TEXT_BYTES_MAX
            && self.tokens as usize <= TEXT_TOKENS_MAX
            && (self.logprobs.is_empty() || self.logprobs.len() == self.tokens as usize)
            && self.logprobs.iter().all(legal)
    }
}

/// Why an answer is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FinishReason {
    /// The model said so, or a stop text came.
    Stop,
    /// It has as many tokens as it may have, or as the model takes.
    Length,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_out_of_bounds_is_named() {
        assert_eq!(GenerateOptions::default().out_of_bounds(), None);
        let check = |name: &str, change: fn(&mut GenerateOptions)| {
            let mut options = GenerateOptions::default();
            change(&mut options);
            assert_eq!(options.out_of_bounds(), Some(name));
        };
        check("max_tokens", |o| o.max_tokens = Some(0));
        check("temperature", |o| o.temperature = 2.1);
        check("temperature", |o| o.temperature = -0.1);
        check("top_p", |o| o.top_p = 0.0);
        check("top_p", |o| o.top_p = 1.01);
        check("min_p", |o| o.min_p = 1.01);
        check("repetition_penalty", |o| o.repetition_penalty = 0.0);
        check("presence_penalty", |o| o.presence_penalty = -3.0);
        check("frequency_penalty", |o| o.frequency_penalty = 2.01);
        check("logit_bias", |o| o.logit_bias = vec![(7, -100.5)]);
        check("logit_bias", |o| o.logit_bias = (0..301).map(|id| (id, 0.0)).collect());
        check("logit_bias", |o| o.logit_bias = vec![(7, 1.0), (5, 1.0), (7, 2.0)]);
        type Change = fn(&mut GenerateOptions, f32);
        let floats: [(&str, Change); 7] = [
            ("temperature", |o, value| o.temperature = value),
            ("top_p", |o, value| o.top_p = value),
            ("min_p", |o, value| o.min_p = value),
            ("repetition_penalty", |o, value| o.repetition_penalty = value),
            ("presence_penalty", |o, value| o.presence_penalty = value),
            ("frequency_penalty", |o, value| o.frequency_penalty = value),
            ("logit_bias", |o, value| o.logit_bias = vec![(1, value)]),
        ];
        for (name, change) in floats {
            for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut options = GenerateOptions::default();
                change(&mut options, value);
                assert_eq!(options.out_of_bounds(), Some(name), "{value}");
            }
        }
        check("stop", |o| o.stops = vec![String::new()]);
        check("stop", |o| o.stops = vec!["a".to_owned(), String::new()]);
        check("stop", |o| o.stops = vec!["a".repeat(STOP_BYTES_MAX + 1)]);
        check("stop", |o| o.stops = vec!["a".to_owned(); STOPS_MAX + 1]);
        check("top_logprobs", |o| o.logprobs = Some(21));
        check("response_format", |o| o.schema = Some(" ".repeat(SCHEMA_BYTES_MAX + 1)));
    }

    #[test]
    fn what_is_at_its_bound_is_taken() {
        let options = GenerateOptions {
            max_tokens: Some(1),
            temperature: 2.0,
            top_p: 1.0,
            min_p: 1.0,
            repetition_penalty: 10.0,
            presence_penalty: -2.0,
            frequency_penalty: 2.0,
            logit_bias: (0..300).map(|id| (id, 100.0)).collect(),
            stops: vec!["a".repeat(STOP_BYTES_MAX); STOPS_MAX],
            logprobs: Some(20),
            schema: Some(" ".repeat(SCHEMA_BYTES_MAX)),
            ..GenerateOptions::default()
        };
        assert_eq!(options.out_of_bounds(), None);
    }

    #[test]
    fn an_input_has_at_most_one_file() {
        let message = |content| ChatMessage { role: "user".to_owned(), content };
        let input =
            |messages| GenerateInput { prompt: Prompt::Chat(messages), options: GenerateOptions::default() };
        let text = || ChatContent::Text("What is this?".to_owned());
        let one = input(vec![message(vec![text(), ChatContent::File])]);
        assert_eq!(GenerateInput::decode(&one.encode()), Some(one));
        let two = input(vec![message(vec![ChatContent::File]), message(vec![ChatContent::File])]);
        assert_eq!(GenerateInput::decode(&two.encode()), None);
        assert_eq!(GenerateInput::decode(&input(Vec::new()).encode()), None);
    }
}
