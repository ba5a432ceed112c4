//! Writes `model.safetensors`: the header first, then each tensor's bytes in the order of the header.

use super::output::Output;
use crate::package::safetensors::{Dtype, FILE, HEADER_BYTES_MAX, TENSORS_MAX};
use ringfence_protocol::ConvertError;
use serde_json::{Map, Value, json};

/// A tensor that will be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// Type of its elements.
    pub dtype: Dtype,
    /// Sizes of its dimensions, outermost first.
    pub shape: Vec<usize>,
}

impl Tensor {
    /// Its length in bytes; `None` if that overflows.
    pub fn byte_length(&self) -> Option<usize> {
        self.shape.iter().try_fold(self.dtype.bytes(), |product, size| product.checked_mul(*size))
    }
}

/// Writes the tensors as `model.safetensors`. `fill` is called once for each, by its place in `tensors`, and must put
/// exactly its bytes, little-endian and row by row.
///
/// The header is padded with spaces, so that the data begins at a multiple of 64 bytes.
///
/// # Errors
/// The header would be too long, a place is full, or what `fill` says.
///
/// # Panics
/// Where `fill` puts another number of bytes than the tensor has: the header would lie.
pub fn write(
    output: &mut dyn Output,
    tensors: &[Tensor],
    mut fill: impl FnMut(usize, &mut dyn FnMut(&[u8]) -> Result<(), ConvertError>) -> Result<(), ConvertError>,
) -> Result<(), ConvertError> {
    let (header, total) = header(tensors)?;
    output.begin(FILE)?;
    output.put(&(header.len() as u64).to_le_bytes())?;
    output.put(&header)?;
    let mut done = 0_u64;
    for (place, tensor) in tensors.iter().enumerate() {
        let before = done;
        let mut put = |bytes: &[u8]| {
            done += bytes.len() as u64;
            output.put(bytes)
        };
        fill(place, &mut put)?;
        let length = tensor.byte_length().expect("the header was made of it") as u64;
        assert_eq!(done - before, length, "the bytes of {}", tensor.name);
        output.progress(done, total);
    }
    Ok(())
}

/// The header's text, and the bytes of all tensors.
fn header(tensors: &[Tensor]) -> Result<(Vec<u8>, u64), ConvertError> {
    if tensors.len() > TENSORS_MAX {
        return Err(too_large(TENSORS_MAX as u64));
    }
    let mut entries = Map::new();
    let mut start = 0_usize;
    for tensor in tensors {
        let end = tensor.byte_length().and_then(|length| start.checked_add(length));
        let end = end.ok_or_else(|| too_large(usize::MAX as u64))?;
        let entry =
            json!({"dtype": tensor.dtype.name(), "shape": tensor.shape, "data_offsets": [start, end]});
        if entries.insert(tensor.name.clone(), entry).is_some() {
            return Err(ConvertError::Twice { file: tensor.name.clone() });
        }
        start = end;
    }
    let mut header = Value::Object(entries).to_string().into_bytes();
    header.resize((header.len() + 8).next_multiple_of(64) - 8, b' ');
    if header.len() > HEADER_BYTES_MAX {
        return Err(too_large(HEADER_BYTES_MAX as u64));
    }
    Ok((header, start as u64))
}

fn too_large(bytes_max: u64) -> ConvertError {
    ConvertError::TooLarge { file: FILE.to_owned(), bytes_max }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::output::InMemory;
    use crate::package::{FileBytes, Files, safetensors::Tensors};
    use std::sync::Arc;

    #[test]
    fn what_is_written_is_what_the_strict_parser_reads() {
        let tensor = |name: &str, dtype, shape: &[usize]| Tensor {
            name: name.to_owned(),
            dtype,
            shape: shape.to_vec(),
        };
        let tensors =
            [tensor("b", Dtype::F32, &[2, 1]), tensor("a", Dtype::U8, &[3]), tensor("c", Dtype::F16, &[])];
        let data = [&[1_u8, 2, 3, 4, 5, 6, 7, 8][..], &[9, 10, 11], &[12, 13]];
        let mut output = InMemory::default();
        write(&mut output, &tensors, |place, put| data[place].chunks(2).try_for_each(&mut *put)).unwrap();
        let bytes = Arc::new(output.files.remove(FILE).unwrap()) as FileBytes;
        let read = Tensors::read(&[(FILE.to_owned(), bytes.clone())].into_iter().collect::<Files>()).unwrap();
        for (tensor, data) in tensors.iter().zip(data) {
            let entry = &read.entries()[&tensor.name];
            assert_eq!((entry.dtype, &entry.shape), (tensor.dtype, &tensor.shape));
            assert_eq!(&bytes[entry.bytes.clone()], data);
            assert!(tensor.name != "b" || entry.bytes.start.is_multiple_of(64));
        }
    }

    #[test]
    fn two_tensors_of_one_name_are_refused() {
        let tensor = Tensor { name: "a".to_owned(), dtype: Dtype::U8, shape: vec![0] };
        let written = write(&mut InMemory::default(), &[tensor.clone(), tensor], |_, _| Ok(()));
        assert!(matches!(written, Err(ConvertError::Twice { .. })));
    }
}
