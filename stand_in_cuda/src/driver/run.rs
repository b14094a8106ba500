//! Submitting work, waiting for it, and doing it.

use super::abi::{read_host, write_host};
use super::codes::*;
use super::queue::{Place, Task, TaskId, Work};
use super::state::{Driver, Handle, Stream};
use crate::exec::{self, Cause, Launch};
use crate::memory::{Hull, MemoryFault, Wrong};

/// Why a task failed: a code for the context and a text for the test.
type Trouble = (Code, String);

impl Driver {
    /// Queues work on a stream, or notes it where the stream is being captured.
    pub(crate) fn submit(&mut self, stream: Handle, work: Work, label: &str) -> Result<(), Code> {
        if self.stream(stream)?.capture.is_some() {
            return self.capture_work(stream, work, label);
        }
        let after = self.predecessors(stream)?;
        self.queue_task(stream, work, label, after)?;
        Ok(())
    }

    /// Queues work on a stream after the given tasks, and makes it the stream's last.
    pub(crate) fn queue_task(
        &mut self,
        stream: Handle,
        work: Work,
        label: &str,
        after: Vec<TaskId>,
    ) -> Result<TaskId, Code> {
        let context = self.stream(stream)?.context;
        let task =
            self.queue.submit(Task { context, stream, after, work, label: label.to_owned(), is_of_graph: false });
        self.stream(stream)?.tail = Some(task);
        Ok(task)
    }

    /// What new work on a stream must wait for: the stream's own work, and what the null stream's
    /// rule adds. Work on the null stream waits for all blocking streams of its context, and they
    /// wait for it.
    pub(crate) fn predecessors(&mut self, stream: Handle) -> Result<Vec<TaskId>, Code> {
        let (context, is_blocking) = {
            let stream = self.stream(stream)?;
            (stream.context, stream.is_blocking)
        };
        let null_stream = self.sound_context(context)?.null_stream;
        if stream == null_stream {
            self.refuse_implicit_capture(context)?;
        }
        let counts = |handle: Handle, other: &Stream| {
            let by_the_rule = (stream == null_stream && other.is_blocking) || (handle == null_stream && is_blocking);
            other.context == context && (handle == stream || by_the_rule)
        };
        let others = self.streams.iter().filter(|(handle, other)| counts(**handle, other));
        Ok(others.filter_map(|(_, other)| other.tail).collect())
    }

    /// Runs these tasks and all that must come before them.
    pub(crate) fn run(&mut self, tasks: &[TaskId]) {
        for id in self.queue.with_predecessors(tasks) {
            // The failure of an earlier task may have dropped it.
            if let Some(task) = self.queue.start(id) {
                self.execute(id, task);
            }
        }
    }

    /// The host waits for tasks: they run, and what it submits later comes after them.
    pub(crate) fn wait(&mut self, tasks: &[TaskId]) {
        self.run(tasks);
        self.queue.know(tasks);
    }

    /// The host asks whether a task is done. If not, the answer is "not ready" for the first
    /// `patience` queries; then the task runs.
    pub(crate) fn query(&mut self, task: Option<TaskId>) -> Result<(), Code> {
        let Some(task) = task else {
            return Ok(());
        };
        if self.queue.is_pending(task) && self.queue.tell_not_ready(task) <= self.settings.patience {
            return Err(ERROR_NOT_READY);
        }
        self.wait(&[task]);
        Ok(())
    }

    fn execute(&mut self, id: TaskId, task: Task) {
        let context = task.context;
        if self.contexts.get(&context).is_none_or(|context| context.failed.is_some()) {
            return;
        }
        if let Some(code) = self.injected("execute") {
            return self.fail_context(context, code);
        }
        self.is_running_graph = task.is_of_graph;
        if let Err((code, text)) = self.try_execute(id, &task) {
            self.violation(text);
            self.fail_context(context, code);
        }
    }

    fn fail_context(&mut self, context: Handle, code: Code) {
        if let Some(context) = self.contexts.get_mut(&context) {
            context.failed = Some(code);
        }
        self.queue.drop_work_of(context);
    }

    fn try_execute(&mut self, id: TaskId, task: &Task) -> Result<(), Trouble> {
        match &task.work {
            Work::Nothing | Work::EndOfGraph { .. } => Ok(()),
            Work::Launch(_) => self.launch(id, task),
            Work::Copy { to, from, bytes } => self.copy(id, task, to, from, *bytes),
            Work::Fill { address, unit, count } => {
                self.trace(id, Hull::new(*address, (unit.len() * count) as u64), true)?;
                let bytes = unit.repeat(*count);
                self.memory.write(*address, &bytes).map_err(|fault| self.trouble(task, &fault))
            }
            Work::Call { function, data } => {
                super::in_callback(|| function(*data as *mut std::ffi::c_void));
                Ok(())
            }
            Work::Allocate { base } => match self.memory.allocation(*base) {
                Some((base, len, _)) => self.trace(id, Hull::new(base, len), true),
                None => Ok(()),
            },
            Work::Free { base } => {
                self.private.remove(base);
                if let Some((base, len, _)) = self.memory.allocation(*base) {
                    self.trace(id, Hull::new(base, len), true)?;
                }
                self.freeing.remove(base);
                self.queue.forget_allocation(*base);
                self.memory.free(*base).map_err(|fault| self.trouble(task, &fault))
            }
        }
    }

