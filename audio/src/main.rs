//! `ringfence-audio`: the program around [`ringfence_audio`]. The server starts one for each live capture.

use ringfence_audio::capture::Shared;
use ringfence_audio::clock::boot_us;
use ringfence_audio::device::Device;
use ringfence_audio::inlet::StepSpace;
use ringfence_audio::serve::{Serving, Source, set_nonblocking};
use ringfence_protocol::{
    AudioError, AudioHost, AudioSideLink, CaptureEnd, DIGEST, FromAudio, Layer, LinkError, StreamKey,
};
use ringfence_sandbox::{
    Act, AudioKind, Entered, GivenAudio, Policy, Sealed, WipingAllocator, enter_with_audio, probe,
};
use rustix::io::Errno;
use std::fmt::Display;
use std::process::ExitCode;
use std::sync::Arc;

/// What was said lies in the memory of libraries too, and must not stay when they give it back.
#[global_allocator]
static ALLOCATOR: WipingAllocator = WipingAllocator;

/// The command line is wrong.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let arguments: Result<Vec<String>, _> =
        std::env::args_os().skip(1).map(|word| word.into_string()).collect();
    let arguments = arguments.unwrap_or_default();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["--version"] => {
            println!("ringfence-audio {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        ["probe", kind, act] => match (kind.parse::<AudioKind>(), act.parse::<Act>()) {
            (Ok(kind), Ok(act)) => probe(&Policy::audio(kind), act),
            (Err(error), _) => say(&error, USAGE),
            (_, Err(error)) => say(&error, USAGE),
        },
        [kind] => match kind.parse() {
            Ok(kind) => run(kind),
            Err(error) => say(&error, USAGE),
        },
        _ => say(
            &"usage: ringfence-audio pulse | alsa | pushed | probe pulse|alsa|pushed ACT | --version (started by \
              ringfence-server, which says over the link which device)",
            USAGE,
        ),
    }
}

fn run(kind: AudioKind) -> ExitCode {
    let (entered, given) = match enter_with_audio(&Policy::audio(kind), kind) {
        Ok(entered) => entered,
        Err(error) => return say(&error, 1),
    };
    // Where, but not what. And no backtrace, which would open files.
    std::panic::set_hook(Box::new(|panic| match panic.location() {
        Some(place) => eprintln!("panic at {}:{}", place.file(), place.line()),
        None => eprintln!("panic"),
    }));
    match serve(entered, kind, &given) {
        Ok(()) => ExitCode::SUCCESS,
        Err(end) => say(&end, 1),
    }
}

fn serve(mut entered: Entered, kind: AudioKind, given: &GivenAudio) -> Result<(), Box<dyn Display>> {
    let link = AudioSideLink::new(entered.link());
    let tell = |message: FromAudio| link.send(&message, &[]).map_err(boxed);
    tell(FromAudio::Hello { digest: DIGEST.to_owned() })?;
    let shared = Arc::new(Shared::new().map_err(boxed)?);
    let source = match open(kind, given, &shared).map_err(boxed)? {
        Ok(source) => source,
        Err(error) => {
            tell(FromAudio::Ended { end: CaptureEnd::Failed(error) })?;
            return wait_for_end(&link);
        }
    };
    if let Source::Device(device) = &source {
        let (rate, channels) = (device.format.rate(), device.format.channels());
        tell(FromAudio::Opened { host: device.host, device: device.name.clone(), rate, channels })?;
    }
    // Finds the fast clock while it may still look for it.
    boot_us();
    set_nonblocking(&link).map_err(|error| boxed(format!("fcntl failed: {error}")))?;
    let Sealed { layers, landlock_abi, .. } = entered.seal().map_err(boxed)?;
    let key = StreamKey::generate().map_err(boxed)?;
    let layers = layers.into_iter().map(layer).collect();
    tell(FromAudio::Sealed { layers, landlock_abi, key: key.public() })?;
    Serving::new(&link, &shared, source, key).run().map_err(boxed)
}

/// The source, or why there is none. The outer error is of what every source needs.
fn open(
    kind: AudioKind,
    given: &GivenAudio,
    shared: &Arc<Shared>,
) -> Result<Result<Source, AudioError>, impl Display + 'static> {
    let device = |host| Device::open(host, &given.device, shared).map(Source::Device);
    match (kind, given.missing) {
        (AudioKind::Pulse, Some(Errno::ACCESS)) => Ok(Err(AudioError::Denied)),
        (AudioKind::Pulse, Some(_)) => Ok(Err(AudioError::ServerGone)),
        (AudioKind::Pulse, None) => Ok(device(AudioHost::PulseAudio)),
        (AudioKind::Alsa, _) => Ok(device(AudioHost::Alsa)),
        (AudioKind::Pushed, _) => StepSpace::new().map(|space| Ok(Source::Pushed(Some(space)))),
    }
}

/// The server hears why there is nothing, and closes the link.
fn wait_for_end(link: &AudioSideLink) -> Result<(), Box<dyn Display>> {
    match link.receive() {
        Err(LinkError::Closed) => Ok(()),
        Ok(_) => Err(boxed("illegal message: there is no capture")),
        Err(error) => Err(boxed(error)),
    }
}

/// A layer in the link's words.
fn layer(layer: ringfence_sandbox::Layer) -> Layer {
    match layer {
        ringfence_sandbox::Layer::Descriptors => Layer::Descriptors,
        ringfence_sandbox::Layer::Namespaces => Layer::Namespaces,
        ringfence_sandbox::Layer::Rlimits => Layer::Rlimits,
        ringfence_sandbox::Layer::Cgroup => Layer::Cgroup,
        ringfence_sandbox::Layer::Privileges => Layer::Privileges,
        ringfence_sandbox::Layer::Landlock => Layer::Landlock,
        ringfence_sandbox::Layer::Seccomp => Layer::Seccomp,
    }
}

fn boxed(end: impl Display + 'static) -> Box<dyn Display> {
    Box::new(end)
}

fn say(what: &dyn Display, code: u8) -> ExitCode {
    eprintln!("{what}");
    ExitCode::from(code)
}
