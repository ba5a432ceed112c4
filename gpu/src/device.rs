//! One opened device: its gate, its pipelines, and the commands that are recorded on it.

use crate::adapter::Adapter;
use crate::buffers::{Matrix, Words};
use crate::error::{GpuError, Health};
use crate::gate::{Buffer, Counted, Gate, GateNumbers};
use crate::pipelines::{BINDINGS_MAX, Kernel, Parameters, Pipelines};
use crate::products::{PassedOver, Products, Shaders};
use crate::staging::Recorder;
use std::cell::{Cell, RefCell};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

/// The allocator's blocks for small buffers, in bytes: its least size. Larger buffers get memory of their own, so what
/// is reserved stays near what is allocated.
const BLOCK_BYTES: u64 = 4 << 20;

/// Why a device could not be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The driver refused.
    #[error("the device could not be opened: {reason}")]
    Driver {
        /// Its word.
        reason: String,
    },
    /// The lease does not even hold what the device reserves for itself.
    #[error("a lease of {lease} bytes is less than the {headroom} that the device takes before any work")]
    LeaseTooSmall {
        /// The lease, in bytes.
        lease: u64,
        /// What is reserved before any work, in bytes.
        headroom: u64,
    },
    /// It was opened and failed at once.
    #[error("{0}")]
    Failed(#[from] GpuError),
}

/// A device under a lease of memory.
#[derive(Debug)]
pub struct Gpu {
    device: wgpu::Device,
    health: Arc<Health>,
    gate: Gate,
    pipelines: Pipelines,
    recorder: RefCell<Recorder>,
    products: Cell<Products>,
    passed_over: RefCell<Vec<PassedOver>>,
}

impl Gpu {
    /// Opens a device that never has more than `lease_bytes` of device memory reserved for buffers.
    ///
    /// # Errors
    /// The driver refuses, or the lease is smaller than what the device takes for itself.
    pub fn open(adapter: &Adapter, lease_bytes: u64) -> Result<Self, OpenError> {
        Self::open_with(adapter, lease_bytes, Shaders::best(adapter))
    }

    /// As [`Gpu::open`], with other shaders than the best, so that all can be tested and timed on one adapter.
    ///
    /// # Errors
    /// As for [`Gpu::open`].
    pub fn open_with(adapter: &Adapter, lease: u64, shaders: Shaders) -> Result<Self, OpenError> {
        let shaders = shaders.on(adapter);
        let (device, queue) = now(adapter.raw.request_device(&descriptor(adapter, &shaders)))
            .map_err(|error| OpenError::Driver { reason: error.to_string() })?;
        let health = Health::watch(&device);
        let gate = Gate::new(device.clone(), Arc::clone(&health), lease);
        let recorder = Recorder::new(device.clone(), queue, Arc::clone(&health), &gate);
        let headroom = gate.measure_headroom();
        // The ring itself is refused where the lease is smaller than it.
        let recorder = match recorder {
            Ok(recorder) if headroom <= lease => RefCell::new(recorder),
            Ok(_) | Err(GpuError::OutOfMemory { .. }) => {
                return Err(OpenError::LeaseTooSmall { lease, headroom });
            }
            Err(error) => return Err(error.into()),
        };
        let mut passed_over = Vec::new();
        let pipelines = Pipelines::new(&device, shaders, adapter.matrices, &mut passed_over);
        health.settle()?;
        let products = Cell::new(Products::Singles);
        Ok(Self {
            device,
            health,
            gate,
            pipelines,
            recorder,
            products,
            passed_over: RefCell::new(passed_over),
        })
    }

