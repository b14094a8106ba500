//! Times of work on the device, by CUDA events.

use std::time::{Duration, Instant};

use dualadam::cuda::cudarc::driver::CudaEvent;
use dualadam::cuda::cudarc::driver::sys::{self, CUevent_flags::CU_EVENT_DEFAULT};

use crate::device::{Device, Memory};

const MOST_REPEATS: usize = 300;
const MOST_PLUGS: usize = 100;
const WARM_UP: Duration = Duration::from_millis(100);

/// How a piece of work is timed.
pub(crate) struct Plan {
    /// How often it is enqueued between the events.
    repeats: usize,
    /// How many plugs keep the device busy while the work is enqueued.
    plugs: usize,
}

pub(crate) struct Timer<'a> {
    device: &'a Device,
    /// The memory that a plug fills.
    memory: Memory,
    bytes: usize,
    /// The least seconds of a timing; short work is repeated.
    shortest: f64,
    plug_seconds: f64,
    start: CudaEvent,
    end: CudaEvent,
}

impl<'a> Timer<'a> {
    /// A timer; with `quick` one whose times mean nothing, to try the program.
    pub(crate) fn new(device: &'a Device, quick: bool) -> Self {
        // Long against the half microsecond that events resolve, and against the write-back of what
        // the plug has left in the cache.
        let (bytes, shortest) = if quick { (1 << 12, 0.0) } else { (512 << 20, 1e-3) };
        let memory = device.memory(bytes).expect("there is memory for the timer");
        let event = || device.context.new_event(Some(CU_EVENT_DEFAULT)).expect("an event can be made");
        let mut timer = Self { device, memory, bytes, shortest, plug_seconds: 0.0, start: event(), end: event() };
        // The clocks rise under load.
        let begin = Instant::now();
        while begin.elapsed() < if quick { Duration::ZERO } else { WARM_UP } {
            timer.elapsed(1, || timer.plug());
        }
        timer.plug();
        timer.plug_seconds = timer.elapsed(1, || timer.plug());
        timer
    }

    /// Keeps the device busy for a while, so that the work after it is in the queue before the
    /// device gets there.
    fn plug(&self) {
        let stream = self.device.stream.cu_stream();
        // SAFETY: the memory has these bytes, and lives until the work has ended.
        let answer = unsafe { sys::cuMemsetD8Async(self.memory.address, 0, self.bytes, stream) };
        answer.result().expect("a fill can be enqueued");
    }

    /// Seconds on the device for each call of `enqueue`.
    fn elapsed(&self, repeats: usize, mut enqueue: impl FnMut()) -> f64 {
        let stream = &self.device.stream;
        self.start.record(stream).expect("an event can be recorded");
        (0..repeats).for_each(|_| enqueue());
        self.end.record(stream).expect("an event can be recorded");
        let milliseconds = self.start.elapsed_ms(&self.end).expect("the work succeeds");
        f64::from(milliseconds) * 1e-3 / repeats as f64
    }

    /// Runs the work a few times and finds out how to time it.
    pub(crate) fn plan(&self, mut enqueue: impl FnMut()) -> Plan {
        // The first calls may load kernels and fault memory in.
        self.elapsed(3, &mut enqueue);
        let seconds = self.seconds(&Plan { repeats: 1, plugs: 1 }, &mut enqueue);
        let repeats = ((self.shortest / seconds.max(1e-7)).ceil() as usize).clamp(1, MOST_REPEATS);
        self.device.synchronize();
        let start = Instant::now();
        (0..repeats).for_each(|_| enqueue());
        let host = start.elapsed().as_secs_f64();
        self.device.synchronize();
        let plugs = ((1.5 * host / self.plug_seconds.max(1e-7)).ceil() as usize).clamp(1, MOST_PLUGS);
        Plan { repeats, plugs }
    }

    /// Seconds on the device for each call of `enqueue`, which only enqueues work.
    pub(crate) fn seconds(&self, plan: &Plan, enqueue: impl FnMut()) -> f64 {
        (0..plan.plugs).for_each(|_| self.plug());
        self.elapsed(plan.repeats, enqueue)
    }
}

impl Drop for Timer<'_> {
    fn drop(&mut self) {
        // On a lost device nothing runs any more.
        let _ = self.device.context.synchronize();
    }
}
