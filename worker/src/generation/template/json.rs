//! `tojson` as Hugging Face has it: Python's spacing, no escapes for HTML. Our own also because each byte takes fuel while
//! it is written: a list that holds a list twice, and so on, doubles with each level.

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind, State};

/// The deepest nesting; it is on the stack.
const DEPTH_MAX: usize = 64;
/// The most spaces of a level.
const INDENT_MAX: usize = 16;

pub(super) fn tojson(state: &State, value: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    // What Python's has and what changes nothing here.
    let _: Option<Value> = options.get("ensure_ascii")?;
    let _: Option<Value> = options.get("sort_keys")?;
    options.assert_all_used()?;
    if indent.is_some_and(|indent| indent > INDENT_MAX) {
        return Err(ErrorKind::InvalidOperation.into());
    }
    let mut writer = Writer { state, indent, depth: 0, text: String::new() };
    writer.value(value)?;
    Ok(Value::from(writer.text))
}

struct Writer<'a, 'b, 'c> {
    state: &'a State<'b, 'c>,
    indent: Option<usize>,
    depth: usize,
    text: String,
}

impl Writer<'_, '_, '_> {
    fn value(&mut self, value: &Value) -> Result<(), Error> {
        match value.kind() {
            ValueKind::Undefined | ValueKind::None => self.put("null"),
            ValueKind::Bool => self.put(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.put(&value.to_string()),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => self.items(value, ['[', ']'], Self::value),
            ValueKind::Map => self.items(value, ['{', '}'], |writer, key| {
                writer.string(&key.to_string())?;
                writer.put(": ")?;
                writer.value(&value.get_item(key)?)
            }),
            // A kind that is added to the engine is not known either.
            _ => Err(ErrorKind::BadSerialization.into()),
        }
    }

    fn items(
        &mut self,
        value: &Value,
        [open, close]: [char; 2],
        mut item: impl FnMut(&mut Self, &Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        if self.depth == DEPTH_MAX {
            return Err(ErrorKind::BadSerialization.into());
        }
        self.depth += 1;
        self.put(open.encode_utf8(&mut [0; 4]))?;
        let mut is_empty = true;
        for inner in value.try_iter()? {
            if !is_empty {
                self.put(if self.indent.is_some() { "," } else { ", " })?;
            }
            self.line()?;
            item(self, &inner)?;
            is_empty = false;
        }
        self.depth -= 1;
        if !is_empty {
            self.line()?;
        }
        self.put(close.encode_utf8(&mut [0; 4]))
    }

    fn line(&mut self) -> Result<(), Error> {
        match self.indent {
            Some(indent) => self.put(&format!("\n{:1$}", "", indent * self.depth)),
            None => Ok(()),
        }
    }

    fn string(&mut self, text: &str) -> Result<(), Error> {
        let quoted = serde_json::to_string(text).map_err(|_| ErrorKind::BadSerialization)?;
        self.put(&quoted)
    }

    /// Each piece takes a step, and one for each 64 bytes.
    fn put(&mut self, text: &str) -> Result<(), Error> {
        self.state.consume_fuel(1 + text.len() as u64 / 64)?;
        self.text.push_str(text);
        Ok(())
    }
}
