//! Lists of tensors: their descriptors in device memory, and the launches that serve them all.

use std::ffi::c_void;

use cudarc::driver::sys;

use crate::{Dtype, Error, StepCoeffs};

use super::checks::{RawTensor, Written, check_stream, is_captured};
use super::control::{Control, RawScalars};
use super::driver::check;
use super::kernels::Kernels;
use super::launch::{MAX_SETS, SetsArguments, TableArguments, launch_list, launch_set_masters, masters_blocks};
use super::memory::DeviceMemory;
use super::staging::Staging;
use super::table::{Table, Tables};

/// A list of tensors that are stepped together, of any sizes and type combinations, each with its own coefficient set.
///
/// The tensors' descriptors lie in device memory. They are built once; when addresses or sets change, only the changed part travels,
/// in the order of the step's stream and without waiting for it. A step is one launch per type combination in the list.
/// Tensors may be empty. One whose gradient has address 0 is left alone, and its other addresses are not looked at.
///
/// A CUDA graph that captured a step of the list reads the descriptors when it is launched: it steps the tensors as the device's
/// descriptors have them then. It may outlive the list: what was captured once is never freed, nor are the kernels unloaded.
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
    /// - A graph that captured this step is launched only while no tensor has a set that was not there then.
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
        if sets.len() > self.most_sets {
            let (limit, actual) = (self.most_sets as u64, sets.len() as u64);
            return Err(Error::TooMany { list: "sets", limit, actual });
        }
        self.check_sets(sets.len())?;
        let _current = self.kernels.enter()?;
        // SAFETY: the caller's promise.
        let is_captured = unsafe { self.check_stream(stream) }?;
        // SAFETY: the caller's promise.
        let device = unsafe { self.send_changes(sets, stream, is_captured) }?;
        self.keep_if(is_captured);
        let sets = SetsArguments { device, by_value: sets, skips: 0 };
        for table in &self.tables.tables {
            // SAFETY: the table is as the kernel expects it once the copies before have run; the caller vouches for the buffers.
            unsafe { self.launch(table, sets, stream) }?;
            launched(&table.members);
        }
        Ok(())
    }

    /// One DualAdam step whose coefficients, counters and skipping are the device's affair, enqueued on `stream`: `control` has the
    /// sets that the tensors name, `scalars` is what else steers the step.
    ///
    /// A small kernel advances the counter of each set that a tensor with a gradient names, and forms its coefficients with the
    /// bits of [`DualAdamConfig::coeffs_scaled`](crate::DualAdamConfig::coeffs_scaled), where the multiplier is
    /// clip factor / loss scale. A set whose step cannot be made is skipped instead: no byte of its tensors nor its counter
    /// changes, and [`Control::report`] says why. [`SkipReason`](super::SkipReason) lists the reasons.
    ///
    /// The call does not read from the device or allocate, and waits only as [`step_raw`](Self::step_raw) does. A step of unchanged
    /// addresses and sets can be captured in a CUDA graph, whose launches go on counting. The graph keeps the addresses in
    /// `scalars`; lr, configs and counters it reads when it is launched.
    ///
    /// # Errors
    ///
    /// [`Error::Index`] for a tensor whose set is not in `control`, [`Error::Context`] for a control or a stream of another context,
    /// [`Error::Address`] for a scalar that is not aligned to 4 bytes, [`Error::Interrupted`], [`Error::Captured`] for what cannot
    /// be captured. Nothing is launched then.
    /// [`Error::Driver`] if the driver refuses a copy or a launch, or if earlier work on the device failed. If the coefficients were
    /// prepared by then, counters have advanced of tensors that were not stepped, and `control` refuses to go on with
    /// [`Error::Interrupted`] until [`Control::set_steps`].
    ///
    /// # Safety
    ///
    /// As for [`step_raw`](Self::step_raw), also for each time that a graph with this step is launched; and
    ///
    /// - the addresses in `scalars`, and those that `control` was given, are device memory of the kernels' context until the work has
    ///   run, which nothing in the list writes.
    /// - The uses of one control are ordered among each other. One list has it at a time: a step advances all its counters.
    ///
    /// # Example
    ///
    /// ```no_run
    /// # use dualadam::cuda::{Control, ControlGroup, ControlSet, Kernels, RawScalars, RawTensor, TensorList};
    /// # use dualadam::DualAdamConfig;
    /// # fn example(kernels: Kernels, tensors: [RawTensor; 2], found_inf: u64) -> Result<(), dualadam::Error> {
    /// let stream = std::ptr::null_mut();
    /// let mut list = TensorList::new(&kernels, &tensors)?; // of sets 0 and 1
    /// let group = ControlGroup { config: DualAdamConfig::default(), lr: None };
    /// let set = ControlSet { group: 0, step: None };
    /// let mut control = Control::new(&kernels, &[group], &[set; 2])?;
    /// let scalars = RawScalars { found_inf, ..RawScalars::default() };
    /// // SAFETY: the addresses are live memory of their types, which nothing else uses meanwhile.
    /// unsafe {
    ///     list.step_controlled(&mut control, &scalars, stream)?;
    ///     assert_eq!(control.report(stream)?[0].step, 1);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub unsafe fn step_controlled(
        &mut self,
        control: &mut Control,
        scalars: &RawScalars,
        stream: *mut c_void,
    ) -> Result<(), Error> {
        self.check_control(control, scalars)?;
        self.choose_active(control);
        // SAFETY: the caller's promise.
        unsafe { self.step_active(control, scalars, false, stream) }
    }

    /// Does what the host has to do for a controlled step with the list's addresses and sets, but steps nothing: such a step can then be
    /// captured, also if it is the first. Nothing else may come between.
    ///
    /// The call does not allocate, and waits only as [`step_raw`](Self::step_raw) does.
    ///
    /// # Errors
    ///
    /// As [`step_controlled`](Self::step_controlled). After [`Error::Driver`] all is sent anew with the next call.
    ///
    /// # Safety
    ///
    /// `stream` is null or a live stream, and what else uses list and control is ordered before or after. Graphs that captured a step
    /// before use the new addresses and sets from now on: when they are launched, all must be as for
    /// [`step_controlled`](Self::step_controlled).
    pub unsafe fn prepare_controlled(&mut self, control: &mut Control, stream: *mut c_void) -> Result<(), Error> {
        self.check_control(control, &RawScalars::default())?;
        self.choose_active(control);
        let _current = self.kernels.enter()?;
        // SAFETY: the caller's promise.
        unsafe { self.send_active(control, stream) }.map(|_| ())
    }

    /// Says which of a control's sets have a tensor with a gradient.
    fn choose_active(&self, control: &mut Control) {
        let has_gradient = |tensor: &&RawTensor| tensor.grads.address != 0;
        control.set_active(self.tensors.iter().filter(has_gradient).map(|tensor| tensor.set));
    }

    /// Checks all that [`step_active`](Self::step_active) relies on, but for the stream.
    pub(super) fn check_control(&self, control: &Control, scalars: &RawScalars) -> Result<(), Error> {
        control.check(&self.kernels)?;
        scalars.check()?;
        self.check_sets(control.len())
    }

    /// [`step_controlled`](Self::step_controlled) of the control's active sets. With `set_masters`, the masters of tensors whose
    /// states say so are set first.
    ///
    /// # Safety
    ///
    /// As for [`step_controlled`](Self::step_controlled), and [`check_control`](Self::check_control) must have been passed.
    pub(super) unsafe fn step_active(
        &mut self,
        control: &mut Control,
        scalars: &RawScalars,
        set_masters: bool,
        stream: *mut c_void,
    ) -> Result<(), Error> {
        let _current = self.kernels.enter()?;
        // SAFETY: the caller's promise.
        let is_captured = unsafe { self.send_active(control, stream) }?;
        if set_masters {
            self.tables.tables.iter().try_for_each(|table| masters_blocks(table.members.len() as u32).map(|_| ()))?;
        }
        self.keep_if(is_captured);
        control.keep_if(is_captured);
        // SAFETY: the caller's promise.
        unsafe { control.launch(scalars, stream) }?;
        // SAFETY: the caller's promise; the sets are prepared by then.
        let launched = unsafe { self.launch_prepared(control, set_masters, stream) };
        if launched.is_err() && !is_captured {
            control.interrupt();
        }
        launched
    }

    /// Sends what the device lacks of the list and of the control. Returns whether the stream is being captured.
    ///
    /// # Safety
    ///
    /// `stream` must be live, and the kernels' context current.
    pub(super) unsafe fn send_active(&mut self, control: &mut Control, stream: *mut c_void) -> Result<bool, Error> {
        // SAFETY: the caller's promise.
        unsafe {
            let is_captured = self.check_stream(stream)?;
            control.send_active(stream, is_captured)?;
            self.send_changes(&[], stream, is_captured)?;
            Ok(is_captured)
        }
    }

    /// # Safety
    ///
    /// As for [`step_active`](Self::step_active).
    unsafe fn launch_prepared(&self, control: &Control, set_masters: bool, stream: *mut c_void) -> Result<(), Error> {
        let functions = self.kernels.control_functions();
        for table in self.tables.tables.iter().filter(|table| set_masters && table.chunks > 0) {
            let function = match table.combination.copy() {
                Some(Dtype::Bf16) => functions.set_masters_bf16,
                Some(Dtype::F16) => functions.set_masters_f16,
                Some(Dtype::F32) | None => continue,
            };
            // SAFETY: as below.
            unsafe { launch_set_masters(function, self.descriptors(table), control.states(), stream) }?;
        }
        let sets = SetsArguments { device: control.coeffs(), by_value: &[], skips: control.skips() };
        // SAFETY: the tables are as the kernels expect them once the copies before have run, and so are the sets; the caller vouches
        // for the buffers.
        self.tables.tables.iter().try_for_each(|table| unsafe { self.launch(table, sets, stream) })
    }

    /// # Safety
    ///
    /// As for [`launch_list`].
    unsafe fn launch(&self, table: &Table, sets: SetsArguments<'_>, stream: *mut c_void) -> Result<(), Error> {
        if table.chunks == 0 {
            return Ok(());
        }
        let function = self.kernels.functions(table.combination).list;
        // SAFETY: the caller's promise.
        unsafe { launch_list(function, table.chunks, self.descriptors(table), sets, stream) }
    }

    fn descriptors(&self, table: &Table) -> TableArguments {
        (self.memory.address() + table.start as u64, table.members.len() as u32)
    }

    /// Checks that the stream is of the kernels' context, which must be current. Returns whether it is being captured.
    ///
    /// # Safety
    ///
    /// `stream` must be live.
    unsafe fn check_stream(&self, stream: *mut c_void) -> Result<bool, Error> {
        // SAFETY: the caller's promise.
        unsafe {
            check_stream(&self.kernels, stream)?;
            is_captured(stream)
        }
    }

    fn keep_if(&mut self, is_captured: bool) {
        if is_captured {
            self.memory.keep();
        }
    }

    /// Whether a graph may have captured a step of the list.
    pub(super) fn was_captured(&self) -> bool {
        self.memory.is_kept()
    }

    fn check_sets(&self, len: usize) -> Result<(), Error> {
        if self.last_set < len {
            return Ok(());
        }
        let mut found = self.tensors.iter().enumerate().filter(|(_, tensor)| tensor.set >= len);
        match found.next() {
            Some((tensor, &RawTensor { set, .. })) => Err(Error::Index { tensor, index: "set", len, value: set }),
            None => Ok(()),
        }
    }

    /// Sends what the device does not have yet. Returns the address of the sets, or 0 if they fit in an argument.
    ///
    /// # Safety
    ///
    /// `stream` must be live, and the kernels' context current.
    unsafe fn send_changes(
        &mut self,
        sets: &[StepCoeffs],
        stream: *mut c_void,
        is_captured: bool,
    ) -> Result<u64, Error> {
        let too_many = sets.len() > MAX_SETS;
        if !too_many && !self.tables.have_changes() {
            return Ok(0);
        }
        if is_captured {
            let what = "a list's step with new addresses or sets, or with more than 96 sets,";
            return Err(Error::Captured { what });
        }
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
