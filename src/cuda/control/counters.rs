//! The counters and reports of a control, read and set from the host.

use std::ffi::c_void;

use crate::cuda::driver::Current;
use crate::cuda::error::CudaError;
use crate::cuda::memory::upload;
use crate::cuda::stream::{check_stream, refuse_capture};
use crate::tensor::check_count;

use super::{Control, SetReport};

impl Control {
    /// Reads the step counters of all sets from the device. Waits for the work on `stream`.
    ///
    /// # Errors
    ///
    /// - [`CudaError::Context`] for a stream of another context.
    /// - [`CudaError::Captured`] if the stream is being captured.
    /// - [`CudaError::Interrupted`] if an earlier step failed halfway.
    /// - [`CudaError::Driver`] for anything else that the driver reports.
    ///
    /// # Safety
    ///
    /// - `stream` is null or a live stream.
    /// - The caller orders this work against steps with this control on other streams.
    /// - The counters in the caller's memory are live.
    ///
    /// # Examples
    ///
    /// ```
    /// # use dualadam::DualAdamConfig;
    /// # use dualadam::cuda::{Control, ControlGroup, ControlSet, Kernels};
    /// # let _gpu = testkit::stand_in_or_return!();
    /// # let kernels = Kernels::new(0)?;
    /// # let group = ControlGroup::new(DualAdamConfig::default());
    /// # let mut control = Control::new(&kernels, &[group], &[ControlSet::new(0); 2])?;
    /// let stream = std::ptr::null_mut();
    /// // SAFETY: the null stream lives as long as the context, and all steps are on it.
    /// unsafe {
    ///     control.set_steps(&[100, 7], stream)?; // resume
    ///     assert_eq!(control.steps(stream)?, [100, 7]);
    /// }
    /// # Ok::<(), dualadam::Error>(())
    /// ```
    pub unsafe fn steps(&self, stream: *mut c_void) -> Result<Vec<u64>, CudaError> {
        // SAFETY: `stream` and the counters are live, and other uses are ordered (this function's
        // requirements). `begin_read` has made the context current.
        unsafe {
            let _current = self.begin_read(stream)?;
            self.block.read_steps(&self.sets, stream)
        }
    }

    /// Sets the step counters of all sets for later steps on `stream`, also those in the caller's
    /// memory. Waits for the work on `stream`.
    ///
    /// After [`CudaError::Interrupted`] this makes the control usable again. Some tensors were
    /// stepped then and others were not: the caller must bring tensors and counters into agreement,
    /// for instance from a checkpoint.
    ///
    /// # Errors
    ///
    /// - [`ListError::Count`](crate::ListError::Count) if `steps` does not have a counter for each
    ///   set.
    /// - [`CudaError::Context`] for a stream of another context.
    /// - [`CudaError::Captured`] if the stream is being captured.
    /// - [`CudaError::Driver`] for anything else that the driver reports.
    ///
    /// # Safety
    ///
    /// - The requirements of [`steps`](Self::steps) hold.
    pub unsafe fn set_steps(&mut self, steps: &[u64], stream: *mut c_void) -> Result<(), CudaError> {
        check_count("steps", self.sets.len(), steps.len())?;
        let _current = self.kernels.enter()?;
        // SAFETY: `stream` and the counters are live, and other uses are ordered (`steps`'
        // requirements). The context is current, and the two checks have passed before the copy.
        unsafe {
            check_stream(self.kernels.context(), stream)?;
            refuse_capture(stream, "new steps")?;
            let uploaded = self.block.write_steps(&self.sets, steps, stream);
            self.last_use.note(stream);
            uploaded?;
        }
        self.is_interrupted = false;
        Ok(())
    }

    /// Reads a report for each set from the device: its counter, its skipped steps, and its last
    /// coefficients. Waits for the work on `stream`.
    ///
    /// [`TensorList::step_controlled`](crate::cuda::TensorList::step_controlled) has an example.
    ///
    /// # Errors
    ///
    /// - The errors of [`steps`](Self::steps).
    ///
    /// # Safety
    ///
    /// - The requirements of [`steps`](Self::steps) hold.
    pub unsafe fn report(&self, stream: *mut c_void) -> Result<Vec<SetReport>, CudaError> {
        // SAFETY: `stream` and the counters are live, and other uses are ordered (`steps`'
        // requirements). `begin_read` has made the context current.
        let (states, coeffs, steps) = unsafe {
            let _current = self.begin_read(stream)?;
            let states = self.block.read_states(stream)?;
            (states, self.block.read_coeffs(stream)?, self.block.read_steps(&self.sets, stream)?)
        };
        let sets = steps.into_iter().zip(states).zip(coeffs);
        Ok(sets.map(|((step, state), coeffs)| SetReport::new(step, &state, coeffs)).collect())
    }

    /// Reads the step counters, and whether each set's masters are set.
    ///
    /// # Safety
    ///
    /// - The requirements of [`steps`](Self::steps) hold.
    pub(in crate::cuda) unsafe fn steps_and_masters(&self, stream: *mut c_void) -> Result<Vec<(u64, bool)>, CudaError> {
        // SAFETY: `stream` and the counters are live, and other uses are ordered (`steps`'
        // requirements). `begin_read` has made the context current.
        let (steps, states) = unsafe {
            let _current = self.begin_read(stream)?;
            (self.block.read_steps(&self.sets, stream)?, self.block.read_states(stream)?)
        };
        Ok(steps.into_iter().zip(states).map(|(step, state)| (step, state.masters_are_set())).collect())
    }

    /// Sets one counter. Waits for the work on `stream`.
    ///
    /// # Safety
    ///
    /// - The requirements of [`steps`](Self::steps) hold.
    /// - `stream` belongs to the kernels' context and is not being captured.
    pub(in crate::cuda) unsafe fn set_step(
        &mut self,
        set: usize,
        step: u64,
        stream: *mut c_void,
    ) -> Result<(), CudaError> {
        let _current = self.kernels.enter()?;
        // SAFETY: `stream` and the counter are live, other uses are ordered, and `stream` is not
        // captured (this function's requirements).
        unsafe {
            let uploaded = upload(self.sets[set].step, &[step], stream);
            self.last_use.note(stream);
            uploaded
        }
    }

    /// Makes the context current for a read on `stream`. Fails if the stream is being captured,
    /// belongs to another context, or if an earlier step failed halfway.
    ///
    /// # Safety
    ///
    /// - `stream` is null or a live stream.
    unsafe fn begin_read(&self, stream: *mut c_void) -> Result<Current, CudaError> {
        self.check_interrupted()?;
        let current = self.kernels.enter()?;
        // SAFETY: `stream` is live (this function's requirement), and the context is current.
        unsafe {
            check_stream(self.kernels.context(), stream)?;
            refuse_capture(stream, "reading from the device")?;
        }
        Ok(current)
    }
}
