//! Lists of tensors: their descriptors in device memory, and the launches that serve them all.

use std::ffi::c_void;
use std::sync::Arc;

use crate::raw::Tensors;
use crate::{Error, RawTensor, StepCoeffs};

use super::checks::check_capture;
use super::control::{Control, RawScalars};
use super::event::LastUse;
use super::kernels::{Function, Kernels};
use super::launch::{MAX_COEFFS, SetsArguments, launch_list};
use super::memory::{self, DeviceMemory};
use super::staging::Staging;
use super::table::{Table, Tables};

/// A list of tensors that are stepped together, of any sizes and type combinations, each with its own coefficient set.
///
/// The tensors' descriptors lie in device memory. They are built once; when addresses or sets change, only the changed part travels,
/// in the order of the step's stream and without waiting for it. A step is one launch per type combination in the list.
/// Tensors may be empty. One whose gradient has address 0 is left alone, and its other addresses are not looked at.
///
/// A step that is captured in a CUDA graph gets descriptors of its own: the graph steps the tensors as they were at the capture,
/// whatever later steps, other captures or [`update`](Self::update) change. So gradients may be at new addresses in each capture, as
/// PyTorch's are. The graph may outlive the list: its descriptors, 64 bytes a tensor and 4 for 4,096 elements, stay until it is
/// destroyed. A later call that allocates then frees them.
///
/// Dropping the list never waits for the device, and leaves captures valid. Its device memory is freed after the last step,
/// and after the last graph that captured a step.
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
    tensors: Tensors,
    tables: Tables,
    /// The kernel of each table.
    functions: Vec<Function>,
    /// The tables and, if there can be more than fit in an argument, the sets after them.
    memory: DeviceMemory,
    most_sets: usize,
    staging: Staging,
    last_use: Arc<LastUse>,
}

impl TensorList {
    /// Loads the kernels of these tensors, builds the tensors' descriptors and puts them into device memory. Waits until they are there.
    ///
    /// # Errors
    ///
    /// [`Error::Empty`] for no tensor at all, [`Error::Types`] for a type combination without a kernel, [`Error::Null`],
    /// [`Error::Misaligned`], [`Error::Extent`] or [`Error::Overlap`] for buffers that cannot be right (two gradients may share
    /// memory), [`Error::TooMany`] for more than a launch can serve, [`Error::Ptx`] if the driver refuses the kernels, [`Error::Driver`] for
    /// what the driver reports.
    pub fn new(kernels: &Kernels, tensors: &[RawTensor]) -> Result<Self, Error> {
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
    ) -> Result<Self, Error> {
        if tensors.is_empty() {
            return Err(Error::Empty { list: "tensors" });
        }
        let checked = Tensors::new(tensors)?;
        let tables = Tables::new(tensors)?;
        let loaded = tables.tables.iter().map(|table| Ok(kernels.functions(table.variant)?.list));
        let functions = loaded.collect::<Result<Vec<_>, Error>>()?;
        let most_sets = tensors.len().max(MAX_COEFFS);
        let sets_bytes = if most_sets > MAX_COEFFS { most_sets * size_of::<StepCoeffs>() } else { 0 };
        let content = tables.build(tensors);
        let memory = DeviceMemory::with_content(kernels, last_use, &content, content.len() + sets_bytes)?;
        let staging = Staging::new(kernels, last_use, tables.staged_bytes + sets_bytes)?;
        let (kernels, last_use) = (kernels.clone(), last_use.clone());
        Ok(Self { kernels, tensors: checked, tables, functions, memory, most_sets, staging, last_use })
    }

