//! What the driver knows: devices, contexts, and the objects that belong to them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::thread::ThreadId;

use super::abi::HostAddress;
use super::capture::{Capture, Graph};
use super::codes::*;
use super::queue::{Queue, TaskId};
use super::user_object::UserObject;
use crate::exec::Stats;
use crate::memory::Memory;
use crate::op::Kernel;
use crate::ptx::Module;

/// A handle as the caller holds it. Its upper half names the kind of object; no number is given out
/// twice.
pub(crate) type Handle = u64;

/// The kinds of objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Context = 1,
    Stream,
    Event,
    Module,
    Function,
    Graph,
    GraphExec,
    UserObject,
}

/// What a test can set.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) driver_version: i32,
    pub(crate) devices: i32,
    pub(crate) total_memory: usize,
    /// How often a query of unfinished work answers "not ready" before the work is done.
    pub(crate) patience: u32,
    /// Report work on the same bytes that nothing orders.
    pub(crate) check_order: bool,
    /// Copies read pageable memory when they run, not at the call.
    pub(crate) reads_pageable_late: bool,
    pub(crate) attributes: HashMap<i32, i32>,
}

impl Default for Settings {
    fn default() -> Self {
        let patience = 3;
        Self {
            driver_version: 12_080,
            devices: 2,
            total_memory: 8 << 30,
            patience,
            check_order: true,
            reads_pageable_late: false,
            attributes: HashMap::new(),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) device: i32,
    pub(crate) is_primary: bool,
    /// Retains of a primary context that were not released.
    pub(crate) retains: u32,
    pub(crate) is_live: bool,
    /// The code of the fault after which every call on the context fails.
    pub(crate) failed: Option<Code>,
    pub(crate) flags: u32,
    pub(crate) null_stream: Handle,
    pub(crate) thread_streams: HashMap<ThreadId, Handle>,
}

#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) context: Handle,
    pub(crate) flags: u32,
    pub(crate) priority: i32,
    /// Whether it waits for the null stream, and the null stream for it.
    pub(crate) is_blocking: bool,
    /// The last task submitted.
    pub(crate) tail: Option<TaskId>,
    pub(crate) capture: Option<u64>,
}

#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) context: Handle,
    pub(crate) has_timing: bool,
    /// The task that stands for its last record.
    pub(crate) task: Option<TaskId>,
    /// The capture it was last recorded in, and the nodes before it.
    pub(crate) captured: Option<(u64, Vec<usize>)>,
}

#[derive(Debug)]
pub(crate) struct LoadedModule {
    pub(crate) context: Handle,
    pub(crate) module: Module,
}

#[derive(Debug, Clone)]
pub(crate) struct Function {
    pub(crate) module: Handle,
    pub(crate) context: Handle,
    pub(crate) kernel: Arc<Kernel>,
    pub(crate) ptx_version: (u32, u32),
}

#[derive(Debug)]
pub(crate) struct GraphExec {
    pub(crate) graph: Graph,
    /// The end of its last launch. Launches of one executable never overlap.
    pub(crate) last: Option<TaskId>,
}

/// Pinned host memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pinned {
    /// The context with which the memory ends.
    pub(crate) context: Handle,
    pub(crate) bytes: usize,
    /// Allocated here, rather than registered.
    pub(crate) is_owned: bool,
    pub(crate) flags: u32,
}

/// An error to inject: at the `nth` call of a function from now on.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) name: String,
    pub(crate) nth: u64,
    pub(crate) code: Code,
}

/// What happened, for tests to ask.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    pub(crate) calls: BTreeMap<String, u64>,
    pub(crate) violations: Vec<String>,
    pub(crate) stats: Stats,
    /// Kernels in the order of their execution: name, blocks, threads a block.
    pub(crate) launches: Vec<String>,
}

