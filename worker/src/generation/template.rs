//! Chat templates: a chat to the text of a prompt, by Jinja as Hugging Face's templates use it.
//!
//! **A template is a model author's program.** It runs with fuel, which steps and bytes take alike, so that it ends, and
//! what it has at one time is bounded ([`render_bytes_max`] says where not). It has no `include` or `import`, no clock (`strftime_now` is
//! not defined; templates that know it ask for that and have a date of their own), and nothing of the machine.
//!
//! **A message is a client's text.** If it spells `<|im_end|>`, it must not end the turn. So each content is put between
//! two noncharacters before the template runs, and what comes out is split there: [`Part`]s say which text is the
//! template's and which a client's, and special tokens are sought in the template's own text only. A template does not
//! see the marks in what templates do with contents: white space around a content stays outside of them, so that `trim`
//! and `strip()` cut it; an empty content has none; `startswith`, `split`, `replace`, `length` and their like are of our own
//! and look through them. A content that is cut by places (`content[1:]`) loses a mark; then the prompt is refused
//! ([`TemplateError::Torn`]) rather than a client's text taken for the template's. `content == '...'` is never true, unless
//! both are empty.

mod environment;
mod json;
mod marks;
mod methods;
mod shape;

use environment::Raised;
use marks::{Marked, mark};
use minijinja::{Environment, Error, ErrorKind, Value};
use ringfence_protocol::{CHAT_MESSAGES_MAX, ROLE_BYTES_MAX};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The longest template, in bytes.
pub const TEMPLATE_BYTES_MAX: usize = 64 * 1024;
/// The longest prompt, and the longest contents together, in bytes.
pub const OUTPUT_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The longest text of an exception that a template raises, in bytes.
pub const RAISED_BYTES_MAX: usize = 256;
/// Steps that a rendering may take whatever the chat, and for each message; 64 bytes that are made take as much as a step.
/// SmolLM2's template takes 20 for a message, those that know tools 100 and more. A list in a list, and so on, is let go
/// of by a call for each level, so a short chat must not pay for thousands of them.
const FUEL: u64 = 1 << 14;
const FUEL_OF_MESSAGE: u64 = 256;
/// For this many bytes of contents a step more: they may be made anew eight times.
const FUEL_BYTES: u64 = 8;
/// Loops count once, macros more; the stack of a thread of 2 MiB is enough in a debug build too.
const RECURSION_MAX: usize = 100;
const NAME: &str = "chat";

/// A message of a chat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// Who says it: lower-case letters and `_`.
    pub role: &'a str,
    /// What.
    pub content: &'a str,
}

/// The texts of a model's special tokens, which templates write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Begins a text.
    pub bos: Option<String>,
    /// Ends a text.
    pub eos: Option<String>,
}

/// A part of a prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Never empty.
    pub text: String,
    /// It is of a message, so nothing in it is a special token.
    pub is_content: bool,
}

/// Why there is no prompt.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// The template has more than [`TEMPLATE_BYTES_MAX`].
    #[error("the chat template has {0} bytes, at most {TEMPLATE_BYTES_MAX} are taken")]
    TooLarge(usize),
    /// An expression is too long, or has too many signs.
    #[error("the chat template has too long an expression")]
    TooDeep,
    /// The template is no Jinja, or has statements that are not known.
    #[error("the chat template is malformed in line {line}: {reason}")]
    Malformed {
        /// From 1 on; 0 if it is not known.
        line: usize,
        /// In words of the template engine.
        reason: String,
    },
    /// A role is empty, too long, or has other characters than lower-case letters and `_`.
    #[error("a role is not known")]
    Role,
    /// A content, or a special token, has the noncharacter U+FDD0 or U+FDD1.
    #[error("a content has the noncharacter U+FDD0 or U+FDD1")]
    Noncharacter,
    /// There are more than [`CHAT_MESSAGES_MAX`].
    #[error("a chat has at most {CHAT_MESSAGES_MAX} messages")]
    TooManyMessages,
    /// The contents, or the prompt, have more than [`OUTPUT_BYTES_MAX`].
    #[error("a prompt has at most {OUTPUT_BYTES_MAX} bytes")]
    TooLong,
    /// The template refuses the chat, in its own words of at most [`RAISED_BYTES_MAX`].
    #[error("the chat template refuses: {0}")]
    Raised(String),
    /// The template takes too many steps, or too much memory.
    #[error("the chat template takes too many steps or too much memory")]
    OutOfFuel,
    /// The template cuts a content in a way that hides where it begins or ends.
    #[error("the chat template cuts a content by places")]
    Torn,
    /// The template fails.
    #[error("the chat template fails in line {line}: {reason}")]
    Failed {
        /// From 1 on; 0 if it is not known.
        line: usize,
        /// In words of the template engine, without those of the chat.
        reason: String,
    },
}

