//! Answers of text generation in OpenAI's two forms, whole and as server-sent events.

use super::error::ApiError;
use super::pieces::Telling;
use crate::clock;
use crate::dispatch::{Answered, Piece};
use crate::workers::{Answer, Made};
use hyper::body::Bytes;
use ringfence_protocol::{FinishReason, LikelyToken, TextPiece, TokenLogprob};
use serde::Serialize;
use std::collections::{BTreeMap, VecDeque};
use utoipa::ToSchema;

/// Which of OpenAI's interfaces an answer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`.
    Text,
}

/// Answer of `POST /v1/chat/completions` and `POST /v1/completions`; with `stream`, each event is one of these.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Completion {
    /// Of the answer; events of one have the same.
    id: String,
    /// `chat.completion`, `chat.completion.chunk` or `text_completion`.
    object: &'static str,
    /// Seconds since 1970.
    created: u64,
    /// The model that answered.
    model: String,
    /// One; none in the last event, which says what was used.
    choices: Vec<Choice>,
    /// What was used, where it is known and was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
}

/// The answer, or a piece of it.
#[derive(Debug, Default, Serialize, ToSchema)]
struct Choice {
    /// Always 0.
    index: u32,
    /// Of a whole chat answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<Message>,
    /// Of a piece of one.
    #[serde(skip_serializing_if = "Option::is_none")]
    delta: Option<Delta>,
    /// Of the other route.
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    /// How likely its tokens were, where that was asked for.
    #[schema(value_type = Object)]
    logprobs: Option<Logprobs>,
    /// `stop` or `length`, once it is over.
    finish_reason: Option<&'static str>,
}

/// A whole chat answer.
#[derive(Debug, Serialize, ToSchema)]
struct Message {
    /// Always `assistant`.
    role: &'static str,
    /// The answer.
    content: String,
    /// Always null.
    refusal: Option<String>,
}

/// A piece of one.
#[derive(Debug, Default, Serialize, ToSchema)]
struct Delta {
    /// `assistant`, in the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    /// To be put behind what came before.
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
}

/// What was used.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
struct Usage {
    prompt_tokens: u32,
    completion_tokens: u32,
    total_tokens: u32,
    prompt_tokens_details: PromptDetails,
}

/// More of the prompt's.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
struct PromptDetails {
    /// Those that were known from earlier prompts of the client.
    cached_tokens: u32,
}

/// How likely tokens were, as each interface says it.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Logprobs {
    Chat { content: Vec<ChatLogprob>, refusal: Option<()> },
    Text(TextLogprobs),
}

#[derive(Debug, Serialize)]
struct ChatLogprob {
    #[serde(flatten)]
    token: ChatToken,
    top_logprobs: Vec<ChatToken>,
}

#[derive(Debug, Serialize)]
struct ChatToken {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

#[derive(Debug, Default, Serialize)]
struct TextLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<f32>,
    top_logprobs: Vec<BTreeMap<String, f32>>,
    text_offset: Vec<usize>,
}

impl Usage {
    fn of(answer: &Answer) -> Self {
        Self {
            prompt_tokens: answer.prompt_tokens,
            completion_tokens: answer.tokens,
            total_tokens: answer.prompt_tokens + answer.tokens,
            prompt_tokens_details: PromptDetails { cached_tokens: answer.cached_tokens },
        }
    }
}

fn finish_reason(finish: FinishReason) -> &'static str {
    match finish {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
    }
}

fn chat_token(token: &LikelyToken) -> ChatToken {
    let text = String::from_utf8_lossy(&token.bytes).into_owned();
    ChatToken { token: text, logprob: token.logprob, bytes: token.bytes.clone() }
}

/// What all events of an answer have in common.
#[derive(Debug)]
pub(super) struct Completed {
    form: Form,
    /// With the request's.
    id: String,
    model: String,
    created: u64,
    /// Characters that were told, for the places of tokens.
    characters: usize,
}

impl Completed {
    /// An answer that begins now.
    pub(super) fn new(form: Form, request_id: String, model: String) -> Self {
        let prefix = match form {
            Form::Chat => "chatcmpl",
            Form::Text => "cmpl",
        };
        let id = format!("{prefix}-{request_id}");
        Self { form, id, model, created: clock::unix_seconds(), characters: 0 }
    }

