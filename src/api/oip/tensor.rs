//! Tensors as requests bring them: flat or nested in JSON, or as bytes behind it. One that does not agree with its own shape
//! and datatype is refused before anything is made of it.

use crate::api::ApiError;
use hyper::body::Bytes;
use serde::de::{DeserializeSeed, Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

/// The most dimensions.
pub(super) const RANK_MAX: usize = 8;

/// What a name is cut to in messages.
const NAME_CHARS_MAX: usize = 64;

/// The datatypes of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
pub(super) enum Datatype {
    /// One byte, 0 or 1.
    Bool,
    /// 8 bits without a sign.
    Uint8,
    /// 16 bits without a sign.
    Uint16,
    /// 32 bits without a sign.
    Uint32,
    /// 64 bits without a sign.
    Uint64,
    /// 8 bits.
    Int8,
    /// 16 bits.
    Int16,
    /// 32 bits.
    Int32,
    /// 64 bits.
    Int64,
    /// IEEE 754, 16 bits.
    Fp16,
    /// IEEE 754, 32 bits.
    Fp32,
    /// IEEE 754, 64 bits.
    Fp64,
    /// Elements of any length: texts in JSON; else each has its length before it, 4 bytes, little-endian.
    Bytes,
}

impl Datatype {
    /// From its name.
    pub(super) fn parse(name: &str) -> Option<Self> {
        serde_json::from_value(serde_json::Value::String(name.to_owned())).ok()
    }

    /// Bytes of an element, where all have as many.
    fn size(self) -> Option<usize> {
        match self {
            Self::Bool | Self::Uint8 | Self::Int8 => Some(1),
            Self::Uint16 | Self::Int16 | Self::Fp16 => Some(2),
            Self::Uint32 | Self::Int32 | Self::Fp32 => Some(4),
            Self::Uint64 | Self::Int64 | Self::Fp64 => Some(8),
            Self::Bytes => None,
        }
    }

    /// The name of the protocol.
    pub(super) fn name(self) -> String {
        format!("{self:?}").to_ascii_uppercase()
    }
}

/// What a request says of an input's elements.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Data {
    /// In JSON.
    Json(JsonData),
    /// Behind it, little-endian.
    Raw(Bytes),
}

/// An input, its elements as many as its shape says.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tensor {
    name: String,
    datatype: Datatype,
    shape: Vec<usize>,
    data: Data,
}

impl Tensor {
    /// # Errors
    /// No shape or datatype of this protocol, or elements that are not as many.
    pub(super) fn new(name: String, datatype: &str, shape: &[i64], data: Data) -> Result<Self, ApiError> {
        let known = Datatype::parse(datatype).ok_or_else(|| {
            let datatype: String = datatype.chars().take(NAME_CHARS_MAX).collect();
            let all = "BOOL, UINT8 to UINT64, INT8 to INT64, FP16, FP32, FP64 and BYTES";
            invalid(&name, &format!("there is no datatype {datatype:?}, only {all}"))
        })?;
        if shape.len() > RANK_MAX {
            return Err(invalid(&name, &format!("a shape has at most {RANK_MAX} dimensions")));
        }
        let sizes: Result<Vec<usize>, _> = shape.iter().map(|size| usize::try_from(*size)).collect();
        let sizes = sizes.map_err(|_| {
            invalid(&name, &format!("shape is {shape:?}; the shape of data has no negative dimension"))
        })?;
        let tensor = Self { name, datatype: known, shape: sizes, data };
        tensor.agrees()?;
        Ok(tensor)
    }

    /// The name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Refuses it where it is not what a model takes; -1 in a shape is any size.
    pub(super) fn expect(&self, datatypes: &[Datatype], shape: &[i64]) -> Result<(), ApiError> {
        if !datatypes.contains(&self.datatype) {
            let wanted: Vec<_> = datatypes.iter().map(|datatype| datatype.name()).collect();
            let (is, wanted) = (self.datatype.name(), wanted.join(" or "));
            return Err(self.invalid(&format!("datatype is {is}, expected is {wanted}")));
        }
        let same = |(is, wanted): (&usize, &i64)| *wanted == -1 || i64::try_from(*is) == Ok(*wanted);
        if self.shape.len() != shape.len() || !self.shape.iter().zip(shape).all(same) {
            return Err(self.invalid(&format!("shape is {:?}, expected is {shape:?}", self.shape)));
        }
        Ok(())
    }

