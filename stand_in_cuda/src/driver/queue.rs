//! Work that was submitted and is not done yet, and the order in which it must be done.
//!
//! A task runs when the host waits for it or for a task that comes after it: as late as the
//! ordering permits, so that a forgotten wait shows. In addition, two tasks that touch the same
//! bytes must be ordered, unless both only read them. That is checked when the later of the two
//! runs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::abi::{HostAddress, HostFunction};
use super::state::Handle;
use super::user_object::UserObjects;
use crate::memory::Hull;
use crate::op::Kernel;

/// Tasks are numbered in the order of their submission.
pub(crate) type TaskId = u64;

/// One side of a copy.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    Device(u64),
    /// Read or written when the copy runs.
    Pinned(HostAddress),
    /// Host memory that is not pinned: the copy reads or writes it when it runs.
    Pageable(HostAddress),
    /// Bytes taken when the copy was submitted.
    Staged(Arc<Vec<u8>>),
}

/// A kernel launch with its arguments as they were at the call.
#[derive(Debug)]
pub(crate) struct LaunchWork {
    pub(crate) kernel: Arc<Kernel>,
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) params: Vec<u8>,
}

/// What a task does.
#[derive(Debug, Clone)]
pub(crate) enum Work {
    /// A place in the order: an event's record, a wait, a join.
    Nothing,
    /// The end of a graph's launch, which holds the graph's objects until then.
    EndOfGraph {
        #[expect(dead_code, reason = "only held")]
        objects: UserObjects,
    },
    Launch(Arc<LaunchWork>),
    Copy {
        to: Place,
        from: Place,
        bytes: usize,
    },
    Fill {
        address: u64,
        unit: Vec<u8>,
        count: usize,
    },
    Call {
        function: HostFunction,
        data: HostAddress,
    },
    Allocate {
        base: u64,
    },
    Free {
        base: u64,
    },
}

#[derive(Debug, Clone)]
pub(crate) struct Task {
    pub(crate) context: Handle,
    pub(crate) stream: Handle,
    /// Tasks that must be done before, all submitted earlier.
    pub(crate) after: Vec<TaskId>,
    pub(crate) work: Work,
    /// The call that submitted it.
    pub(crate) label: String,
    pub(crate) is_of_graph: bool,
}

/// A task that is done.
#[derive(Debug)]
struct Done {
    context: Handle,
    after: Vec<TaskId>,
    label: String,
    /// The first task that was submitted when the host already knew that this one was done.
    known_from: Option<TaskId>,
}

/// What a task did to an allocation.
#[derive(Debug)]
struct Trace {
    task: TaskId,
    is_write: bool,
    hull: Hull,
}

#[derive(Debug, Default)]
pub(crate) struct Queue {
    next: TaskId,
    pending: BTreeMap<TaskId, Task>,
    done: BTreeMap<TaskId, Done>,
    /// By the allocation's base.
    traces: BTreeMap<u64, Vec<Trace>>,
    /// How often the host was told "not ready".
    told: BTreeMap<TaskId, u32>,
}

impl Queue {
    pub(crate) fn submit(&mut self, task: Task) -> TaskId {
        self.next += 1;
        self.pending.insert(self.next, task);
        self.next
    }

