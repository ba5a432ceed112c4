//! Little-endian numbers and runs of bytes from a file, in order; nothing is read past its end.

use crate::convert::malformed;
use ringfence_protocol::ConvertError;
use std::ops::Range;

/// Where reading has come to in a file.
pub(super) struct Reader<'a> {
    file: &'static str,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(file: &'static str, bytes: &'a [u8]) -> Self {
        Self { file, bytes, at: 0 }
    }

    /// Whether everything was read.
    pub(super) fn is_done(&self) -> bool {
        self.at == self.bytes.len()
    }

    /// The place of the next `length` bytes, which are passed over.
    pub(super) fn skip(&mut self, length: usize) -> Result<Range<usize>, ConvertError> {
        let end = self.at.checked_add(length).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or_else(|| malformed(self.file, "it ends too early"))?;
        Ok(std::mem::replace(&mut self.at, end)..end)
    }

    pub(super) fn take(&mut self, length: usize) -> Result<&'a [u8], ConvertError> {
        self.skip(length).map(|range| &self.bytes[range])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ConvertError> {
        Ok(self.take(N)?.try_into().expect("as many were taken"))
    }

    pub(super) fn u8(&mut self) -> Result<u8, ConvertError> {
        self.array().map(u8::from_le_bytes)
    }

    pub(super) fn u16(&mut self) -> Result<u16, ConvertError> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, ConvertError> {
        self.array().map(u32::from_le_bytes)
    }

    /// A count or size of at most `most`; `what` is its name in a refusal.
    pub(super) fn count(&mut self, what: &str, most: usize) -> Result<usize, ConvertError> {
        let count = self.u32()? as usize;
        if count > most {
            return Err(malformed(self.file, format!("{what} is {count}, at most {most} is taken")));
        }
        Ok(count)
    }
}
