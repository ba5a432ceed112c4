//! How a pushed stream's bytes are wrapped on their socket: not at all, in HTTP chunks (RFC 9112, section 7.1), or in the
//! frames of a WebSocket client (RFC 6455, section 5). Bytes are unwrapped in place, one by one, whatever the pieces.

use ringfence_protocol::{AudioError, Framing};

/// The longest chunk or frame in bytes.
const PIECE_BYTES_MAX: u64 = 1 << 24;
/// The most bytes of chunk extensions and trailers of one stream, which say nothing here.
const IGNORED_BYTES_MAX: u32 = 8 * 1024;
/// The most bytes of a control frame.
const CONTROL_BYTES_MAX: u64 = 125;

/// Where in its wrapping a stream is.
#[derive(Debug)]
pub struct Unwrap(State);

#[derive(Clone, Copy, Debug)]
enum State {
    Plain,
    Chunked(Chunked, u32),
    WebSocket(WebSocket, Message),
    Ended,
}

/// Within a chunk.
#[derive(Clone, Copy, Debug)]
enum Chunked {
    Size {
        size: u64,
        digits: u8,
    },
    Extension {
        size: u64,
    },
    SizeLf {
        size: u64,
    },
    Data {
        left: u64,
    },
    DataCr,
    DataLf,
    /// A line of the trailer, which is empty so far or not.
    Trailer {
        empty: bool,
    },
    TrailerLf {
        empty: bool,
    },
}

/// Within a frame.
#[derive(Clone, Copy, Debug)]
enum WebSocket {
    First,
    Second { kind: Kind },
    Length { kind: Kind, left: u8, length: u64 },
    Mask { kind: Kind, length: u64, mask: [u8; 4], got: u8 },
    Payload { kind: Kind, left: u64, mask: [u8; 4], at: u8 },
}

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Data,
    /// A ping or a pong: skipped.
    Control,
    Close,
}

/// Whether a message goes on in the next frame of data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Message {
    Whole,
    Fragmented,
}

const BAD: AudioError = AudioError::BadFormat;

impl Unwrap {
    /// At the start.
    pub fn new(framing: Framing) -> Self {
        Self(match framing {
            Framing::Plain => State::Plain,
            Framing::HttpChunks => State::Chunked(Chunked::Size { size: 0, digits: 0 }, IGNORED_BYTES_MAX),
            Framing::WebSocket => State::WebSocket(WebSocket::First, Message::Whole),
        })
    }

    /// Moves what these bytes hold to their start; how many that are. What comes behind the end is ignored.
    ///
    /// # Errors
    /// [`AudioError::BadFormat`] for what is not wrapped so.
    pub fn take(&mut self, bytes: &mut [u8]) -> Result<usize, AudioError> {
        let mut kept = 0;
        for at in 0..bytes.len() {
            if let Some(byte) = self.byte(bytes[at])? {
                bytes[kept] = byte;
                kept += 1;
            }
        }
        Ok(kept)
    }

    /// Whether the stream has said its end.
    pub fn is_ended(&self) -> bool {
        matches!(self.0, State::Ended)
    }

    /// Whether the socket may end here.
    ///
    /// # Errors
    /// [`AudioError::Truncated`] where the stream should have said its end, and has not.
    pub fn finish(&self) -> Result<(), AudioError> {
        match self.0 {
            State::Plain | State::Ended => Ok(()),
            State::Chunked(..) | State::WebSocket(..) => Err(AudioError::Truncated),
        }
    }

    /// The sound's byte in it, if it holds one.
    fn byte(&mut self, byte: u8) -> Result<Option<u8>, AudioError> {
        match self.0 {
            State::Plain => Ok(Some(byte)),
            State::Ended => Ok(None),
            State::Chunked(chunked, ignored) => {
                let (next, ignored, kept) = chunked.byte(byte, ignored)?;
                self.0 = next.map_or(State::Ended, |next| State::Chunked(next, ignored));
                Ok(kept)
            }
            State::WebSocket(frame, message) => {
                let (next, message, kept) = frame.byte(byte, message)?;
                self.0 = next.map_or(State::Ended, |next| State::WebSocket(next, message));
                Ok(kept)
            }
        }
    }
}

