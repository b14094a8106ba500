//! The project's own PTX against a transcription of the update rule, bit for bit.

#[path = "../../build/variants.rs"]
mod variants;

use stand_in_cuda::Kernel;
use stand_in_cuda::exec::{Launch, Stats, run, run_blocks};
use stand_in_cuda::memory::Memory;
use stand_in_cuda::ptx::Module;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

const BLOCK: u32 = 256;
const MAX_COEFFS: usize = 96;

/// The rule's scalars, in the order of the kernel's struct.
#[derive(Clone, Copy, Debug)]
struct Coeffs {
    one_minus_beta1: f32,
    one_minus_beta2: f32,
    inv_sqrt_bc2: f32,
    eps: f32,
    inverse_eps: f32,
    inverse_scale: f32,
    adam_scale: f32,
    decay: f32,
    l2: f32,
    grad_scale: f32,
}

impl Coeffs {
    fn bytes(&self) -> Vec<u8> {
        let fields = [
            self.one_minus_beta1,
            self.one_minus_beta2,
            self.inv_sqrt_bc2,
            self.eps,
            self.inverse_eps,
            self.inverse_scale,
            self.adam_scale,
            self.decay,
            self.l2,
            self.grad_scale,
        ];
        fields.iter().flat_map(|field| field.to_le_bytes()).collect()
    }
}

/// One element of the rule: g, m, v, s, q, w, u, p.
fn update(c: &Coeffs, grad: f32, p: f32, m: f32, v: f32) -> (f32, f32, f32) {
    let g = c.grad_scale * grad;
    let g = if c.l2 == 0.0 { g } else { c.l2.mul_add(p, g) };
    let m = c.one_minus_beta1.mul_add(g - m, m);
    let v = c.one_minus_beta2.mul_add(g.mul_add(g, -v), v);
    let v = if v > f32::MAX { f32::MAX } else { v };
    let s = v.sqrt() * c.inv_sqrt_bc2;
    let q = c.adam_scale / (s + c.eps);
    let w = if c.inverse_scale == 0.0 { q } else { c.inverse_scale.mul_add(s + c.inverse_eps, q) };
    let u = if c.decay == 0.0 { m * w } else { m.mul_add(w, c.decay * p) };
    (p - u, m, v)
}

fn dual() -> Coeffs {
    Coeffs {
        one_minus_beta1: 0.1,
        one_minus_beta2: 0.001,
        inv_sqrt_bc2: 7.1,
        eps: 1e-8,
        inverse_eps: 0.0,
        inverse_scale: 2e-3,
        adam_scale: 3e-3,
        decay: 1e-5,
        l2: 0.0,
        grad_scale: 0.5,
    }
}

fn adam() -> Coeffs {
    Coeffs { inverse_scale: 0.0, decay: 0.0, l2: 0.01, grad_scale: -1.0, ..dual() }
}

/// Each of the three uniform tests of the rule, both ways: a compiler makes a loop of its own for
/// some combinations. The steps are as large as the parameters, so that an error in them does not
/// vanish in the rounding to 16 bits.
fn all_kinds() -> Vec<Coeffs> {
    let large = Coeffs { adam_scale: 0.9, eps: 0.25, inverse_eps: 0.5, ..dual() };
    let pick = |set: bool, value: f32| if set { value } else { 0.0 };
    let kind = |bits: u32| Coeffs {
        inverse_scale: pick(bits & 1 != 0, 1.7),
        decay: pick(bits & 2 != 0, 0.3),
        l2: pick(bits & 4 != 0, 0.4),
        ..large
    };
    (0..8).map(kind).collect()
}

/// The three formats of an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    F32,
    Bf16,
    F16,
}

impl Format {
    fn parse(name: &str) -> Self {
        match name {
            "f32" => Self::F32,
            "bf16" => Self::Bf16,
            "f16" => Self::F16,
            other => panic!("unknown format {other}"),
        }
    }

    fn size(self) -> usize {
        if self == Self::F32 { 4 } else { 2 }
    }

    fn encode(self, x: f32) -> Vec<u8> {
        match self {
            Self::F32 => x.to_le_bytes().to_vec(),
            Self::Bf16 => half::bf16::from_f32(x).to_le_bytes().to_vec(),
            Self::F16 => half::f16::from_f32(x).to_le_bytes().to_vec(),
        }
    }

    fn decode(self, bytes: &[u8]) -> Vec<f32> {
        let pair = |two: &[u8]| [two[0], two[1]];
        match self {
            Self::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            Self::Bf16 => bytes.chunks_exact(2).map(|b| half::bf16::from_le_bytes(pair(b)).to_f32()).collect(),
            Self::F16 => bytes.chunks_exact(2).map(|b| half::f16::from_le_bytes(pair(b)).to_f32()).collect(),
        }
    }

