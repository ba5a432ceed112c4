//! Strict reading of JSON: every object says each key once, and no key that we do not know.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use std::fmt;

/// What is wrong, and with which field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {fault}")]
pub struct FieldError {
    /// Path of the field, such as `dsseEnvelope.signatures[0].sig`; `document` for the whole.
    pub field: String,
    /// What is wrong with it.
    pub fault: Fault,
}

/// What can be wrong with a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The bytes are no JSON.
    #[error("is not JSON")]
    NotJson,
    /// Longer than allowed.
    #[error("is too long")]
    TooLong,
    /// Required, and not there.
    #[error("is missing")]
    Missing,
    /// Nothing of this name belongs here.
    #[error("is not known here")]
    Unknown,
    /// The same key, or an entry that must be unique, stands here twice.
    #[error("stands here twice")]
    Twice,
    /// Another type of JSON value.
    #[error("has the wrong type")]
    WrongType,
    /// The right type, and none of the values that are allowed.
    #[error("has a value that is not allowed")]
    WrongValue,
    /// A list with too few or too many entries.
    #[error("has the wrong number of entries")]
    WrongCount,
    /// Not base64 in its one canonical form.
    #[error("is not canonical base64")]
    NotBase64,
    /// Not in ascending order.
    #[error("is not in ascending order")]
    Unordered,
}

/// A JSON value with its keys in the order and number in which they stood.
#[derive(Debug)]
pub(crate) enum Node {
    Null,
    Flag(bool),
    Count(u64),
    /// Negative, fractional, or too large: no field of ours is.
    OtherNumber,
    Text(String),
    List(Vec<Node>),
    Object(Vec<(String, Node)>),
}

/// A JSON value and where it stands.
#[derive(Debug)]
pub(crate) struct Field {
    path: String,
    node: Node,
}

/// The fields of an object that nobody has taken yet.
#[derive(Debug)]
pub(crate) struct Fields {
    path: String,
    entries: Vec<(String, Node)>,
}

/// Reads a document that is one object of at most `bytes_max` bytes.
pub(crate) fn parse(bytes: &[u8], bytes_max: usize) -> Result<Fields, FieldError> {
    let whole = |fault| FieldError { field: "document".to_owned(), fault };
    if bytes.len() > bytes_max {
        return Err(whole(Fault::TooLong));
    }
    let node = serde_json::from_slice(bytes).map_err(|_| whole(Fault::NotJson))?;
    Field { path: String::new(), node }.object()
}

impl Field {
    /// An error about this field.
    pub(crate) fn fault(&self, fault: Fault) -> FieldError {
        let field = if self.path.is_empty() { "document" } else { &self.path };
        FieldError { field: field.to_owned(), fault }
    }

    pub(crate) fn object(self) -> Result<Fields, FieldError> {
        let Node::Object(entries) = self.node else { return Err(self.fault(Fault::WrongType)) };
        let mut keys: Vec<&str> = entries.iter().map(|(key, _)| key.as_str()).collect();
        keys.sort_unstable();
        match keys.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(FieldError { field: join(&self.path, pair[0]), fault: Fault::Twice }),
            None => Ok(Fields { path: self.path, entries }),
        }
    }

    /// Its text, if that is at most `bytes_max` long.
    pub(crate) fn text(&self, bytes_max: usize) -> Result<&str, FieldError> {
        match &self.node {
            Node::Text(text) if text.len() <= bytes_max => Ok(text),
            Node::Text(_) => Err(self.fault(Fault::TooLong)),
            Node::Null
            | Node::Flag(_)
            | Node::Count(_)
            | Node::OtherNumber
            | Node::List(_)
            | Node::Object(_) => Err(self.fault(Fault::WrongType)),
        }
    }

    pub(crate) fn list(self, entries_max: usize) -> Result<Vec<Field>, FieldError> {
        let Node::List(nodes) = self.node else { return Err(self.fault(Fault::WrongType)) };
        if nodes.len() > entries_max {
            return Err(FieldError { field: self.path, fault: Fault::WrongCount });
        }
        let entry = |(index, node)| Field { path: format!("{}[{index}]", self.path), node };
        Ok(nodes.into_iter().enumerate().map(entry).collect())
    }
}

impl Fields {
    /// Takes a field that must be there.
    pub(crate) fn take(&mut self, name: &str) -> Result<Field, FieldError> {
        let missing = || FieldError { field: join(&self.path, name), fault: Fault::Missing };
        let at = self.entries.iter().position(|(key, _)| key == name).ok_or_else(missing)?;
        let (_, node) = self.entries.swap_remove(at);
        Ok(Field { path: join(&self.path, name), node })
    }

    /// Takes a field that may be there.
    pub(crate) fn take_optional(&mut self, name: &str) -> Option<Field> {
        self.take(name).ok()
    }