impl Chunked {
    fn byte(self, byte: u8, ignored: u32) -> Result<(Option<Self>, u32, Option<u8>), AudioError> {
        let less = || ignored.checked_sub(1).ok_or(BAD);
        let go = |next| Ok((Some(next), ignored, None));
        match (self, byte) {
            (Self::Size { size, digits }, byte) if byte.is_ascii_hexdigit() => {
                let digit = char::from(byte).to_digit(16).ok_or(BAD)?;
                let size = size * 16 + u64::from(digit);
                if size > PIECE_BYTES_MAX || digits > 16 {
                    Err(BAD)
                } else {
                    go(Self::Size { size, digits: digits + 1 })
                }
            }
            (Self::Size { digits: 0, .. }, _) => Err(BAD),
            (Self::Size { size, .. } | Self::Extension { size }, b'\r') => go(Self::SizeLf { size }),
            (Self::Size { size, .. }, b';' | b' ' | b'\t') => go(Self::Extension { size }),
            (Self::Extension { size }, byte) if byte != b'\n' => {
                Ok((Some(Self::Extension { size }), less()?, None))
            }
            (Self::SizeLf { size: 0 }, b'\n') => go(Self::Trailer { empty: true }),
            (Self::SizeLf { size }, b'\n') => go(Self::Data { left: size }),
            (Self::Data { left: 1 }, byte) => Ok((Some(Self::DataCr), ignored, Some(byte))),
            (Self::Data { left }, byte) => Ok((Some(Self::Data { left: left - 1 }), ignored, Some(byte))),
            (Self::DataCr, b'\r') => go(Self::DataLf),
            (Self::DataLf, b'\n') => go(Self::Size { size: 0, digits: 0 }),
            (Self::Trailer { empty }, b'\r') => go(Self::TrailerLf { empty }),
            (Self::Trailer { .. }, byte) if byte != b'\n' => {
                Ok((Some(Self::Trailer { empty: false }), less()?, None))
            }
            (Self::TrailerLf { empty: true }, b'\n') => Ok((None, ignored, None)),
            (Self::TrailerLf { empty: false }, b'\n') => go(Self::Trailer { empty: true }),
            _ => Err(BAD),
        }
    }
}

impl WebSocket {
    fn byte(self, byte: u8, message: Message) -> Result<(Option<Self>, Message, Option<u8>), AudioError> {
        match self {
            Self::First => {
                first(byte, message).map(|(kind, message)| (Some(Self::Second { kind }), message, None))
            }
            // Who sends without a mask is no client.
            Self::Second { .. } if byte & 0x80 == 0 => Err(BAD),
            Self::Second { kind } => {
                let next = match byte & 0x7f {
                    126 => Self::Length { kind, left: 2, length: 0 },
                    127 => Self::Length { kind, left: 8, length: 0 },
                    length => Self::masked(kind, u64::from(length))?,
                };
                Ok((Some(next), message, None))
            }
            Self::Length { kind, left, length } => {
                let length = length.checked_mul(256).ok_or(BAD)? + u64::from(byte);
                let next = if left == 1 {
                    Self::masked(kind, length)?
                } else {
                    Self::Length { kind, left: left - 1, length }
                };
                Ok((Some(next), message, None))
            }
            Self::Mask { kind, length, mut mask, got } => {
                mask[usize::from(got)] = byte;
                let next = match (got, length) {
                    (3, 0) => Self::behind(kind),
                    (3, left) => Some(Self::Payload { kind, left, mask, at: 0 }),
                    _ => Some(Self::Mask { kind, length, mask, got: got + 1 }),
                };
                Ok((next, message, None))
            }
            Self::Payload { kind, left, mask, at } => {
                let kept = (kind == Kind::Data).then_some(byte ^ mask[usize::from(at)]);
                let next = match left {
                    1 => Self::behind(kind),
                    left => Some(Self::Payload { kind, left: left - 1, mask, at: (at + 1) % 4 }),
                };
                Ok((next, message, kept))
            }
        }
    }

    fn masked(kind: Kind, length: u64) -> Result<Self, AudioError> {
        let most = if kind == Kind::Data { PIECE_BYTES_MAX } else { CONTROL_BYTES_MAX };
        if length > most { Err(BAD) } else { Ok(Self::Mask { kind, length, mask: [0; 4], got: 0 }) }
    }

    /// What comes behind a frame; nothing behind a close.
    fn behind(kind: Kind) -> Option<Self> {
        match kind {
            Kind::Data | Kind::Control => Some(Self::First),
            Kind::Close => None,
        }
    }
}

