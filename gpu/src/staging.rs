//! How bytes get to the device and back: a ring of mapped buffers, and the list of commands that goes with them.

use crate::error::{GpuError, Health};
use crate::gate::{Buffer, Gate};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Buffers for uploads: while the device copies from some, the next one is filled.
pub const UPLOAD_SLOTS: usize = 3;
/// Bytes of each.
pub const SLOT_BYTES: u64 = 1 << 20;
/// Bytes that are read back at a time.
pub const READ_BYTES_MAX: u64 = 1 << 20;
/// A device that has not answered by then is given up. Whoever bounds a step does so earlier, from outside.
const WAIT_MAX: Duration = Duration::from_secs(600);
/// What a slot is overwritten with.
static ZEROS: [u8; SLOT_BYTES as usize] = [0; SLOT_BYTES as usize];
/// Views of mapped buffers start at multiples of this.
const VIEW_ALIGNMENT: u64 = wgpu::MAP_ALIGNMENT;

/// A buffer that the host fills and the device copies from.
#[derive(Debug)]
struct Slot {
    buffer: Buffer,
    /// Bytes filled since it was mapped.
    filled: u64,
    /// Bytes that an earlier filling left.
    left: u64,
    /// Set when the host may write.
    mapped: Arc<AtomicBool>,
    /// The commands that copy from it.
    submitted: Option<wgpu::SubmissionIndex>,
}

/// Commands that are recorded, and the buffers through which bytes pass.
#[derive(Debug)]
pub(crate) struct Recorder {
    device: wgpu::Device,
    queue: wgpu::Queue,
    health: Arc<Health>,
    encoder: Option<wgpu::CommandEncoder>,
    slots: Vec<Slot>,
    /// The slot that is filled now.
    current: usize,
    read: Buffer,
    /// Bytes that earlier reads left in it.
    read_left: u64,
}

impl Recorder {
    pub(crate) fn new(
        device: wgpu::Device,
        queue: wgpu::Queue,
        health: Arc<Health>,
        gate: &Gate,
    ) -> Result<Self, GpuError> {
        let slots = (0..UPLOAD_SLOTS).map(|_| Slot::new(gate)).collect::<Result<_, _>>()?;
        let read =
            gate.create(READ_BYTES_MAX, wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST)?;
        Ok(Self { device, queue, health, encoder: None, slots, current: 0, read, read_left: 0 })
    }

    /// The list of commands, begun where there is none.
    pub(crate) fn encoder(&mut self, gate: &Gate) -> &mut wgpu::CommandEncoder {
        gate.busy();
        self.encoder.get_or_insert_with(|| self.device.create_command_encoder(&Default::default()))
    }

    /// Records a copy of these bytes, whole words of them, to a buffer. A failure is the device's loss and is kept.
    pub(crate) fn upload(&mut self, gate: &Gate, to: &wgpu::Buffer, mut offset: u64, mut bytes: &[u8]) {
        assert!(bytes.len().is_multiple_of(4) && offset.is_multiple_of(4), "whole words");
        while !bytes.is_empty() {
            if SLOT_BYTES - self.slots[self.current].filled < VIEW_ALIGNMENT {
                self.submit();
            }
            if !self.is_writable() {
                return;
            }
            let slot = &mut self.slots[self.current];
            if let Err(error) = slot.overwrite() {
                return self.health.lose(error.to_string());
            }
            let count = bytes.len().min((SLOT_BYTES - slot.filled) as usize);
            let (now, rest) = bytes.split_at(count);
            let from = slot.filled;
            match slot.buffer.raw().get_mapped_range_mut(from..from + count as u64) {
                Ok(mut view) => view.copy_from_slice(now),
                Err(error) => return self.health.lose(error.to_string()),
            }
            slot.filled = (from + count as u64).next_multiple_of(VIEW_ALIGNMENT);
            let slot = slot.buffer.raw().clone();
            self.encoder(gate).copy_buffer_to_buffer(&slot, from, to, offset, count as u64);
            (bytes, offset) = (rest, offset + count as u64);
        }
    }

    /// Waits until the current slot is the host's.
    fn is_writable(&mut self) -> bool {
        let slot = &self.slots[self.current];
        if slot.mapped.load(Ordering::Acquire) {
            return true;
        }
        self.wait_for(slot.submitted.clone());
        self.slots[self.current].mapped.load(Ordering::Acquire)
    }

