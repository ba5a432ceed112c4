//! A microphone, by cpal: opened before the seal, driven by a thread of its own, so that nothing that the interface waits
//! for holds up the end of a capture.

use crate::capture::Shared;
use crate::format::Format;
use cpal::traits::{DeviceTrait, HostTrait, StreamTrait};
use cpal::{BufferSize, DeviceId, ErrorKind, HostId, InputCallbackInfo, SampleFormat, Stream, StreamConfig};
use ringfence_protocol::{AudioError, AudioHost, DEVICE_NAME_BYTES_MAX};
use std::sync::{Arc, mpsc};
use std::time::Duration;

/// How long a sound server may take to make a stream.
const OPEN_MAX: Duration = Duration::from_secs(3);
/// What one chunk of the interface holds, in frames of 20 ms. A sound server keeps no more for it, so that a shorter one
/// is lost when that has to wait for the processor.
const BUFFER_FRAMES: u32 = 3;
/// Commands that wait for the thread; it is told a handful in all.
const COMMANDS_MAX: usize = 64;

/// An open microphone that does not capture yet.
#[derive(Debug)]
pub struct Device {
    /// By which interface.
    pub host: AudioHost,
    /// What that calls it.
    pub name: String,
    /// What it gives.
    pub format: Format,
    commands: mpsc::SyncSender<Command>,
}

#[derive(Clone, Copy, Debug)]
enum Command {
    Play,
    Pause,
    Close,
}

/// What the thread has opened.
struct Opened {
    stream: Stream,
    name: String,
    format: Format,
}

impl Device {
    /// Opens the device of this name, or the default for an empty one. What it captures goes to `shared`. Starts threads.
    ///
    /// # Errors
    /// Any [`AudioError`] of devices.
    pub fn open(host: AudioHost, name: &str, shared: &Arc<Shared>) -> Result<Self, AudioError> {
        let (commands, to_do) = mpsc::sync_channel(COMMANDS_MAX);
        let (told, opened) = mpsc::sync_channel(1);
        let (shared, wanted) = (Arc::clone(shared), name.to_owned());
        std::thread::spawn(move || match open(host, &wanted, &shared) {
            Ok(Opened { stream, name, format }) => {
                let heard = told.send(Ok((name, format))).is_ok();
                drop(told);
                if heard {
                    drive(host, stream, &to_do, &shared);
                }
            }
            Err(error) => drop(told.send(Err(error))),
        });
        let (name, format) = opened.recv().map_err(|_| AudioError::Interface)??;
        Ok(Self { host, name, format, commands })
    }

    /// Starts to capture, or goes on. A failure is told to `shared`.
    pub fn play(&self) {
        self.command(Command::Play);
    }

    /// Tells the device to stop for now. What it still gives is nobody's.
    pub fn pause(&self) {
        self.command(Command::Pause);
    }

    /// Closes it.
    pub fn close(&self) {
        self.command(Command::Close);
    }

    fn command(&self, command: Command) {
        // A thread that has ended, or hangs in the interface, has nothing to be told; the gate before the samples is shut.
        let _told = self.commands.try_send(command);
    }
}

fn drive(host: AudioHost, stream: Stream, commands: &mpsc::Receiver<Command>, shared: &Shared) {
    while let Ok(command) = commands.recv() {
        let done = match command {
            Command::Play => stream.play(),
            Command::Pause => stream.pause(),
            // Closing waits for the interface's threads, which may take seconds; nothing is to come meanwhile.
            Command::Close => {
                let _paused = stream.pause();
                return;
            }
        };
        if let Some(error) = done.err().and_then(|error| while_running(host, error.kind())) {
            shared.failed(error);
        }
    }
}

fn open(host: AudioHost, wanted: &str, shared: &Arc<Shared>) -> Result<Opened, AudioError> {
    let failed = |error: cpal::Error| at_opening(host, error.kind());
    let id = match host {
        AudioHost::PulseAudio => HostId::PulseAudio,
        AudioHost::Alsa => HostId::Alsa,
    };
    let interface = cpal::host_from_id(id).map_err(failed)?;
    let device = match wanted {
        "" => interface.default_input_device(),
        name => interface.device_by_id(&DeviceId::new(id, name)),
    };
    let device = device.ok_or(AudioError::NoDevice)?;
    let default = device.default_input_config().map_err(failed)?;
    let format = Format::new(default.sample_rate(), default.channels())?;
    // A sound server gives any encoding; of the kernel's devices it is the device's own.
    let encoding = if host == AudioHost::PulseAudio { SampleFormat::F32 } else { default.sample_format() };
    let stream = match encoding {
        SampleFormat::F32 => build::<f32>(host, &device, format, shared, |sample| sample),
        SampleFormat::I16 => {
            build::<i16>(host, &device, format, shared, |sample| f32::from(sample) / 32_768.0)
        }
        SampleFormat::I32 => {
            build::<i32>(host, &device, format, shared, |sample| sample as f32 / 2_147_483_648.0)
        }
        _ => return Err(AudioError::BadFormat),
    };
    Ok(Opened { stream: stream.map_err(failed)?, name: name_of(&device), format })
}

