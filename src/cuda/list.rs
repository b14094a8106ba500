//! Lists of tensors: their descriptors in device memory, and the launches that step them.

use std::ffi::c_void;
use std::sync::Arc;

use crate::rule::StepCoeffs;
use crate::tensor::{ArgumentError, CheckedList, ListError, RawTensor};

use super::error::CudaError;
use super::event::LastUse;
use super::kernels::Kernels;
use super::launch::{CoeffsArguments, MAX_COEFFS, launch_list};
use super::memory::{self, DeviceMemory};
use super::module::Function;
use super::staging::Staging;
use super::stream::check_capture;
use super::table::Tables;

/// Tensors, given by address, that one call steps together: any sizes and formats, each with its
/// own coefficients.
///
/// A step is one launch for each [variant](crate::Variant) in the list. The list keeps descriptors
/// of the tensors in device memory: 64 bytes for a tensor, and 4 bytes for each 4,096 elements.
/// [`new`](Self::new) builds them. After [`update`](Self::update), the next step sends the changed
/// part, in the order of its stream and without waiting for it.
///
/// A tensor may be empty. A tensor whose gradient has address 0 is skipped, and its other addresses
/// are not looked at.
///
/// # Captures
///
/// A step that is captured in a CUDA graph gets descriptors of its own. The graph steps the tensors
/// as they were at the capture, whatever later steps, captures and calls of
/// [`update`](Self::update) change. So the gradients may be at new addresses in each capture, as in
/// PyTorch. These descriptors stay until the graph is destroyed, and a later call that allocates
/// then frees them. The graph may outlive the list.
///
/// # Dropping
///
/// Dropping the list waits for nothing and invalidates no capture. The device memory is freed after
/// the last step and after the last graph that captured one.
///
/// # Examples
///
/// ```
/// use dualadam::cuda::{Kernels, TensorList, cudarc::driver::DevicePtr};
/// use dualadam::{DualAdamConfig, RawBuffer, RawTensor};
///
/// # let _gpu = testkit::stand_in_or_return!();
/// let kernels = Kernels::new(0)?;
/// let stream = kernels.context().default_stream();
/// // Parameters, gradients and both moments of two tensors.
/// let buffers = (stream.clone_htod(&[0.5_f32; 4 * 16])?, stream.clone_htod(&[0.5_f32; 4 * 3])?);
/// let tensor = |len: u64, start: u64| {
///     let [param, grad, exp_avg, exp_avg_sq] = [0, 1, 2, 3].map(|part| RawBuffer::f32(start + 4 * len * part));
///     RawTensor::new(len, param, grad, exp_avg, exp_avg_sq)
/// };
/// let weight = tensor(16, buffers.0.device_ptr(&stream).0);
/// let bias = tensor(3, buffers.1.device_ptr(&stream).0).with_coeffs_index(1);
///
/// let mut list = TensorList::new(&kernels, &[weight, bias])?;
/// let coeffs = [DualAdamConfig::adamw(0.1).coeffs(1)?, DualAdamConfig::adam().coeffs(1)?];
/// // SAFETY: the addresses are those of live buffers of 16 and 3 f32, and all of their uses are on
/// // this stream.
/// unsafe { list.step_raw(&coeffs, stream.cu_stream().cast())? };
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct TensorList {
    kernels: Kernels,
    list: CheckedList,
    tables: Tables,
    /// The kernel of each table.
    functions: Vec<Function>,
    /// The tables. Then room for the coefficients, if a step can have more than fit in an argument.
    memory: DeviceMemory,
    most_coeffs: usize,
    staging: Staging,
    last_use: Arc<LastUse>,
}

impl TensorList {
    /// Loads the kernels that these tensors need, builds the descriptors and copies them to the
    /// device. Waits for the copy.
    ///
    /// # Errors
    ///
    /// - [`ListError::Empty`] for an empty list.
    /// - [`TensorProblem::Formats`] for formats without a kernel.
    /// - [`TensorProblem::Null`], [`TensorProblem::Misaligned`], [`TensorProblem::Extent`] or
    ///   [`TensorProblem::Overlap`] for a buffer that is null, misaligned, ends beyond 2⁶⁴ bytes,
    ///   or overlaps another one. Two gradients may overlap. Tensors that are empty or have no
    ///   gradient are not checked for these.
    /// - [`ListError::TooMany`] for more than 2³¹ - 1 pieces of 4,096 elements of one variant, or
    ///   more than 2³² - 1 tensors.
    /// - [`CudaError::Ptx`] if the driver refuses the kernels.
    /// - [`CudaError::Driver`] for anything else that the driver reports, such as too little
    ///   memory.
    ///
    /// [`TensorProblem::Formats`]: crate::TensorProblem::Formats
    /// [`TensorProblem::Null`]: crate::TensorProblem::Null
    /// [`TensorProblem::Misaligned`]: crate::TensorProblem::Misaligned
    /// [`TensorProblem::Extent`]: crate::TensorProblem::Extent
    /// [`TensorProblem::Overlap`]: crate::TensorProblem::Overlap
    pub fn new(kernels: &Kernels, tensors: &[RawTensor]) -> Result<Self, CudaError> {
        let last_use = {
            let _current = kernels.enter()?;
            LastUse::new(kernels.context())?
        };
        Self::with_last_use(kernels, tensors, &last_use)
    }

