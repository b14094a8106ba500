//! The sweep: the step with other workgroups and more quads an invocation, and a list over shared
//! buffers, against what the library does.
//!
//! Each is compared with the CPU backend before it is timed. All variations over the same elements
//! take turns in each round.

use dualadam::webgpu::{Pipelines, Tensor, TensorList, wgpu};
use dualadam::{StepCoeffs, Variant};

use crate::group::{tensor, tensor_at};
use crate::ranking::{Report, Row};
use crate::values::{PERIOD, named, sizes};
use crate::{Arguments, Device, Job, NO_TIME_LEFT, Pattern, Timer, attempt, group, ranking, verify};

// `TEXTS`, the library's joined shaders.
include!(concat!(env!("OUT_DIR"), "/shaders.rs"));

/// The variants that are swept, without masters.
const SWEPT: [&str; 2] = ["f32_f32", "bf16_bf16"];
/// Invocations of a workgroup, and quads of an invocation; the library's first. All of them read
/// the coefficients from a uniform buffer.
const SHAPES: [(u64, u64); 6] = [(256, 1), (64, 1), (128, 1), (64, 2), (128, 2), (256, 2)];
/// Tensors of the list, as in a model of some hundred million parameters.
const TENSORS: u64 = 160;
const MOST_ROUNDS: usize = 15;

/// Something that encodes the step over some replica.
struct Contestant<'a> {
    what: String,
    encode: Box<dyn FnMut(&mut wgpu::ComputePass<'_>) + 'a>,
}

/// A shape's name, the first contestant's, and the function that times them all.
type Case<'a> = (String, &'static str, &'a dyn Fn(&str) -> Result<Vec<Row>, String>);

/// Times all of them. `is_late` says that no further case may begin. Returns whether any failed.
pub(crate) fn run(device: &Device, timer: &Timer<'_>, arguments: &Arguments, is_late: impl Fn() -> bool) -> bool {
    let (exponent, of_list, rounds) = match (arguments.quick, device.facts.software) {
        (true, _) => (14, 10, 3),
        (false, true) => (20, 12, MOST_ROUNDS),
        (false, false) => (24, 17, MOST_ROUNDS),
    };
    let mut report = Report::new(device, &arguments.build);
    for variant in SWEPT.map(named) {
        let (text, _) = TEXTS[variant.index()];
        let sweep = Sweep { device, timer, variant, rounds };
        let cases: [Case<'_>; 2] = [
            (format!("2^{exponent}"), "workgroups of 256, 1 quad", &|shape| sweep.shapes(shape, text, 1 << exponent)),
            (format!("{TENSORS} x 2^{of_list}"), "shared moments", &|shape| sweep.lists(shape, 1 << of_list)),
        ];
        for (shape, first, case) in cases {
            let found = if is_late() { Err(NO_TIME_LEFT.to_owned()) } else { attempt(|| case(&shape)) };
            report.add(&format!("{shape} {}", variant.name()), found, "Vulkan sweep", first);
            arguments.json.iter().for_each(|file| ranking::write_json(file, &report));
        }
    }
    report.end("WebGPU sweep")
}

/// What the cases of a variant share.
struct Sweep<'a> {
    device: &'a Device,
    timer: &'a Timer<'a>,
    variant: Variant,
    rounds: usize,
}

