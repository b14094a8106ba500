//! Lists of tensors: their descriptors in device memory, and the launches that serve them all.

use std::ffi::c_void;

use cudarc::driver::sys;

use crate::{Error, StepCoeffs};

use super::checks::{RawTensor, Written, check_stream, refuse_capture};
use super::driver::check;
use super::kernels::Kernels;
use super::launch::{MAX_SETS, launch_list};
use super::memory::DeviceMemory;
use super::staging::Staging;
use super::table::Tables;

/// A list of tensors that are stepped together, of any sizes and type combinations, each with its own coefficient set.
///
/// The tensors' descriptors lie in device memory. They are built once; when addresses or sets change, only the changed part travels,
/// in the order of the step's stream and without waiting for it. A step is one launch per type combination in the list.
/// Tensors may be empty. One whose gradient has address 0 is left alone, and its other addresses are not looked at.
///
/// # Example
///
/// ```no_run
/// use dualadam::cuda::{Kernels, RawBuffer, RawTensor, TensorList};
/// use dualadam::{DualAdamConfig, Dtype};
///
/// # let (stream, p, g, m, v) = (std::ptr::null_mut(), [256, 512], [768, 1024], [1280, 1536], [1792, 2048]);
/// let kernels = Kernels::new(0)?;
/// let f32_at = |address| RawBuffer { address, dtype: Dtype::F32 };
/// let tensor = |i: usize, len, set| RawTensor {
///     params: f32_at(p[i]), grads: f32_at(g[i]), exp_avg: m[i], exp_avg_sq: v[i], copy: None, len, set,
/// };
/// let mut list = TensorList::new(&kernels, &[tensor(0, 16, 0), tensor(1, 3, 1)])?;
/// let sets = [DualAdamConfig::adamw(0.1).coeffs(1)?, DualAdamConfig::adam().coeffs(1)?];
/// // SAFETY: the addresses are those of live buffers of 16 and 3 f32, which nothing else uses meanwhile.
/// unsafe { list.step_raw(&sets, stream)? };
/// # Ok::<(), dualadam::Error>(())
/// ```
#[derive(Debug)]
pub struct TensorList {
    kernels: Kernels,
    tensors: Vec<RawTensor>,
    written: Written,
    /// The largest `set` of all tensors.
    last_set: usize,
    tables: Tables,
    /// The tables and, if there can be more than fit in an argument, the sets after them.
    memory: DeviceMemory,
    most_sets: usize,
    staging: Staging,
}

impl TensorList {
    /// Builds the descriptors of these tensors and puts them into device memory. Waits until they are there.
    ///
    /// # Errors
    ///
    /// [`Error::Empty`] for no tensor at all, [`Error::Types`] for a type combination without a kernel, [`Error::Null`],
    /// [`Error::Misaligned`], [`Error::Extent`] or [`Error::Overlap`] for buffers that cannot be right (two gradients may share
    /// memory), [`Error::TooMany`] for more than a launch can serve, [`Error::Driver`] for what the driver reports.
    pub fn new(kernels: &Kernels, tensors: &[RawTensor]) -> Result<Self, Error> {
        if tensors.is_empty() {
            return Err(Error::Empty { list: "tensors" });
        }
        let mut written = Written::with_capacity(tensors.len());
        written.check_all(tensors)?;
        let tables = Tables::new(tensors)?;
        let most_sets = tensors.len().max(MAX_SETS);
        let sets_bytes = if most_sets > MAX_SETS { most_sets * size_of::<StepCoeffs>() } else { 0 };
        let memory = DeviceMemory::new(kernels, tables.bytes + sets_bytes)?;
        let staging = Staging::new(kernels, tables.staged_bytes + sets_bytes)?;
        let last_set = last_set(tensors);
        let tensors = tensors.to_vec();
        let kernels = kernels.clone();
        let list = Self { kernels, tensors, written, last_set, tables, memory, most_sets, staging };
        list.upload_tables()?;
        Ok(list)
    }

    fn upload_tables(&self) -> Result<(), Error> {
        let _current = self.kernels.enter()?;
        for table in &self.tables.tables {
            let bytes = table.build(&self.tensors);
            let to = self.memory.address() + table.start as u64;
            // SAFETY: the memory has room for all tables.
            check("cuMemcpyHtoD", unsafe { sys::cuMemcpyHtoD_v2(to, bytes.as_ptr().cast(), bytes.len()) })?;
        }
        // The copy may still be on its way when the call returns, and not every stream waits for it.
        // SAFETY: a context is current.
        check("cuCtxSynchronize", unsafe { sys::cuCtxSynchronize() })
    }

