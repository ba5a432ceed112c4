//! As much of ONNX as says which tensors a graph starts from and how its convolutions step: messages in protobuf's
//! wire format, read in place. Fields that are not asked for are passed over.

use crate::convert::malformed;
use crate::package::safetensors::Dtype;
use ringfence_protocol::ConvertError;
use std::collections::BTreeMap;
use std::ops::Range;

/// Its name.
pub(super) const FILE: &str = "model.onnx";

const INITIALIZERS_MAX: usize = 1024;
const NODES_MAX: usize = 16_384;
/// The most dimensions of a tensor, inputs of a node, attributes of it, and numbers of an attribute.
const LIST_MAX: usize = 16;

/// A tensor that is part of the file.
#[derive(Debug)]
pub(super) struct Initializer {
    /// `None` for types that are not F32.
    pub(super) dtype: Option<Dtype>,
    pub(super) shape: Vec<u64>,
    /// Where its numbers are in the file, little-endian.
    pub(super) bytes: Range<usize>,
}

/// A convolution of the graph itself, not of one inside it.
#[derive(Debug)]
pub(super) struct Convolution<'a> {
    /// What it reads: numbers, weights, and mostly biases.
    pub(super) inputs: Vec<&'a str>,
    /// Attributes that are lists of numbers.
    pub(super) lists: BTreeMap<&'a str, Vec<u64>>,
}

/// A graph.
#[derive(Debug, Default)]
pub(super) struct Graph<'a> {
    pub(super) initializers: BTreeMap<&'a str, Initializer>,
    pub(super) convolutions: Vec<Convolution<'a>>,
}

pub(super) fn read(file: &[u8]) -> Result<Graph<'_>, ConvertError> {
    parse(file).map_err(|reason| malformed(FILE, reason))
}

type Parsed<T> = Result<T, &'static str>;

fn parse(file: &[u8]) -> Parsed<Graph<'_>> {
    const GRAPH: u64 = 7;
    let mut graph = None;
    for field in fields(file, 0..file.len()) {
        if let (GRAPH, Field::Bytes(place)) = field? {
            let twice = graph.replace(read_graph(file, place)?);
            if twice.is_some() {
                return Err("it has two graphs");
            }
        }
    }
    graph.ok_or("it has no graph")
}

fn read_graph(file: &[u8], place: Range<usize>) -> Parsed<Graph<'_>> {
    const NODE: u64 = 1;
    const INITIALIZER: u64 = 5;
    let mut graph = Graph::default();
    let mut nodes = 0;
    for field in fields(file, place) {
        match field? {
            (NODE, Field::Bytes(place)) => {
                nodes += 1;
                graph.convolutions.extend(read_node(file, place)?);
            }
            (INITIALIZER, Field::Bytes(place)) => {
                let (name, initializer) = read_initializer(file, place)?;
                if graph.initializers.insert(name, initializer).is_some() {
                    return Err("an initializer is doubled");
                }
            }
            _ => {}
        }
        if nodes > NODES_MAX || graph.initializers.len() > INITIALIZERS_MAX {
            return Err("its graph is too large");
        }
    }
    Ok(graph)
}

/// A node, if it is a convolution.
fn read_node(file: &[u8], place: Range<usize>) -> Parsed<Option<Convolution<'_>>> {
    const INPUT: u64 = 1;
    const OPERATION: u64 = 4;
    const ATTRIBUTE: u64 = 5;
    let mut node = Convolution { inputs: Vec::new(), lists: BTreeMap::new() };
    let mut is_convolution = false;
    for field in fields(file, place) {
        match field? {
            (INPUT, Field::Bytes(place)) => node.inputs.push(text(file, place)?),
            (OPERATION, Field::Bytes(place)) => is_convolution = text(file, place)? == "Conv",
            (ATTRIBUTE, Field::Bytes(place)) => read_attribute(file, place, &mut node.lists)?,
            _ => {}
        }
        if node.inputs.len() > LIST_MAX || node.lists.len() > LIST_MAX {
            return Err("a node has too many inputs or attributes");
        }
    }
    Ok(is_convolution.then_some(node))
}