    pub(crate) fn object(&mut self, name: &str) -> Result<Fields, FieldError> {
        self.take(name)?.object()
    }

    pub(crate) fn list(&mut self, name: &str, entries_max: usize) -> Result<Vec<Field>, FieldError> {
        self.take(name)?.list(entries_max)
    }

    /// The only entry of a list.
    pub(crate) fn single(&mut self, name: &str) -> Result<Fields, FieldError> {
        let field = join(&self.path, name);
        let mut entries = self.list(name, 1)?;
        entries.pop().ok_or(FieldError { field, fault: Fault::WrongCount })?.object()
    }

    pub(crate) fn count(&mut self, name: &str) -> Result<u64, FieldError> {
        let field = self.take(name)?;
        if let Node::Count(count) = field.node { Ok(count) } else { Err(field.fault(Fault::WrongType)) }
    }

    /// A text that can only be `expected`.
    pub(crate) fn constant(&mut self, name: &str, expected: &str) -> Result<(), FieldError> {
        let field = self.take(name)?;
        let same = field.text(usize::MAX)? == expected;
        if same { Ok(()) } else { Err(field.fault(Fault::WrongValue)) }
    }

    /// A flag that can only be false.
    pub(crate) fn no(&mut self, name: &str) -> Result<(), FieldError> {
        let field = self.take(name)?;
        match field.node {
            Node::Flag(false) => Ok(()),
            Node::Flag(true) => Err(field.fault(Fault::WrongValue)),
            Node::Null
            | Node::Count(_)
            | Node::OtherNumber
            | Node::Text(_)
            | Node::List(_)
            | Node::Object(_) => Err(field.fault(Fault::WrongType)),
        }
    }

    /// Text that `read` understands.
    pub(crate) fn read<T, E>(
        &mut self,
        name: &str,
        read: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<T, FieldError> {
        let field = self.take(name)?;
        read(field.text(usize::MAX)?).map_err(|_| field.fault(Fault::WrongValue))
    }

    /// Bytes in base64, with padding, in the one form that encodes them.
    pub(crate) fn base64(&mut self, name: &str) -> Result<Vec<u8>, FieldError> {
        let field = self.take(name)?;
        STANDARD.decode(field.text(usize::MAX)?).map_err(|_| field.fault(Fault::NotBase64))
    }

    /// Refuses what is left.
    pub(crate) fn end(self) -> Result<(), FieldError> {
        match self.entries.first() {
            None => Ok(()),
            Some((key, _)) => Err(FieldError { field: join(&self.path, key), fault: Fault::Unknown }),
        }
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Node, E> {
        Ok(Node::Flag(flag))
    }

    fn visit_u64<E>(self, count: u64) -> Result<Node, E> {
        Ok(Node::Count(count))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Node, E> {
        Ok(Node::OtherNumber)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Node, E> {
        Ok(Node::OtherNumber)
    }

    fn visit_str<E>(self, text: &str) -> Result<Node, E> {
        Ok(Node::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Node, A::Error> {
        let mut nodes = Vec::new();
        while let Some(node) = sequence.next_element()? {
            nodes.push(node);
        }
        Ok(Node::List(nodes))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Node::Object(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<u64, FieldError> {
        let mut fields = parse(text.as_bytes(), 64)?;
        let mut inner = fields.object("inner")?;
        let count = inner.count("count")?;
        inner.end()?;
        fields.end()?;
        Ok(count)
    }

    #[test]
    fn an_object_says_every_key_once_and_none_that_is_unknown() {
        let check = |text: &str, field: &str, fault| {
            assert_eq!(read(text), Err(FieldError { field: field.to_owned(), fault }), "{text}");
        };
        assert_eq!(read(r#"{"inner":{"count":7}}"#), Ok(7));
        check(r#"{"inner":{"count":7,"count":7}}"#, "inner.count", Fault::Twice);
        check(r#"{"inner":{"count":7,"c\u006funt":8}}"#, "inner.count", Fault::Twice);
        check(r#"{"inner":{"count":7},"inner":{}}"#, "inner", Fault::Twice);
        check(r#"{"inner":{"count":7,"more":1}}"#, "inner.more", Fault::Unknown);
        check(r#"{"inner":{"count":7},"more":{}}"#, "more", Fault::Unknown);
        check(r#"{"inner":{}}"#, "inner.count", Fault::Missing);
        check(r#"{"inner":{"count":-7}}"#, "inner.count", Fault::WrongType);
        check(r#"{"inner":{"count":7.0}}"#, "inner.count", Fault::WrongType);
        check(r#"{"inner":[7]}"#, "inner", Fault::WrongType);
        check(r#"{"inner":{"count":7}} x"#, "document", Fault::NotJson);
        check("[]", "document", Fault::WrongType);
        check(&" ".repeat(65), "document", Fault::TooLong);
    }
}