    /// Runs every kernel, copy and wait once, so that the driver compiles nothing later, and chooses the fastest way to
    /// multiply whose results are right on this device: [`Gpu::products`] from then on.
    ///
    /// # Errors
    /// There is no memory even for that, the device failed, or it computes even plain products wrong.
    pub fn warm_up(&self) -> Result<(), GpuError> {
        let words = (0..BINDINGS_MAX).map(|_| self.words(1)).collect::<Result<Vec<_>, _>>()?;
        let buffers: Vec<&wgpu::Buffer> = words.iter().map(|words| words.buffer.raw()).collect();
        for kernel in Kernel::ALL {
            // With all parameters zero a kernel has nothing to do.
            if let Some(bindings) = self.pipelines.bindings(*kernel) {
                self.dispatch(*kernel, &buffers[..bindings], &Parameters::default(), 1);
            }
        }
        let mut matrix = self.matrix(1, 1)?;
        self.upload(&matrix, &[1.0]);
        self.clear(&mut matrix, 1);
        self.read(&matrix, 1, &mut Vec::new())?;
        self.choose_products()
    }

    /// How products with weights in halves are made. [`Products::Singles`] until the warm-up.
    pub fn products(&self) -> Products {
        self.products.get()
    }

    /// What the adapter reports and the warm-up found unusable, at most one entry for each kernel.
    pub fn passed_over(&self) -> Vec<PassedOver> {
        self.passed_over.borrow().clone()
    }

    fn choose_products(&self) -> Result<(), GpuError> {
        let there = |kernel| self.pipelines.bindings(kernel).is_some();
        for products in Products::BEST_FIRST {
            let (short, tall) = products.tiles();
            if !there(short) || !there(tall) {
                continue;
            }
            self.products.set(products);
            let reason = match self.multiplies_right() {
                Ok(true) => return Ok(()),
                Ok(false) if products == Products::Singles => {
                    return Err(GpuError::Wrong { what: "a product" });
                }
                Ok(false) => "its results were wrong".to_owned(),
                // A driver may refuse only now what it took before.
                Err(GpuError::Refused { reason }) if products > Products::Singles => reason,
                Err(error) => return Err(error),
            };
            self.passed_over.borrow_mut().push(PassedOver { products, reason });
        }
        unreachable!("plain products are there, and return")
    }

    /// The gate's numbers. Buffers that were let go while commands wait count until those are done.
    pub fn numbers(&self) -> GateNumbers {
        self.gate.numbers()
    }

    /// What the gate counts of them, without a question to the driver: cheap enough for every step.
    pub fn counted(&self) -> Counted {
        self.gate.counted()
    }

    /// Counts the peak anew from what is handed out now.
    pub fn restart_peak(&self) {
        self.gate.restart_peak();
    }

    /// Whether this much more fits into the lease, as one buffer.
    ///
    /// # Errors
    /// It does not, or the device is lost.
    pub fn check(&self, bytes: u64) -> Result<(), GpuError> {
        self.gate.check(bytes).or_else(|refusal| {
            self.settle_dead(refusal)?;
            self.gate.check(bytes)
        })
    }

    /// Submits what is recorded and waits for it.
    ///
    /// # Errors
    /// What went wrong since the last time.
    pub fn finish(&self) -> Result<(), GpuError> {
        self.recorder.borrow_mut().finish(&self.gate)
    }

    /// Gives the device up. Whatever is asked of it later fails as [`GpuError::Lost`].
    pub fn destroy(&self) {
        self.device.destroy();
        self.health.lose("it was given up".to_owned());
    }

    /// Appends the first `rows` rows of a matrix, after everything that is recorded.
    ///
    /// # Errors
    /// What went wrong since the last time; then nothing of worth was appended.
    ///
    /// # Panics
    /// If there are fewer rows.
    pub fn read(&self, from: &Matrix, rows: usize, to: &mut Vec<f32>) -> Result<(), GpuError> {
        assert!(rows <= from.rows(), "{rows} of {} rows", from.rows());
        self.read_words(&from.buffer, rows * from.columns(), |word| to.push(f32::from_le_bytes(word)))
    }

    /// Appends the first `count` words, after everything that is recorded.
    ///
    /// # Errors
    /// What went wrong since the last time.
    ///
    /// # Panics
    /// If there are fewer words.
    pub fn read_numbers(&self, from: &Words, count: usize, to: &mut Vec<u32>) -> Result<(), GpuError> {
        assert!(count <= from.count(), "{count} of {} words", from.count());
        self.read_words(&from.buffer, count, |word| to.push(u32::from_le_bytes(word)))
    }

