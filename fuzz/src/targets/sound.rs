//! A sound of any bytes, decoded to its end and made into a spectrogram.

use crate::support;
use ringfence_worker::models::whisper::mel::Mel;
use ringfence_worker::package::FileBytes;
use ringfence_worker::sound::Sound;
use std::sync::{Arc, Once};

static HOOK: Once = Once::new();

/// One run.
pub(crate) fn run(bytes: &[u8]) {
    // The library's panics are caught where it is called, and refuse the file. Without the fuzzer's own hook, which aborts
    // before anybody can catch, only a panic that nobody caught stops it.
    HOOK.call_once(|| drop(std::panic::take_hook()));
    let Ok(mut sound) = Sound::open(Arc::new(bytes.to_vec()) as FileBytes) else { return };
    let (mut mel, mut piece) = (Mel::new(80), Vec::new());
    while let Ok(more) = sound.read(&mut piece) {
        mel.push(&piece, &support::Lease).expect("a piece fits");
        piece.clear();
        if !more {
            break;
        }
    }
    mel.finish(&support::Lease).expect("its end fits");
    mel.window(0, mel.frames().min(3000), 3000, &mut Vec::new());
}