/// A template that was parsed.
#[derive(Clone, Debug)]
pub struct ChatTemplate(Environment<'static>);

impl ChatTemplate {
    /// Parses a template.
    ///
    /// # Errors
    /// It is too large or malformed.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        if text.len() > TEMPLATE_BYTES_MAX {
            return Err(TemplateError::TooLarge(text.len()));
        }
        if !shape::is_shallow(text) {
            return Err(TemplateError::TooDeep);
        }
        let mut environment = environment::environment(RECURSION_MAX);
        let parsed = catch_unwind(AssertUnwindSafe(|| environment.add_template_owned(NAME, text.to_owned())));
        match parsed {
            Ok(Ok(())) => Ok(Self(environment)),
            Ok(Err(error)) => {
                Err(TemplateError::Malformed { line: error.line().unwrap_or(0), reason: reason(&error) })
            }
            Err(_) => Err(TemplateError::Malformed { line: 0, reason: PANICKED.to_owned() }),
        }
    }

    /// The prompt after which the assistant speaks, in parts. Neighbours differ in whose text they are.
    ///
    /// # Errors
    /// [`TemplateError`]
    pub fn render_parts(
        &self,
        messages: &[Message<'_>],
        tokens: &SpecialTokens,
    ) -> Result<Vec<Part>, TemplateError> {
        check(messages, tokens)?;
        let text = self.rendered(context(messages, tokens), fuel(messages))?;
        let marked = Marked::read(&text).ok_or(TemplateError::Torn)?;
        Ok(marked.parts().map(|(text, is_content)| Part { text: text.to_owned(), is_content }).collect())
    }

    fn rendered(&self, context: Value, fuel: u64) -> Result<String, TemplateError> {
        let mut environment = self.0.clone();
        environment.set_fuel(Some(fuel));
        let mut output = Bounded::default();
        let rendered = catch_unwind(AssertUnwindSafe(|| {
            let template = environment.get_template(NAME)?;
            template.render_captured_to(context, &mut output).map(|_| ())
        }));
        match rendered {
            _ if output.is_full => Err(TemplateError::TooLong),
            Ok(Ok(())) => Ok(String::from_utf8(output.bytes).expect("text is written")),
            Ok(Err(error)) => Err(failure(&error)),
            Err(_) => Err(TemplateError::Failed { line: 0, reason: PANICKED.to_owned() }),
        }
    }
}

/// The most memory of a rendering in bytes, beside the contents: what fuel pays for, twice where a buffer grows, and the
/// prompt twice. Lists that hold a list several times, and so on, are not counted by the engine when they are compared or
/// turned into text by `~` or a filter: there a template's author can take more, up to the worker's lease.
pub fn render_bytes_max(messages: &[Message<'_>]) -> u64 {
    2 * fuel(messages) * 64 + 2 * OUTPUT_BYTES_MAX as u64
}

fn fuel(messages: &[Message<'_>]) -> u64 {
    let contents: usize = messages.iter().map(|message| message.content.len()).sum();
    FUEL + FUEL_OF_MESSAGE * messages.len() as u64 + contents as u64 / FUEL_BYTES
}

const PANICKED: &str = "the template engine gave up";

fn check(messages: &[Message<'_>], tokens: &SpecialTokens) -> Result<(), TemplateError> {
    if messages.len() > CHAT_MESSAGES_MAX {
        return Err(TemplateError::TooManyMessages);
    }
    if messages.iter().map(|message| message.content.len()).sum::<usize>() > OUTPUT_BYTES_MAX {
        return Err(TemplateError::TooLong);
    }
    let is_role = |role: &str| {
        let known = role.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        (1..=ROLE_BYTES_MAX).contains(&role.len()) && known
    };
    if !messages.iter().all(|message| is_role(message.role)) {
        return Err(TemplateError::Role);
    }
    let mut texts = messages.iter().map(|message| message.content).chain(tokens.bos.as_deref());
    if texts.any(marks::has_marks) || tokens.eos.as_deref().is_some_and(marks::has_marks) {
        return Err(TemplateError::Noncharacter);
    }
    Ok(())
}

/// What a template sees. Tools and documents are there and none, as Hugging Face has them, since templates compare them
/// with `none`.
fn context(messages: &[Message<'_>], tokens: &SpecialTokens) -> Value {
    let message = |message: &Message<'_>| {
        Value::from_pairs([
            ("role", Value::from(message.role)),
            ("content", Value::from(mark(message.content))),
        ])
    };
    let messages: Vec<Value> = messages.iter().map(message).collect();
    let mut pairs = vec![
        ("messages", Value::from(messages)),
        ("add_generation_prompt", Value::from(true)),
        ("tools", Value::from(())),
        ("documents", Value::from(())),
    ];
    let special = [("bos_token", &tokens.bos), ("eos_token", &tokens.eos)];
    pairs
        .extend(special.into_iter().filter_map(|(name, token)| Some((name, Value::from(token.as_deref()?)))));
    Value::from_pairs(pairs)
}

/// Output up to the longest prompt; marks are counted too.
#[derive(Default)]
struct Bounded {
    bytes: Vec<u8>,
    is_full: bool,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > OUTPUT_BYTES_MAX - self.bytes.len() {
            self.is_full = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn failure(error: &Error) -> TemplateError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(inner) = cause {
        match inner.downcast_ref::<Raised>() {
            Some(Raised::Exception(text)) => return TemplateError::Raised(text.clone()),
            Some(Raised::Torn) => return TemplateError::Torn,
            None => {}
        }
        if inner.downcast_ref::<Error>().is_some_and(|error| error.kind() == ErrorKind::OutOfFuel) {
            return TemplateError::OutOfFuel;
        }
        cause = inner.source();
    }
    // The detail of a syntax error is of the template; that of a failure may have words of the chat.
    TemplateError::Failed { line: error.line().unwrap_or(0), reason: error.kind().to_string() }
}

fn reason(error: &Error) -> String {
    let detail = error.detail().map(str::to_owned);
    let reason = detail.unwrap_or_else(|| error.kind().to_string());
    reason.chars().take(RAISED_BYTES_MAX / 4).collect()
}

#[cfg(test)]
mod tests;
