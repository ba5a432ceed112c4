//! The part of Python's pickle form that a saved dictionary of tensors needs. Nothing is ever executed: the few names
//! that may be called are known here, and every other name and operation is refused.
//!
//! Values point into arenas and never into each other, so that nesting costs no stack, neither here nor when dropped.

use crate::package::safetensors::Dtype;
use std::collections::HashMap;

/// The longest pickle in bytes.
pub(super) const PICKLE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Bytes of memory that a byte of a pickle can become: most are operations that keep one value.
pub(super) const GROWTH: u64 = 64;

const STACK_MAX: usize = 16_384;
const MEMO_MAX: usize = 262_144;
/// The most items of a tuple.
const TUPLE_MAX: usize = 16;
/// The highest protocol whose operations are known; `torch.save` writes 2.
const PROTOCOL_MAX: u8 = 2;

/// A value; numbers are places in the arenas of [`Pickle`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value<'a> {
    Bool,
    Integer(i64),
    Text(&'a str),
    Tuple(usize),
    Dictionary(usize),
    Global(Global),
    Storage(Storage<'a>),
    Tensor(usize),
}

/// The names that may be called or stand for a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Global {
    Rebuild,
    OrderedDictionary,
    Storage(Dtype),
}

/// A run of numbers that is a file of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Storage<'a> {
    pub(super) dtype: Dtype,
    pub(super) key: &'a str,
    pub(super) elements: usize,
}

/// A tensor without gaps, from this element of a storage.
#[derive(Debug)]
pub(super) struct Tensor<'a> {
    pub(super) storage: Storage<'a>,
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    /// It has two dimensions and stands column by column, not row by row.
    pub(super) turned: bool,
}

/// Everything that a pickle made.
#[derive(Debug, Default)]
pub(super) struct Pickle<'a> {
    tuples: Vec<Vec<Value<'a>>>,
    dictionaries: Vec<HashMap<&'a str, Value<'a>>>,
    tensors: Vec<Tensor<'a>>,
}

impl<'a> Pickle<'a> {
    /// Reads a pickle, and its one value.
    ///
    /// # Errors
    /// What is wrong, for the refusal.
    pub(super) fn read(bytes: &'a [u8]) -> Result<(Self, Value<'a>), String> {
        if bytes.len() > PICKLE_BYTES_MAX {
            return Err(format!("its pickle has more than {PICKLE_BYTES_MAX} bytes"));
        }
        let mut machine = Machine { rest: bytes, ..Machine::default() };
        loop {
            if let Some(value) = machine.step()? {
                return Ok((machine.made, value));
            }
        }
    }

    pub(super) fn dictionary(&self, value: Value<'a>) -> Option<&HashMap<&'a str, Value<'a>>> {
        match value {
            Value::Dictionary(place) => Some(&self.dictionaries[place]),
            Value::Bool
            | Value::Integer(_)
            | Value::Text(_)
            | Value::Tuple(_)
            | Value::Global(_)
            | Value::Storage(_)
            | Value::Tensor(_) => None,
        }
    }

    pub(super) fn tensor(&self, value: Value<'a>) -> Option<&Tensor<'a>> {
        if let Value::Tensor(place) = value { Some(&self.tensors[place]) } else { None }
    }

    fn tuple(&self, value: Value<'a>) -> Result<&[Value<'a>], String> {
        if let Value::Tuple(place) = value {
            Ok(&self.tuples[place])
        } else {
            Err("a tuple is missing".into())
        }
    }
}

#[derive(Default)]
struct Machine<'a> {
    rest: &'a [u8],
    stack: Vec<Value<'a>>,
    /// Where on the stack each open mark is.
    marks: Vec<usize>,
    memo: HashMap<u32, Value<'a>>,
    made: Pickle<'a>,
}