    /// How many tensors there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether there is no tensor, which [`new`](Self::new) refuses.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// The most coefficient sets that a step can have: one per tensor, and 96 in any case.
    #[must_use]
    pub fn most_sets(&self) -> usize {
        self.most_sets
    }

    /// Takes over new addresses and sets of the same tensors. The device gets what has changed in the next step.
    ///
    /// The call does not allocate. Where nothing changed it only compares; new gradients are checked one by one against what the
    /// list writes, and any other new address makes it check the whole list.
    ///
    /// # Errors
    ///
    /// [`Error::Count`] for another number of tensors, [`Error::Fixed`] for other lengths or types, and what
    /// [`new`](Self::new) refuses of addresses. The list stays as it was then.
    pub fn update(&mut self, tensors: &[RawTensor]) -> Result<(), Error> {
        let (expected, actual) = (self.tensors.len(), tensors.len());
        if actual != expected {
            return Err(Error::Count { list: "tensors", expected, actual });
        }
        let (mut any, mut all_grads) = (false, true);
        for (index, (old, new)) in self.tensors.iter().zip(tensors).enumerate() {
            if old == new {
                continue;
            }
            any = true;
            check_fixed(index, old, new)?;
            if old.addresses() == new.addresses() {
                continue;
            }
            let only_grads = RawTensor { grads: old.grads, set: old.set, ..*new } == *old;
            if only_grads && !old.is_left_alone() && !new.is_left_alone() {
                self.written.check_grads(index, new)?;
            } else {
                all_grads = false;
            }
        }
        if !all_grads {
            self.written.check_all(tensors)?;
        }
        if any {
            self.take_over(tensors);
        }
        Ok(())
    }

    /// Whether these are tensors that [`update`](Self::update) can take over.
    pub(super) fn has_types_of(&self, tensors: &[RawTensor]) -> bool {
        self.tensors.len() == tensors.len()
            && self.tensors.iter().zip(tensors).all(|(old, new)| old.len == new.len && old.types() == new.types())
    }

    fn take_over(&mut self, tensors: &[RawTensor]) {
        for (index, (old, new)) in self.tensors.iter_mut().zip(tensors).enumerate() {
            if old != new {
                self.tables.mark_changes(index, old, new);
                *old = *new;
            }
        }
        self.last_set = last_set(tensors);
    }

    /// One DualAdam step of every tensor that has a gradient, with the coefficients `sets[tensor.set]`, enqueued on `stream`.
    ///
    /// The call does not allocate or log. It does not wait for the device either, unless the addresses of the four steps before
    /// have all changed and none of these changes has reached the device yet. A step of unchanged addresses and sets, with up to 96
    /// coefficient sets, can be captured in a CUDA graph, which keeps the coefficients as they are now, but reads the descriptors, with
    /// the addresses and sets that later steps have sent.
    ///
    /// # Errors
    ///
    /// [`Error::Index`] for a tensor whose set is not there, [`Error::TooMany`] for more sets than
    /// [`most_sets`](Self::most_sets), [`Error::Context`] for a stream of another context, [`Error::Captured`] for what cannot be
    /// captured. Nothing is launched then. [`Error::Driver`] if the driver refuses a copy or a launch, or if earlier work on the
    /// device failed; the launches for some of the list's type combinations may have been made.
    ///
    /// # Safety
    ///
    /// - `stream` is null or a live stream.
    /// - From now until the work has run, each buffer of each tensor that has a gradient is device memory of the kernels' context,
    ///   of the tensor's length.
    /// - What else uses that memory, on any stream, is ordered before or after this work. That holds for the steps of this list too,
    ///   if their streams differ.
    /// - A graph that captured this step is launched only while the list lives, and while no tensor has a set that was not there then.
    pub unsafe fn step_raw(&mut self, sets: &[StepCoeffs], stream: *mut c_void) -> Result<(), Error> {
        // SAFETY: the caller's promise.
        unsafe { self.step_groups(sets, stream, |_| ()) }
    }