    fn launch(&mut self, id: TaskId, task: &Task) -> Result<(), Trouble> {
        let Work::Launch(work) = &task.work else {
            return Ok(());
        };
        let [x, y, z] = work.grid;
        let threads: u32 = work.block.iter().product();
        self.journal.launches.push(format!(
            "{} {} {threads}",
            work.kernel.name,
            u64::from(x) * u64::from(y) * u64::from(z)
        ));
        let launch = Launch {
            kernel: &work.kernel,
            grid: work.grid,
            block: work.block,
            params: &work.params,
            owner: Some(task.context),
        };
        match exec::run(&mut self.memory, &launch) {
            Ok(stats) => self.journal.stats.add(&stats),
            Err(fault) => {
                let code = match (&fault.cause, fault.wrong()) {
                    (_, Some(Wrong::Misaligned)) => ERROR_MISALIGNED_ADDRESS,
                    (_, Some(_)) | (Cause::ParamOutOfBounds(_), _) => ERROR_ILLEGAL_ADDRESS,
                    (Cause::Endless, _) => ERROR_LAUNCH_TIMEOUT,
                    _ => ERROR_LAUNCH_FAILED,
                };
                let hint = match &fault.cause {
                    Cause::Memory(fault) => self.hint(fault),
                    _ => String::new(),
                };
                return Err((code, format!("{fault}{hint}")));
            }
        }
        let touched: Vec<_> = self.memory.touched().collect();
        for (base, read, written) in touched {
            self.trace_allocation(id, base, read, false)?;
            self.trace_allocation(id, base, written, true)?;
        }
        Ok(())
    }

    fn copy(&mut self, id: TaskId, task: &Task, to: &Place, from: &Place, bytes: usize) -> Result<(), Trouble> {
        if let Place::Device(from) = from {
            self.trace(id, Hull::new(*from, bytes as u64), false)?;
        }
        if let Place::Device(to) = to {
            self.trace(id, Hull::new(*to, bytes as u64), true)?;
        }
        for side in [to, from] {
            if let Place::Pinned(address) = side
                && !self.is_pinned(*address, bytes)
            {
                let text = format!("{} uses pinned memory that was freed before it ran", task.label);
                return Err((ERROR_ILLEGAL_ADDRESS, text));
            }
        }
        let source = match from {
            Place::Device(from) => {
                if let Place::Device(to) = to {
                    return self.memory.copy(*to, *from, bytes).map_err(|fault| self.trouble(task, &fault));
                }
                self.memory.read(*from, bytes).map(<[u8]>::to_vec).map_err(|fault| self.trouble(task, &fault))?
            }
            Place::Pinned(address) | Place::Pageable(address) => read_host(*address, bytes),
            Place::Staged(staged) => staged.to_vec(),
        };
        match to {
            Place::Device(to) => self.memory.write(*to, &source).map_err(|fault| self.trouble(task, &fault)),
            Place::Pinned(address) | Place::Pageable(address) => {
                write_host(*address, &source);
                Ok(())
            }
            Place::Staged(_) => Ok(()),
        }
    }

    /// Notes what a task does to the allocation around some bytes.
    fn trace(&mut self, id: TaskId, hull: Hull, is_write: bool) -> Result<(), Trouble> {
        match self.memory.allocation(hull.from) {
            Some((base, _, _)) => self.trace_allocation(id, base, hull, is_write),
            None => Ok(()),
        }
    }

    fn trace_allocation(&mut self, id: TaskId, base: u64, hull: Hull, is_write: bool) -> Result<(), Trouble> {
        if !hull.is_empty() && self.private.contains(&base) && !self.is_running_graph {
            let text = format!("work outside of a graph touches {:#x}, which is of a graph's private pool", hull.from);
            return Err((ERROR_ILLEGAL_ADDRESS, text));
        }
        match self.queue.trace(id, base, hull, is_write) {
            Some(text) if self.settings.check_order => Err((ERROR_ILLEGAL_ADDRESS, text)),
            _ => Ok(()),
        }
    }

    fn trouble(&self, task: &Task, fault: &MemoryFault) -> Trouble {
        (ERROR_ILLEGAL_ADDRESS, format!("{fault}; in {}{}", task.label, self.hint(fault)))
    }

    /// Names the queued work that would write the bytes, if a fault is a read of bytes that were
    /// never written.
    fn hint(&self, fault: &MemoryFault) -> String {
        if fault.wrong != Wrong::NeverWritten {
            return String::new();
        }
        match self.queue.pending_writer(Hull::new(fault.address, fault.bytes.max(1) as u64)) {
            Some(label) => format!("; {label} would write them, but nothing made it come first"),
            None => String::new(),
        }
    }
}