/// A frame's first byte: whether it is the last of its message, three bits that have no meaning here, and what it is.
fn first(byte: u8, message: Message) -> Result<(Kind, Message), AudioError> {
    let last = byte & 0x80 != 0;
    let after = if last { Message::Whole } else { Message::Fragmented };
    match (byte & 0x7f, message, last) {
        (0x0, Message::Fragmented, _) | (0x2, Message::Whole, _) => Ok((Kind::Data, after)),
        (0x8, message, true) => Ok((Kind::Close, message)),
        (0x9 | 0xa, message, true) => Ok((Kind::Control, message)),
        // Text, too: it is no sound.
        _ => Err(BAD),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is inside, the same for every size of pieces.
    fn check(framing: Framing, bytes: &[u8], expected: Result<&[u8], AudioError>) {
        for size in [1, 2, 3, 7, 1000] {
            let mut unwrap = Unwrap::new(framing);
            let all = bytes.chunks(size).try_fold(Vec::new(), |mut all, piece| {
                let mut piece = piece.to_vec();
                let kept = unwrap.take(&mut piece)?;
                all.extend_from_slice(&piece[..kept]);
                Ok(all)
            });
            let all = all.and_then(|all| unwrap.finish().map(|()| all));
            assert_eq!(all.as_deref().map_err(|error| *error), expected, "{bytes:?} by {size}");
        }
    }

    #[test]
    fn plain_bytes_are_what_they_are() {
        check(Framing::Plain, b"", Ok(b""));
        check(Framing::Plain, b"3\r\nabc", Ok(b"3\r\nabc"));
    }

    #[test]
    fn chunks_are_joined_and_their_end_is_said() {
        let check = |bytes: &[u8], expected| check(Framing::HttpChunks, bytes, expected);
        check(
            b"4\r\nWiki\r\n7\r\npedia i\r\nB\r\nn \r\nchunks.\r\n0\r\n\r\n",
            Ok(b"Wikipedia in \r\nchunks."),
        );
        check(b"0\r\n\r\n", Ok(b""));
        check(b"0003;name=\"value\"\r\nabc\r\n0\r\nTrailer: x\r\nAnother: y\r\n\r\nGET /", Ok(b"abc"));
        for cut in [&b""[..], b"4", b"4\r\nWik", b"4\r\nWiki\r\n", b"0\r\n", b"0\r\nTrailer: x\r\n"] {
            check(cut, Err(AudioError::Truncated));
        }
        for wrong in [
            &b"\r\n"[..],
            b"x\r\n",
            b"-1\r\n",
            b"3\nabc",
            b"3\r\nabcd\r\n",
            b"3\r\nabc\n",
            b"1000001\r\n",
            b"0\r\n\n",
        ] {
            check(wrong, Err(BAD));
        }
        let long = [b"3;".to_vec(), vec![b'a'; 9_000], b"\r\nabc\r\n0\r\n\r\n".to_vec()].concat();
        check(&long, Err(BAD));
        check(&[b"0".repeat(20), b"3\r\nabc\r\n0\r\n\r\n".to_vec()].concat(), Err(BAD));
    }

    /// A frame of a client, with the mask of the example in RFC 6455.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mask = [0x37, 0xfa, 0x21, 0x3d];
        let mut frame = vec![first];
        match payload.len() {
            length @ 0..=125 => frame.push(0x80 | u8::try_from(length).unwrap()),
            length => {
                frame.push(0x80 | 127);
                frame.extend_from_slice(&(length as u64).to_be_bytes());
            }
        }
        frame.extend_from_slice(&mask);
        frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        frame
    }

    #[test]
    fn frames_of_a_client_are_unmasked_and_joined() {
        let check = |frames: &[Vec<u8>], expected| check(Framing::WebSocket, &frames.concat(), expected);
        let hello = vec![0x82, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
        assert_eq!(frame(0x82, b"Hello"), hello);
        let close = || frame(0x88, b"\x03\xe8");
        check(&[hello.clone(), close()], Ok(b"Hello"));
        check(
            &[frame(0x02, b"He"), frame(0x89, b"ping"), frame(0x00, b"l"), frame(0x80, b"lo"), close()],
            Ok(b"Hello"),
        );
        check(&[frame(0x82, b""), frame(0x8a, b""), frame(0x88, b""), b"rest".to_vec()], Ok(b""));
        let long = vec![7; 70_000];
        check(&[frame(0x82, &long), close()], Ok(&long));
        check(&[vec![0x82, 0xfe, 0, 3, 0, 0, 0, 0, b'a', b'b', b'c'], close()], Ok(b"abc"));
        check(std::slice::from_ref(&hello), Err(AudioError::Truncated));
        for wrong in [
            vec![0x82, 0x05],
            frame(0x81, b"text"),
            frame(0x80, b"no message goes on"),
            [frame(0x02, b"a"), frame(0x82, b"b")].concat(),
            frame(0xc2, b"an extension"),
            frame(0x09, b"a ping in pieces"),
            vec![0x89, 0xfe, 0, 126],
            vec![0x82, 0xff, 0, 0, 0, 0, 1, 0, 0, 1],
            vec![0x82, 0xff, 255, 255, 255, 255, 255, 255, 255, 255],
        ] {
            check(&[wrong], Err(BAD));
        }
    }
}