    /// Marks a task as part of a graph.
    pub(crate) fn mark_of_graph(&mut self, task: TaskId) {
        if let Some(task) = self.pending.get_mut(&task) {
            task.is_of_graph = true;
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.pending.len()
    }

    pub(crate) fn is_pending(&self, task: TaskId) -> bool {
        self.pending.contains_key(&task)
    }

    pub(crate) fn all_pending(&self) -> Vec<TaskId> {
        self.pending.keys().copied().collect()
    }

    pub(crate) fn pending_of(&self, context: Handle) -> Vec<TaskId> {
        self.pending.iter().filter(|(_, task)| task.context == context).map(|(id, _)| *id).collect()
    }

    /// These tasks and all that must come before them, in the order of submission.
    pub(crate) fn with_predecessors(&self, tasks: &[TaskId]) -> Vec<TaskId> {
        let mut found: BTreeSet<TaskId> = BTreeSet::new();
        let mut open: Vec<TaskId> = tasks.to_vec();
        while let Some(id) = open.pop() {
            if let Some(task) = self.pending.get(&id)
                && found.insert(id)
            {
                open.extend(&task.after);
            }
        }
        found.into_iter().collect()
    }

    /// Takes a task out to run it. From now on it counts as done.
    pub(crate) fn start(&mut self, id: TaskId) -> Option<Task> {
        let task = self.pending.remove(&id)?;
        self.told.remove(&id);
        let label = self.label(&task);
        self.done.insert(id, Done { context: task.context, after: task.after.clone(), label, known_from: None });
        Some(task)
    }

    /// Drops the work of a context that failed.
    pub(crate) fn drop_work_of(&mut self, context: Handle) {
        for id in self.pending_of(context) {
            let _ = self.start(id);
        }
    }

    /// The host has seen that these tasks are done, and so are all before them.
    pub(crate) fn know(&mut self, tasks: &[TaskId]) {
        let from = self.next + 1;
        let mut open: Vec<TaskId> = tasks.to_vec();
        while let Some(id) = open.pop() {
            if let Some(done) = self.done.get_mut(&id)
                && done.known_from.is_none()
            {
                done.known_from = Some(from);
                open.extend(&done.after);
            }
        }
        self.forget_settled();
    }

    /// The host has waited for all of a context's work.
    pub(crate) fn know_all_of(&mut self, context: Handle) {
        let tasks: Vec<TaskId> =
            self.done.iter().filter(|(_, done)| done.context == context).map(|(id, _)| *id).collect();
        self.know(&tasks);
    }

    /// How often the host was told that a task is not ready, this time included.
    pub(crate) fn tell_not_ready(&mut self, task: TaskId) -> u32 {
        let told = self.told.entry(task).or_default();
        *told += 1;
        *told
    }

    /// Tasks that precede everything pending and everything to come need not be remembered.
    fn forget_settled(&mut self) {
        let oldest = self.pending.keys().next().copied().unwrap_or(self.next + 1);
        self.done.retain(|_, done| done.known_from.is_none_or(|from| from > oldest));
        let done = &self.done;
        self.traces.retain(|_, traces| {
            traces.retain(|trace| done.contains_key(&trace.task));
            !traces.is_empty()
        });
    }

    /// Whether `first` is sure to be done before `second` begins.
    fn is_before(&self, first: TaskId, second: TaskId) -> bool {
        let Some(done) = self.done.get(&first) else {
            // Settled long ago.
            return true;
        };
        if first == second || done.known_from.is_some_and(|from| from <= second) {
            return true;
        }
        let mut seen = BTreeSet::new();
        let mut open = vec![second];
        while let Some(id) = open.pop() {
            let after = self.done.get(&id).map(|done| &done.after);
            for &earlier in after.into_iter().flatten() {
                if earlier == first {
                    return true;
                }
                if earlier > first && seen.insert(earlier) {
                    open.push(earlier);
                }
            }
        }
        false
    }

    /// Notes what a task did to an allocation. Returns a text if it touches the same bytes as other
    /// work and nothing orders the two.
    pub(crate) fn trace(&mut self, task: TaskId, base: u64, hull: Hull, is_write: bool) -> Option<String> {
        if hull.is_empty() {
            return None;
        }
        let traces = self.traces.remove(&base).unwrap_or_default();
        let conflict = traces
            .iter()
            .find(|other| (other.is_write || is_write) && other.hull.meets(&hull) && !self.is_before(other.task, task));
        let text = conflict.map(|other| self.conflict_text(task, is_write, hull, other));
        let is_settled = |other: &Trace| {
            hull.covers(&other.hull) && (is_write || !other.is_write) && self.is_before(other.task, task)
        };
        let mut kept: Vec<Trace> = traces.into_iter().filter(|other| !is_settled(other)).collect();
        kept.push(Trace { task, is_write, hull });
        self.traces.insert(base, kept);
        text
    }

    fn conflict_text(&self, task: TaskId, is_write: bool, hull: Hull, other: &Trace) -> String {
        let verb = |is_write: bool| if is_write { "writes" } else { "reads" };
        let label = |id: TaskId| self.done.get(&id).map_or("", |done| done.label.as_str());
        let (one, two) = (label(task), label(other.task));
        format!(
            "missing order: {one} {} bytes {:#x} to {:#x}, and {two} {} bytes {:#x} to {:#x}, but no stream, event or \
             wait puts one before the other",
            verb(is_write),
            hull.from,
            hull.to,
            verb(other.is_write),
            other.hull.from,
            other.hull.to
        )
    }

    fn label(&self, task: &Task) -> String {
        let what = match &task.work {
            Work::Launch(launch) => format!("{} of {}", task.label, launch.kernel.name),
            _ => task.label.clone(),
        };
        format!("{what} on stream {:#x}", task.stream)
    }

    pub(crate) fn forget_allocation(&mut self, base: u64) {
        self.traces.remove(&base);
    }

    /// Whether a launch of one of these kernels is pending.
    pub(crate) fn has_launches_of(&self, kernels: &[Arc<Kernel>]) -> bool {
        let is_of = |task: &Task| match &task.work {
            Work::Launch(launch) => kernels.iter().any(|kernel| Arc::ptr_eq(kernel, &launch.kernel)),
            _ => false,
        };
        self.pending.values().any(is_of)
    }

    /// A pending task that will write to these bytes, for messages.
    pub(crate) fn pending_writer(&self, hull: Hull) -> Option<String> {
        let writes = |task: &&Task| {
            let target = match &task.work {
                Work::Copy { to: Place::Device(to), bytes, .. } => Hull::new(*to, *bytes as u64),
                Work::Fill { address, unit, count } => Hull::new(*address, (unit.len() * count) as u64),
                _ => Hull::EMPTY,
            };
            target.meets(&hull)
        };
        self.pending.values().find(writes).map(|task| self.label(task))
    }
}