    /// [`new`](Self::new) for a list that notes its steps in this `last_use`.
    pub(super) fn with_last_use(
        kernels: &Kernels,
        tensors: &[RawTensor],
        last_use: &Arc<LastUse>,
    ) -> Result<Self, CudaError> {
        if tensors.is_empty() {
            return Err(ListError::Empty { list: "tensors" }.into());
        }
        let list = CheckedList::new(tensors)?;
        let tables = Tables::new(tensors, list.variants())?;
        let loaded = tables.tables.iter().map(|table| Ok(kernels.functions(table.variant)?.list));
        let functions = loaded.collect::<Result<Vec<_>, CudaError>>()?;
        let most_coeffs = tensors.len().max(MAX_COEFFS);
        let coeffs_bytes = if most_coeffs > MAX_COEFFS { most_coeffs * size_of::<StepCoeffs>() } else { 0 };
        let content = tables.build(tensors);
        let memory = DeviceMemory::with_content(kernels.pool(), last_use, &content, content.len() + coeffs_bytes)?;
        let staging = Staging::new(kernels.pool(), last_use, tables.staged_bytes + coeffs_bytes)?;
        let (kernels, last_use) = (kernels.clone(), last_use.clone());
        Ok(Self { kernels, list, tables, functions, memory, most_coeffs, staging, last_use })
    }

    /// The number of tensors.
    #[must_use]
    pub fn len(&self) -> usize {
        self.list.tensors().len()
    }