#[derive(Debug, Default)]
pub(crate) struct Driver {
    pub(crate) settings: Settings,
    pub(crate) is_initialised: bool,
    pub(crate) memory: Memory,
    pub(crate) pinned: BTreeMap<HostAddress, Pinned>,
    /// Allocations whose free is queued.
    pub(crate) freeing: BTreeSet<u64>,
    /// Allocations that only graphs may touch.
    pub(crate) private: BTreeSet<u64>,
    /// Whether the task that runs is a graph's.
    pub(crate) is_running_graph: bool,
    pub(crate) contexts: BTreeMap<Handle, Context>,
    /// The primary context of each device that ever had one.
    pub(crate) primaries: BTreeMap<i32, Handle>,
    pub(crate) streams: BTreeMap<Handle, Stream>,
    pub(crate) events: BTreeMap<Handle, Event>,
    pub(crate) modules: BTreeMap<Handle, LoadedModule>,
    pub(crate) functions: BTreeMap<Handle, Function>,
    pub(crate) graphs: BTreeMap<Handle, Graph>,
    pub(crate) execs: BTreeMap<Handle, GraphExec>,
    pub(crate) captures: BTreeMap<u64, Capture>,
    /// The user objects that the caller holds, and the number of its references.
    pub(crate) user_objects: BTreeMap<Handle, (Arc<UserObject>, u32)>,
    pub(crate) queue: Queue,
    pub(crate) failures: Vec<Failure>,
    pub(crate) journal: Journal,
    next_number: u64,
}

const KIND_SHIFT: u32 = 48;
const HANDLE_BASE: u64 = 0x00e0;

impl Driver {
    /// Resets everything. The numbers of handles go on, so that none is used twice.
    pub(crate) fn reset(&mut self) {
        for (address, pinned) in std::mem::take(&mut self.pinned) {
            super::memory::release_host(address, pinned);
        }
        *self = Self { next_number: self.next_number, ..Self::default() };
    }

    pub(crate) fn new_handle(&mut self, kind: Kind) -> Handle {
        self.next_number += 1;
        (HANDLE_BASE + kind as u64) << KIND_SHIFT | self.next_number << 6
    }

    /// The code for a handle that names no object. A handle that once named one is also noted as a
    /// violation.
    pub(crate) fn bad_handle(&mut self, handle: Handle, kind: Kind) -> Code {
        let was_given_out = handle >> KIND_SHIFT == HANDLE_BASE + kind as u64
            && (handle & ((1 << KIND_SHIFT) - 1)) >> 6 <= self.next_number;
        if was_given_out {
            self.violation(format!("use of a destroyed {kind:?}, handle {handle:#x}"));
        }
        if kind == Kind::Context { ERROR_INVALID_CONTEXT } else { ERROR_INVALID_HANDLE }
    }

    pub(crate) fn violation(&mut self, text: String) {
        self.journal.violations.push(text);
    }

    /// The code with which the test lets this call fail, if it does.
    pub(crate) fn injected(&mut self, name: &str) -> Option<Code> {
        let mut found = None;
        self.failures.retain_mut(|failure| {
            let counts_all_calls = failure.name == "*" && name != "execute";
            if failure.name != name && !counts_all_calls {
                return true;
            }
            failure.nth = failure.nth.saturating_sub(1);
            if failure.nth == 0 {
                found = Some(failure.code);
            }
            failure.nth > 0
        });
        found
    }

    // ---- Contexts ----

    pub(crate) fn check_device(&self, device: i32) -> Result<(), Code> {
        if (0..self.settings.devices).contains(&device) { Ok(()) } else { Err(ERROR_INVALID_DEVICE) }
    }

    pub(crate) fn new_context(&mut self, device: i32, is_primary: bool, flags: u32) -> Handle {
        let handle = self.new_handle(Kind::Context);
        let null_stream = self.new_stream(handle, true, 0, 0);
        let context = Context {
            device,
            is_primary,
            retains: 0,
            is_live: true,
            failed: None,
            flags,
            null_stream,
            thread_streams: HashMap::new(),
        };
        self.contexts.insert(handle, context);
        handle
    }