    /// Hands the commands so far to the device and goes on to the next slot, if this one was used.
    pub(crate) fn submit(&mut self) {
        let Some(encoder) = self.encoder.take() else { return };
        let slot = &mut self.slots[self.current];
        if slot.filled > 0 {
            slot.mapped.store(false, Ordering::Release);
            slot.buffer.raw().unmap();
        }
        let index = self.queue.submit([encoder.finish()]);
        if slot.filled > 0 {
            slot.left = std::mem::take(&mut slot.filled);
            slot.submitted = Some(index);
            slot.map(&self.health);
            self.current = (self.current + 1) % UPLOAD_SLOTS;
        }
    }

    /// Submits, and waits until the device has nothing left to do.
    ///
    /// # Errors
    /// Whatever went wrong since the last time.
    pub(crate) fn finish(&mut self, gate: &Gate) -> Result<(), GpuError> {
        self.submit();
        self.wait_for(None);
        gate.idle();
        self.health.settle()
    }

    /// Records zeros over what reads left.
    pub(crate) fn clear_read(&mut self, gate: &Gate) {
        let (read, left) = (self.read.raw().clone(), std::mem::take(&mut self.read_left));
        if left > 0 {
            self.encoder(gate).clear_buffer(&read, 0, Some(left));
        }
    }

    fn wait_for(&self, submission_index: Option<wgpu::SubmissionIndex>) {
        let wait = wgpu::PollType::Wait { submission_index, timeout: Some(WAIT_MAX) };
        if let Err(error) = self.device.poll(wait) {
            self.health.lose(error.to_string());
        }
    }

    /// Appends bytes of a buffer, whole words of them, after all commands so far.
    ///
    /// # Errors
    /// Whatever went wrong since the last time.
    pub(crate) fn read(
        &mut self,
        gate: &Gate,
        from: &wgpu::Buffer,
        bytes: u64,
        mut take: impl FnMut(&[u8]),
    ) -> Result<(), GpuError> {
        if bytes == 0 {
            return self.finish(gate);
        }
        for offset in (0..bytes).step_by(READ_BYTES_MAX as usize) {
            let count = READ_BYTES_MAX.min(bytes - offset);
            let read = self.read.raw().clone();
            self.read_left = self.read_left.max(count);
            self.encoder(gate).copy_buffer_to_buffer(from, offset, &read, 0, count);
            self.submit();
            // A failure shows below: then there is no view.
            read.map_async(wgpu::MapMode::Read, ..count, |_| {});
            let done = self.finish(gate).and_then(|()| match read.get_mapped_range(..count) {
                Ok(view) => {
                    take(&view);
                    Ok(())
                }
                Err(error) => Err(GpuError::Lost { reason: error.to_string() }),
            });
            read.unmap();
            done?;
        }
        Ok(())
    }
}

impl Slot {
    fn new(gate: &Gate) -> Result<Self, GpuError> {
        let buffer = gate.create(SLOT_BYTES, wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC)?;
        let slot = Self { buffer, filled: 0, left: 0, mapped: Arc::default(), submitted: None };
        let mapped = Arc::clone(&slot.mapped);
        slot.buffer.raw().map_async(wgpu::MapMode::Write, .., move |done| {
            mapped.store(done.is_ok(), Ordering::Release);
        });
        Ok(slot)
    }

    /// Writes zeros over what an earlier filling left, once the slot is the host's again.
    fn overwrite(&mut self) -> Result<(), wgpu::MapRangeError> {
        let left = std::mem::take(&mut self.left);
        if left > 0 {
            self.buffer.raw().get_mapped_range_mut(..left)?.copy_from_slice(&ZEROS[..left as usize]);
        }
        Ok(())
    }

    /// Asks for it back once the device has copied from it.
    fn map(&self, health: &Arc<Health>) {
        let (mapped, health) = (Arc::clone(&self.mapped), Arc::clone(health));
        self.buffer.raw().map_async(wgpu::MapMode::Write, .., move |done| match done {
            Ok(()) => mapped.store(true, Ordering::Release),
            Err(error) => health.lose(error.to_string()),
        });
    }
}