    /// Whether there is no tensor. Always false, since [`new`](Self::new) refuses an empty list.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.tensors().is_empty()
    }

    /// The most coefficients that a step can have: 96, or the number of tensors if that is larger.
    #[must_use]
    pub fn most_coeffs(&self) -> usize {
        self.most_coeffs
    }

    /// The tensors as [`new`](Self::new) or the last [`update`](Self::update) got them.
    #[must_use]
    pub fn tensors(&self) -> &[RawTensor] {
        self.list.tensors()
    }

    /// Replaces addresses and coefficient indices of the same tensors. The next step sends the
    /// changes to the device.
    ///
    /// The call does not allocate. It compares all tensors, checks each new gradient against what
    /// the list writes, and checks the whole list if another address changed.
    ///
    /// # Errors
    ///
    /// - [`ListError::Count`] for another number of tensors.
    /// - [`TensorProblem::FixedLength`](crate::TensorProblem::FixedLength) or
    ///   [`TensorProblem::FixedFormats`](crate::TensorProblem::FixedFormats) for another length or
    ///   other formats of a tensor.
    /// - The errors of [`new`](Self::new) for buffers.
    ///
    /// After an error the list is as it was.
    ///
    /// # Examples
    ///
    /// ```
    /// use dualadam::RawBuffer;
    /// # use dualadam::cuda::{Kernels, TensorList};
    /// # use dualadam::RawTensor;
    ///
    /// # let _gpu = testkit::stand_in_or_return!();
    /// # let buffers = [0x1000, 0x2000, 0x3000, 0x4000].map(RawBuffer::f32);
    /// # let [param, grad, exp_avg, exp_avg_sq] = buffers;
    /// # let tensor = RawTensor::new(16, param, grad, exp_avg, exp_avg_sq);
    /// # let mut list = TensorList::new(&Kernels::new(0)?, &[tensor])?;
    /// // The next backward pass left the gradients elsewhere.
    /// list.update(&[tensor.with_grad(RawBuffer::f32(0x5000))])?;
    /// // A tensor without gradients.
    /// list.update(&[tensor.with_grad(RawBuffer::f32(0))])?;
    /// # Ok::<(), dualadam::Error>(())
    /// ```
    pub fn update(&mut self, tensors: &[RawTensor]) -> Result<(), ArgumentError> {
        let tables = &mut self.tables;
        self.list.update(tensors, |index| tables.mark_changed(index))
    }

    /// Sets whether the next step copies a tensor's parameters to its masters before the update.
    pub(super) fn set_sets_master(&mut self, tensor: usize, sets_master: bool) {
        self.tables.set_sets_master(tensor, sets_master);
    }

    pub(super) fn checked(&self) -> &CheckedList {
        &self.list
    }

    pub(super) fn kernels(&self) -> &Kernels {
        &self.kernels
    }

    /// The last use of the list's memory.
    pub(super) fn last_use(&self) -> &Arc<LastUse> {
        &self.last_use
    }

    /// Enqueues one DualAdam step of every tensor that has a gradient on `stream`, with the
    /// coefficients `coeffs[tensor.coeffs_index]`.
    ///
    /// `stream` is a `CUstream`, which is the same as a `cudaStream_t`; null is the default stream.
    /// The call does not allocate. If it has changes to send, it blocks only when all four staging
    /// slots are in flight. More than 96 coefficients count as a change in every step.
    ///
    /// On a stream that is being captured, the step goes into the CUDA graph with the addresses and
    /// coefficients of now. The call then allocates device memory for the graph's descriptors and
    /// waits until they have been copied there.
    ///
    /// # Errors
    ///
    /// These launch nothing:
    ///
    /// - [`TensorProblem::CoeffsIndex`](crate::TensorProblem::CoeffsIndex) for a tensor whose index
    ///   is not below the length of `coeffs`.
    /// - [`ListError::TooMany`] for more coefficients than [`most_coeffs`](Self::most_coeffs).
    /// - [`CudaError::Context`] if `stream` belongs to another context.
    /// - [`CudaError::Driver`] if the capture of `stream` has failed, or if `stream` is null while
    ///   a stream that waits for the null stream is being captured.
    ///
    /// This may leave some of the list's variants stepped:
    ///
    /// - [`CudaError::Driver`] if the driver refuses a copy, memory or a launch, or if earlier work
    ///   on the device failed.
    ///
    /// # Safety
    ///
    /// - `stream` is null or a live stream.
    /// - From now until the work has run, each buffer of each tensor that has a gradient is device
    ///   memory of the kernels' context, of the tensor's length and of its format.
    /// - The caller orders this work against other uses of that memory, on any stream. Steps of
    ///   this list on other streams are such uses.
    /// - A graph that captured the step is launched only while the two requirements above hold for
    ///   the buffers that it captured.
    pub unsafe fn step_raw(&mut self, coeffs: &[StepCoeffs], stream: *mut c_void) -> Result<(), CudaError> {
        // SAFETY: `step_launches` has the requirements of this function.
        unsafe { self.step_launches(coeffs, stream, |_| ()) }
    }

    /// [`step_raw`](Self::step_raw) that calls `launched` after each launch, with the positions of
    /// its tensors.
    ///
    /// # Safety
    ///
    /// - The requirements of [`step_raw`](Self::step_raw) hold.
    pub(super) unsafe fn step_launches(
        &mut self,
        coeffs: &[StepCoeffs],
        stream: *mut c_void,
        launched: impl FnMut(&[usize]),
    ) -> Result<(), CudaError> {
        if coeffs.len() > self.most_coeffs {
            let (limit, actual) = (self.most_coeffs as u64, coeffs.len() as u64);
            return Err(ListError::TooMany { list: "coeffs", limit, actual }.into());
        }
        self.list.check_coeffs(coeffs.len())?;
        let _current = self.kernels.enter()?;
        // SAFETY: `stream` is live (`step_raw`'s first requirement), and the context is current.
        let is_captured = unsafe { check_capture(self.kernels.context(), stream) }?;
        let (memory, on_device) = if is_captured {
            let coeffs = if coeffs.len() > MAX_COEFFS { bytemuck::cast_slice(coeffs) } else { &[] };
            // SAFETY: `stream` is live, and the context is current.
            let (memory, after) = unsafe { self.memory_for_graph(coeffs, stream) }?;
            (memory, if coeffs.is_empty() { 0 } else { after })
        } else {
            // SAFETY: `stream` is live and not captured, the context is current, and the list's
            // earlier steps are ordered before (`step_raw`'s third requirement).
            (self.memory.address(), unsafe { self.send_changes(coeffs, stream) }?)
        };
        let arguments = CoeffsArguments { on_device, by_value: coeffs, skips: 0 };
        // SAFETY: the context is current and `stream` is live. The tables and the coefficients lie
        // there once the copies that were enqueued before have run. The buffers are as `step_raw`
        // requires.
        let stepped = unsafe { self.launch(memory, arguments, stream, launched) };
        if !is_captured {
            // SAFETY: `stream` is live, and the list's earlier steps are ordered before this one
            // (`step_raw`'s first and third requirement).
            unsafe { self.last_use.note(stream) };
        }
        stepped
    }

    /// Launches the kernels of all tables, which lie at `memory`, and calls `launched` after each
    /// launch with the positions of its tensors.
    ///
    /// # Safety
    ///
    /// - The kernels' context is current, and `stream` is null or a live stream of it.
    /// - Tables and coefficients are as the kernels expect them when they run.
    /// - The buffers are as [`step_raw`](Self::step_raw) requires.
    pub(super) unsafe fn launch(
        &self,
        memory: u64,
        coeffs: CoeffsArguments<'_>,
        stream: *mut c_void,
        mut launched: impl FnMut(&[usize]),
    ) -> Result<(), CudaError> {
        for (table, &function) in self.tables.tables.iter().zip(&self.functions) {
            if table.chunks > 0 {
                let descriptors = (memory + table.start as u64, table.members.len() as u32);
                // SAFETY: the context is current, the stream live, and the memory as the kernel
                // expects it (this function's requirements). The kernel is that of the table's
                // variant.
                unsafe { launch_list(function, table.chunks, descriptors, coeffs, stream) }?;
            }
            launched(&table.members);
        }
        Ok(())
    }

    /// Copies the tables as they are now, followed by these bytes, to memory that only the graph
    /// into which `stream` is being captured uses. Returns the addresses of both.
    ///
    /// The graph also becomes a user of all memory with the list's `last_use`, such as the moments
    /// of the optimizer that owns the list.
    ///
    /// # Safety
    ///
    /// - `stream` is live, and the kernels' context is current.
    pub(super) unsafe fn memory_for_graph(&self, after: &[u8], stream: *mut c_void) -> Result<(u64, u64), CudaError> {
        let mut content = self.tables.build(self.list.tensors());
        content.extend_from_slice(after);
        let last_use = LastUse::new(self.kernels.context())?;
        let memory = DeviceMemory::with_content(self.kernels.pool(), &last_use, &content, content.len())?;
        // SAFETY: `stream` is live, and its context is current (this function's requirement).
        unsafe {
            last_use.note_in_graph(stream);
            self.last_use.note_in_graph(stream);
        }
        // The memory is dropped here; the pool frees it when the graph has been destroyed.
        Ok((memory.address(), memory.address() + self.tables.bytes as u64))
    }

    /// The address of the tables for steps that are not captured.
    pub(super) fn memory(&self) -> u64 {
        self.memory.address()
    }

    /// Sends what has changed since the last call. Returns the address of the coefficients, or 0 if
    /// they fit in an argument.
    ///
    /// # Safety
    ///
    /// - `stream` is live and not captured, and the kernels' context is current.
    /// - The list's earlier steps are ordered before what is enqueued on `stream` now.
    pub(super) unsafe fn send_changes(&mut self, coeffs: &[StepCoeffs], stream: *mut c_void) -> Result<u64, CudaError> {
        let too_many = coeffs.len() > MAX_COEFFS;
        if !too_many && !self.tables.have_changes() {
            return Ok(0);
        }
        let (tables, tensors, at) = (&self.tables, self.list.tensors(), self.memory.address());
        let copy = |from: &[u8], to: usize| {
            // SAFETY: the stream is live (this function's first requirement). The memory has room
            // there, and `staging` does not rewrite the slot before the copy has ended.
            unsafe { memory::copy(at + to as u64, from, stream.cast()) }
        };
        let fill = |slot: &mut [u8]| {
            tables.stage(tensors, slot, copy)?;
            if too_many {
                let staged = &mut slot[tables.staged_bytes..][..size_of_val(coeffs)];
                staged.copy_from_slice(bytemuck::cast_slice(coeffs));
                copy(staged, tables.bytes)?;
            }
            Ok(())
        };
        // SAFETY: the context is current and `stream` live, and earlier steps are ordered before
        // (this function's requirements). The copies go to this stream.
        let sent = unsafe { self.staging.send(stream, fill) };
        if sent.is_err() {
            // Some copies may be in flight.
            // SAFETY: `stream` is live and not captured, and earlier steps are ordered before (this
            // function's requirements).
            unsafe { self.last_use.note(stream) };
        }
        sent?;
        self.tables.mark_sent();
        Ok(if too_many { at + self.tables.bytes as u64 } else { 0 })
    }
}