    fn read_words(&self, from: &Buffer, count: usize, mut take: impl FnMut([u8; 4])) -> Result<(), GpuError> {
        let take = |bytes: &[u8]| bytes.as_chunks::<4>().0.iter().for_each(|word| take(*word));
        self.recorder.borrow_mut().read(&self.gate, from.raw(), 4 * count as u64, take)
    }

    /// A buffer for shaders; where there is no room, those that wait to be freed go first.
    pub(crate) fn buffer(&self, bytes: u64) -> Result<Buffer, GpuError> {
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        self.gate.create(bytes, usage).or_else(|refusal| {
            self.settle_dead(refusal)?;
            self.gate.create(bytes, usage)
        })
    }

    /// Waits for the device if that frees memory, else gives the refusal back.
    fn settle_dead(&self, refusal: GpuError) -> Result<(), GpuError> {
        if !matches!(refusal, GpuError::OutOfMemory { .. }) || !self.gate.waits_for_idle() {
            return Err(refusal);
        }
        self.finish()
    }

    /// Bytes that a shader can be given as one buffer.
    pub(crate) fn binding_bytes_max(&self) -> u64 {
        self.device.limits().max_storage_buffer_binding_size
    }

    /// Records a copy of bytes, whole words of them.
    pub(crate) fn upload_bytes(&self, to: &Buffer, offset: u64, bytes: &[u8]) {
        self.recorder.borrow_mut().upload(&self.gate, to.raw(), offset, bytes);
    }

    /// Records zeros over the first bytes of a buffer.
    pub(crate) fn clear_bytes(&self, buffer: &Buffer, bytes: u64) {
        if bytes > 0 {
            self.recorder.borrow_mut().encoder(&self.gate).clear_buffer(buffer.raw(), 0, Some(bytes));
        }
    }

    /// Records a copy of the first bytes of a buffer to a place in another.
    pub(crate) fn copy_bytes(&self, from: &Buffer, to: &Buffer, offset: u64, bytes: u64) {
        if bytes > 0 {
            let mut recorder = self.recorder.borrow_mut();
            recorder.encoder(&self.gate).copy_buffer_to_buffer(from.raw(), 0, to.raw(), offset, Some(bytes));
        }
    }

    /// Records zeros over what was read back. What was uploaded is overwritten when its place is used again.
    pub fn clear_staging(&self) {
        self.recorder.borrow_mut().clear_read(&self.gate);
    }

    /// Records a kernel.
    pub(crate) fn dispatch(
        &self,
        kernel: Kernel,
        buffers: &[&wgpu::Buffer],
        parameters: &Parameters,
        groups: u64,
    ) {
        let mut recorder = self.recorder.borrow_mut();
        let encoder = recorder.encoder(&self.gate);
        self.pipelines.dispatch(&self.device, encoder, kernel, buffers, parameters, groups);
    }
}

fn descriptor(adapter: &Adapter, shaders: &Shaders) -> wgpu::DeviceDescriptor<'static> {
    let mut features = wgpu::Features::IMMEDIATES;
    features.set(wgpu::Features::SHADER_F16, adapter.f16);
    features.set(wgpu::Features::SUBGROUP, shaders.subgroups);
    let cooperative = shaders.products == Products::Cooperative;
    features.set(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX, cooperative);
    let mut limits = adapter.raw.limits();
    limits.max_storage_buffer_binding_size = adapter.binding_bytes_max;
    wgpu::DeviceDescriptor {
        label: None,
        required_features: features,
        required_limits: limits,
        experimental_features: if cooperative {
            experimental()
        } else {
            wgpu::ExperimentalFeatures::disabled()
        },
        memory_hints: wgpu::MemoryHints::Manual {
            suballocated_device_memory_block_size: BLOCK_BYTES..BLOCK_BYTES,
        },
        trace: wgpu::Trace::Off,
    }
}

