//! The sweep: the step's kernels with other constants, over a flat buffer and a list, in f32 and
//! bf16, against the library's own.
//!
//! The texts are those of a folder that `cargo xtask tune` makes. Each is compared with the CPU
//! backend, bit for bit, before it is timed. All of them take turns in each round.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::path::Path;
use std::time::Instant;

use dualadam::cuda::cudarc::driver::result;
use dualadam::cuda::cudarc::driver::sys::CUfunction;
use dualadam::{RawTensor, StepCoeffs};
use serde::Deserialize;

use crate::attempt::attempt;
use crate::ranking::{Report, Row};
use crate::yardsticks::argument;
use crate::{Arguments, Device, Group, Memory, NO_TIME_LEFT, Timer, cases, ranking, verify};

/// The library's constants, as in `kernels/tuning.cuh`.
const LIBRARY: [(&str, u64); 5] =
    [("BLOCK", 256), ("FLAT_GROUPS", 2), ("CHUNK", 4096), ("SPAN", 1), ("LIST_GROUPS", 1)];
/// The constants that only flat kernels use, and those that only the kernels of lists use.
const OF_FLAT: [&str; 2] = ["FLAT_GROUPS", "FLAT_BLOCKS_PER_SM"];
const OF_LISTS: [&str; 5] = ["LIST_GROUPS", "LIST_BLOCKS_PER_SM", "CHUNK", "SPAN", "AHEAD"];
const VEC: u64 = 4;
/// Bytes of the coefficients that a list's kernel takes as an argument.
const COEFFS_BYTES: usize = 3840;
/// Fewer rounds give no quartiles.
const LEAST_ROUNDS: usize = 7;

/// An entry of `index.json`.
#[derive(Deserialize)]
struct Combination {
    defines: BTreeMap<String, u64>,
    files: BTreeMap<String, String>,
}

impl Combination {
    fn value(&self, name: &str) -> u64 {
        let of_library = || LIBRARY.into_iter().find(|(known, _)| *known == name).map(|(_, value)| value);
        self.defines.get(name).copied().or_else(of_library).expect("the constant is known")
    }

    /// Whether it is the library's, or differs from it in a constant that this kind of kernel uses.
    fn concerns(&self, is_list: bool) -> bool {
        let others = if is_list { &OF_FLAT[..] } else { &OF_LISTS[..] };
        self.defines.is_empty() || self.defines.keys().any(|name| !others.contains(&name.as_str()))
    }

    fn name(&self) -> String {
        if self.defines.is_empty() {
            return "the library's".to_owned();
        }
        let defines: Vec<_> = self.defines.iter().map(|(name, value)| format!("{name}={value}")).collect();
        defines.join(" ")
    }
}

/// One combination over the buffers of a case.
struct Contestant {
    name: String,
    function: CUfunction,
    block: u32,
    blocks: u32,
    /// The tables of a list, one a replica.
    tables: Vec<Memory>,
}

/// Times all combinations in `folder` over each case; `deadline` in seconds after `start` is shared
/// among the cases. Returns whether any failed.
pub(crate) fn run(device: &Device, folder: &Path, arguments: &Arguments, start: Instant) -> bool {
    let Arguments { json, build, quick, deadline, .. } = arguments;
    let index = std::fs::read_to_string(folder.join("index.json")).expect("the folder has an index");
    let combinations: Vec<Combination> = serde_json::from_str(&index).expect("the index is valid");
    let timer = Timer::new(device, *quick);
    let mut report = Report::new(device, build);
    let cases = cases::tuned(*quick);
    for (number, case) in cases.iter().enumerate() {
        // Each case has its share of the time, for loading, verifying and timing.
        if device.is_lost() {
            report.skipped.push(format!("all further cases: {}", crate::DEVICE_IS_LOST));
            break;
        }
        let until = deadline.map(|deadline| deadline * (number + 1) as f64 / cases.len() as f64);
        let is_late = || until.is_some_and(|until| start.elapsed().as_secs_f64() > until);
        let most_rounds = if *quick { LEAST_ROUNDS } else { 15 };
        let skipped = &mut report.skipped;
        let timed = attempt(|| {
            let mut group = Group::new(device, case)?;
            time_case(&timer, device, &mut group, folder, &combinations, most_rounds, is_late, skipped)
        });
        report.add(&format!("{} {}", case.shape.name, case.variant.name()), timed, "sweep", "the library's");
        json.iter().for_each(|file| ranking::write_json(file, &report));
    }
    report.end("CUDA sweep")
}