    /// All values, rounded to this format.
    fn round(self, values: &[f32]) -> Vec<f32> {
        values.iter().flat_map(|&x| self.decode(&self.encode(x))).collect()
    }
}

/// A variant of the kernels, and the format of each role. The moments are f32.
#[derive(Clone, Copy, Debug)]
struct Variant {
    name: &'static str,
    param: Format,
    grad: Format,
    master: Option<Format>,
}

impl Variant {
    fn named(name: &str) -> Self {
        all_variants().into_iter().find(|variant| variant.name == name).expect("a variant")
    }

    /// The format of what is updated.
    fn updated(&self) -> Format {
        self.master.unwrap_or(self.param)
    }
}

/// All variants of the project's table.
fn all_variants() -> Vec<Variant> {
    static TABLE: LazyLock<Vec<variants::Variant>> =
        LazyLock::new(|| variants::read(&project()).unwrap_or_else(|error| panic!("{error}")));
    let of = |line: &'static variants::Variant| {
        let format = |role| line.format(role).map(Format::parse);
        for moment in ["exp_avg", "exp_avg_sq"] {
            assert_eq!(format(moment), Some(Format::F32), "{}", line.name);
        }
        let (param, grad) = (format("param").expect("a format"), format("grad").expect("a format"));
        Variant { name: &line.name, param, grad, master: format("master") }
    };
    TABLE.iter().map(of).collect()
}

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The values of one tensor, each as its format holds it.
#[derive(Clone)]
struct Tensor {
    /// Of the master where there is one, else of the parameter.
    updated: Vec<f32>,
    grad: Vec<f32>,
    exp_avg: Vec<f32>,
    exp_avg_sq: Vec<f32>,
}

/// Numbers over many magnitudes, with a few special values among them.
fn tensor(variant: Variant, len: usize, seed: u64) -> Tensor {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let fraction = (state >> 40) as f32 / (1u32 << 24) as f32 - 0.5;
        fraction * ((state & 15) as f32 - 12.0).exp2()
    };
    let mut list = |specials: &[f32]| -> Vec<f32> {
        (0..len).map(|i| if i % 13 == 11 { specials[i % specials.len()] } else { random() }).collect()
    };
    let updated = list(&[0.0, -0.0, f32::MIN_POSITIVE / 8.0, f32::NAN, f32::INFINITY, 65520.0, -3.0e38]);
    let grad = list(&[0.0, -0.0, 1e-42, f32::NEG_INFINITY, f32::NAN, 65504.0, 1e30]);
    let exp_avg = list(&[0.0, 1e-40, -1.0]);
    let exp_avg_sq = list(&[0.0, 1e-44, 1e20]).iter().map(|x| x.abs()).collect();
    Tensor { updated: variant.updated().round(&updated), grad: variant.grad.round(&grad), exp_avg, exp_avg_sq }
}

/// The rule's result for a tensor: param, exp_avg, exp_avg_sq and the master, as bits of their
/// formats.
fn expected(variant: Variant, t: &Tensor, c: &Coeffs) -> [Vec<u8>; 4] {
    let mut out = [const { Vec::new() }; 4];
    for i in 0..t.updated.len() {
        let (p, m, v) = update(c, t.grad[i], t.updated[i], t.exp_avg[i], t.exp_avg_sq[i]);
        out[0].extend(variant.param.encode(p));
        out[1].extend(m.to_le_bytes());
        out[2].extend(v.to_le_bytes());
        if let Some(master) = variant.master {
            out[3].extend(master.encode(p));
        }
    }
    out
}

/// A buffer on the device that holds nothing else, so that one byte too far is out of bounds:
/// `shift` bytes are left out in front.
fn upload(memory: &mut Memory, bytes: &[u8], shift: usize) -> u64 {
    if bytes.is_empty() {
        return 0;
    }
    let address = memory.allocate(bytes.len() + shift, 0) + shift as u64;
    memory.write(address, bytes).expect("fits");
    address
}

/// The buffers of a tensor on the device.
struct Buffers {
    param: u64,
    grad: u64,
    exp_avg: u64,
    exp_avg_sq: u64,
    master: u64,
    len: usize,
}

