//! Lists of tensors: their descriptors in device memory, and the launches that serve them all.

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

/// A list of tensors by address that are stepped together, of any sizes and formats, each with its
/// own coefficients.
///
/// The tensors' descriptors lie in device memory. They are built once; when addresses or
/// coefficient indices change, only the changed part travels, in the order of the step's stream and
/// without waiting for it. A step is one launch per variant in the list. Tensors may be empty. One
/// whose gradient has address 0 is skipped, and its other addresses are not looked at.
///
/// A step that is captured in a CUDA graph gets descriptors of its own: the graph steps the tensors
/// as they were at the capture, whatever later steps, other captures or [`update`](Self::update)
/// change. So gradients may be at new addresses in each capture, as PyTorch's are. The graph may
/// outlive the list: its descriptors, 64 bytes a tensor and 4 for 4,096 elements, stay until it is
/// destroyed. A later call that allocates then frees them.
///
/// Dropping the list never waits for the device, and leaves captures valid. Its device memory is
/// freed after the last step, and after the last graph that captured a step.
///
/// # Example
///
/// ```no_run
/// use dualadam::cuda::{Kernels, TensorList};
/// use dualadam::{DualAdamConfig, RawBuffer, RawTensor};
///
/// # let stream = std::ptr::null_mut();
/// # let (weight, bias) = ([256, 512, 768, 1024], [1280, 1536, 1792, 2048]);
/// let kernels = Kernels::new(0)?;
/// let tensor = |len, addresses: [u64; 4]| {
///     let [param, grad, exp_avg, exp_avg_sq] = addresses.map(RawBuffer::f32);
///     RawTensor::new(len, param, grad, exp_avg, exp_avg_sq)
/// };
/// let tensors = [tensor(16, weight), tensor(3, bias).with_coeffs_index(1)];
/// let mut list = TensorList::new(&kernels, &tensors)?;
/// let coeffs = [DualAdamConfig::adamw(0.1).coeffs(1)?, DualAdamConfig::adam().coeffs(1)?];
/// // SAFETY: the addresses are those of live buffers of 16 and 3 f32, which nothing else uses now.
/// unsafe { list.step_raw(&coeffs, stream)? };
/// # Ok::<(), dualadam::Error>(())
/// ```
#[derive(Debug)]
pub struct TensorList {
    kernels: Kernels,
    list: CheckedList,
    tables: Tables,
    /// The kernel of each table.
    functions: Vec<Function>,
    /// The tables and, if there can be more than fit in an argument, the coefficients after them.
    memory: DeviceMemory,
    most_coeffs: usize,
    staging: Staging,
    last_use: Arc<LastUse>,
}

impl TensorList {
    /// Loads the kernels of these tensors, builds the tensors' descriptors and puts them into
    /// device memory. Waits until they are there.
    ///
    /// # Errors
    ///
    /// - [`ListError::Empty`] for no tensor at all.
    /// - [`TensorProblem::Formats`] for formats without a kernel.
    /// - [`TensorProblem::Null`], [`TensorProblem::Misaligned`], [`TensorProblem::Extent`] or
    ///   [`TensorProblem::Overlap`] for buffers that cannot be right. Two gradients may share
    ///   memory.
    /// - [`ListError::TooMany`] for more than a launch can serve.
    /// - [`CudaError::Ptx`] if the driver refuses the kernels.
    /// - [`CudaError::Driver`] for what the driver reports.
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

    /// [`new`](Self::new) of a list whose steps are among the uses whose last one is `last_use`.
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