#[expect(clippy::too_many_arguments, reason = "what one case of the sweep needs, and it stands in one place")]
fn time_case(
    timer: &Timer<'_>,
    device: &Device,
    group: &mut Group<'_>,
    folder: &Path,
    combinations: &[Combination],
    most_rounds: usize,
    is_late: impl Fn() -> bool,
    skipped: &mut Vec<String>,
) -> Result<Vec<Row>, String> {
    let job = group.jobs[0];
    let mut contestants = vec![];
    let is_list = group.lens.len() > 1;
    for combination in combinations.iter().filter(|combination| combination.concerns(is_list)) {
        if is_late() {
            skipped.push(format!("{} {}, {}: {NO_TIME_LEFT}", group.shape, group.variant.name(), combination.name()));
            continue;
        }
        let verified = attempt(|| {
            let contestant = Contestant::new(device, group, folder, combination)?;
            group.fill(group.stride, [0; 5]);
            contestant.enqueue(device, group, 0, &job.coeffs(0));
            device.synchronize();
            verify::verify_job(group, job);
            Ok(contestant)
        });
        match verified {
            Ok(contestant) => contestants.push(contestant),
            // The library's own failed, with which all others are compared.
            Err(reason) if combination.defines.is_empty() => return Err(format!("{}: {reason}", combination.name())),
            Err(reason) => {
                skipped.push(format!("{} {}, {}: {reason}", group.shape, group.variant.name(), combination.name()));
            }
        }
    }
    if contestants.is_empty() {
        return Err(NO_TIME_LEFT.to_owned());
    }
    let mut replica = 0;
    let mut enqueue = |contestant: &Contestant, group: &Group<'_>| {
        replica = (replica + 1) % group.replicas();
        contestant.enqueue(device, group, replica, &job.coeffs(0));
    };
    let plans: Vec<_> = contestants.iter().map(|contestant| timer.plan(|| enqueue(contestant, group))).collect();
    let mut rounds: Vec<Vec<f64>> = vec![];
    while rounds.len() < most_rounds && (rounds.len() < LEAST_ROUNDS || !is_late()) {
        let timed = contestants.iter().zip(&plans);
        rounds.push(timed.map(|(contestant, plan)| timer.seconds(plan, || enqueue(contestant, group))).collect());
    }
    let names = contestants.iter().map(|contestant| contestant.name.clone());
    Ok(ranking::rows(&group.shape, group.variant.name(), names, &rounds))
}

impl Contestant {
    fn new(device: &Device, group: &Group<'_>, folder: &Path, combination: &Combination) -> Result<Self, String> {
        let variant = group.variant.name();
        let file = combination.files.get(variant).ok_or("it has no text for this variant")?;
        let text = std::fs::read_to_string(folder.join(file)).map_err(|error| error.to_string())?;
        let is_list = group.lens.len() > 1;
        let name = format!("{}_{variant}", if is_list { "list" } else { "dual_adam" });
        let text = CString::new(entry_alone(&text, &name)?).map_err(|error| error.to_string())?;
        // SAFETY: the text ends in a zero byte.
        let module = unsafe { result::module::load_data(text.as_ptr().cast()) }.map_err(|error| error.to_string())?;
        let name = CString::new(name).map_err(|error| error.to_string())?;
        // SAFETY: the module is loaded and stays so.
        let function = unsafe { result::module::get_function(module, name) }.map_err(|error| error.to_string())?;
        let (block, chunk) = (combination.value("BLOCK"), combination.value("CHUNK"));
        let (tables, blocks) = if is_list {
            let tables: Vec<_> = (0..group.replicas())
                .map(|replica| table(&group.tensors(replica), chunk, combination.value("SPAN")))
                .collect();
            let blocks = tables[0].1;
            let memory = |(bytes, _): (Vec<u8>, u64)| {
                let memory = device.memory(bytes.len())?;
                memory.repeat(&bytes, 0, bytes.len());
                Ok(memory)
            };
            (tables.into_iter().map(memory).collect::<Result<Vec<_>, String>>()?, blocks)
        } else {
            (vec![], (group.elements() as u64).div_ceil(block * VEC * combination.value("FLAT_GROUPS")) + 1)
        };
        let blocks = u32::try_from(blocks).map_err(|error| error.to_string())?;
        Ok(Self { name: combination.name(), function, block: block as u32, blocks, tables })
    }