impl Sweep<'_> {
    /// Flat buffers, served by workgroups of each shape.
    fn shapes(&self, shape: &str, text: &str, len: usize) -> Result<Vec<Row>, String> {
        let pattern = Pattern::new(self.variant);
        let new = |len| self.buffers(&pattern, len);
        let replicas = (0..group::replicas(self.variant, len)).map(|_| new(len)).collect::<Result<Vec<_>, _>>()?;
        let coeffs = Job::Dual.coeffs();
        let mut contestants = vec![];
        for (workgroup, quads) in SHAPES {
            let what = format!("workgroups of {workgroup}, {quads} quad{}", if quads == 1 { "" } else { "s" });
            let pipeline = Pipeline::new(self.device, text, workgroup, quads, &coeffs);
            // Whole quads, since the tail has another entry point; not a multiple of any
            // workgroup's elements.
            let checked = new(2 * PERIOD / 4 * 4)?;
            let bound = pipeline.bind(self.device, &checked, 2 * PERIOD as u64 / 4 * 4);
            self.check(&pattern, &checked, usize::MAX, &what, |pass| pipeline.encode(&bound, pass));
            let bound: Vec<_> =
                replicas.iter().map(|buffers| pipeline.bind(self.device, buffers, len as u64)).collect();
            let mut next = 0;
            let encode = move |pass: &mut wgpu::ComputePass<'_>| {
                pipeline.encode(&bound[next], pass);
                next = (next + 1) % bound.len();
            };
            contestants.push(Contestant { what, encode: Box::new(encode) });
        }
        Ok(self.time(shape, contestants, replicas.len()))
    }

    /// Times the library's list over three layouts. In the first, each moment of all tensors is one
    /// buffer, as in the library's optimizer, and parameters and gradients have buffers of their
    /// own. In the second, each stream of each tensor has a buffer; in the third, each stream of
    /// all tensors.
    fn lists(&self, shape: &str, len: usize) -> Result<Vec<Row>, String> {
        let pipelines = Pipelines::new(&self.device.device).map_err(|error| error.to_string())?;
        let pattern = Pattern::new(self.variant);
        let all_apart = || (0..TENSORS).map(|_| self.buffers(&pattern, len)).collect::<Result<Vec<_>, _>>();
        let all_shared = || self.buffers(&pattern, len * TENSORS as usize);
        let (apart, shared) = (all_apart()?, all_shared()?);
        let tensors = apart.iter().map(|buffers| tensor(self.variant, buffers, len as u64)).collect();
        let parts = (0..TENSORS).map(|i| tensor_at(self.variant, &shared, i * len as u64, len as u64)).collect();
        // Steps of one list must not change the buffers that another is checked with.
        let (others, moments) = (all_apart()?, all_shared()?);
        let mixed = |i: u64| {
            let Tensor { exp_avg, exp_avg_sq, .. } = tensor_at(self.variant, &moments, i * len as u64, len as u64);
            let mut tensor = tensor(self.variant, &others[i as usize], len as u64);
            (tensor.exp_avg, tensor.exp_avg_sq) = (exp_avg, exp_avg_sq);
            tensor
        };
        // The first tensor's streams all begin with the pattern.
        let of_mixed = [&others[0][..2], &moments[2..4]].concat();
        let last = &apart[TENSORS as usize - 1];
        let contested: [(&str, Vec<Tensor<'_>>, &[wgpu::Buffer], usize); 3] = [
            ("shared moments", (0..TENSORS).map(mixed).collect(), &of_mixed, len),
            ("buffers of their own", tensors, last, len),
            ("shared buffers", parts, &shared, len * TENSORS as usize),
        ];
        let coeffs = [Job::Dual.coeffs()];
        let mut contestants = vec![];
        for (what, tensors, buffers, checked) in contested {
            let list = TensorList::new(&pipelines, &tensors).map_err(|error| error.to_string())?;
            let encode =
                move |pass: &mut wgpu::ComputePass<'_>| list.encode(pass, &coeffs).expect("the coefficients are there");
            self.check(&pattern, buffers, checked, what, &encode);
            contestants.push(Contestant { what: what.to_owned(), encode: Box::new(encode) });
        }
        Ok(self.time(shape, contestants, 1))
    }

    fn buffers(&self, pattern: &Pattern, len: usize) -> Result<Vec<wgpu::Buffer>, String> {
        let sizes = sizes(self.variant).into_iter().zip(pattern.bytes()).filter(|&(size, _)| size > 0);
        sizes.map(|(size, bytes)| self.device.repeat(bytes, len * size)).collect()
    }

    /// Fails unless one step changes the first elements of the buffers as the CPU backend does, up
    /// to a rounding.
    fn check(
        &self,
        before: &Pattern,
        buffers: &[wgpu::Buffer],
        checked: usize,
        what: &str,
        encode: impl FnOnce(&mut wgpu::ComputePass<'_>),
    ) {
        let mut encoder = self.device.device.create_command_encoder(&Default::default());
        encode(&mut encoder.begin_compute_pass(&Default::default()));
        self.device.queue.submit([encoder.finish()]);
        let mut after = before.clone();
        after.step(&Job::Dual.coeffs());
        verify::compare(self.device, self.variant, buffers, &after, checked, what);
    }

    /// Rounds in which all take turns. The first is the library's.
    fn time(&self, shape: &str, mut contestants: Vec<Contestant<'_>>, replicas: usize) -> Vec<Row> {
        let repeats: Vec<_> =
            contestants.iter_mut().map(|contestant| self.timer.repeats(replicas, &mut contestant.encode)).collect();
        let mut round = || -> Vec<f64> {
            let timed = contestants.iter_mut().zip(&repeats);
            timed.map(|(contestant, &repeats)| self.timer.seconds(repeats, &mut contestant.encode).on_device).collect()
        };
        let times: Vec<_> = (0..self.rounds).map(|_| round()).collect();
        ranking::rows(shape, self.variant.name(), contestants.into_iter().map(|contestant| contestant.what), &times)
    }
}

/// The library's shader with other constants.
struct Pipeline {
    pipeline: wgpu::ComputePipeline,
    coeffs: wgpu::BindGroup,
    /// Elements that a workgroup serves.
    elements: u64,
}

/// Buffers bound for a pipeline, and its columns and rows of workgroups.
struct Bound(wgpu::BindGroup, [u32; 2]);

impl Pipeline {
    fn new(device: &Device, text: &str, workgroup: u64, quads: u64, coeffs: &StepCoeffs) -> Self {
        let library = "step_quad(true, invocation(group, groups, local));";
        // Neighbouring invocations serve neighbouring quads in each turn.
        let stride = "let stride = groups.x * groups.y * WORKGROUP;";
        let turns = format!(
            "{stride} for (var i = 0u; i < {quads}u; i++) {{ step_quad(true, invocation(group, groups, local) + i * stride); }}"
        );
        let mut text = replace(text, "const WORKGROUP: u32 = 256;", &format!("const WORKGROUP: u32 = {workgroup};"));
        if quads > 1 {
            text = replace(&text, library, &turns);
        }
        let source = wgpu::ShaderSource::Wgsl(text.into());
        let module = device.device.create_shader_module(wgpu::ShaderModuleDescriptor { label: None, source });
        let pipeline = device.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: None,
            layout: None,
            module: &module,
            entry_point: Some("dual_adam"),
            compilation_options: Default::default(),
            cache: None,
        });
        let uniform = device.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: size_of::<StepCoeffs>() as u64,
            usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        device.queue.write_buffer(&uniform, 0, bytemuck::bytes_of(coeffs));
        let coeffs = bind(device, &pipeline, 1, &[uniform]);
        Self { pipeline, coeffs, elements: workgroup * quads * 4 }
    }

    fn bind(&self, device: &Device, buffers: &[wgpu::Buffer], len: u64) -> Bound {
        let groups = len.div_ceil(self.elements);
        let rows = groups.div_ceil(device.device.limits().max_compute_workgroups_per_dimension.into());
        Bound(bind(device, &self.pipeline, 0, buffers), [groups.div_ceil(rows) as u32, rows as u32])
    }

    fn encode(&self, Bound(buffers, [columns, rows]): &Bound, pass: &mut wgpu::ComputePass<'_>) {
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, buffers, &[]);
        pass.set_bind_group(1, &self.coeffs, &[]);
        pass.dispatch_workgroups(*columns, *rows, 1);
    }
}

fn bind(device: &Device, pipeline: &wgpu::ComputePipeline, group: u32, buffers: &[wgpu::Buffer]) -> wgpu::BindGroup {
    let bindings = buffers.iter().map(|buffer| buffer.as_entire_binding()).zip(0..);
    let entries: Vec<_> = bindings.map(|(resource, binding)| wgpu::BindGroupEntry { binding, resource }).collect();
    let layout = pipeline.get_bind_group_layout(group);
    device.device.create_bind_group(&wgpu::BindGroupDescriptor { label: None, layout: &layout, entries: &entries })
}

/// Replaces one passage of the text. Panics if the text lacks it.
fn replace(text: &str, old: &str, new: &str) -> String {
    assert!(text.contains(old), "the shader has no line {old}");
    text.replace(old, new)
}
