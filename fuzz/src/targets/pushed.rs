//! A pushed stream of any bytes: unwrapped and decoded, the same whatever its pieces. The first byte says how it is wrapped
//! and what its samples are.

use ringfence_audio::framing::Unwrap;
use ringfence_audio::pushed::Decoder;
use ringfence_protocol::{AudioError, Framing, SampleEncoding};

/// One run.
pub(crate) fn run(bytes: &[u8]) {
    let Some((how, bytes)) = bytes.split_first() else { return };
    let whole = samples(*how, bytes, bytes.len().max(1));
    for size in [1, 7] {
        assert_eq!(samples(*how, bytes, size), whole);
    }
}

fn samples(how: u8, bytes: &[u8], size: usize) -> Result<Vec<u32>, AudioError> {
    let framing = [Framing::Plain, Framing::HttpChunks, Framing::WebSocket][usize::from(how % 3)];
    let encoding = [SampleEncoding::S16Le, SampleEncoding::F32Le][usize::from(how / 3 % 2)];
    let mut unwrap = Unwrap::new(framing);
    let mut decoder = Decoder::new(encoding, u16::from(how / 6 % 8) + 1);
    let (mut all, mut out) = (Vec::new(), vec![0.0; size]);
    for piece in bytes.chunks(size) {
        let mut piece = piece.to_vec();
        let kept = unwrap.take(&mut piece)?;
        let count = decoder.decode(&piece[..kept], &mut out)?;
        assert!(out[..count].iter().all(|sample| sample.is_finite()));
        all.extend(out[..count].iter().map(|sample| sample.to_bits()));
    }
    unwrap.finish()?;
    decoder.finish()?;
    Ok(all)
}