    fn enqueue(&self, device: &Device, group: &Group<'_>, replica: usize, coeffs: &StepCoeffs) {
        let stream = device.stream.cu_stream();
        let mut coeffs = *coeffs;
        // SAFETY: the arguments are the kernel's. The buffers are as long as the tensors and live
        // until the work has ended; all work is in one stream.
        let launched = unsafe {
            if let Some(table) = self.tables.get(replica) {
                let (mut table, mut count) = (table.address, group.lens.len() as u32);
                let (mut coeffs_on_device, mut skips) = (0_u64, 0_u64);
                let mut by_value = [0_u8; COEFFS_BYTES];
                by_value[..size_of::<StepCoeffs>()].copy_from_slice(bytemuck::bytes_of(&coeffs));
                let mut arguments = [
                    argument(&mut table),
                    argument(&mut count),
                    argument(&mut coeffs_on_device),
                    argument(&mut skips),
                    argument(&mut by_value),
                ];
                result::launch_kernel(self.function, (self.blocks, 1, 1), (self.block, 1, 1), 0, stream, &mut arguments)
            } else {
                let tensor = group.flat(replica);
                let (mut addresses, mut len) = (addresses(&tensor), tensor.len);
                let mut arguments: Vec<_> = addresses.iter_mut().map(argument).collect();
                arguments.extend([argument(&mut len), argument(&mut coeffs)]);
                result::launch_kernel(self.function, (self.blocks, 1, 1), (self.block, 1, 1), 0, stream, &mut arguments)
            }
        };
        launched.expect("the kernel can be enqueued");
    }
}

/// A PTX text without its other entries, so that the driver compiles no more than is timed.
fn entry_alone(text: &str, name: &str) -> Result<String, String> {
    const ENTRY: &str = "\n.visible .entry ";
    let mut entries = text.split(ENTRY);
    let head = entries.next().unwrap_or_default();
    let entry = entries.find(|entry| entry.starts_with(&format!("{name}(")));
    entry.map(|entry| format!("{head}{ENTRY}{entry}\n")).ok_or_else(|| format!("the text has no entry {name}"))
}

/// The addresses of a tensor without a master, by role.
fn addresses(tensor: &RawTensor) -> [u64; 5] {
    let RawTensor { param, grad, exp_avg, exp_avg_sq, .. } = tensor;
    [param.address, grad.address, exp_avg.address, exp_avg_sq.address, 0]
}

/// A list's table, as `kernels/step.cuh` reads it, and the number of its chunks.
fn table(tensors: &[RawTensor], chunk: u64, span: u64) -> (Vec<u8>, u64) {
    let (mut records, mut chunk_tensor) = (vec![], vec![]);
    for (i, tensor) in tensors.iter().enumerate() {
        let first_chunk = chunk_tensor.len() as u64;
        records.extend(addresses(tensor));
        // The coefficients' index, in the high half, is 0.
        records.extend([tensor.len, first_chunk, 0]);
        chunk_tensor.extend(std::iter::repeat_n(i as u32, tensor.len.div_ceil(chunk) as usize));
    }
    let chunks = chunk_tensor.len() as u64;
    let spans: Vec<u32> = chunk_tensor.into_iter().step_by(span as usize).collect();
    ([bytemuck::cast_slice(&records[..]), bytemuck::cast_slice::<u32, u8>(&spans)].concat(), chunks)
}