    /// Elements of BYTES, each UTF-8.
    pub(super) fn into_texts(self) -> Result<Vec<String>, ApiError> {
        let raw = match self.data {
            Data::Json(JsonData { elements: Elements::Texts(texts), .. }) => return Ok(texts),
            Data::Json(JsonData { elements: Elements::None, .. }) => return Ok(Vec::new()),
            Data::Json(_) => return Err(invalid(&self.name, "elements of BYTES are texts in JSON")),
            Data::Raw(raw) => raw,
        };
        let text = |(index, element): (usize, &[u8])| {
            let text = std::str::from_utf8(element).map(str::to_owned);
            text.map_err(|_| invalid(&self.name, &format!("element {index} is not UTF-8")))
        };
        let elements = parted(&raw).ok_or_else(|| invalid(&self.name, NOT_PARTED))?;
        elements.into_iter().enumerate().map(text).collect()
    }

    /// Elements of UINT8, INT32 or INT64.
    pub(super) fn into_whole(self) -> Result<Vec<i64>, ApiError> {
        let range = match self.datatype {
            Datatype::Uint8 => 0..=i64::from(u8::MAX),
            Datatype::Int32 => i64::from(i32::MIN)..=i64::from(i32::MAX),
            _ => i64::MIN..=i64::MAX,
        };
        let datatype = self.datatype.name();
        match self.data {
            Data::Json(JsonData { elements: Elements::None, .. }) => Ok(Vec::new()),
            Data::Json(JsonData { elements: Elements::Whole(numbers), .. }) => {
                let outside = numbers.iter().position(|number| !range.contains(number));
                let Some(index) = outside else { return Ok(numbers) };
                Err(invalid(&self.name, &format!("element {index} is no {datatype}")))
            }
            Data::Json(_) => Err(invalid(&self.name, &format!("elements of {datatype} are whole numbers"))),
            Data::Raw(raw) => Ok(match self.datatype {
                Datatype::Int32 => raw.chunks_exact(4).map(|bytes| i64::from(i32_of(bytes))).collect(),
                Datatype::Int64 => raw.chunks_exact(8).map(i64_of).collect(),
                _ => raw.iter().map(|byte| i64::from(*byte)).collect(),
            }),
        }
    }

    /// Elements of UINT8.
    pub(super) fn into_octets(self) -> Result<Bytes, ApiError> {
        if let Data::Raw(raw) = self.data {
            return Ok(raw);
        }
        let octets = self.into_whole()?;
        Ok(octets.into_iter().map(|octet| u8::try_from(octet).expect("in the range of UINT8")).collect())
    }

    fn agrees(&self) -> Result<(), ApiError> {
        let product = self.shape.iter().try_fold(1_usize, |product, size| product.checked_mul(*size));
        let count = product.ok_or_else(|| self.invalid("its shape has too many elements"))?;
        let differs = |found: &str| {
            self.invalid(&format!("shape {:?} is of {count} elements, the data is {found}", self.shape))
        };
        match (&self.data, self.datatype.size()) {
            (Data::Json(data), _) if data.lengths == [count] || data.lengths == self.shape => Ok(()),
            (Data::Json(data), _) => Err(differs(&format!("of shape {:?}", data.lengths))),
            (Data::Raw(raw), Some(size)) if count.checked_mul(size) == Some(raw.len()) => Ok(()),
            (Data::Raw(raw), Some(_)) => {
                Err(differs(&format!("{} bytes of {}", raw.len(), self.datatype.name())))
            }
            (Data::Raw(raw), None) => match parted(raw) {
                None => Err(self.invalid(NOT_PARTED)),
                Some(elements) if elements.len() == count => Ok(()),
                Some(elements) => Err(differs(&format!("of {}", elements.len()))),
            },
        }
    }

    fn invalid(&self, message: &str) -> ApiError {
        invalid(&self.name, message)
    }
}

const NOT_PARTED: &str = "the data is not of elements with their length before each, 4 bytes, little-endian";

/// An input is not what it says, or not what the model takes.
pub(super) fn invalid(name: &str, message: &str) -> ApiError {
    let name: String = name.chars().take(NAME_CHARS_MAX).collect();
    ApiError::invalid("tensor_invalid", &name, format!("input {name:?}: {message}"))
}