fn build<T: cpal::SizedSample>(
    host: AudioHost,
    device: &cpal::Device,
    format: Format,
    shared: &Arc<Shared>,
    to_f32: impl Fn(T) -> f32 + Copy + Send + 'static,
) -> Result<Stream, cpal::Error> {
    let (sound, failure) = (Arc::clone(shared), Arc::clone(shared));
    let config = StreamConfig {
        channels: format.channels(),
        sample_rate: format.rate(),
        buffer_size: BufferSize::Fixed(format.rate() / 50 * BUFFER_FRAMES),
    };
    let timeout = (host == AudioHost::PulseAudio).then_some(OPEN_MAX);
    device.build_input_stream::<T, _, _>(
        config,
        move |samples: &[T], info: &InputCallbackInfo| {
            let length_us = format.duration_us((samples.len() / usize::from(format.channels())) as u64);
            let delay_us = age_us(info).saturating_sub(length_us);
            sound.arrived(samples.iter().map(|sample| to_f32(*sample)), delay_us);
        },
        move |error| {
            if let Some(error) = while_running(host, error.kind()) {
                failure.failed(error);
            }
        },
        timeout,
    )
}

/// How long ago the first sample was captured, as the interface has it.
fn age_us(info: &InputCallbackInfo) -> u64 {
    let stamp = info.timestamp();
    u64::try_from(stamp.callback.duration_since(stamp.capture).as_micros()).unwrap_or(0)
}

fn name_of(device: &cpal::Device) -> String {
    let mut name = device.id().map(|id| id.id().to_owned()).unwrap_or_default();
    let end = (0..=DEVICE_NAME_BYTES_MAX.min(name.len())).rev().find(|end| name.is_char_boundary(*end));
    name.truncate(end.unwrap_or(0));
    name
}

fn at_opening(host: AudioHost, kind: ErrorKind) -> AudioError {
    match (kind, host) {
        (ErrorKind::HostUnavailable | ErrorKind::StreamInvalidated, AudioHost::PulseAudio) => {
            AudioError::ServerGone
        }
        (ErrorKind::HostUnavailable | ErrorKind::StreamInvalidated, AudioHost::Alsa) => AudioError::NoDevice,
        (ErrorKind::DeviceNotAvailable, _) => AudioError::NoDevice,
        (ErrorKind::DeviceBusy, _) => AudioError::DeviceBusy,
        (ErrorKind::PermissionDenied, _) => AudioError::Denied,
        (ErrorKind::UnsupportedConfig, _) => AudioError::BadFormat,
        // The list of kinds is open.
        _ => AudioError::Interface,
    }
}

/// `None` for what ends nothing.
fn while_running(host: AudioHost, kind: ErrorKind) -> Option<AudioError> {
    match (kind, host) {
        (ErrorKind::Xrun | ErrorKind::DeviceChanged | ErrorKind::RealtimeDenied, _) => None,
        (ErrorKind::HostUnavailable | ErrorKind::StreamInvalidated, AudioHost::PulseAudio) => {
            Some(AudioError::ServerGone)
        }
        // The kernel's devices say no more than that when they are unplugged, and without end.
        (
            ErrorKind::BackendError | ErrorKind::HostUnavailable | ErrorKind::StreamInvalidated,
            AudioHost::Alsa,
        ) => Some(AudioError::DeviceVanished),
        (ErrorKind::DeviceNotAvailable, _) => Some(AudioError::DeviceVanished),
        (ErrorKind::DeviceBusy, _) => Some(AudioError::DeviceBusy),
        (ErrorKind::PermissionDenied, _) => Some(AudioError::Denied),
        (ErrorKind::UnsupportedConfig, _) => Some(AudioError::BadFormat),
        _ => Some(AudioError::Interface),
    }
}