    /// [`step_raw`](Self::step_raw) that reports the positions of the tensors of each launch that was made.
    ///
    /// # Safety
    ///
    /// As for [`step_raw`](Self::step_raw).
    pub(super) unsafe fn step_groups(
        &mut self,
        sets: &[StepCoeffs],
        stream: *mut c_void,
        mut launched: impl FnMut(&[usize]),
    ) -> Result<(), Error> {
        self.check_sets(sets)?;
        let _current = self.kernels.enter()?;
        // SAFETY: the caller's promise.
        unsafe { check_stream(&self.kernels, stream) }?;
        // SAFETY: the caller's promise.
        let sets_device = unsafe { self.send_changes(sets, stream) }?;
        for table in &self.tables.tables {
            if table.chunks > 0 {
                let function = self.kernels.functions(table.combination).list;
                let descriptors = (self.memory.address() + table.start as u64, table.members.len() as u32);
                // SAFETY: the table is as the kernel expects it once the copies before have run; the caller vouches for the buffers.
                unsafe { launch_list(function, table.chunks, descriptors, (sets_device, sets), stream) }?;
            }
            launched(&table.members);
        }
        Ok(())
    }

    fn check_sets(&self, sets: &[StepCoeffs]) -> Result<(), Error> {
        if sets.len() > self.most_sets {
            let (limit, actual) = (self.most_sets as u64, sets.len() as u64);
            return Err(Error::TooMany { list: "sets", limit, actual });
        }
        if self.last_set < sets.len() {
            return Ok(());
        }
        let mut found = self.tensors.iter().enumerate().filter(|(_, tensor)| tensor.set >= sets.len());
        match found.next() {
            Some((tensor, &RawTensor { set, .. })) => {
                Err(Error::Index { tensor, index: "set", len: sets.len(), value: set })
            }
            None => Ok(()),
        }
    }

    /// Sends what the device does not have yet. Returns the address of the sets, or 0 if they fit in an argument.
    ///
    /// # Safety
    ///
    /// `stream` must be live, and the kernels' context current.
    unsafe fn send_changes(&mut self, sets: &[StepCoeffs], stream: *mut c_void) -> Result<u64, Error> {
        let too_many = sets.len() > MAX_SETS;
        if !too_many && !self.tables.have_changes() {
            return Ok(0);
        }
        // SAFETY: the caller's promise.
        unsafe { refuse_capture(stream, "a list's step with new addresses or sets, or with more than 96 sets,") }?;
        let (tables, tensors, memory) = (&self.tables, &self.tensors, self.memory.address());
        let copy = |from: &[u8], to: usize| {
            // SAFETY: the memory has room there, and the slot is kept as it is until the copy has ended.
            let answer = unsafe {
                sys::cuMemcpyHtoDAsync_v2(memory + to as u64, from.as_ptr().cast(), from.len(), stream.cast())
            };
            check("cuMemcpyHtoDAsync", answer)
        };
        let fill = |slot: &mut [u8]| {
            for table in &tables.tables {
                table.stage(tensors, slot, copy)?;
            }
            if too_many {
                let staged = &mut slot[tables.staged_bytes..][..size_of_val(sets)];
                staged.copy_from_slice(bytemuck::cast_slice(sets));
                copy(staged, tables.bytes)?;
            }
            Ok(())
        };
        // SAFETY: the caller's promise; the copies go to this stream.
        unsafe { self.staging.send(stream, fill) }?;
        self.tables.mark_sent();
        Ok(if too_many { memory + self.tables.bytes as u64 } else { 0 })
    }
}

fn last_set(tensors: &[RawTensor]) -> usize {
    tensors.iter().map(|tensor| tensor.set).max().unwrap_or(0)
}

/// Fails if a list's tensor has another length or other types than before.
fn check_fixed(index: usize, old: &RawTensor, new: &RawTensor) -> Result<(), Error> {
    let fixed = |what, expected: String, actual: String| Err(Error::Fixed { tensor: index, what, expected, actual });
    if old.len != new.len {
        return fixed("the length", old.len.to_string(), new.len.to_string());
    }
    if old.types() != new.types() {
        let name = |tensor: &RawTensor| {
            let (params, grads, copy) = tensor.types();
            let copy = copy.map(|copy| format!(" and a {copy} copy")).unwrap_or_default();
            format!("{params} parameters with {grads} gradients{copy}")
        };
        return fixed("the types", name(old), name(new));
    }
    Ok(())
}
