//! Streams, events and host functions.

use super::abi::{HostAddress, HostFunction, Out, api};
use super::codes::*;
use super::queue::Work;
use super::state::{Driver, Event, Handle, Kind};

/// `CU_STREAM_NON_BLOCKING`: no order with the null stream.
const NON_BLOCKING: u32 = 1;
/// `CU_EVENT_DISABLE_TIMING`, and all flags that there are.
const DISABLE_TIMING: u32 = 2;
const EVENT_FLAGS: u32 = 7;

impl Driver {
    fn create_stream(&mut self, stream: Out<Handle>, flags: u32, priority: i32) -> Result<(), Code> {
        let context = self.current()?;
        if flags > NON_BLOCKING || stream.is_null() {
            return Err(ERROR_INVALID_VALUE);
        }
        stream.set(self.new_stream(context, flags != NON_BLOCKING, flags, priority))
    }

    fn record(&mut self, event: Handle, stream: Handle) -> Result<(), Code> {
        let stream = self.resolve_stream(stream)?;
        let context = self.stream(stream)?.context;
        if self.event(event)?.context != context {
            return Err(ERROR_INVALID_HANDLE);
        }
        if let Some(position) = self.capture_position(stream)? {
            self.event(event)?.captured = Some(position);
            return Ok(());
        }
        let after = self.predecessors(stream)?;
        let task = self.queue_task(stream, Work::Nothing, "cuEventRecord", after)?;
        let event = self.event(event)?;
        (event.task, event.captured) = (Some(task), None);
        Ok(())
    }

    /// An event whose context is sound and that no capture holds.
    fn plain_event(&mut self, event: Handle) -> Result<&mut Event, Code> {
        self.current()?;
        let (context, captured) = {
            let event = self.event(event)?;
            (event.context, event.captured.clone())
        };
        self.refuse_captured_event(captured)?;
        self.sound_context(context)?;
        self.event(event)
    }

    fn elapsed(&mut self, milliseconds: Out<f32>, start: Handle, end: Handle) -> Result<(), Code> {
        let mut tasks = Vec::new();
        for event in [start, end] {
            let event = self.plain_event(event)?;
            if !event.has_timing {
                return Err(ERROR_INVALID_HANDLE);
            }
            tasks.push(event.task.ok_or(ERROR_INVALID_HANDLE)?);
        }
        if tasks.iter().any(|&task| self.queue.is_pending(task)) {
            return Err(ERROR_NOT_READY);
        }
        // No time is modelled: a microsecond for each task submitted in between.
        milliseconds.set((tasks[1] as f32 - tasks[0] as f32) * 1e-3)
    }
}