#[expect(unsafe_code, reason = "the one way to say that what is experimental is wanted")]
fn experimental() -> wgpu::ExperimentalFeatures {
    // SAFETY: wgpu warns that its validation of these features may have holes. The one used is that of cooperative matrices,
    // in one shader of ours, which loads and stores them in arrays of fixed size at places that its constants bound.
    unsafe { wgpu::ExperimentalFeatures::enabled() }
}

/// The value of a future that is ready at once, as wgpu's are everywhere but in a browser.
pub(crate) fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => unreachable!("wgpu answers at once outside of browsers"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::Adapters;
    use crate::pipelines::{Pipeline, Recipe, Use};

    /// Fills a workgroup's 16 KiB, as far as the compiler can tell for a purpose.
    const LEAVE: &str = "
        var<workgroup> left: array<u32, 4096>;
        @group(0) @binding(0) var<storage, read_write> to: array<u32>;
        @compute @workgroup_size(64)
        fn leave(@builtin(local_invocation_index) index: u32) {
            for (var i = index; i < 4096u; i += 64u) { left[i] = 0xfeedu + i; }
            workgroupBarrier();
            to[index] = left[4095u - index];
        }";

    /// Counts the words of a workgroup's memory that are not zero before anything is written.
    const LOOK: &str = "
        var<workgroup> left: array<u32, 4096>;
        @group(0) @binding(0) var<storage, read_write> to: array<u32>;
        @compute @workgroup_size(64)
        fn look(@builtin(local_invocation_index) index: u32) {
            var found = 0u;
            for (var i = index; i < 4096u; i += 64u) { found += select(0u, 1u, left[i] != 0u); }
            to[index] = found;
        }";

    fn run(gpu: &Gpu, source: &'static str, entry: &'static str, to: &Words) -> Vec<u32> {
        let recipe = Recipe { sources: vec![source], entry, bindings: &[Use::Write], lanes: None };
        let pipeline = Pipeline::new(&gpu.device, &recipe);
        let mut recorder = gpu.recorder.borrow_mut();
        let encoder = recorder.encoder(&gpu.gate);
        pipeline.dispatch(&gpu.device, encoder, &[to.buffer.raw()], &Parameters::default(), 64);
        drop(recorder);
        let mut found = Vec::new();
        gpu.read_numbers(to, 64, &mut found).unwrap();
        found
    }

    #[test]
    fn the_count_covers_what_wgpu_itself_counts() {
        let gpu = Gpu::open(Adapters::list().unwrap().all().last().unwrap(), 64 << 20).unwrap();
        let counted = || {
            let counters = gpu.device.get_internal_counters().hal;
            (counters.buffers.read(), counters.buffer_memory.read() as u64)
        };
        let (own, own_bytes) = counted();
        let held: Vec<Matrix> = (1..20).map(|i| gpu.matrix(i, 1000 * i).unwrap()).collect();
        let (buffers, bytes) = counted();
        assert_eq!(buffers - own, 19);
        let numbers = gpu.numbers();
        assert!(bytes - own_bytes <= numbers.used - numbers.headroom, "{bytes} {own_bytes} {numbers:?}");
        drop(held);
        assert_eq!(counted(), (own, own_bytes), "all is freed at once where the device is idle");
    }

    /// Sorensen and Khlaaf 2024, LeftoverLocals: one kernel listens for what another left in local memory.
    #[test]
    fn memory_of_workgroups_starts_as_zeros() {
        let gpu = Gpu::open(Adapters::list().unwrap().all().last().unwrap(), 64 << 20).unwrap();
        let to = gpu.words(64).unwrap();
        for _ in 0..10 {
            assert_eq!(run(&gpu, LEAVE, "leave", &to)[0], 0xfeed + 4095);
            assert_eq!(run(&gpu, LOOK, "look", &to), [0; 64]);
        }
    }
}