/// `shifts`: how many elements each buffer lies after an aligned address.
fn place(memory: &mut Memory, variant: Variant, t: &Tensor, shifts: [usize; 5]) -> Buffers {
    let encode = |format: Format, values: &[f32]| values.iter().flat_map(|&x| format.encode(x)).collect::<Vec<u8>>();
    let updated = encode(variant.updated(), &t.updated);
    let param_shift = shifts[0] * variant.param.size();
    let (param, master) = match variant.master {
        None => (upload(memory, &updated, param_shift), 0),
        Some(_) if updated.is_empty() => (0, 0),
        Some(format) => {
            // Never written before, so that reading it is an error.
            let param = memory.allocate(t.updated.len() * variant.param.size() + param_shift, 0) + param_shift as u64;
            (param, upload(memory, &updated, shifts[4] * format.size()))
        }
    };
    let grad_bytes = encode(variant.grad, &t.grad);
    let grad = upload(memory, &grad_bytes, shifts[1] * variant.grad.size());
    if !grad_bytes.is_empty() {
        memory.set_read_only(grad, grad_bytes.len(), true).expect("live");
    }
    let exp_avg = upload(memory, &encode(Format::F32, &t.exp_avg), shifts[2] * 4);
    let exp_avg_sq = upload(memory, &encode(Format::F32, &t.exp_avg_sq), shifts[3] * 4);
    Buffers { param, grad, exp_avg, exp_avg_sq, master, len: t.updated.len() }
}

/// Elements that a block of a flat entry serves.
fn elements_of_a_block() -> usize {
    static FLAT_GROUPS: LazyLock<usize> = LazyLock::new(|| constant("FLAT_GROUPS"));
    BLOCK as usize * 4 * *FLAT_GROUPS
}

/// The blocks of a flat entry's launch.
fn flat_blocks(len: usize) -> u32 {
    len.div_ceil(elements_of_a_block()) as u32 + 1
}

fn launch(memory: &mut Memory, module: &Modules, name: &str, blocks: u32, params: &[u8]) -> Stats {
    launch_blocks(memory, module, name, blocks, 0..blocks, params)
}

/// Runs some of the blocks of a launch.
fn launch_blocks(
    memory: &mut Memory,
    module: &Modules,
    name: &str,
    blocks: u32,
    range: Range<u32>,
    params: &[u8],
) -> Stats {
    let kernel = module.kernel(name).unwrap_or_else(|| panic!("no entry {name}"));
    let launch = Launch { kernel, grid: [blocks, 1, 1], block: [BLOCK, 1, 1], params, owner: Some(0) };
    run_blocks(memory, &launch, range).unwrap_or_else(|fault| panic!("{fault}"))
}

fn flat_params(module: &Modules, name: &str, b: &Buffers, c: &Coeffs) -> Vec<u8> {
    let words = [b.param, b.grad, b.exp_avg, b.exp_avg_sq, b.master, b.len as u64];
    let mut params: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    params.extend(c.bytes());
    let size = module.kernel(name).map_or(0, |kernel| kernel.param_bytes());
    params.resize(size, 0);
    params
}

fn run_flat(memory: &mut Memory, module: &Modules, name: &str, b: &Buffers, c: &Coeffs) -> Stats {
    let params = flat_params(module, name, b, c);
    launch(memory, module, name, flat_blocks(b.len), &params)
}

/// Equal bits, or both NaN.
fn assert_same(memory: &Memory, address: u64, format: Format, want: &[u8], what: &str) {
    if want.is_empty() {
        return;
    }
    let got = memory.read(address, want.len()).expect("written");
    if got == want {
        return;
    }
    let (a, b) = (format.decode(got), format.decode(want));
    for i in 0..a.len() {
        let size = format.size();
        let same = got[i * size..][..size] == want[i * size..][..size] || (a[i].is_nan() && b[i].is_nan());
        assert!(same, "{what}: element {i} of {} is {:e}, not {:e}", a.len(), a[i], b[i]);
    }
}

fn check(memory: &Memory, variant: Variant, b: &Buffers, want: &[Vec<u8>; 4], what: &str) {
    assert_same(memory, b.param, variant.param, &want[0], &format!("{what} param"));
    assert_same(memory, b.exp_avg, Format::F32, &want[1], &format!("{what} exp_avg"));
    assert_same(memory, b.exp_avg_sq, Format::F32, &want[2], &format!("{what} exp_avg_sq"));
    assert_same(memory, b.master, variant.master.unwrap_or(Format::F32), &want[3], &format!("{what} master"));
}

fn kernels_folder() -> PathBuf {
    project().join("kernels")
}

