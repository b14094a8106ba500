//! Steps of a list that a control steers.

use std::ffi::c_void;
use std::ops::Range;
use std::sync::Arc;

use crate::cuda::error::{CudaArgument, CudaError};
use crate::cuda::launch::{CoeffsArguments, launch_prepare_sets};
use crate::cuda::list::TensorList;
use crate::cuda::stream::check_capture;
use crate::tensor::RawTensor;

use super::block::send;
use super::layout::DeviceSet;
use super::{Control, RawScalars};

impl TensorList {
    /// One DualAdam step whose coefficients, counters and skips the device decides, enqueued on
    /// `stream`.
    ///
    /// A tensor's `coeffs_index` names its set in `control`; `scalars` is what else steers the
    /// step.
    ///
    /// A small kernel advances the counter of each set that a tensor with a gradient names, and
    /// forms its coefficients with the bits of
    /// [`DualAdamConfig::coeffs_scaled`](crate::DualAdamConfig::coeffs_scaled), where the
    /// multiplier is clip factor / loss scale. A set whose step cannot be made is skipped instead:
    /// no byte of its tensors nor its counter changes, and [`Control::report`] says why.
    /// [`SkipReason`](crate::SkipReason) lists the reasons.
    ///
    /// The call does not read from the device or allocate, and blocks only as
    /// [`step_raw`](TensorList::step_raw) does. It can be captured in a CUDA graph, whose launches
    /// go on counting; it takes new device memory then. The graph keeps the tensors, which of them
    /// have gradients, and the addresses in `scalars`. It reads lr, configs and counters when it is
    /// launched.
    ///
    /// # Errors
    ///
    /// - [`TensorProblem::CoeffsIndex`](crate::TensorProblem::CoeffsIndex) for a tensor whose set
    ///   is not in `control`.
    /// - [`CudaError::Context`] for a control or a stream of another context.
    /// - [`CudaError::Address`] for a scalar that is not aligned to 4 bytes.
    /// - [`CudaError::Interrupted`] if an earlier step failed in the middle.
    ///
    /// Nothing is launched then.
    ///
    /// - [`CudaError::Driver`] if the driver refuses a copy, memory or a launch, or if earlier work
    ///   on the device failed. If the coefficients were prepared by then, counters have advanced of
    ///   tensors that were not stepped, and `control` refuses to go on with
    ///   [`CudaError::Interrupted`] until [`Control::set_steps`]. If that happens in a capture, do
    ///   not launch its graph: it may advance counters and step nothing.
    ///
    /// # Safety
    ///
    /// - As for [`step_raw`](TensorList::step_raw), also for each time that a graph with this step
    ///   is launched.
    /// - The addresses in `scalars`, and those that `control` was given, are device memory of the
    ///   kernels' context until the work has run. Nothing in the list writes there.
    /// - The caller orders the uses of one control among each other. One list has it at a time: a
    ///   step advances all its counters.
    ///
    /// # Example
    ///
    /// ```no_run
    /// # use dualadam::cuda::{Control, ControlGroup, ControlSet, Kernels, RawScalars, TensorList};
    /// # use dualadam::{DualAdamConfig, Error, RawTensor};
    /// # fn example(kernels: Kernels, tensors: [RawTensor; 2], inf: u64) -> Result<(), Error> {
    /// let stream = std::ptr::null_mut();
    /// let mut list = TensorList::new(&kernels, &tensors)?; // of sets 0 and 1
    /// let group = ControlGroup::new(DualAdamConfig::default());
    /// let mut control = Control::new(&kernels, &[group], &[ControlSet::new(0); 2])?;
    /// let scalars = RawScalars::default().with_found_inf(inf);
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
    ) -> Result<(), CudaError> {
        self.check_control(control, scalars)?;
        let has_gradient = |tensor: &&RawTensor| tensor.grad.address != 0;
        control.set_active(self.tensors().iter().filter(has_gradient).map(|tensor| tensor.coeffs_index));
        // SAFETY: stream, memory and order are as `step_active` requires (this function's
        // requirements), and `check_control` has passed.
        unsafe { self.step_active(control, scalars, stream) }
    }

    /// Checks all that [`step_active`](Self::step_active) relies on, except for the stream.
    pub(in crate::cuda) fn check_control(&self, control: &Control, scalars: &RawScalars) -> Result<(), CudaError> {
        if control.kernels.context().cu_ctx() != self.kernels().context().cu_ctx() {
            return Err(CudaError::Context { argument: CudaArgument::Control });
        }
        control.check_interrupted()?;
        scalars.check()?;
        Ok(self.checked().check_coeffs(control.len())?)
    }

    /// [`step_controlled`](Self::step_controlled) of the control's active sets.
    ///
    /// # Safety
    ///
    /// - As for [`step_controlled`](Self::step_controlled).
    /// - [`check_control`](Self::check_control) has passed.
    pub(in crate::cuda) unsafe fn step_active(
        &mut self,
        control: &mut Control,
        scalars: &RawScalars,
        stream: *mut c_void,
    ) -> Result<(), CudaError> {
        let _current = self.kernels().enter()?;
        // SAFETY: `stream` is live (`step_raw`'s first requirement), and the context is current.
        let is_captured = unsafe { check_capture(self.kernels().context(), stream) }?;
        let shares_last_use = Arc::ptr_eq(self.last_use(), &control.last_use);
        let (memory, sets) = if is_captured {
            // The graph must not see later changes of which sets are active.
            // SAFETY: `stream` is live, and the context is current.
            let places = unsafe { self.memory_for_graph(bytemuck::cast_slice(&control.sets), stream) }?;
            if !shares_last_use {
                // SAFETY: `stream` is live, and the context is current.
                unsafe { control.last_use.note_in_graph(stream) };
            }
            places
        } else {
            // SAFETY: `stream` is live and not captured, the context is current, and earlier uses
            // of list and control are ordered before (`step_controlled`'s requirements).
            unsafe {
                control.send_active(stream)?;
                self.send_changes(&[], stream)?;
            }
            (self.memory(), control.block.sets())
        };
        // SAFETY: the context is current and `stream` live. The scalars, and what the caller keeps
        // of the control, are live memory (`step_controlled`'s second requirement).
        let stepped = unsafe { control.launch(sets, scalars, stream) }.and_then(|()| {
            let block = &control.block;
            let arguments = CoeffsArguments { on_device: block.coeffs(), by_value: &[], skips: block.skips() };
            // SAFETY: the context is current and `stream` live. The tables lie there once the
            // copies before have run, and so do the coefficients. The buffers are as `step_raw`
            // requires.
            let launched = unsafe { self.launch(memory, arguments, stream, |_| ()) };
            // Counters have advanced of tensors that were not stepped.
            control.is_interrupted |= launched.is_err() && !is_captured;
            launched
        });
        if !is_captured {
            // SAFETY: `stream` is live, and earlier uses of list and control are ordered before
            // this step (`step_controlled`'s requirements).
            unsafe {
                self.last_use().note(stream);
                if !shares_last_use {
                    control.last_use.note(stream);
                }
            }
        }
        stepped
    }
}