/// Elements of BYTES as they lie behind one another; none where they end inside one.
fn parted(mut raw: &[u8]) -> Option<Vec<&[u8]>> {
    let mut elements = Vec::new();
    while !raw.is_empty() {
        let (length, rest) = raw.split_first_chunk::<4>()?;
        let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
        let (element, rest) = rest.split_at_checked(length)?;
        elements.push(element);
        raw = rest;
    }
    Some(elements)
}

/// The same, put behind one another.
///
/// # Panics
/// An element has 4 GiB; none of an answer has.
pub(super) fn joined<'a>(elements: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut raw = Vec::new();
    for element in elements {
        let length = u32::try_from(element.len()).expect("an answer is smaller");
        raw.extend_from_slice(&length.to_le_bytes());
        raw.extend_from_slice(element);
    }
    raw
}

fn i32_of(bytes: &[u8]) -> i32 {
    i32::from_le_bytes(bytes.try_into().expect("chunks of four"))
}

fn i64_of(bytes: &[u8]) -> i64 {
    i64::from_le_bytes(bytes.try_into().expect("chunks of eight"))
}

/// A field `data`: in row-major order, flat or nested.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct JsonData {
    elements: Elements,
    /// Of the lists by depth: the same for all of one depth.
    lengths: Vec<usize>,
}

/// What inputs are made of. Other elements are remembered as such only: no model takes any.
#[derive(Debug, Clone, PartialEq)]
enum Elements {
    None,
    Whole(Vec<i64>),
    Texts(Vec<String>),
    Other,
}

impl<'de> Deserialize<'de> for JsonData {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut collected =
            Collected { elements: Elements::None, lengths: [None; RANK_MAX], leaves_at: None };
        Nested { into: &mut collected, depth: 0 }.deserialize(deserializer)?;
        let lengths = collected.lengths.into_iter().map_while(|length| length).collect();
        Ok(Self { elements: collected.elements, lengths })
    }
}

struct Collected {
    elements: Elements,
    lengths: [Option<usize>; RANK_MAX],
    /// The depth of all elements.
    leaves_at: Option<usize>,
}

enum Leaf {
    Whole(i64),
    Text(String),
    Other,
}

const RAGGED: &str = "data has lists of different lengths or depths";

impl Collected {
    fn leaf(&mut self, depth: usize, leaf: Leaf) -> Result<(), &'static str> {
        if depth == 0 {
            return Err("data is a list");
        }
        let has_lists = self.lengths.get(depth).is_some_and(Option::is_some);
        if has_lists || *self.leaves_at.get_or_insert(depth) != depth {
            return Err(RAGGED);
        }
        match (&mut self.elements, leaf) {
            (Elements::Whole(numbers), Leaf::Whole(number)) => numbers.push(number),
            (Elements::Texts(texts), Leaf::Text(text)) => texts.push(text),
            (Elements::None, Leaf::Whole(number)) => self.elements = Elements::Whole(vec![number]),
            (Elements::None, Leaf::Text(text)) => self.elements = Elements::Texts(vec![text]),
            (Elements::None, Leaf::Other)
            | (Elements::Whole(_), Leaf::Text(_) | Leaf::Other)
            | (Elements::Texts(_), Leaf::Whole(_) | Leaf::Other)
            | (Elements::Other, _) => self.elements = Elements::Other,
        }
        Ok(())
    }

    fn list(&mut self, depth: usize, length: usize) -> Result<(), &'static str> {
        if self.leaves_at == Some(depth) || *self.lengths[depth].get_or_insert(length) != length {
            return Err(RAGGED);
        }
        Ok(())
    }
}

/// What is at one depth.
struct Nested<'a> {
    into: &'a mut Collected,
    depth: usize,
}

impl Nested<'_> {
    fn leaf<E: serde::de::Error>(self, leaf: Leaf) -> Result<(), E> {
        self.into.leaf(self.depth, leaf).map_err(E::custom)
    }
}