impl<'a> Machine<'a> {
    /// One operation; the value when it was the last one.
    fn step(&mut self) -> Result<Option<Value<'a>>, String> {
        let operation = self.array::<1>()?[0];
        match operation {
            b'.' => return self.stop().map(Some),
            0x80 => self.protocol()?,
            b'(' => self.mark()?,
            b'}' => self.empty_dictionary()?,
            b')' => self.tuple_of(0)?,
            0x85 => self.tuple_of(1)?,
            0x86 => self.tuple_of(2)?,
            0x87 => self.tuple_of(3)?,
            b't' => self.tuple_from_mark()?,
            0x88 | 0x89 => self.push(Value::Bool)?,
            b'K' => self.integer(|machine| Ok(machine.array::<1>()?[0].into()))?,
            b'M' => self.integer(|machine| Ok(u16::from_le_bytes(machine.array()?).into()))?,
            b'J' => self.integer(|machine| Ok(i32::from_le_bytes(machine.array()?).into()))?,
            0x8a => self.integer(Self::long)?,
            b'X' => self.text()?,
            b'q' => self.put(|machine| Ok(machine.array::<1>()?[0].into()))?,
            b'r' => self.put(|machine| Ok(u32::from_le_bytes(machine.array()?)))?,
            b'h' => self.get(|machine| Ok(machine.array::<1>()?[0].into()))?,
            b'j' => self.get(|machine| Ok(u32::from_le_bytes(machine.array()?)))?,
            b'c' => self.global()?,
            b'Q' => self.storage()?,
            b'R' => self.call()?,
            b'b' => self.build()?,
            b's' => self.set(1)?,
            b'u' => self.set_from_mark()?,
            _ => return Err(format!("its pickle has operation {operation:#04x}, which is not taken")),
        }
        Ok(None)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or("its pickle ends too early")?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        Ok(self.take(N)?.try_into().expect("as many were taken"))
    }

    fn push(&mut self, value: Value<'a>) -> Result<(), String> {
        if self.stack.len() == STACK_MAX {
            return Err(format!("its pickle puts more than {STACK_MAX} values on the stack"));
        }
        self.stack.push(value);
        Ok(())
    }

    /// Values below the last mark are out of reach until it is taken away.
    fn pop(&mut self) -> Result<Value<'a>, String> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let value = if self.stack.len() > floor { self.stack.pop() } else { None };
        value.ok_or_else(|| "its pickle takes a value that isn't there".to_owned())
    }

    fn top(&self) -> Result<Value<'a>, String> {
        self.stack.last().copied().ok_or_else(|| "its pickle uses a value that isn't there".to_owned())
    }

    fn stop(&mut self) -> Result<Value<'a>, String> {
        let value = self.pop()?;
        if self.stack.is_empty() && self.marks.is_empty() && self.rest.is_empty() {
            Ok(value)
        } else {
            Err("its pickle holds more than one value".into())
        }
    }

    fn protocol(&mut self) -> Result<(), String> {
        let protocol = self.array::<1>()?[0];
        if protocol > PROTOCOL_MAX { Err(format!("its pickle has protocol {protocol}")) } else { Ok(()) }
    }

    fn mark(&mut self) -> Result<(), String> {
        if self.marks.len() == STACK_MAX {
            return Err(format!("its pickle has more than {STACK_MAX} marks"));
        }
        self.marks.push(self.stack.len());
        Ok(())
    }

    fn since_mark(&mut self) -> Result<Vec<Value<'a>>, String> {
        let mark = self.marks.pop().ok_or("its pickle uses a mark that isn't there")?;
        Ok(self.stack.split_off(mark))
    }

    fn tuple_of(&mut self, count: usize) -> Result<(), String> {
        let mut items = Vec::new();
        for _ in 0..count {
            items.insert(0, self.pop()?);
        }
        self.push_tuple(items)
    }

    fn tuple_from_mark(&mut self) -> Result<(), String> {
        let items = self.since_mark()?;
        self.push_tuple(items)
    }

    fn push_tuple(&mut self, items: Vec<Value<'a>>) -> Result<(), String> {
        if items.len() > TUPLE_MAX {
            return Err(format!("its pickle has a tuple of more than {TUPLE_MAX}"));
        }
        self.made.tuples.push(items);
        self.push(Value::Tuple(self.made.tuples.len() - 1))
    }

    fn empty_dictionary(&mut self) -> Result<(), String> {
        self.made.dictionaries.push(HashMap::new());
        self.push(Value::Dictionary(self.made.dictionaries.len() - 1))
    }

    fn integer(&mut self, read: impl Fn(&mut Self) -> Result<i64, String>) -> Result<(), String> {
        let value = read(self)?;
        self.push(Value::Integer(value))
    }

    /// A number of so many bytes, the lowest first.
    fn long(&mut self) -> Result<i64, String> {
        let length = usize::from(self.array::<1>()?[0]);
        let bytes = self.take(length)?;
        let mut wide = [if bytes.last().is_some_and(|byte| *byte >= 0x80) { 0xff } else { 0 }; 8];
        let low = wide.get_mut(..length).ok_or("its pickle has a number of more than 8 bytes")?;
        low.copy_from_slice(bytes);
        Ok(i64::from_le_bytes(wide))
    }

    fn text(&mut self) -> Result<(), String> {
        let length = u32::from_le_bytes(self.array()?) as usize;
        let text = std::str::from_utf8(self.take(length)?);
        self.push(Value::Text(text.map_err(|_| "its pickle has a text that is none")?))
    }

    fn put(&mut self, place: impl Fn(&mut Self) -> Result<u32, String>) -> Result<(), String> {
        let place = place(self)?;
        if self.memo.len() == MEMO_MAX {
            return Err(format!("its pickle remembers more than {MEMO_MAX} values"));
        }
        self.memo.insert(place, self.top()?);
        Ok(())
    }

    fn get(&mut self, place: impl Fn(&mut Self) -> Result<u32, String>) -> Result<(), String> {
        let place = place(self)?;
        let value = self.memo.get(&place).copied().ok_or("its pickle recalls what it never kept")?;
        self.push(value)
    }

    fn line(&mut self) -> Result<&'a str, String> {
        let length = self.rest.iter().position(|byte| *byte == b'\n');
        let line = self.take(length.ok_or("its pickle ends in a name")?)?;
        self.take(1)?;
        std::str::from_utf8(line).map_err(|_| "its pickle has a name that is no text".to_owned())
    }

    fn global(&mut self) -> Result<(), String> {
        let global = match (self.line()?, self.line()?) {
            ("torch._utils", "_rebuild_tensor_v2") => Global::Rebuild,
            ("collections", "OrderedDict") => Global::OrderedDictionary,
            ("torch", "FloatStorage") => Global::Storage(Dtype::F32),
            ("torch", "HalfStorage") => Global::Storage(Dtype::F16),
            (module, name) => return Err(format!("its pickle asks for `{}`", shown(module, name))),
        };
        self.push(Value::Global(global))
    }

    /// `('storage', type, key, where it was, elements)`.
    fn storage(&mut self) -> Result<(), String> {
        let identity = self.pop()?;
        let storage = match *self.made.tuple(identity)? {
            [
                Value::Text("storage"),
                Value::Global(Global::Storage(dtype)),
                Value::Text(key),
                Value::Text(_),
                Value::Integer(elements),
            ] => Storage { dtype, key, elements: size(elements)? },
            _ => return Err("its pickle refers to something that is no storage".into()),
        };
        self.push(Value::Storage(storage))
    }

    fn call(&mut self) -> Result<(), String> {
        let arguments = self.pop()?;
        let callee = self.pop()?;
        match (callee, self.made.tuple(arguments)?) {
            (Value::Global(Global::OrderedDictionary), []) => self.empty_dictionary(),
            (Value::Global(Global::Rebuild), arguments) => {
                let tensor = rebuild(&self.made, arguments)?;
                self.made.tensors.push(tensor);
                self.push(Value::Tensor(self.made.tensors.len() - 1))
            }
            _ => Err("its pickle calls something that can't be called".into()),
        }
    }

    /// Attributes of a dictionary, which say nothing about the tensors.
    fn build(&mut self) -> Result<(), String> {
        self.pop()?;
        self.target().map(drop)
    }

    fn target(&self) -> Result<usize, String> {
        match self.top()? {
            Value::Dictionary(place) => Ok(place),
            _ => Err("its pickle changes something that is no dictionary".into()),
        }
    }

    fn set(&mut self, pairs: usize) -> Result<(), String> {
        let mut items = Vec::new();
        for _ in 0..2 * pairs {
            items.insert(0, self.pop()?);
        }
        self.insert(&items)
    }

    fn set_from_mark(&mut self) -> Result<(), String> {
        let items = self.since_mark()?;
        self.insert(&items)
    }

    fn insert(&mut self, items: &[Value<'a>]) -> Result<(), String> {
        let target = self.target()?;
        let (pairs, rest) = items.as_chunks::<2>();
        for [key, value] in pairs {
            let Value::Text(key) = *key else { return Err("its pickle has a key that is no text".into()) };
            if self.made.dictionaries[target].insert(key, *value).is_some() {
                return Err("its pickle has a key twice".into());
            }
        }
        if rest.is_empty() { Ok(()) } else { Err("its pickle has a key without a value".into()) }
    }
}