    /// How many tensors there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tensors.as_slice().len()
    }

    /// Whether there is no tensor, which [`new`](Self::new) refuses.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tensors.as_slice().is_empty()
    }

    /// The most coefficient sets that a step can have: one per tensor, and 96 in any case.
    #[must_use]
    pub fn most_sets(&self) -> usize {
        self.most_sets
    }

    /// The tensors as they were taken over last.
    #[must_use]
    pub fn tensors(&self) -> &[RawTensor] {
        self.tensors.as_slice()
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
        let tables = &mut self.tables;
        self.tensors.update(tensors, |index| tables.mark_changed(index))
    }

    /// Says whether the next step sets a tensor's masters from its parameters, which are its copy, before it updates them.
    pub(super) fn set_masters(&mut self, tensor: usize, sets_masters: bool) {
        self.tables.set_masters(tensor, sets_masters);
    }

    /// Whether these are tensors that [`update`](Self::update) can take over.
    pub(super) fn has_types_of(&self, tensors: &[RawTensor]) -> bool {
        let own = self.tensors();
        own.len() == tensors.len()
            && own.iter().zip(tensors).all(|(old, new)| old.len == new.len && old.types() == new.types())
    }

    /// One DualAdam step of every tensor that has a gradient, with the coefficients `sets[tensor.set]`, enqueued on `stream`.
    ///
    /// The call does not allocate or log. It blocks only when the changes of all four steps before are still in flight.
    ///
    /// On a stream that is being captured, the step goes into the CUDA graph with the addresses, sets and coefficients of now, which
    /// takes new device memory. The call waits then until the descriptors are there.
    ///
    /// # Errors
    ///
    /// [`Error::Index`] for a tensor whose set is not there, [`Error::TooMany`] for more sets than
    /// [`most_sets`](Self::most_sets), [`Error::Context`] for a stream of another context. Nothing is launched then.
    /// [`Error::Driver`] if the driver refuses a copy, memory or a launch, or if earlier work on the device failed; the launches for
    /// some of the list's type combinations may have been made.
    /// A stream whose capture has failed is also an [`Error::Driver`], and so is the null stream while a stream that waits for it is being
    /// captured; nothing is launched then.
    ///
    /// # Safety
    ///
    /// - `stream` is null or a live stream.
    /// - From now until the work has run, each buffer of each tensor that has a gradient is device memory of the kernels' context,
    ///   of the tensor's length.
    /// - What else uses that memory, on any stream, is ordered before or after this work. That holds for the steps of this list too,
    ///   if their streams differ.
    /// - A graph that captured this step is launched only while that holds of the buffers that it captured.
    pub unsafe fn step_raw(&mut self, sets: &[StepCoeffs], stream: *mut c_void) -> Result<(), Error> {
        // SAFETY: as this function requires.
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
        self.tensors.check_sets(sets.len())?;
        let _current = self.kernels.enter()?;
        // SAFETY: `stream` is live (`step_raw`'s first requirement).
        let is_captured = unsafe { check_capture(&self.kernels, stream) }?;
        let (memory, device) = if is_captured {
            let sets = if sets.len() > MAX_COEFFS { bytemuck::cast_slice(sets) } else { &[] };
            // SAFETY: as above, and the context is current.
            let memory = unsafe { self.memory_for_graph(sets, stream) }?;
            (memory, if sets.is_empty() { 0 } else { memory + self.tables.bytes as u64 })
        } else {
            // SAFETY: as above, and the context is current.
            (self.memory.address(), unsafe { self.send_changes(sets, stream) }?)
        };
        let sets = SetsArguments { device, by_value: sets, skips: 0 };
        let stepped = self.tables.tables.iter().zip(&self.functions).try_for_each(|(table, &function)| {
            // SAFETY: the table is as the kernel expects it once the copies before have run; the buffers are as `step_raw` requires.
            unsafe { launch_table(function, memory, table, sets, stream) }?;
            launched(&table.members);
            Ok(())
        });
        if !is_captured {
            // SAFETY: `stream` is live, and the list's earlier steps are ordered before this one (`step_raw`'s requirements).
            unsafe { self.last_use.note(stream) };
        }
        stepped
    }

    /// One DualAdam step whose coefficients, counters and skips the device decides, enqueued on `stream`: `control` has the
    /// sets that the tensors name, `scalars` is what else steers the step.
    ///
    /// A small kernel advances the counter of each set that a tensor with a gradient names, and forms its coefficients with the
    /// bits of [`DualAdamConfig::coeffs_scaled`](crate::DualAdamConfig::coeffs_scaled), where the multiplier is
    /// clip factor / loss scale. A set whose step cannot be made is skipped instead: no byte of its tensors nor its counter
    /// changes, and [`Control::report`] says why. [`SkipReason`](super::SkipReason) lists the reasons.
    ///
    /// The call does not read from the device or allocate, and blocks only as [`step_raw`](Self::step_raw) does. It can be captured in
    /// a CUDA graph, whose launches go on counting; it takes new device memory then. The graph keeps the tensors, which of them have
    /// gradients, and the addresses in `scalars`. It reads lr, configs and counters when it is launched.
    ///
    /// # Errors
    ///
    /// [`Error::Index`] for a tensor whose set is not in `control`, [`Error::Context`] for a control or a stream of another context,
    /// [`Error::Address`] for a scalar that is not aligned to 4 bytes, [`Error::Interrupted`]. Nothing is launched then.
    /// [`Error::Driver`] if the driver refuses a copy, memory or a launch, or if earlier work on the device failed. If the coefficients were
    /// prepared by then, counters have advanced of tensors that were not stepped, and `control` refuses to go on with
    /// [`Error::Interrupted`] until [`Control::set_steps`]. If that happens in a capture, do not launch its graph: it may advance counters
    /// and step nothing.
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
        // SAFETY: as this function requires.
        unsafe { self.step_active(control, scalars, stream) }
    }

    /// Says which of a control's sets have a tensor with a gradient.
    fn choose_active(&self, control: &mut Control) {
        let has_gradient = |tensor: &&RawTensor| tensor.grads.address != 0;
        control.set_active(self.tensors.as_slice().iter().filter(has_gradient).map(|tensor| tensor.set));
    }

    /// Checks all that [`step_active`](Self::step_active) relies on, but for the stream.
    pub(super) fn check_control(&self, control: &Control, scalars: &RawScalars) -> Result<(), Error> {
        control.check(&self.kernels)?;
        scalars.check()?;
        self.tensors.check_sets(control.len())
    }

    /// [`step_controlled`](Self::step_controlled) of the control's active sets.
    ///
    /// # Safety
    ///
    /// As for [`step_controlled`](Self::step_controlled), and [`check_control`](Self::check_control) must have been passed.
    pub(super) unsafe fn step_active(
        &mut self,
        control: &mut Control,
        scalars: &RawScalars,
        stream: *mut c_void,
    ) -> Result<(), Error> {
        let _current = self.kernels.enter()?;
        // SAFETY: `stream` is live (`step_raw`'s first requirement).
        let is_captured = unsafe { check_capture(&self.kernels, stream) }?;
        let (memory, sets) = if is_captured {
            // SAFETY: as above, and the context is current.
            let memory = unsafe { self.memory_for_graph(control.set_bytes(), stream) }?;
            if !Arc::ptr_eq(&self.last_use, control.last_use()) {
                // SAFETY: as above.
                unsafe { control.last_use().note_in_graph(stream) };
            }
            (memory, memory + self.tables.bytes as u64)
        } else {
            // SAFETY: as above, and the context is current.
            unsafe {
                control.send_active(stream)?;
                self.send_changes(&[], stream)?;
            }
            (self.memory.address(), control.sets())
        };
        // SAFETY: the scalars, and what the caller keeps of the control, are as `step_controlled` requires.
        let stepped = unsafe { control.launch(sets, scalars, stream) }.and_then(|()| {
            // SAFETY: the buffers are as `step_controlled` requires; the sets are prepared by then.
            let launched = unsafe { self.launch_prepared(memory, control, stream) };
            if launched.is_err() && !is_captured {
                control.interrupt();
            }
            launched
        });
        if !is_captured {
            // SAFETY: `stream` is live, and earlier uses of list and control are ordered before this step (`step_controlled`'s
            // requirements).
            unsafe {
                self.last_use.note(stream);
                if !Arc::ptr_eq(&self.last_use, control.last_use()) {
                    control.last_use().note(stream);
                }
            }
        }
        stepped
    }

    /// # Safety
    ///
    /// As for [`step_active`](Self::step_active).
    unsafe fn launch_prepared(&self, memory: u64, control: &Control, stream: *mut c_void) -> Result<(), Error> {
        let sets = SetsArguments { device: control.coeffs(), by_value: &[], skips: control.skips() };
        self.tables.tables.iter().zip(&self.functions).try_for_each(|(table, &function)| {
            // SAFETY: the tables are as the kernels expect them once the copies before have run, and so are the sets; the buffers are as
            // this function requires.
            unsafe { launch_table(function, memory, table, sets, stream) }
        })
    }

    /// The tables as they are now, and then these bytes, in memory that the graph into which `stream` is being captured has for
    /// itself. Notes also that this graph uses what shares the list's last use: the moments of the optimizer whose list this is.
    ///
    /// # Safety
    ///
    /// `stream` must be live, and the kernels' context current.
    unsafe fn memory_for_graph(&self, after: &[u8], stream: *mut c_void) -> Result<u64, Error> {
        let mut content = self.tables.build(self.tensors.as_slice());
        content.extend_from_slice(after);
        let last_use = LastUse::new(self.kernels.context())?;
        let memory = DeviceMemory::with_content(&self.kernels, &last_use, &content, content.len())?;
        // SAFETY: as this function requires.
        unsafe {
            last_use.note_in_graph(stream);
            self.last_use.note_in_graph(stream);
        }
        // The memory is dropped here, and freed when the graph is gone.
        Ok(memory.address())
    }

    /// Sends what the device does not have yet. Returns the address of the sets, or 0 if they fit in an argument.
    ///
    /// # Safety
    ///
    /// `stream` must be live and not captured, the kernels' context current, and the list's earlier steps ordered before.
    unsafe fn send_changes(&mut self, sets: &[StepCoeffs], stream: *mut c_void) -> Result<u64, Error> {
        let too_many = sets.len() > MAX_COEFFS;
        if !too_many && !self.tables.have_changes() {
            return Ok(0);
        }
        let (tables, tensors, at) = (&self.tables, self.tensors.as_slice(), self.memory.address());
        let copy = |from: &[u8], to: usize| {
            // SAFETY: the memory has room there, and the slot is kept as it is until the copy has ended.
            unsafe { memory::copy(at + to as u64, from, stream.cast()) }
        };
        let fill = |slot: &mut [u8]| {
            tables.stage(tensors, slot, copy)?;
            if too_many {
                let staged = &mut slot[tables.staged_bytes..][..size_of_val(sets)];
                staged.copy_from_slice(bytemuck::cast_slice(sets));
                copy(staged, tables.bytes)?;
            }
            Ok(())
        };
        // SAFETY: `stream` is live, and earlier steps are ordered before, as this function requires; the copies go to this stream.
        let sent = unsafe { self.staging.send(stream, fill) };
        if sent.is_err() {
            // Some copies may have been enqueued.
            // SAFETY: as above.
            unsafe { self.last_use.note(stream) };
        }
        sent?;
        self.tables.mark_sent();
        Ok(if too_many { at + self.tables.bytes as u64 } else { 0 })
    }
}

/// Launches the kernel for the table in a list's memory.
///
/// # Safety
///
/// As for [`launch_list`].
unsafe fn launch_table(
    function: Function,
    memory: u64,
    table: &Table,
    sets: SetsArguments<'_>,
    stream: *mut c_void,
) -> Result<(), Error> {
    if table.chunks == 0 {
        return Ok(());
    }
    let descriptors = (memory + table.start as u64, table.members.len() as u32);
    // SAFETY: as this function requires.
    unsafe { launch_list(function, table.chunks, descriptors, sets, stream) }
}