    fn logprobs(&mut self, of: &[TokenLogprob]) -> Option<Logprobs> {
        if of.is_empty() {
            return None;
        }
        match self.form {
            Form::Chat => {
                let one = |one: &TokenLogprob| ChatLogprob {
                    token: chat_token(&one.token),
                    top_logprobs: one.top.iter().map(chat_token).collect(),
                };
                Some(Logprobs::Chat { content: of.iter().map(one).collect(), refusal: None })
            }
            Form::Text => {
                let mut all = TextLogprobs::default();
                for one in of {
                    let ChatToken { token, logprob, .. } = chat_token(&one.token);
                    all.text_offset.push(self.characters);
                    self.characters += token.chars().count();
                    all.tokens.push(token);
                    all.token_logprobs.push(logprob);
                    let top = one.top.iter().map(chat_token).map(|likely| (likely.token, likely.logprob));
                    all.top_logprobs.push(top.collect());
                }
                Some(Logprobs::Text(all))
            }
        }
    }

    /// The body of an answer that comes at once.
    pub(super) fn whole(mut self, model: &str, answer: &Answer) -> Result<Vec<u8>, ApiError> {
        let logprobs = self.logprobs(&answer.logprobs);
        let finish_reason = Some(finish_reason(answer.finish));
        let content = answer.text.clone();
        let (object, message, text) = match self.form {
            Form::Chat => {
                let message = Message { role: "assistant", content, refusal: None };
                ("chat.completion", Some(message), None)
            }
            Form::Text => ("text_completion", None, Some(content)),
        };
        let body = Completion {
            id: self.id,
            object,
            created: self.created,
            model: model.to_owned(),
            choices: vec![Choice { message, text, logprobs, finish_reason, ..Choice::default() }],
            usage: Some(Usage::of(answer)),
        };
        serde_json::to_vec(&body).map_err(|error| ApiError::internal(&error))
    }
}

/// How an answer is told in pieces.
pub(super) struct CompletionEvents {
    of: Completed,
    with_usage: bool,
    has_begun: bool,
}

impl CompletionEvents {
    /// Nothing yet.
    pub(super) fn new(of: Completed, with_usage: bool) -> Self {
        Self { of, with_usage, has_begun: false }
    }

    fn event(&self, choice: Option<Choice>, usage: Option<Usage>) -> Bytes {
        let event = Completion {
            id: self.of.id.clone(),
            object: match self.of.form {
                Form::Chat => "chat.completion.chunk",
                Form::Text => "text_completion",
            },
            created: self.of.created,
            model: self.of.model.clone(),
            choices: choice.into_iter().collect(),
            usage,
        };
        format!("data: {}\n\n", serde_json::to_string(&event).expect("numbers and texts")).into()
    }

    fn choice(&self, role: Option<&'static str>, content: Option<String>) -> Choice {
        match self.of.form {
            Form::Chat => Choice { delta: Some(Delta { role, content }), ..Choice::default() },
            Form::Text => Choice { text: Some(content.unwrap_or_default()), ..Choice::default() },
        }
    }

    fn begin(&mut self, events: &mut VecDeque<Bytes>) {
        if !std::mem::replace(&mut self.has_begun, true) && self.of.form == Form::Chat {
            events.push_back(self.event(Some(self.choice(Some("assistant"), Some(String::new()))), None));
        }
    }

    fn piece(&mut self, piece: TextPiece, events: &mut VecDeque<Bytes>) {
        let logprobs = self.of.logprobs(&piece.logprobs);
        if piece.text.is_empty() && logprobs.is_none() {
            return;
        }
        let choice = Choice { logprobs, ..self.choice(None, Some(piece.text)) };
        events.push_back(self.event(Some(choice), None));
    }
}

impl Telling for CompletionEvents {
    fn has_begun(&self) -> bool {
        self.has_begun
    }

    fn take(&mut self, piece: Piece, events: &mut VecDeque<Bytes>) -> Result<(), ApiError> {
        match piece {
            Piece::Begun => {}
            Piece::Prompted { .. } => self.begin(events),
            Piece::Text(piece) => self.piece(piece, events),
            Piece::Heard { .. } | Piece::Segment(_) => {
                return Err(ApiError::internal(&"a transcription instead of an answer"));
            }
        }
        Ok(())
    }

    fn end(&mut self, answered: Answered, events: &mut VecDeque<Bytes>) -> Result<(), ApiError> {
        let Made::Text(answer) = &answered.output.made else {
            return Err(ApiError::internal(&"an answer without text"));
        };
        self.begin(events);
        let finish_reason = Some(finish_reason(answer.finish));
        events.push_back(self.event(Some(Choice { finish_reason, ..self.choice(None, None) }), None));
        if self.with_usage {
            events.push_back(self.event(None, Some(Usage::of(answer))));
        }
        events.push_back(Bytes::from_static(b"data: [DONE]\n\n"));
        Ok(())
    }
}