    /// Ends a context: runs its work, then destroys all that belongs to it.
    pub(crate) fn end_context(&mut self, handle: Handle) {
        let pending = self.queue.pending_of(handle);
        self.run(&pending);
        self.memory.free_all_of(handle);
        self.pinned.retain(|&address, pinned| {
            if pinned.context == handle {
                super::memory::release_host(address, *pinned);
            }
            pinned.context != handle
        });
        self.streams.retain(|_, stream| stream.context != handle);
        self.events.retain(|_, event| event.context != handle);
        self.modules.retain(|_, module| module.context != handle);
        self.functions.retain(|_, function| function.context != handle);
        let null_stream = self.new_stream(handle, true, 0, 0);
        if let Some(context) = self.contexts.get_mut(&handle) {
            (context.is_live, context.failed, context.retains) = (false, None, 0);
            context.thread_streams.clear();
            context.null_stream = null_stream;
        }
    }

    /// A context that is alive and did not fail.
    pub(crate) fn sound_context(&mut self, handle: Handle) -> Result<&mut Context, Code> {
        if !self.contexts.contains_key(&handle) {
            return Err(self.bad_handle(handle, Kind::Context));
        }
        match self.contexts.get_mut(&handle) {
            Some(context) if !context.is_live => Err(ERROR_CONTEXT_IS_DESTROYED),
            Some(Context { failed: Some(code), .. }) => Err(*code),
            Some(context) => Ok(context),
            None => Err(ERROR_INVALID_CONTEXT),
        }
    }

    /// The calling thread's current context, alive and sound.
    pub(crate) fn current(&mut self) -> Result<Handle, Code> {
        let handle = super::context::current_handle(self).ok_or(ERROR_INVALID_CONTEXT)?;
        self.sound_context(handle)?;
        Ok(handle)
    }

    // ---- Streams ----

    pub(crate) fn new_stream(&mut self, context: Handle, is_blocking: bool, flags: u32, priority: i32) -> Handle {
        let handle = self.new_handle(Kind::Stream);
        self.streams.insert(handle, Stream { context, flags, priority, is_blocking, tail: None, capture: None });
        handle
    }

    /// The stream that a caller means: null and 1 are the current context's null stream, 2 is the
    /// thread's own.
    pub(crate) fn resolve_stream(&mut self, handle: Handle) -> Result<Handle, Code> {
        let current = self.current()?;
        let resolved = match handle {
            0 | 1 => self.sound_context(current)?.null_stream,
            2 => self.thread_stream(current)?,
            _ => handle,
        };
        let Some(stream) = self.streams.get(&resolved) else {
            return Err(self.bad_handle(resolved, Kind::Stream));
        };
        let context = stream.context;
        self.sound_context(context)?;
        Ok(resolved)
    }

    fn thread_stream(&mut self, context: Handle) -> Result<Handle, Code> {
        let thread = std::thread::current().id();
        if let Some(stream) = self.sound_context(context)?.thread_streams.get(&thread) {
            return Ok(*stream);
        }
        let stream = self.new_stream(context, true, 0, 0);
        self.sound_context(context)?.thread_streams.insert(thread, stream);
        Ok(stream)
    }

    pub(crate) fn stream(&mut self, handle: Handle) -> Result<&mut Stream, Code> {
        if !self.streams.contains_key(&handle) {
            return Err(self.bad_handle(handle, Kind::Stream));
        }
        self.streams.get_mut(&handle).ok_or(ERROR_INVALID_HANDLE)
    }

    pub(crate) fn event(&mut self, handle: Handle) -> Result<&mut Event, Code> {
        if !self.events.contains_key(&handle) {
            return Err(self.bad_handle(handle, Kind::Event));
        }
        self.events.get_mut(&handle).ok_or(ERROR_INVALID_HANDLE)
    }

    pub(crate) fn function(&mut self, handle: Handle) -> Result<Function, Code> {
        match self.functions.get(&handle) {
            Some(function) => Ok(function.clone()),
            None => Err(self.bad_handle(handle, Kind::Function)),
        }
    }
}