api! {
    fn cuStreamCreate(driver, stream: Out<Handle>, flags: u32) {
        driver.create_stream(stream, flags, 0)
    }

    fn cuStreamCreateWithPriority(driver, stream: Out<Handle>, flags: u32, priority: i32) {
        driver.create_stream(stream, flags, priority.clamp(-5, 0))
    }

    fn cuStreamDestroy_v2(driver, stream: Handle) {
        driver.current()?;
        let Some(found) = driver.streams.get(&stream) else {
            return Err(driver.bad_handle(stream, Kind::Stream));
        };
        let context = found.context;
        driver.sound_context(context)?;
        // Its work stays queued, as the driver lets it finish.
        driver.streams.remove(&stream);
        Ok(())
    }

    fn cuStreamSynchronize(driver, stream: Handle) {
        let stream = driver.resolve_stream(stream)?;
        driver.refuse_capture_of(stream)?;
        driver.refuse_unsafe_call()?;
        let tasks = driver.predecessors(stream)?;
        driver.wait(&tasks);
        let context = driver.stream(stream)?.context;
        driver.sound_context(context).map(|_| ())
    }

    fn cuStreamQuery(driver, stream: Handle) {
        let stream = driver.resolve_stream(stream)?;
        driver.refuse_capture_of(stream)?;
        driver.refuse_unsafe_call()?;
        for task in driver.predecessors(stream)? {
            driver.query(Some(task))?;
        }
        let context = driver.stream(stream)?.context;
        driver.sound_context(context).map(|_| ())
    }

    fn cuStreamWaitEvent(driver, stream: Handle, event: Handle, flags: u32) {
        let stream = driver.resolve_stream(stream)?;
        if flags > 1 {
            return Err(ERROR_INVALID_VALUE);
        }
        let (task, captured) = {
            let event = driver.event(event)?;
            (event.task, event.captured.clone())
        };
        if driver.capture_wait(stream, captured, task.is_some())? {
            return Ok(());
        }
        // An event that was never recorded is not waited for.
        let Some(task) = task else {
            return Ok(());
        };
        let mut after = driver.predecessors(stream)?;
        after.push(task);
        driver.queue_task(stream, Work::Nothing, "cuStreamWaitEvent", after).map(|_| ())
    }

    fn cuStreamGetCtx(driver, stream: Handle, context: Out<Handle>) {
        let stream = driver.resolve_stream(stream)?;
        context.set(driver.stream(stream)?.context)
    }

    fn cuStreamGetFlags(driver, stream: Handle, flags: Out<u32>) {
        let stream = driver.resolve_stream(stream)?;
        flags.set(driver.stream(stream)?.flags)
    }

    fn cuStreamGetPriority(driver, stream: Handle, priority: Out<i32>) {
        let stream = driver.resolve_stream(stream)?;
        priority.set(driver.stream(stream)?.priority)
    }

    fn cuStreamGetId(driver, stream: Handle, id: Out<u64>) {
        id.set(driver.resolve_stream(stream)?)
    }

    fn cuLaunchHostFunc(driver, stream: Handle, function: Option<HostFunction>, data: HostAddress) {
        let stream = driver.resolve_stream(stream)?;
        let function = function.ok_or(ERROR_INVALID_VALUE)?;
        driver.submit(stream, Work::Call { function, data }, "cuLaunchHostFunc")
    }

    fn cuEventCreate(driver, event: Out<Handle>, flags: u32) {
        let context = driver.current()?;
        if flags & !EVENT_FLAGS != 0 || event.is_null() {
            return Err(ERROR_INVALID_VALUE);
        }
        let handle = driver.new_handle(Kind::Event);
        let has_timing = flags & DISABLE_TIMING == 0;
        driver.events.insert(handle, Event { context, has_timing, task: None, captured: None });
        event.set(handle)
    }

    fn cuEventRecord(driver, event: Handle, stream: Handle) {
        driver.record(event, stream)
    }

    fn cuEventRecordWithFlags(driver, event: Handle, stream: Handle, flags: u32) {
        if flags != 0 {
            return Err(ERROR_NOT_SUPPORTED);
        }
        driver.record(event, stream)
    }

    fn cuEventQuery(driver, event: Handle) {
        let (context, task) = {
            let event = driver.plain_event(event)?;
            (event.context, event.task)
        };
        driver.refuse_unsafe_call()?;
        driver.query(task)?;
        driver.sound_context(context).map(|_| ())
    }

    fn cuEventSynchronize(driver, event: Handle) {
        let (context, task) = {
            let event = driver.plain_event(event)?;
            (event.context, event.task)
        };
        driver.refuse_unsafe_call()?;
        driver.wait(&Vec::from_iter(task));
        driver.sound_context(context).map(|_| ())
    }

    fn cuEventElapsedTime(driver, milliseconds: Out<f32>, start: Handle, end: Handle) {
        driver.elapsed(milliseconds, start, end)
    }

    fn cuEventElapsedTime_v2(driver, milliseconds: Out<f32>, start: Handle, end: Handle) {
        driver.elapsed(milliseconds, start, end)
    }

    fn cuEventDestroy_v2(driver, event: Handle) {
        match driver.events.remove(&event) {
            Some(_) => Ok(()),
            None => Err(driver.bad_handle(event, Kind::Event)),
        }
    }
}
