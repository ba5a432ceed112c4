//! Compute shaders for transformer models on Vulkan, behind one gate that counts every byte.
//!
//! ```text
//! let adapters = Adapters::list()?;                      // no driver is an error, not a panic
//! let gpu = Gpu::open(&adapters.all()[0], lease_bytes)?; // the lease is a cap on device memory
//! gpu.warm_up()?;                                        // compiles everything: before a system call filter
//! let numbers = gpu.numbers();                           // lease, headroom, used, peak, reserved
//! ```
//!
//! What a process needs for it, traced with Mesa's software driver (a driver for hardware adds its nodes below `/dev` and
//! files below `/sys`, which nobody has traced yet):
//!
//! | during | files | calls beside those of any Rust program |
//! | --- | --- | --- |
//! | [`Adapters::list`] | `libvulkan.so.1` by name; `{/etc,/usr/share}/vulkan/{icd.d,implicit_layer.d,explicit_layer.d}`; the driver that a file there names, with its libraries; `/etc/ld.so.cache`, `/proc/self/maps`, `/sys/devices/system/cpu/possible`, `/usr/share/drirc.d` | `sched_setaffinity` |
//! | [`Gpu::open`] | `librenderdoc.so` is looked for by name, and nothing is lost if it is not there | `clone3`, `prctl(PR_SET_NAME)` of the driver's threads |
//! | [`Gpu::warm_up`] | none | `mprotect` to executable, once for each kernel, on a thread of the driver; `sysinfo` |
//! | everything after it | none | `futex`, `mmap`, `munmap`, `mprotect` to writable, `brk` |
//!
//! That holds with this environment, which only who starts the process can set:
//!
//! | variable | without it |
//! | --- | --- |
//! | `MESA_SHADER_CACHE_DISABLE=true` (`__GL_SHADER_DISK_CACHE=0` for NVIDIA's) | the driver keeps compiled shaders below `$HOME`, and looks in `/etc/passwd` for one |
//! | `VK_LOADER_LAYERS_DISABLE=~implicit~` | the loader puts Mesa's device selection in between, which asks display servers over sockets |
//! | `VK_DRIVER_FILES=/usr/share/vulkan/icd.d/...json` | the loader opens every driver that there is |
//!
//! In the sandbox of a worker none is set: its root has no home, no layers and one driver.
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
mod ledger;
mod pipelines;
mod products;
mod staging;

pub use adapter::{Adapter, AdapterKind, Adapters, NoAdapters};
pub use buffers::{Matrix, Words};
pub use device::{Gpu, OpenError};
pub use error::{GpuError, RefusedBy};
pub use gate::{Counted, GateNumbers};
pub use kernels::attend::Seen;
pub use kernels::attention::ATTENTION_WORDS_PER_ROW;
pub use kernels::conv::{ConvWeights, Convolution};
pub use kernels::linear::{Activation, LinearWeights};
pub use kernels::lookup::Table;
pub use kernels::rows::NormWeights;
pub use ledger::GRAIN_BYTES;
pub use products::{Matrices, PassedOver, Products, Shaders};
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