fn text_of(module: &str) -> String {
    let path = kernels_folder().join(format!("prebuilt/{module}.ptx"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The modules of all variants.
struct Modules(Vec<Module>);

impl Modules {
    fn kernel(&self, name: &str) -> Option<&Arc<Kernel>> {
        self.0.iter().find_map(|module| module.kernel(name))
    }
}

fn module() -> Modules {
    let parse = |variant: Variant| Module::parse(&text_of(variant.name)).unwrap_or_else(|error| panic!("{error}"));
    Modules(all_variants().into_iter().map(parse).collect())
}

fn chunk() -> usize {
    constant("CHUNK")
}

/// The value of a define or an enumerator of the kernels' sources.
fn constant(name: &str) -> usize {
    let files = std::fs::read_dir(kernels_folder()).expect("the kernels").map(|file| file.expect("a file").path());
    let sources = files.filter(|path| path.is_file()).map(|path| std::fs::read_to_string(path).expect("text"));
    let text: String = sources.collect();
    let starts = [format!(" {name} = "), format!("#define {name} ")];
    let after = starts.iter().find_map(|start| text.split(start.as_str()).nth(1)).expect(name);
    let digits: String = after.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().expect("a number")
}

#[test]
fn flat_kernels_follow_the_rule_bit_for_bit() {
    let module = module();
    for variant in all_variants() {
        for len in [1, 3, 4, 5, 16, 17, 255, 1023, 1025, 4097] {
            let kinds = all_kinds().into_iter().map(|c| ("dual_adam", c));
            let plain = all_kinds().into_iter().filter(|c| c.inverse_scale == 0.0).map(|c| ("adam", c));
            for (kind, c) in kinds.chain(plain).chain([("dual_adam", dual()), ("adam", adam())]) {
                let mut memory = Memory::new();
                let t = tensor(variant, len, len as u64);
                let b = place(&mut memory, variant, &t, [0; 5]);
                let name = format!("{kind}_{}", variant.name);
                run_flat(&mut memory, &module, &name, &b, &c);
                check(&memory, variant, &b, &expected(variant, &t, &c), &format!("{name} len {len}"));
            }
        }
    }
}

#[test]
fn every_misalignment_gives_the_same_bits() {
    let module = module();
    for variant in all_variants() {
        for case in 0..64usize {
            let shifts = [case % 4, case / 4 % 4, case / 16 % 4, (case + 1) % 4, (case * 3 + case / 16) % 4];
            // Also all alike, where one head aligns all buffers.
            for shifts in [shifts, [case % 8; 5]] {
                let mut memory = Memory::new();
                let len = 37 + case * 5;
                let t = tensor(variant, len, case as u64);
                let b = place(&mut memory, variant, &t, shifts);
                let name = format!("dual_adam_{}", variant.name);
                run_flat(&mut memory, &module, &name, &b, &dual());
                check(&memory, variant, &b, &expected(variant, &t, &dual()), &format!("{name} shifts {shifts:?}"));
            }
        }
    }
}

#[test]
fn an_aligned_body_moves_groups_whole_and_each_byte_once() {
    let module = module();
    for variant in all_variants() {
        let len = 4096;
        let mut memory = Memory::new();
        let t = tensor(variant, len, 1);
        let b = place(&mut memory, variant, &t, [0; 5]);
        let stats = run_flat(&mut memory, &module, &format!("dual_adam_{}", variant.name), &b, &dual());
        // A group of four elements is one access of 16 bytes, or of 8 in a 16-bit format.
        let widths = |formats: &[Format]| {
            let mut counts = [0; 5];
            for format in formats {
                counts[if *format == Format::F32 { 4 } else { 3 }] += len as u64 / 4;
            }
            counts
        };
        let moments = [Format::F32; 2];
        let read = [variant.updated(), variant.grad, moments[0], moments[1]];
        let written: Vec<_> = [variant.param].into_iter().chain(variant.master).chain(moments).collect();
        assert_eq!(stats.loads, widths(&read), "{}, loads", variant.name);
        assert_eq!(stats.stores, widths(&written), "{}, stores", variant.name);
        println!("{}: {:.1} instructions an element", variant.name, stats.instructions as f64 / len as f64);
    }
}

#[test]
fn lists_follow_the_rule_bit_for_bit() {
    let (module, chunk) = (module(), chunk());
    let coeffs: Vec<Coeffs> = vec![dual(), adam(), Coeffs { decay: 0.0, ..dual() }];
    for variant in all_variants() {
        // By value; from device memory; and from there with the tensors of some coefficients
        // skipped.
        for (from_device, skips) in [(false, None), (true, Some([0; 3])), (true, Some([0, 7, 0]))] {
            let mut memory = Memory::new();
            // Empty tensors among others, one without a gradient, two of several chunks, and more
            // small ones than a span has chunks.
            let lens = [5, 0, chunk + 3, 1, 2 * chunk, 0, 33, 1, 2, 3, 1, 1, 6, 1, 1, 4, 2];
            let tensors: Vec<Tensor> =
                lens.iter().enumerate().map(|(i, &len)| tensor(variant, len, i as u64 + 7)).collect();
            let mut placed: Vec<Buffers> = Vec::new();
            for (i, t) in tensors.iter().enumerate() {
                placed.push(place(&mut memory, variant, t, [i % 4, i * 3 % 4, i % 4, (i + i / 3) % 4, i % 2]));
            }
            placed[3].grad = 0;
            let blocks = run_list(&mut memory, &module, variant, &placed, &coeffs, (from_device, skips), false);
            assert_eq!(blocks, 17 - 2 + 1 + 1);
            for (i, b) in placed.iter().enumerate() {
                let what = format!("list_{} tensor {i}", variant.name);
                let is_skipped = skips.is_some_and(|skips| skips[i % 3] != 0);
                if (b.grad == 0 || is_skipped) && b.len > 0 {
                    let t = &tensors[i];
                    let (address, format) =
                        (if variant.master.is_some() { b.master } else { b.param }, variant.updated());
                    let as_it_was: Vec<u8> = t.updated.iter().flat_map(|&x| format.encode(x)).collect();
                    assert_same(&memory, address, format, &as_it_was, &what);
                    continue;
                }
                check(&memory, variant, b, &expected(variant, &tensors[i], &coeffs[i % 3]), &what);
            }
        }
    }
}

/// Masters are set from their parameters, whatever they held: by the tensor's record, or by the
/// skip word of its coefficients.
#[test]
fn lists_set_masters_from_their_parameters() {
    let (module, chunk) = (module(), chunk());
    let coeffs: Vec<Coeffs> = vec![dual(); 3];
    for variant in all_variants().into_iter().filter(|variant| variant.master.is_some()) {
        for (sets_master, skips) in [(true, None), (true, Some([0, 7, 0])), (false, Some([8, 7, 8]))] {
            let mut memory = Memory::new();
            // The values to update are the parameters', rounded to their format.
            let tensors: Vec<Tensor> = [5, chunk + 3, 17, 33, 4]
                .into_iter()
                .enumerate()
                .map(|(i, len)| {
                    let mut t = tensor(variant, len, i as u64 + 7);
                    t.updated = variant.param.round(&t.updated);
                    t
                })
                .collect();
            let mut placed = Vec::new();
            for (i, t) in tensors.iter().enumerate() {
                let b = place(&mut memory, variant, t, [i % 4, i * 3 % 4, i % 4, (i + i / 3) % 4, i % 2]);
                let params: Vec<u8> = t.updated.iter().flat_map(|&x| variant.param.encode(x)).collect();
                memory.write(b.param, &params).expect("live");
                // Reading a master would be a fault.
                memory.forget(b.master, 4 * b.len).expect("live");
                placed.push(b);
            }
            run_list(&mut memory, &module, variant, &placed, &coeffs, (false, skips), sets_master);
            for (i, b) in placed.iter().enumerate().filter(|(i, _)| skips.is_none_or(|skips| skips[i % 3] != 7)) {
                let what = format!("list_{} tensor {i}", variant.name);
                check(&memory, variant, b, &expected(variant, &tensors[i], &coeffs[i % 3]), &what);
            }
        }
    }
}

/// Builds a list's table and launches one block for each chunk. Returns the number of blocks.
fn run_list(
    memory: &mut Memory,
    module: &Modules,
    variant: Variant,
    placed: &[Buffers],
    coeffs: &[Coeffs],
    (from_device, skips): (bool, Option<[u32; 3]>),
    sets_master: bool,
) -> u32 {
    let chunk = chunk();
    // Empty tensors come last in a table.
    let mut placed = placed.iter().enumerate().collect::<Vec<_>>();
    placed.sort_by_key(|(_, b)| b.len == 0);
    let mut chunk_tensor: Vec<u32> = Vec::new();
    let mut first_chunk = Vec::new();
    for (i, (_, b)) in placed.iter().enumerate() {
        first_chunk.push(chunk_tensor.len() as u32);
        chunk_tensor.extend(std::iter::repeat_n(i as u32, b.len.div_ceil(chunk)));
    }
    let mut table = Vec::new();
    for ((i, b), first_chunk) in placed.iter().zip(first_chunk) {
        table.extend(record(b, first_chunk, (i % coeffs.len()) as u32, sets_master));
    }
    table.extend(chunk_tensor.iter().step_by(constant("SPAN")).flat_map(|tensor| tensor.to_le_bytes()));
    let table_address = upload(memory, &table, 0);
    memory.set_read_only(table_address, table.len(), true).expect("live");

    let packed: Vec<u8> = coeffs.iter().flat_map(Coeffs::bytes).collect();
    let on_device = if from_device { upload(memory, &packed, 0) } else { 0 };
    let by_value = if from_device { Vec::new() } else { packed };

    let skips = skips.map(|skips| skips.iter().flat_map(|skip| skip.to_le_bytes()).collect::<Vec<_>>());
    let skips = skips.map_or(0, |skips| upload(memory, &skips, 0));
    let params = list_params(table_address, placed.len(), [on_device, skips], &by_value);
    let name = format!("list_{}", variant.name);
    launch(memory, module, &name, chunk_tensor.len() as u32, &params);
    chunk_tensor.len() as u32
}

/// A list's record of a tensor.
fn record(b: &Buffers, first_chunk: u32, coeffs_index: u32, sets_master: bool) -> Vec<u8> {
    let Buffers { param, grad, exp_avg, exp_avg_sq, master, len } = *b;
    let last = u64::from(first_chunk) | u64::from(coeffs_index) << 32;
    let words = [param, grad, exp_avg, exp_avg_sq, master, len as u64, last, sets_master.into()];
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// The arguments of a list's entry. `device`: the addresses of the coefficients, if they are not
/// `by_value`, and of the skip words, or 0.
fn list_params(table: u64, tensors: usize, device: [u64; 2], by_value: &[u8]) -> Vec<u8> {
    let words = [table, tensors as u64, device[0], device[1]];
    let mut params: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    params.extend(by_value);
    params.resize(size_of_val(&words) + MAX_COEFFS * 40, 0xff);
    params
}

/// Tensors of more than 2^32 elements, of which only a window has memory: an offset or a length cut
/// to 32 bits misses it.
#[test]
fn offsets_and_lengths_have_64_bits() {
    let (module, chunk) = (module(), chunk());
    // The elements before the window, in it, and behind.
    for (before, len, behind) in [(1 << 35, chunk + 5, 0), (0, chunk, (1 << 32) + 5 - chunk)] {
        for variant in all_variants() {
            for shifts in [[0; 5], [1, 2, 0, 3, 1]] {
                let t = tensor(variant, len, 3);
                let want = expected(variant, &t, &dual());
                let far = |b: &Buffers| {
                    let master = variant.master.map_or(0, |master| b.master - (before * master.size()) as u64);
                    Buffers {
                        param: b.param - (before * variant.param.size()) as u64,
                        grad: b.grad - (before * variant.grad.size()) as u64,
                        exp_avg: b.exp_avg - 4 * before as u64,
                        exp_avg_sq: b.exp_avg_sq - 4 * before as u64,
                        master,
                        len: before + len + behind,
                    }
                };
                let what = format!("{} elements, {} of them before, shifts {shifts:?}", len + before + behind, before);

                let mut memory = Memory::new();
                let b = place(&mut memory, variant, &t, shifts);
                let name = format!("dual_adam_{}", variant.name);
                let params = flat_params(&module, &name, &far(&b), &dual());
                let first = (before / elements_of_a_block()) as u32;
                let blocks = first..first + len.div_ceil(elements_of_a_block()) as u32;
                launch_blocks(&mut memory, &module, &name, flat_blocks(far(&b).len), blocks, &params);
                check(&memory, variant, &b, &want, &format!("{name}, {what}"));

                // The launch begins with the window's first chunk: the number of the tensor's first
                // chunk wraps below 0.
                let mut memory = Memory::new();
                let b = place(&mut memory, variant, &t, shifts);
                let name = format!("list_{}", variant.name);
                let mut table = record(&far(&b), 0_u32.wrapping_sub((before / chunk) as u32), 0, false);
                table.extend([0; 4 * 4]);
                let params = list_params(upload(&mut memory, &table, 0), 1, [0; 2], &dual().bytes());
                launch(&mut memory, &module, &name, len.div_ceil(chunk) as u32, &params);
                check(&memory, variant, &b, &want, &format!("{name}, {what}"));
            }
        }
    }
}

#[test]
fn rounding_ties_to_16_bits_go_to_even() {
    // exp_avg 0 and gradient 0 leave p - 0 = p: the narrowing of every kind of f32 is then seen
    // alone, in the parameter of a master.
    let module = module();
    let still = Coeffs { grad_scale: 1.0, decay: 0.0, ..adam() };
    for (name, format) in [("bf16_f32_master", Format::Bf16), ("f16_f32_master", Format::F16)] {
        let variant = Variant::named(name);
        let mut updated = Vec::new();
        for high in (0..=u16::MAX).step_by(7) {
            for low in [0u32, 1, 0xfff, 0x1000, 0x1001, 0x2fff, 0x3000, 0x7fff, 0x8000, 0x8001, 0xffff] {
                updated.push(f32::from_bits((u32::from(high) << 16) | low));
            }
        }
        let len = updated.len();
        let zeros = vec![0.0; len];
        let t = Tensor { updated, grad: zeros.clone(), exp_avg: zeros.clone(), exp_avg_sq: zeros };
        let still = Coeffs { l2: 0.0, ..still };
        let mut memory = Memory::new();
        let b = place(&mut memory, variant, &t, [0; 5]);
        run_flat(&mut memory, &module, &format!("dual_adam_{name}"), &b, &still);
        let want: Vec<u8> = t.updated.iter().flat_map(|&p| format.encode(p)).collect();
        assert_same(&memory, b.param, format, &want, name);
    }
}

/// Mutants with one instruction changed: the number of the line, and its new text.
fn mutants(text: &str) -> Vec<(usize, String)> {
    let rules = [
        ("add.rn.f32", "sub.rn.f32"),
        ("sub.rn.f32", "add.rn.f32"),
        ("mul.rn.f32", "add.rn.f32"),
        ("div.rn.f32", "mul.rn.f32"),
        ("sqrt.rn.f32", "neg.f32"),
        ("neg.f32", "mov.f32"),
        ("setp.lt.", "setp.le."),
        ("setp.gt.", "setp.ge."),
        ("setp.ge.", "setp.gt."),
        ("setp.eq.", "setp.ne."),
        ("setp.ne.", "setp.eq."),
        ("setp.neu.", "setp.equ."),
        ("shl.b32", "shr.b32"),
        ("shl.b64", "shr.b64"),
        ("add.s64", "sub.s64"),
        ("sub.s64", "add.s64"),
        ("@%p", "@!%p"),
        ("@!%p", "@%p"),
    ];
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        for (from, to) in rules {
            if line.contains(from) {
                found.push((number, line.replacen(from, to, 1)));
            }
        }
        if let Some((head, operands)) = line.split_once("fma.rn.f32").filter(|_| line.contains("fma.rn.f32")) {
            let parts: Vec<&str> = operands.trim().trim_end_matches(';').split(", ").collect();
            found.push((number, format!("{head}fma.rn.f32 {}, {}, {}, {};", parts[0], parts[2], parts[2], parts[3])));
            found.push((number, format!("{head}fma.rn.f32 {}, {}, {}, {};", parts[0], parts[1], parts[2], parts[2])));
        }
        if let Some((head, offset)) = line.rsplit_once('+').filter(|_| line.contains("ld.param.f32")) {
            let offset: u32 = offset.trim_end_matches("];").parse().expect("an offset");
            found.push((number, format!("{head}+{}];", offset ^ 4)));
        }
    }
    let lines: Vec<&str> = text.lines().collect();
    // This mutant changes nothing: at the largest finite number, v becomes that number too.
    let saturates_alike = |line: &str| line.contains("setp.ge.f32") && line.ends_with("0f7F7FFFFF;");
    found.retain(|(number, line)| {
        line.split_whitespace().ne(lines[*number].split_whitespace()) && !saturates_alike(line)
    });
    found
}

/// Lengths and shifts for mutants: heads and tails, each buffer alone misaligned, all of them
/// misaligned, and enough elements that threads take several groups together.
const CASES: [(usize, [usize; 5]); 15] = [
    (1, [0; 5]),
    (6, [3; 5]),
    (13, [2; 5]),
    (1030, [0; 5]),
    (37, [0, 1, 2, 3, 0]),
    (38, [2, 0, 1, 3, 1]),
    (39, [1, 0, 0, 0, 0]),
    (39, [0, 1, 0, 0, 0]),
    (39, [0, 0, 1, 0, 0]),
    (39, [0, 0, 0, 1, 0]),
    (39, [0, 0, 0, 0, 1]),
    (2054, [0; 5]),
    (2057, [0, 1, 2, 3, 0]),
    (2058, [2, 0, 1, 3, 1]),
    (2056, [0, 2, 0, 2, 2]),
];

/// What a kernel leaves in memory and how it moves it.
type Outcome = (Vec<Vec<f32>>, Stats);

fn settings() -> impl Iterator<Item = (usize, [usize; 5], Coeffs)> {
    CASES.iter().flat_map(|(len, shifts)| all_kinds().into_iter().map(|c| (*len, *shifts, c)))
}

/// `None`: a fault.
fn outcome(kernel: &Kernel, variant: Variant, len: usize, shifts: [usize; 5], c: &Coeffs) -> Option<Outcome> {
    let mut memory = Memory::new();
    let b = place(&mut memory, variant, &tensor(variant, len, 5), shifts);
    let words = [b.param, b.grad, b.exp_avg, b.exp_avg_sq, b.master, b.len as u64];
    let mut params: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    params.extend(c.bytes());
    let grid = [flat_blocks(len), 1, 1];
    let launch = Launch { kernel, grid, block: [BLOCK, 1, 1], params: &params, owner: None };
    let stats = run(&mut memory, &launch).ok()?;
    let mut left = Vec::new();
    for (address, format) in [(b.param, variant.param), (b.exp_avg, Format::F32), (b.exp_avg_sq, Format::F32)] {
        left.push(format.decode(memory.read(address, len * format.size()).ok()?));
    }
    if let Some(format) = variant.master {
        left.push(format.decode(memory.read(b.master, len * format.size()).ok()?));
    }
    Some((left, Stats { instructions: 0, ..stats }))
}

/// Equal bits, NaNs as a class, and the same traffic.
fn same_outcome(a: &Outcome, b: &Outcome) -> bool {
    let same_value = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
    a.1 == b.1 && a.0.iter().flatten().zip(b.0.iter().flatten()).all(same_value)
}

/// Whether a text has the right one's outcome in every case.
fn survives(text: &str, name: &str, variant: Variant, right: &[Outcome]) -> bool {
    let module = Module::parse(text).ok();
    let kernel = module.as_ref().and_then(|module| module.kernel(name));
    kernel.is_some_and(|kernel| {
        settings().zip(right).all(|((len, shifts, c), right)| {
            outcome(kernel, variant, len, shifts, &c).is_some_and(|outcome| same_outcome(&outcome, right))
        })
    })
}

#[test]
fn a_kernel_with_one_wrong_instruction_is_caught() {
    for name in ["bf16_bf16_master", "f16_f32"] {
        let text = text_of(name);
        let variant = Variant::named(name);
        let entry_name = format!("dual_adam_{name}");
        // The header and this one entry.
        let header: String = text.lines().take_while(|line| !line.contains(".entry")).flat_map(|l| [l, "\n"]).collect();
        let start = text.find(&format!(".entry {entry_name}(")).expect("the entry");
        let end = start + text[start..].find("\n}").expect("its end") + 2;
        let alone = format!("{header}{}\n", &text[start..end]);
        // The other tests check that the kernel itself is right.
        let module = Module::parse(&alone).expect("PTX");
        let kernel = module.kernel(&entry_name).expect("the entry");
        let right: Vec<Outcome> =
            settings().map(|(len, shifts, c)| outcome(kernel, variant, len, shifts, &c).expect("no fault")).collect();

        let mutants = mutants(&alone);
        let with = |number: usize, line: &str| {
            let lines = alone.lines().enumerate().map(|(n, old)| if n == number { line } else { old });
            lines.flat_map(|line| [line, "\n"]).collect::<String>()
        };
        let survivors: Vec<&(usize, String)> = mutants
            .iter()
            .filter(|(number, line)| survives(&with(*number, line), &entry_name, variant, &right))
            .collect();
        println!("{name}: {} of {} survive: {survivors:#?}", survivors.len(), mutants.len());
        // Some mutants change nothing, such as the sign of a multiple of the alignment.
        assert!(survivors.len() * 20 <= mutants.len(), "{} of {} survive", survivors.len(), mutants.len());
    }
}

/// Prints what a million elements cost; run with `--release --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn speed() {
    let module = module();
    let variant = all_variants()[0];
    let len = 1_000_003;
    let t = tensor(variant, len, 1);
    for shifts in [[0; 5], [0, 1, 2, 3, 0]] {
        let mut memory = Memory::new();
        let b = place(&mut memory, variant, &t, shifts);
        let start = std::time::Instant::now();
        let stats = run_flat(&mut memory, &module, "dual_adam_f32_f32", &b, &dual());
        let seconds = start.elapsed().as_secs_f64();
        let per_second = stats.instructions as f64 / seconds / 1e6;
        println!("shifts {shifts:?}: {} instructions, {seconds:.3} s, {per_second:.0} M/s", stats.instructions);
        let again = std::time::Instant::now();
        run_flat(&mut memory, &module, "dual_adam_f32_f32", &b, &dual());
        println!("again: {:.3} s", again.elapsed().as_secs_f64());
    }
}