impl<'de> DeserializeSeed<'de> for Nested<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Nested<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("elements, flat or nested as the shape says")
    }

    fn visit_bool<E: serde::de::Error>(self, _value: bool) -> Result<(), E> {
        self.leaf(Leaf::Other)
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<(), E> {
        self.leaf(Leaf::Whole(value))
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<(), E> {
        self.leaf(i64::try_from(value).map_or(Leaf::Other, Leaf::Whole))
    }

    fn visit_f64<E: serde::de::Error>(self, _value: f64) -> Result<(), E> {
        self.leaf(Leaf::Other)
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<(), E> {
        self.leaf(Leaf::Text(value.to_owned()))
    }

    fn visit_string<E: serde::de::Error>(self, value: String) -> Result<(), E> {
        self.leaf(Leaf::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<(), A::Error> {
        let Self { into, depth } = self;
        if depth == RANK_MAX {
            return Err(A::Error::custom(format!("data is nested deeper than {RANK_MAX}")));
        }
        let mut length = 0;
        while sequence.next_element_seed(Nested { into: &mut *into, depth: depth + 1 })?.is_some() {
            length += 1;
        }
        into.list(depth, length).map_err(A::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn of_json(datatype: &str, shape: &[i64], data: &Value) -> Result<Tensor, String> {
        let data: JsonData = serde_json::from_value(data.clone()).map_err(|error| error.to_string())?;
        Tensor::new("x".to_owned(), datatype, shape, Data::Json(data))
            .map_err(|error| error.message().to_owned())
    }

    fn of_raw(datatype: &str, shape: &[i64], raw: &[u8]) -> Result<Tensor, String> {
        let data = Data::Raw(Bytes::copy_from_slice(raw));
        Tensor::new("x".to_owned(), datatype, shape, data).map_err(|error| error.message().to_owned())
    }

    /// Elements as lists of lists, as a shape has them.
    fn nested(elements: &[Value], shape: &[usize]) -> Value {
        let Some((_, inner)) = shape.split_first() else { return elements[0].clone() };
        let size = inner.iter().product::<usize>();
        elements.chunks(size.max(1)).map(|row| nested(row, inner)).collect()
    }

    fn shapes() -> impl Strategy<Value = Vec<usize>> {
        proptest::collection::vec(1_usize..4, 1..=4)
    }

    proptest! {
        #[test]
        fn texts_are_the_same_flat_nested_and_binary(shape in shapes(), seed: Vec<String>) {
            let count = shape.iter().product::<usize>();
            let texts: Vec<String> =
                (0..count).map(|at| seed.get(at % seed.len().max(1)).cloned().unwrap_or_default()).collect();
            let sizes: Vec<i64> = shape.iter().map(|size| i64::try_from(*size).unwrap()).collect();
            let values: Vec<Value> = texts.iter().map(|text| json!(text)).collect();
            let raw = joined(texts.iter().map(String::as_bytes));
            for tensor in [
                of_json("BYTES", &sizes, &json!(values)),
                of_json("BYTES", &sizes, &nested(&values, &shape)),
                of_raw("BYTES", &sizes, &raw),
            ] {
                prop_assert_eq!(tensor.unwrap().into_texts().unwrap(), texts.clone());
            }
        }

        #[test]
        fn numbers_are_the_same_flat_nested_and_binary(shape in shapes(), seed: i32) {
            let count = i32::try_from(shape.iter().product::<usize>()).unwrap();
            let sizes: Vec<i64> = shape.iter().map(|size| i64::try_from(*size).unwrap()).collect();
            let numbers: Vec<i32> = (0..count).map(|at| seed.wrapping_mul(at + 1)).collect();
            let (narrow, wide): (Vec<_>, Vec<_>) = numbers
                .iter()
                .map(|number| (number.to_le_bytes().to_vec(), i64::from(*number).to_le_bytes().to_vec()))
                .unzip();
            let values: Vec<Value> = numbers.iter().map(|number| json!(number)).collect();
            let expected: Vec<i64> = numbers.iter().map(|number| i64::from(*number)).collect();
            for tensor in [
                of_json("INT32", &sizes, &json!(values)),
                of_json("INT64", &sizes, &nested(&values, &shape)),
                of_raw("INT32", &sizes, &narrow.concat()),
                of_raw("INT64", &sizes, &wide.concat()),
            ] {
                prop_assert_eq!(tensor.unwrap().into_whole().unwrap(), expected.clone());
            }
        }

        #[test]
        fn octets_are_the_same_in_json_and_binary(octets in proptest::collection::vec(any::<u8>(), 1..64)) {
            let shape = [i64::try_from(octets.len()).unwrap()];
            for tensor in [of_json("UINT8", &shape, &json!(octets)), of_raw("UINT8", &shape, &octets)] {
                prop_assert_eq!(&tensor.unwrap().into_octets().unwrap()[..], &octets[..]);
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused_and_what_is_read_is_written_the_same(raw: Vec<u8>, count in 0_i64..8) {
            let Ok(tensor) = of_raw("BYTES", &[count], &raw) else { return Ok(()) };
            let elements = parted(&raw).unwrap();
            prop_assert_eq!(elements.len(), usize::try_from(count).unwrap());
            prop_assert_eq!(joined(elements.iter().copied()), raw);
            drop(tensor.into_texts());
        }
    }

    #[test]
    fn what_does_not_agree_with_itself_is_refused_and_says_why() {
        let json_cases: &[(&str, &[i64], Value, &str)] = &[
            ("TEXT", &[1], json!(["a"]), "no datatype"),
            ("BF16", &[1], json!([1]), "no datatype"),
            ("bytes", &[1], json!(["a"]), "no datatype"),
            ("BYTES", &[2], json!(["a"]), "shape [2] is of 2 elements"),
            ("BYTES", &[-1], json!(["a"]), "no negative"),
            ("BYTES", &[2, 2], json!([["a", "b", "c", "d"]]), "of shape [1, 4]"),
            ("BYTES", &[2, 2], json!([["a", "b"], ["c"]]), "different lengths"),
            ("BYTES", &[2], json!(["a", ["b"]]), "different lengths"),
            ("BYTES", &[2], json!([["b"], "a"]), "different lengths"),
            ("BYTES", &[1], json!("a"), "data is a list"),
            ("BYTES", &[1], json!([null]), "null"),
            ("BYTES", &[1], json!([{}]), "map"),
            ("BYTES", &[1; 9], json!(["a"]), "at most 8 dimensions"),
            ("BYTES", &[1], json!([[[[[[[[["a"]]]]]]]]]), "deeper than 8"),
            ("BYTES", &[i64::MAX, i64::MAX], json!([]), "too many elements"),
        ];
        for (datatype, shape, data, message) in json_cases {
            let error = of_json(datatype, shape, data).expect_err(message);
            assert!(error.contains(message), "{datatype} {shape:?} {data}: {error}");
        }
        let raw_cases: &[(&str, &[i64], &[u8], &str)] = &[
            ("INT64", &[1], &[0; 7], "7 bytes of INT64"),
            ("UINT8", &[3], &[0; 2], "2 bytes of UINT8"),
            ("BYTES", &[1], &[1, 0, 0], "length before each"),
            ("BYTES", &[1], &[2, 0, 0, 0, b'a'], "length before each"),
            ("BYTES", &[1], &[255, 255, 255, 255], "length before each"),
            ("BYTES", &[2], &[1, 0, 0, 0, b'a'], "the data is of 1"),
        ];
        for (datatype, shape, raw, message) in raw_cases {
            let error = of_raw(datatype, shape, raw).expect_err(message);
            assert!(error.contains(message), "{datatype} {shape:?} {raw:?}: {error}");
        }
    }

    #[test]
    fn elements_of_another_kind_than_the_datatype_are_refused() {
        for data in [json!([1]), json!([true]), json!([1.5])] {
            assert!(of_json("BYTES", &[1], &data).unwrap().into_texts().is_err(), "{data}");
        }
        assert!(of_json("BYTES", &[2], &json!(["a", 1])).unwrap().into_texts().is_err());
        assert!(of_raw("BYTES", &[1], &[1, 0, 0, 0, 0xff]).unwrap().into_texts().is_err());
        for (datatype, data) in [
            ("UINT8", json!([256])),
            ("UINT8", json!([-1])),
            ("INT32", json!([i64::from(i32::MAX) + 1])),
            ("INT64", json!([u64::MAX])),
            ("INT64", json!(["1"])),
        ] {
            assert!(of_json(datatype, &[1], &data).unwrap().into_whole().is_err(), "{datatype} {data}");
        }
    }

    #[test]
    fn every_datatype_has_the_name_and_size_of_the_protocol() {
        let sizes = [
            ("BOOL", Some(1)),
            ("UINT8", Some(1)),
            ("UINT16", Some(2)),
            ("UINT32", Some(4)),
            ("UINT64", Some(8)),
            ("INT8", Some(1)),
            ("INT16", Some(2)),
            ("INT32", Some(4)),
            ("INT64", Some(8)),
            ("FP16", Some(2)),
            ("FP32", Some(4)),
            ("FP64", Some(8)),
            ("BYTES", None),
        ];
        for (name, size) in sizes {
            let datatype = Datatype::parse(name).expect(name);
            assert_eq!((datatype.name().as_str(), datatype.size()), (name, size));
        }
    }
}