impl Control {
    /// Says which sets the step under way updates; the others keep their counters.
    pub(in crate::cuda) fn set_active(&mut self, sets: impl Iterator<Item = usize>) {
        self.active.fill(false);
        sets.for_each(|set| self.active[set] = true);
        for (index, (set, &active)) in self.sets.iter_mut().zip(&self.active).enumerate() {
            if set.active != u32::from(active) {
                set.active = active.into();
                let Range { start, end } = self.changed;
                self.changed = if start == end { index..index + 1 } else { start.min(index)..end.max(index + 1) };
            }
        }
    }

    /// Sends what the device does not have yet of which sets are active.
    ///
    /// # Safety
    ///
    /// - `stream` is live and not captured, and the kernels' context is current.
    /// - Earlier uses of the control are ordered before what is enqueued on `stream` now.
    unsafe fn send_active(&mut self, stream: *mut c_void) -> Result<(), CudaError> {
        if self.changed.is_empty() {
            return Ok(());
        }
        let changed = bytemuck::cast_slice(&self.sets[self.changed.clone()]);
        let to = self.block.sets() + (size_of::<DeviceSet>() * self.changed.start) as u64;
        // SAFETY: the context is current, and `stream` is live, not captured and ordered after
        // earlier uses (this function's requirements). That is where these sets lie.
        unsafe { send(&mut self.staging, &self.last_use, changed, to, stream) }?;
        self.changed = 0..0;
        Ok(())
    }

    /// Launches the kernel that prepares the sets, which are at the address `sets`.
    ///
    /// # Safety
    ///
    /// - The kernels' context is current, and `stream` is null or a live stream of it.
    /// - The scalars, and what the caller keeps of the control, are live memory until the kernel
    ///   has run.
    unsafe fn launch(&self, sets: u64, scalars: &RawScalars, stream: *mut c_void) -> Result<(), CudaError> {
        let Self { block, prepare_sets, .. } = self;
        let memory = [block.groups(), sets, block.states(), block.coeffs(), block.skips()];
        let scalars = [scalars.loss_scale, scalars.clip_factor, scalars.found_inf];
        // SAFETY: the context is current, the stream live, and the caller's memory there (this
        // function's requirements). The control's own memory is as the kernel expects it.
        unsafe { launch_prepare_sets(*prepare_sets, memory, self.sets.len() as u32, scalars, stream) }
    }
}