fn read_attribute<'a>(
    file: &'a [u8],
    place: Range<usize>,
    lists: &mut BTreeMap<&'a str, Vec<u64>>,
) -> Parsed<()> {
    const NAME: u64 = 1;
    const INTEGERS: u64 = 8;
    let mut name = "";
    let mut integers = Vec::new();
    for field in fields(file, place) {
        match field? {
            (NAME, Field::Bytes(place)) => name = text(file, place)?,
            (INTEGERS, field) => numbers(file, field, &mut integers)?,
            _ => {}
        }
    }
    if !integers.is_empty() && lists.insert(name, integers).is_some() {
        return Err("an attribute is doubled");
    }
    Ok(())
}

fn read_initializer(file: &[u8], place: Range<usize>) -> Parsed<(&str, Initializer)> {
    const DIMENSIONS: u64 = 1;
    const TYPE: u64 = 2;
    const NAME: u64 = 8;
    const RAW: u64 = 9;
    const FLOAT: u64 = 1;
    let mut name = None;
    let mut initializer = Initializer { dtype: None, shape: Vec::new(), bytes: 0..0 };
    for field in fields(file, place) {
        match field? {
            (DIMENSIONS, field) => numbers(file, field, &mut initializer.shape)?,
            (TYPE, Field::Number(code)) => initializer.dtype = (code == FLOAT).then_some(Dtype::F32),
            (NAME, Field::Bytes(place)) => name = Some(text(file, place)?),
            (RAW, Field::Bytes(place)) => initializer.bytes = place,
            _ => {}
        }
    }
    Ok((name.ok_or("an initializer has no name")?, initializer))
}

/// Repeated numbers stand alone or packed.
fn numbers(file: &[u8], field: Field, list: &mut Vec<u64>) -> Parsed<()> {
    match field {
        Field::Number(number) => list.push(number),
        Field::Bytes(place) => {
            let mut rest = place;
            while !rest.is_empty() && list.len() <= LIST_MAX {
                list.push(varint(file, &mut rest)?);
            }
        }
        Field::Fixed => return Err("a list of numbers is of another type"),
    }
    if list.len() > LIST_MAX { Err("a list of numbers is too long") } else { Ok(()) }
}

fn text(file: &[u8], place: Range<usize>) -> Parsed<&str> {
    std::str::from_utf8(&file[place]).map_err(|_| "a name is no text")
}

/// The value of a field.
enum Field {
    Number(u64),
    /// Where its bytes are.
    Bytes(Range<usize>),
    /// Four or eight bytes, which nothing here reads.
    Fixed,
}

/// The fields of a message, each with its number; ends after the first that is malformed.
fn fields(file: &[u8], mut rest: Range<usize>) -> impl Iterator<Item = Parsed<(u64, Field)>> {
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let read = field(file, &mut rest);
        if read.is_err() {
            rest = 0..0;
        }
        Some(read)
    })
}

fn field(file: &[u8], rest: &mut Range<usize>) -> Parsed<(u64, Field)> {
    let tag = varint(file, rest)?;
    let value = match tag & 7 {
        0 => Field::Number(varint(file, rest)?),
        1 => skip(rest, 8).map(|_| Field::Fixed)?,
        2 => {
            let length = varint(file, rest)?;
            Field::Bytes(skip(rest, usize::try_from(length).unwrap_or(usize::MAX))?)
        }
        5 => skip(rest, 4).map(|_| Field::Fixed)?,
        _ => return Err("a field has a type that is not taken"),
    };
    Ok((tag >> 3, value))
}

fn skip(rest: &mut Range<usize>, length: usize) -> Parsed<Range<usize>> {
    let end = rest.start.checked_add(length).filter(|end| *end <= rest.end);
    let end = end.ok_or("a field ends after what it is in")?;
    Ok(std::mem::replace(&mut rest.start, end)..end)
}

/// Seven bits a byte, the lowest first; the top bit says that more follow.
fn varint(file: &[u8], rest: &mut Range<usize>) -> Parsed<u64> {
    let mut value = 0;
    for shift in (0..u64::BITS).step_by(7) {
        let byte = u64::from(file[skip(rest, 1)?][0]);
        let bits = byte & 0x7f;
        if bits << shift >> shift != bits {
            break;
        }
        value |= bits << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err("a number is too long")
}
