//! Compute shaders for transformer models on Vulkan, behind one gate that counts every byte.
//!
//! ```text
//! let adapters = Adapters::list()?;                      // no driver is an error, not a panic
//! let gpu = Gpu::open(&adapters.all()[0], lease_bytes)?; // the lease is a cap on device memory
//! gpu.warm_up()?;                                        // compiles everything: before a system call filter
//! let numbers = gpu.numbers();                           // lease, headroom, used, peak, reserved
//! ```
//!
//! | what is opened or called | by whom, when |
//! | --- | --- |
//! | the Vulkan loader, by name (`libvulkan.so.1`), and the drivers that its folders list | `Adapters::list` |
//! | `/dev/dri/*` and files below `/sys` of a driver for hardware; `$XDG_RUNTIME_DIR`, `/tmp` and memfds of a software one | `Adapters::list`, `Gpu::open` |
//! | threads of the driver | `Gpu::open` |
//! | memory that is made executable: the driver compiles a shader at its first dispatch | `Gpu::warm_up`, then never |
//! | memory, and ioctls on what is open already | everything else |
//!
//! A driver's shader cache on disk is switched off by the environment of who starts the process
//! (`MESA_SHADER_CACHE_DISABLE=true`, `__GL_SHADER_DISK_CACHE=0`); nothing here makes or reads one.
//!
//! What the gate counts is what the driver hands out as buffers. A driver's own memory (its context, compiled shaders,
//! command lists) is in no report of it; an outside measure has to cover that.
//!
//! A [`Gpu`] belongs to one thread. Calls record; [`Gpu::read`] submits and waits, and says what failed since the last one.

mod adapter;
mod buffers;
mod device;
mod error;
mod gate;
mod kernels;
mod pipelines;
mod staging;

pub use adapter::{Adapter, AdapterKind, Adapters, NoAdapters};
pub use buffers::{Matrix, Words};
pub use device::{Gpu, OpenError};
pub use error::{GpuError, RefusedBy};
pub use gate::{GRAIN_BYTES, GateNumbers};
pub use kernels::conv::{ConvWeights, Convolution};
pub use kernels::linear::{Activation, LinearWeights};
pub use kernels::lookup::Table;
pub use kernels::rows::NormWeights;
pub use staging::{READ_BYTES_MAX, SLOT_BYTES, UPLOAD_SLOTS};

/// How weights are stored on the device. Sums are f32 either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// IEEE single.
    F32,
    /// IEEE half, two in a word.
    F16,
}

impl Stored {
    /// Bytes of a number.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }
}