    /// How many tensors there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.list.tensors().len()
    }

    /// Whether there is no tensor, which [`new`](Self::new) refuses.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.tensors().is_empty()
    }

    /// The most coefficients that a step can have: one per tensor, and 96 in any case.
    #[must_use]
    pub fn most_coeffs(&self) -> usize {
        self.most_coeffs
    }

    /// The tensors as they were taken over last.
    #[must_use]
    pub fn tensors(&self) -> &[RawTensor] {
        self.list.tensors()
    }

    /// Takes over new addresses and coefficient indices of the same tensors. The device gets what
    /// has changed in the next step.
    ///
    /// The call does not allocate. Where nothing changed it only compares; new gradients are
    /// checked one by one against what the list writes, and any other new address makes it check
    /// the whole list.
    ///
    /// # Errors
    ///
    /// - [`ListError::Count`] for another number of tensors.
    /// - [`TensorProblem::FixedLength`](crate::TensorProblem::FixedLength) or
    ///   [`TensorProblem::FixedFormats`](crate::TensorProblem::FixedFormats) for other lengths or
    ///   formats.
    /// - What [`new`](Self::new) refuses of addresses.
    ///
    /// The list stays as it was then.
    pub fn update(&mut self, tensors: &[RawTensor]) -> Result<(), ArgumentError> {
        let tables = &mut self.tables;
        self.list.update(tensors, |index| tables.mark_changed(index))
    }

    /// Says whether the next step sets a tensor's masters from its parameters, before it updates
    /// them.
    pub(super) fn set_sets_master(&mut self, tensor: usize, sets_master: bool) {
        self.tables.set_sets_master(tensor, sets_master);
    }

    pub(super) fn checked(&self) -> &CheckedList {
        &self.list
    }

    pub(super) fn kernels(&self) -> &Kernels {
        &self.kernels
    }

    /// The end of the last work that uses the list's memory.
    pub(super) fn last_use(&self) -> &Arc<LastUse> {
        &self.last_use
    }

    /// One DualAdam step of every tensor that has a gradient, with the coefficients
    /// `coeffs[tensor.coeffs_index]`, enqueued on `stream`.
    ///
    /// The call does not allocate or log. It blocks only when the changes of all four steps before
    /// are still in flight.
    ///
    /// On a stream that is being captured, the step goes into the CUDA graph with the addresses and
    /// coefficients of now, which takes new device memory. The call waits then until the
    /// descriptors are there.
    ///
    /// # Errors
    ///
    /// - [`TensorProblem::CoeffsIndex`](crate::TensorProblem::CoeffsIndex) for a tensor whose
    ///   coefficients are not there.
    /// - [`ListError::TooMany`] for more coefficients than [`most_coeffs`](Self::most_coeffs).
    /// - [`CudaError::Context`] for a stream of another context.
    /// - [`CudaError::Driver`] for a stream whose capture has failed, and for the null stream while
    ///   a stream that waits for it is being captured.
    ///
    /// Nothing is launched then.
    ///
    /// - [`CudaError::Driver`] if the driver refuses a copy, memory or a launch, or if earlier work
    ///   on the device failed. The launches of some of the list's variants may have been made.
    ///
    /// # Safety
    ///
    /// - `stream` is null or a live stream.
    /// - From now until the work has run, each buffer of each tensor that has a gradient is device
    ///   memory of the kernels' context, of the tensor's length and of its format.
    /// - The caller orders this work against other uses of that memory, on any stream. Steps of
    ///   this list on different streams are such uses.
    /// - A graph that captured this step is launched only while that holds of the buffers that it
    ///   captured.
    pub unsafe fn step_raw(&mut self, coeffs: &[StepCoeffs], stream: *mut c_void) -> Result<(), CudaError> {
        // SAFETY: stream, buffers and order are as `step_launches` requires (this function's
        // requirements).
        unsafe { self.step_launches(coeffs, stream, |_| ()) }
    }

    /// [`step_raw`](Self::step_raw) that reports the positions of the tensors of each launch that
    /// was made.
    ///
    /// # Safety
    ///
    /// As for [`step_raw`](Self::step_raw).
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
        // SAFETY: the tables lie there once the copies before have run, and so do the coefficients.
        // The buffers are as `step_raw` requires.
        let stepped = unsafe { self.launch(memory, arguments, stream, launched) };
        if !is_captured {
            // SAFETY: `stream` is live, and the list's earlier steps are ordered before this one
            // (`step_raw`'s first and third requirement).
            unsafe { self.last_use.note(stream) };
        }
        stepped
    }

    /// Launches the kernels of all tables, which lie in `memory`, and reports the tensors of each
    /// launch.
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

    /// The tables as they are now, and then these bytes, in memory that the graph into which
    /// `stream` is being captured has for itself. Returns the addresses of both.
    ///
    /// Notes also that this graph uses what shares the list's last use: the moments of the
    /// optimizer whose list this is.
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
        // The memory is dropped here, and freed when the graph is gone.
        Ok((memory.address(), memory.address() + self.tables.bytes as u64))
    }

    /// The address of the tables that are not a graph's.
    pub(super) fn memory(&self) -> u64 {
        self.memory.address()
    }

    /// Sends what the device does not have yet. Returns the address of the coefficients, or 0 if
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
            // there, and the slot is kept as it is until the copy has ended.
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
            // Some copies may have been enqueued.
            // SAFETY: `stream` is live and not captured, and earlier steps are ordered before (this
            // function's requirements).
            unsafe { self.last_use.note(stream) };
        }
        sent?;
        self.tables.mark_sent();
        Ok(if too_many { at + self.tables.bytes as u64 } else { 0 })
    }
}
