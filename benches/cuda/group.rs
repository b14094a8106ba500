//! The buffers of a case, in enough replicas to outgrow the cache, and the work that is enqueued on
//! them.

use dualadam::cuda::cudarc::driver::sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
use dualadam::cuda::cudarc::driver::{CudaGraph, CudaStream, sys};
use dualadam::cuda::{Control, ControlGroup, ControlSet, RawScalars, TensorList};
use dualadam::{Dtype, DualAdamConfig, RawBuffer, RawTensor, StepCoeffs, Variant};

use crate::cases::{Alignment, Case};
use crate::device::{Device, Memory};
use crate::job::{FIRST_STEP, Job};
use crate::values::{Pattern, bytes_moved, sizes};

/// Together the replicas are this many times as large as the cache, within [`MOST_REPLICAS`].
const TIMES_CACHE: usize = 4;
/// The most replicas, which `peers.py` can hold too. Below 2^14 elements only the launch counts.
const MOST_REPLICAS: usize = 256;
/// Elements of a row, as of an embedding, which get gradients together or not at all.
const ROW: usize = 768;
/// Each tensor begins a multiple of this many elements after the first, as allocations do.
pub(crate) const ALIGN: usize = 128;

pub(crate) struct Group<'a> {
    device: &'a Device,
    pub(crate) shape: String,
    pub(crate) variant: Variant,
    pub(crate) alignment: Alignment,
    pub(crate) jobs: Vec<Job>,
    has_untouched_rows: bool,
    pub(crate) lens: Vec<usize>,
    /// Elements of a replica, including the gaps between tensors.
    pub(crate) stride: usize,
    replicas: Vec<Replica>,
    memory: [Memory; 5],
    copies: [Memory; 2],
    /// What the unfused step keeps between its operations.
    between: [Memory; 2],
    next: usize,
}

struct Replica {
    flat: RawTensor,
    /// The lists of the jobs that step a list, if there is more than one tensor, and those of
    /// controlled steps.
    lists: Vec<(Job, List)>,
}

/// A list, and what its steps take their coefficients from.
enum List {
    Sets(TensorList, Vec<StepCoeffs>),
    Controlled(TensorList, Box<Control>),
    Captured(CudaGraph),
}

impl<'a> Group<'a> {
    /// Allocates and fills the buffers. Fails, with the reason, if there is too little memory.
    pub(crate) fn new(device: &'a Device, case: &Case) -> Result<Self, String> {
        let Case { shape, variant, alignment, jobs, has_untouched_rows } = case;
        let (variant, lens) = (*variant, shape.lens.clone());
        let stride: usize = lens.iter().map(|len| len.next_multiple_of(ALIGN)).sum();
        let sizes = sizes(variant);
        let replicas = (TIMES_CACHE * device.facts.l2_bytes).div_ceil(stride * sizes.iter().sum::<usize>());
        let replicas = replicas.min(MOST_REPLICAS);
        // `ALIGN` elements more, for the offsets.
        let allocate = |i: usize| device.memory((replicas * stride + ALIGN) * sizes[i]);
        let memory = [allocate(0)?, allocate(1)?, allocate(2)?, allocate(3)?, allocate(4)?];
        let moved = replicas * lens.iter().sum::<usize>() * bytes_moved(variant);
        let copies = [device.memory(moved / 2)?, device.memory(moved / 2)?];
        copies[0].repeat(&[1; 1 << 16], 0, moved / 2);
        let bytes = if jobs.contains(&Job::Unfused) { replicas * stride * 4 } else { 0 };
        let between = [device.memory(bytes)?, device.memory(bytes)?];
        let mut group = Self {
            device,
            shape: shape.name.clone(),
            variant,
            alignment: *alignment,
            jobs: jobs.clone(),
            has_untouched_rows: *has_untouched_rows,
            lens,
            stride,
            replicas: vec![],
            memory,
            copies,
            between,
            next: 0,
        };
        group.fill_for_timing(replicas * stride);
        group.replicas = (0..replicas).map(|replica| group.replica(replica)).collect();
        Ok(group)
    }

    /// Fills the first elements of the buffers, which begin at these offsets.
    pub(crate) fn fill(&self, elements: usize, offsets: [usize; 5]) {
        let pattern = Pattern::new(self.variant);
        for (i, size) in sizes(self.variant).into_iter().enumerate() {
            self.memory[i].repeat(pattern.bytes()[i], offsets[i] * size, elements * size);
        }
        self.device.synchronize();
    }