/// A stranger's names in a refusal, cut to a sensible length.
fn shown(module: &str, name: &str) -> String {
    const CHARACTERS_MAX: usize = 64;
    let printable = |c: char| if c.is_ascii_graphic() { c } else { '?' };
    format!("{module}.{name}").chars().take(CHARACTERS_MAX).map(printable).collect()
}

fn size(integer: i64) -> Result<usize, String> {
    usize::try_from(integer).map_err(|_| "its pickle has a size below zero".to_owned())
}

/// `(storage, offset, sizes, strides, requires gradients, hooks)`.
fn rebuild<'a>(made: &Pickle<'a>, arguments: &[Value<'a>]) -> Result<Tensor<'a>, String> {
    let [Value::Storage(storage), Value::Integer(offset), shape, strides, Value::Bool, Value::Dictionary(_)] =
        *arguments
    else {
        return Err("its pickle makes a tensor of something else".into());
    };
    let (shape, strides) = (integers(made, shape)?, integers(made, strides)?);
    let turned = !is_contiguous(&shape, &strides);
    if turned && !is_turned(&shape, &strides) {
        return Err("its pickle has a tensor with gaps or turned dimensions".into());
    }
    Ok(Tensor { storage, offset: size(offset)?, shape, turned })
}

fn integers<'a>(made: &Pickle<'a>, tuple: Value<'a>) -> Result<Vec<usize>, String> {
    let integer = |value: &Value<'a>| match value {
        Value::Integer(integer) => size(*integer),
        _ => Err("its pickle has a size that is no number".into()),
    };
    made.tuple(tuple)?.iter().map(integer).collect()
}

/// Column by column without gaps.
fn is_turned(shape: &[usize], strides: &[usize]) -> bool {
    matches!((shape, strides), ([rows, _], [1, column]) if rows == column)
}

/// Row by row without gaps; a dimension of one element may say any stride.
fn is_contiguous(shape: &[usize], strides: &[usize]) -> bool {
    let mut expected = Some(1_usize);
    shape.len() == strides.len()
        && shape.iter().zip(strides).rev().all(|(size, stride)| {
            let fits = *size == 1 || Some(*stride) == expected;
            expected = expected.and_then(|expected| expected.checked_mul(*size));
            fits
        })
}
