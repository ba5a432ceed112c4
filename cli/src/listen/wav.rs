//! The head of a WAV file: where its samples are and how they are written. The samples themselves nobody here looks at.

/// How samples are written, in the words of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Format {
    /// `s16le` or `f32le`.
    pub encoding: &'static str,
    /// Samples a second.
    pub rate: u32,
    /// Interleaved.
    pub channels: u16,
}

impl Format {
    /// Bytes of so much time.
    pub fn bytes_of(&self, ms: u64) -> usize {
        let sample = if self.encoding == "s16le" { 2 } else { 4 };
        let frames = u64::from(self.rate) * ms / 1_000;
        usize::try_from(frames).unwrap_or(usize::MAX).saturating_mul(sample * usize::from(self.channels))
    }
}

/// Where the samples of a file begin and end, and their format; `None` where it is no WAV of 16-bit numbers or floats.
pub fn samples(file: &[u8]) -> Option<(std::ops::Range<usize>, Format)> {
    let (head, mut at) = (file.get(..12)?, 12);
    if &head[..4] != b"RIFF" || &head[8..] != b"WAVE" {
        return None;
    }
    let mut format = None;
    loop {
        let chunk = file.get(at..at + 8)?;
        let length = u32::from_le_bytes(chunk[4..].try_into().ok()?) as usize;
        let body = at + 8..(at + 8).checked_add(length)?;
        match &chunk[..4] {
            b"fmt " => format = Some(format_of(file.get(body.clone())?)?),
            // A length that nobody has written in is that of the rest.
            b"data" => return Some((body.start..body.end.min(file.len()), format?)),
            _ => {}
        }
        at = body.end + length % 2;
    }
}

fn format_of(chunk: &[u8]) -> Option<Format> {
    let two = |at: usize| Some(u16::from_le_bytes(chunk.get(at..at + 2)?.try_into().ok()?));
    let rate = u32::from_le_bytes(chunk.get(4..8)?.try_into().ok()?);
    // The extensible form has the kind in its first bytes of a longer name.
    let kind = if two(0)? == 0xfffe { two(24)? } else { two(0)? };
    let encoding = match (kind, two(14)?) {
        (1, 16) => "s16le",
        (3, 32) => "f32le",
        _ => return None,
    };
    Some(Format { encoding, rate, channels: two(2)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wav(kind: u16, bits: u16) -> Vec<u8> {
        let mut file = b"RIFF\0\0\0\0WAVELIST\x03\0\0\0abc\0fmt \x10\0\0\0".to_vec();
        file.extend([kind.to_le_bytes(), 2_u16.to_le_bytes()].concat());
        file.extend(48_000_u32.to_le_bytes());
        file.extend([0; 6]);
        file.extend(bits.to_le_bytes());
        file.extend(b"data\x08\0\0\0");
        file.extend([1, 2, 3, 4, 5, 6, 7, 8, 99]);
        file
    }

    #[test]
    fn samples_are_found_behind_other_chunks_and_their_format_is_read() {
        let file = wav(1, 16);
        let (range, format) = samples(&file).unwrap();
        assert_eq!(file[range], [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(format, Format { encoding: "s16le", rate: 48_000, channels: 2 });
        assert_eq!(format.bytes_of(20), 3_840);
        assert_eq!(samples(&wav(3, 32)).unwrap().1.encoding, "f32le");
    }

    #[test]
    fn what_is_something_else_is_none_and_no_cut_panics() {
        assert_eq!(samples(&wav(1, 24)), None);
        assert_eq!(samples(b"OggS"), None);
        let file = wav(1, 16);
        for end in 0..file.len() {
            let _any = samples(&file[..end]);
        }
        let mut long = file.clone();
        long[16..20].copy_from_slice(&[255; 4]);
        assert_eq!(samples(&long), None);
    }
}