    /// Fills the first elements with the content for timing.
    pub(crate) fn fill_for_timing(&self, elements: usize) {
        self.fill(elements, self.alignment.offsets);
        if self.has_untouched_rows {
            let [_, grad, exp_avg, exp_avg_sq, _] = sizes(self.variant);
            for (i, size) in [(1, grad), (2, exp_avg), (3, exp_avg_sq)] {
                for row in (0..elements / ROW).filter(|row| row % 10 < 3) {
                    self.memory[i].clear((self.alignment.offsets[i] + row * ROW) * size, ROW * size);
                }
            }
            self.device.synchronize();
        }
    }

    fn replica(&self, replica: usize) -> Replica {
        let flat = self.tensor(self.alignment.offsets, replica * self.stride, self.elements());
        let is_list = |job: &&Job| job.is_controlled() || (job.is_list() && self.lens.len() > 1);
        let lists = self.jobs.iter().filter(is_list);
        Replica { flat, lists: lists.map(|&job| (job, self.list(replica, job))).collect() }
    }

    fn list(&self, replica: usize, job: Job) -> List {
        let sets = job.sets(self.lens.len());
        let mut tensors = self.tensors(replica);
        tensors.iter_mut().enumerate().for_each(|(i, tensor)| tensor.coeffs_index = i % sets);
        let mut list = TensorList::new(&self.device.kernels, &tensors).expect("the tensors are valid");
        if !job.is_controlled() {
            return List::Sets(list, (0..sets).map(|set| job.coeffs(set)).collect());
        }
        let mut control = self.control(job.config());
        if job == Job::Controlled {
            return List::Controlled(list, Box::new(control));
        }
        let stream = &self.device.stream;
        stream.begin_capture(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).expect("the stream can be captured");
        step_controlled(&mut list, &mut control, stream);
        let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0));
        List::Captured(graph.expect("the graph can be made").expect("something was captured"))
    }

    /// A control of one set, whose next step is the first that is compared.
    fn control(&self, config: DualAdamConfig) -> Control {
        let (group, set) = (ControlGroup::new(config), ControlSet::new(0));
        let mut control = Control::new(&self.device.kernels, &[group], &[set]).expect("the group is valid");
        // SAFETY: the stream lives as long as the device.
        let set = unsafe { control.set_steps(&[FIRST_STEP - 1], self.device.stream.cu_stream().cast()) };
        set.expect("the step can be set");
        control
    }

    /// A tensor by address, from element `start` on, counted through all replicas.
    fn tensor(&self, offsets: [usize; 5], start: usize, len: usize) -> RawTensor {
        let formats = self.variant.formats();
        let buffer = |i: usize, dtype: Dtype| {
            RawBuffer::new(self.memory[i].address + ((offsets[i] + start) * dtype.size()) as u64, dtype)
        };
        let [param, grad] = [buffer(0, formats.param), buffer(1, formats.grad)];
        let [exp_avg, exp_avg_sq] = [buffer(2, formats.exp_avg), buffer(3, formats.exp_avg_sq)];
        let mut tensor = RawTensor::new(len as u64, param, grad, exp_avg, exp_avg_sq);
        tensor.master = formats.master.map(|dtype| buffer(4, dtype));
        tensor
    }

    /// The tensors of a replica.
    pub(crate) fn tensors(&self, replica: usize) -> Vec<RawTensor> {
        let mut start = replica * self.stride;
        let tensor = |&len: &usize| {
            let tensor = self.tensor(self.alignment.offsets, start, len);
            start += len.next_multiple_of(ALIGN);
            tensor
        };
        self.lens.iter().map(tensor).collect()
    }

    /// A replica's elements as one flat buffer.
    pub(crate) fn flat(&self, replica: usize) -> RawTensor {
        self.replicas[replica].flat
    }

    pub(crate) fn replicas(&self) -> usize {
        self.replicas.len()
    }

    pub(crate) fn elements(&self) -> usize {
        self.lens.iter().sum()
    }

    /// Bytes that each job must move; the unfused step moves more.
    pub(crate) fn bytes(&self) -> usize {
        self.elements() * bytes_moved(self.variant)
    }

    /// The lengths of the tensors that a job steps.
    pub(crate) fn lens_of(&self, job: Job) -> Vec<usize> {
        if job.is_list() { self.lens.clone() } else { vec![self.elements()] }
    }

    /// The offset of a job's first element in each buffer.
    pub(crate) fn offsets_of(&self, job: Job) -> [usize; 5] {
        if job == Job::Triad { [0; 5] } else { self.alignment.offsets }
    }

    /// Waits for all work and reads elements of a buffer from `start` on.
    pub(crate) fn read(&self, buffer: usize, start: usize, len: usize) -> Vec<u8> {
        let size = sizes(self.variant)[buffer];
        self.memory[buffer].read(start * size, len * size)
    }

    /// Enqueues a job over the next replica. The triad leaves the values as they are.
    pub(crate) fn enqueue(&mut self, job: Job) {
        let replica = self.next;
        self.next = (self.next + 1) % self.replicas.len();
        self.enqueue_on(replica, job, 0.0);
    }

    /// Enqueues a job over a replica. `factor` is the triad's.
    pub(crate) fn enqueue_on(&mut self, replica: usize, job: Job, factor: f32) {
        let (device, stream, start) = (self.device, &self.device.stream, replica * self.stride);
        let len = self.elements() as u64;
        let [param, grad, exp_avg, exp_avg_sq, master] = std::array::from_fn(|i| {
            self.memory[i].address + (start * sizes(self.variant)[i]) as u64 // aligned
        });
        match job {
            Job::Copy | Job::UnrolledCopy => self.enqueue_copy(replica, job),
            Job::Triad => {
                let addresses = [param, grad, exp_avg, exp_avg_sq, master];
                // SAFETY: the buffers have more elements; all work is in one stream.
                unsafe { device.yardsticks.triad(self.variant, addresses, len, factor, stream) };
            }
            Job::Unfused => {
                let [root, scale] = self.between.each_ref().map(|memory| memory.address + 4 * start as u64);
                let addresses = [param, grad, exp_avg, exp_avg_sq, root, scale];
                // SAFETY: as above; only aligned f32 buffers have this job.
                unsafe { device.yardsticks.unfused(addresses, len, &job.coeffs(0), stream) };
            }
            _ => self.enqueue_step(replica, job),
        }
    }

    fn enqueue_copy(&self, replica: usize, job: Job) {
        let bytes = self.bytes() / 2 / 16 * 16;
        let [from, to] = self.copies.each_ref().map(|memory| memory.address + (replica * bytes) as u64);
        if job == Job::UnrolledCopy {
            // SAFETY: both parts are within their memory, which lives until the work has ended; all
            // work is in one stream.
            return unsafe { self.device.yardsticks.copy(to, from, bytes as u64, &self.device.stream) };
        }
        // SAFETY: both parts are within their memory, which lives until the work has ended.
        let answer = unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, bytes, self.device.stream.cu_stream()) };
        answer.result().expect("the copy can be enqueued");
    }

    fn enqueue_step(&mut self, replica: usize, job: Job) {
        let stream = &self.device.stream;
        let Replica { flat, lists } = &mut self.replicas[replica];
        // SAFETY: the buffers are as long as the tensors and live until the work has ended; all
        // work is in one stream.
        let stepped = unsafe {
            match lists.iter_mut().find(|(of, _)| *of == job).map(|(_, list)| list) {
                Some(List::Sets(list, coeffs)) => list.step_raw(coeffs, stream.cu_stream().cast()),
                Some(List::Controlled(list, control)) => return step_controlled(list, control, stream),
                Some(List::Captured(graph)) => return graph.launch().expect("the graph can be launched"),
                None => self.device.kernels.step_raw(flat, &job.coeffs(0), stream.cu_stream().cast()),
            }
        };
        stepped.expect("the step can be enqueued");
    }
}

fn step_controlled(list: &mut TensorList, control: &mut Control, stream: &CudaStream) {
    // SAFETY: as for any step of the list; no scalar is given.
    let stepped = unsafe { list.step_controlled(control, &RawScalars::default(), stream.cu_stream().cast()) };
    stepped.expect("the step can be enqueued");
}

impl Drop for Group<'_> {
    fn drop(&mut self) {
        // On a lost device nothing runs any more.
        let _ = self.device.context.synchronize();
    }
}
