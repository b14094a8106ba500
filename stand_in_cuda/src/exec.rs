//! Runs a launch: groups of threads in step. If threads of a group diverge, those that are furthest
//! behind go first.
//!
//! Within an instruction, and between groups, threads go one after the other. No result may depend
//! on that order: `Memory` reports every byte on which two threads of a launch meet, unless both
//! only read it.

use std::fmt;
use std::ops::Range;

use crate::memory::{Hint, Memory, MemoryFault, Owner, Request, Wrong};
use crate::op::{Access, Compare, GENERIC_PARAM_BASE, Kernel, Op, PARAM_BASE, PARAM_MASK, Slot, Space};
use crate::scalar::{LANES, Lanes};

/// A group of threads that takes more steps than this counts as hanging.
const MOST_STEPS: u64 = 50_000_000;

/// What to run.
#[derive(Debug, Clone, Copy)]
pub struct Launch<'a> {
    /// The kernel.
    pub kernel: &'a Kernel,
    /// Blocks in x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block in x, y and z.
    pub block: [u32; 3],
    /// The argument block.
    pub params: &'a [u8],
    /// The context it runs in: memory of another one is out of reach. `None` reaches all.
    pub owner: Option<Owner>,
}

/// What a launch did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Instructions executed, including those with a false predicate.
    pub instructions: u64,
    /// Threads run.
    pub threads: u64,
    /// Loads from global memory of 1, 2, 4, 8 and 16 bytes.
    pub loads: [u64; 5],
    /// Stores to global memory of 1, 2, 4, 8 and 16 bytes.
    pub stores: [u64; 5],
}

impl Stats {
    /// Bytes that went through global loads and stores.
    pub fn bytes(&self) -> u64 {
        let sum = |counts: &[u64; 5]| counts.iter().enumerate().map(|(log, count)| count << log).sum::<u64>();
        sum(&self.loads) + sum(&self.stores)
    }

    /// Adds another launch's numbers.
    pub fn add(&mut self, other: &Self) {
        self.instructions += other.instructions;
        self.threads += other.threads;
        for log in 0..5 {
            self.loads[log] += other.loads[log];
            self.stores[log] += other.stores[log];
        }
    }
}

/// What went wrong in a thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// A wrong access.
    Memory(MemoryFault),
    /// A parameter read outside of a parameter.
    ParamOutOfBounds(u64),
    /// A register, by name, that was read before it was written.
    Undefined(String),
    /// An integer division by 0.
    DivisionByZero,
    /// `trap`.
    Trap,
    /// The end of the kernel without `ret`.
    NoReturn,
    /// More steps than any sound thread needs.
    Endless,
    /// A launch that cannot run at all.
    BadLaunch(String),
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory(fault) => fault.fmt(f),
            Self::ParamOutOfBounds(address) => write!(f, "parameter address {address:#x} outside of its parameter"),
            Self::Undefined(name) => write!(f, "register {name} read before it was written"),
            Self::DivisionByZero => write!(f, "integer division by 0"),
            Self::Trap => write!(f, "trap"),
            Self::NoReturn => write!(f, "the kernel ends without ret"),
            Self::Endless => write!(f, "more than {MOST_STEPS} steps of one group of threads"),
            Self::BadLaunch(what) => write!(f, "bad launch: {what}"),
        }
    }
}

/// A fault: its cause and where it happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The cause.
    pub cause: Cause,
    /// The kernel's name.
    pub kernel: String,
    /// The line of the text, counted from 1, and the line itself.
    pub line: u32,
    /// The instruction.
    pub text: String,
    /// The block's index.
    pub block: [u32; 3],
    /// The thread's index in its block.
    pub thread: [u32; 3],
}

impl Fault {
    /// What was wrong with an access, where it was one.
    pub fn wrong(&self) -> Option<Wrong> {
        match &self.cause {
            Cause::Memory(fault) => Some(fault.wrong),
            _ => None,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cause, kernel, line, text, block, thread } = self;
        write!(f, "{cause}; in {kernel}, block {block:?}, thread {thread:?}, line {line}: `{text}`")
    }
}

impl std::error::Error for Fault {}

/// Runs a launch to its end.
///
/// # Errors
///
/// The first fault; what was written before it stays written.
pub fn run(memory: &mut Memory, launch: &Launch<'_>) -> Result<Stats, Box<Fault>> {
    run_blocks(memory, launch, 0..launch.grid[0])
}

/// Runs only the blocks of a launch that have these indices in x.
///
/// # Errors
///
/// As for [`run`].
pub fn run_blocks(memory: &mut Memory, launch: &Launch<'_>, range: Range<u32>) -> Result<Stats, Box<Fault>> {
    let kernel = launch.kernel;
    let [_, y, z] = launch.grid;
    let blocks = [range.len() as u64, u64::from(y), u64::from(z)].iter().product::<u64>();
    let threads_per_block = launch.block.iter().map(|&n| u64::from(n)).product::<u64>();
    let bad = |what: String| {
        Box::new(Fault {
            cause: Cause::BadLaunch(what),
            kernel: kernel.name.clone(),
            line: 0,
            text: String::new(),
            block: [0; 3],
            thread: [0; 3],
        })
    };
    if blocks == 0 || threads_per_block == 0 || threads_per_block > kernel.max_threads.unwrap_or(1024) {
        return Err(bad(format!("{blocks} blocks of {threads_per_block} threads")));
    }
    if launch.params.len() != kernel.param_bytes() {
        let (given, wanted) = (launch.params.len(), kernel.param_bytes());
        return Err(bad(format!("{given} bytes of arguments for parameters of {wanted}")));
    }
    if !memory.begin_launch(blocks.saturating_mul(threads_per_block), launch.owner) {
        return Err(bad(format!("{blocks} blocks are more than an interpreter can tell apart")));
    }
    let mut machine =
        Machine { memory, launch, hints: vec![0; kernel.accesses.len()], stats: Stats::default(), first: 0 };
    machine.run_all(range)?;
    Ok(machine.stats)
}

struct Machine<'a> {
    memory: &'a mut Memory,
    launch: &'a Launch<'a>,
    /// For each access, the allocation that it touched last.
    hints: Vec<Hint>,
    stats: Stats,
    /// The number of the group's first thread in the launch.
    first: u32,
}

/// One bit for each lane.
type Mask = u32;

/// The slots of a group of threads, and in which lanes each holds a value.
struct File {
    values: Vec<Lanes>,
    ready: Vec<Mask>,
}

impl File {
    /// The values of a slot. Fails unless all lanes of the mask have one.
    #[inline(always)]
    fn get(&self, slot: Slot, mask: Mask) -> Result<&Lanes, Stop> {
        let missing = mask & !self.ready[usize::from(slot)];
        if missing == 0 { Ok(&self.values[usize::from(slot)]) } else { Err(Stop::undefined(slot, missing)) }
    }

    #[inline(always)]
    fn set(&mut self, slot: Slot, mask: Mask, new: Lanes) {
        self.ready[usize::from(slot)] |= mask;
        let values = &mut self.values[usize::from(slot)];
        if mask == Mask::MAX {
            *values = new;
        } else {
            for lane in lanes_of(mask) {
                values[lane] = new[lane];
            }
        }
    }
}

fn lanes_of(mask: Mask) -> impl Iterator<Item = usize> {
    let mut left = mask;
    std::iter::from_fn(move || {
        let lane = left.trailing_zeros() as usize;
        left &= left.wrapping_sub(1);
        (lane < LANES).then_some(lane)
    })
}

/// A stop in one lane. `Machine::place` adds where it was.
struct Stop {
    lane: usize,
    why: Why,
}

enum Why {
    Undefined(Slot),
    Other(Box<Cause>),
}

impl Stop {
    #[cold]
    fn new(lane: usize, cause: Cause) -> Self {
        Self { lane, why: Why::Other(Box::new(cause)) }
    }

    #[cold]
    fn undefined(slot: Slot, missing: Mask) -> Self {
        Self { lane: missing.trailing_zeros() as usize, why: Why::Undefined(slot) }
    }

    #[cold]
    fn first_of(mask: Mask, cause: Cause) -> Self {
        Self::new(mask.trailing_zeros() as usize, cause)
    }
}

/// Threads of a group that stand at the same operation.
#[derive(Debug, Clone, Copy)]
struct Party {
    at: u32,
    mask: Mask,
}

fn indices(extent: [u32; 3]) -> impl Iterator<Item = [u32; 3]> {
    let [x, y, z] = extent;
    (0..z).flat_map(move |k| (0..y).flat_map(move |j| (0..x).map(move |i| [i, j, k])))
}

impl Machine<'_> {
    fn run_all(&mut self, range: Range<u32>) -> Result<(), Box<Fault>> {
        let Launch { kernel, grid, block, .. } = *self.launch;
        let ready: Vec<Mask> = kernel.ready.iter().map(|&ready| if ready { Mask::MAX } else { 0 }).collect();
        let values = kernel.initial.iter().map(|&value| [value; LANES]).collect();
        let mut file = File { values, ready: ready.clone() };
        let threads: Vec<[u32; 3]> = indices(block).collect();
        let extent = [range.len() as u32, grid[1], grid[2]];
        for block_index in indices(extent).map(|[x, y, z]| [range.start + x, y, z]) {
            for (slot, value) in [block_index, block, grid].as_flattened().iter().enumerate() {
                file.values[3 + slot] = [u64::from(*value); LANES];
            }
            for group in threads.chunks(LANES) {
                for (lane, index) in group.iter().enumerate() {
                    for (values, &index) in file.values.iter_mut().zip(index) {
                        values[lane] = u64::from(index);
                    }
                }
                file.ready.copy_from_slice(&ready);
                let mut party = Party { at: 0, mask: Mask::MAX >> (LANES - group.len()) };
                let result = self.run_group(kernel, &mut file, &mut party);
                result.map_err(|stop| self.place(&stop, party.at, block_index, group))?;
                self.stats.threads += group.len() as u64;
                self.first += group.len() as u32;
            }
        }
        Ok(())
    }

    #[cold]
    fn place(&self, stop: &Stop, at: u32, block: [u32; 3], group: &[[u32; 3]]) -> Box<Fault> {
        let kernel = self.launch.kernel;
        let line = kernel.lines.get(at as usize).copied().unwrap_or_default();
        let cause = match &stop.why {
            Why::Undefined(slot) => Cause::Undefined(kernel.names[usize::from(*slot)].clone()),
            Why::Other(cause) => Cause::clone(cause),
        };
        let thread = group.get(stop.lane).copied().unwrap_or_default();
        let (kernel, text) = (kernel.name.clone(), kernel.text(line).to_owned());
        Box::new(Fault { cause, kernel, line, text, block, thread })
    }

    /// Runs a group to its end. Of several parties the one at the smallest operation goes first, so
    /// that diverged parties meet again after an `if` or a loop.
    fn run_group(&mut self, kernel: &Kernel, file: &mut File, party: &mut Party) -> Result<(), Stop> {
        let mut waiting: Vec<Party> = Vec::new();
        let mut next_stop = u32::MAX;
        let mut steps = 0u64;
        loop {
            if party.at >= next_stop || party.mask == 0 {
                waiting.push(*party);
                match gather(&mut waiting) {
                    Some(first) => *party = first,
                    None => return Ok(()),
                }
                next_stop = waiting.iter().map(|party| party.at).min().unwrap_or(u32::MAX);
            }
            let Some(op) = kernel.ops.get(party.at as usize) else {
                return Err(Stop::first_of(party.mask, Cause::NoReturn));
            };
            steps += 1;
            if steps > MOST_STEPS {
                return Err(Stop::first_of(party.mask, Cause::Endless));
            }
            self.stats.instructions += u64::from(party.mask.count_ones());
            if let Some(other) = self.step(kernel, file, op, party)? {
                next_stop = next_stop.min(other.at);
                waiting.push(other);
            }
        }
    }

    /// Executes one operation and moves the party on; returns the threads that go elsewhere.
    #[inline(always)]
    fn step(&mut self, kernel: &Kernel, file: &mut File, op: &Op, party: &mut Party) -> Result<Option<Party>, Stop> {
        let mask = party.mask;
        match *op {
            Op::Unary { f, d, a } => {
                let result = f(file.get(a, mask)?);
                file.set(d, mask, result);
            }
            Op::Binary { f, d, a, b } => {
                let result = f(file.get(a, mask)?, file.get(b, mask)?);
                file.set(d, mask, result);
            }
            Op::Ternary { f, d, a, b, c } => {
                let result = f(file.get(a, mask)?, file.get(b, mask)?, file.get(c, mask)?);
                file.set(d, mask, result);
            }
            Op::Quaternary { f, d, from: [a, b, c, e] } => {
                let result = f(file.get(a, mask)?, file.get(b, mask)?, file.get(c, mask)?, file.get(e, mask)?);
                file.set(d, mask, result);
            }
            Op::Move { d, a } => {
                let result = *file.get(a, mask)?;
                file.set(d, mask, result);
            }
            Op::Divide { f, d, a, b } => {
                let divisors = *file.get(b, mask)?;
                if let Some(lane) = lanes_of(mask).find(|&lane| divisors[lane] == 0) {
                    return Err(Stop::new(lane, Cause::DivisionByZero));
                }
                // Lanes that take no part may hold anything.
                let result = f(file.get(a, mask)?, &divisors.map(|b| b.max(1)));
                file.set(d, mask, result);
            }
            Op::Convert { index, d, a } => {
                let [first, second, third] = kernel.conversions[usize::from(index)];
                let result = third(&second(&first(file.get(a, mask)?)));
                file.set(d, mask, result);
            }
            Op::Compare { index } => compare(&kernel.compares[usize::from(index)], file, mask)?,
            Op::Select { d, a, b, p } => {
                let (a, b, p) = (file.get(a, mask)?, file.get(b, mask)?, file.get(p, mask)?);
                let mut result = *b;
                for lane in 0..LANES {
                    if p[lane] != 0 {
                        result[lane] = a[lane];
                    }
                }
                file.set(d, mask, result);
            }
            Op::Pack { d, parts, count, bits } => {
                let mut result = [0; LANES];
                for (place, &part) in parts[..usize::from(count)].iter().enumerate() {
                    let part = file.get(part, mask)?;
                    for lane in 0..LANES {
                        result[lane] |= part[lane] << (place * usize::from(bits));
                    }
                }
                file.set(d, mask, result);
            }
            Op::Unpack { parts, count, bits, a } => {
                let value = *file.get(a, mask)?;
                for (place, &part) in parts[..usize::from(count)].iter().enumerate() {
                    let shift = place * usize::from(bits);
                    file.set(part, mask, value.map(|value| (value >> shift) & ((1 << bits) - 1)));
                }
            }
            Op::Load { index } => self.load(&kernel.accesses[usize::from(index)], usize::from(index), file, mask)?,
            Op::Store { index } => self.store(&kernel.accesses[usize::from(index)], usize::from(index), file, mask)?,
            Op::Prefetch { base, offset } => {
                let bases = *file.get(base, mask)?;
                for lane in lanes_of(mask) {
                    let checked = self.memory.check(bases[lane].wrapping_add_signed(offset), 1);
                    checked.map_err(|fault| Stop::new(lane, Cause::Memory(fault)))?;
                }
            }
            Op::Guard { p, when } => {
                // Guard and guarded operation are one instruction: threads that go on are counted
                // there.
                let go_on = holds(file.get(p, mask)?, when) & mask;
                self.stats.instructions -= u64::from(go_on.count_ones());
                *party = Party { at: party.at + 1, mask: go_on };
                return Ok(Some(Party { at: party.at + 1, mask: mask & !go_on }).filter(|party| party.mask != 0));
            }
            Op::Branch { to } => {
                party.at = to;
                return Ok(None);
            }
            Op::BranchIf { p, when, to } => {
                let jump = holds(file.get(p, mask)?, when) & mask;
                let stay = Party { at: party.at + 1, mask: mask & !jump };
                *party = Party { at: to, mask: jump };
                if jump == 0 {
                    *party = stay;
                    return Ok(None);
                }
                return Ok(Some(stay).filter(|party| party.mask != 0));
            }
            Op::Return => {
                party.mask = 0;
                return Ok(None);
            }
            Op::Trap => return Err(Stop::first_of(mask, Cause::Trap)),
        }
        party.at += 1;
        Ok(None)
    }

    fn load(&mut self, access: &Access, index: usize, file: &mut File, mask: Mask) -> Result<(), Stop> {
        let bases = *file.get(access.base, mask)?;
        let bytes = usize::from(access.bytes) * usize::from(access.count);
        let mut elements = [[0u64; LANES]; 4];
        for lane in lanes_of(mask) {
            let address = bases[lane].wrapping_add_signed(access.offset);
            let mut value = self.load_one(access, index, bytes, lane, address)?;
            for element in &mut elements[..usize::from(access.count)] {
                element[lane] = value as u64;
                value >>= 8 * access.bytes;
            }
        }
        for (element, &slot) in elements.iter().zip(&access.slots).take(usize::from(access.count)) {
            file.set(slot, mask, (access.chop)(&(access.extend)(element)));
        }
        Ok(())
    }

    #[inline(always)]
    fn load_one(
        &mut self,
        access: &Access,
        index: usize,
        bytes: usize,
        lane: usize,
        address: u64,
    ) -> Result<u128, Stop> {
        let is_generic_param = access.space == Space::Generic && address & !PARAM_MASK == GENERIC_PARAM_BASE;
        if access.space == Space::Param || is_generic_param {
            let base = if is_generic_param { GENERIC_PARAM_BASE } else { PARAM_BASE };
            return self.param(address, base, bytes).map_err(|cause| Stop::new(lane, cause));
        }
        self.stats.loads[bytes.ilog2() as usize] += 1;
        let request = Request { address, thread: self.first + lane as u32, read_only_path: access.read_only_path };
        let hint = &mut self.hints[index];
        let result = match bytes {
            1 => self.memory.load::<1>(hint, request),
            2 => self.memory.load::<2>(hint, request),
            4 => self.memory.load::<4>(hint, request),
            8 => self.memory.load::<8>(hint, request),
            _ => self.memory.load::<16>(hint, request),
        };
        result.map(u128::from_le_bytes).map_err(|fault| Stop::new(lane, Cause::Memory(fault)))
    }

    fn store(&mut self, access: &Access, index: usize, file: &mut File, mask: Mask) -> Result<(), Stop> {
        let bases = *file.get(access.base, mask)?;
        let bytes = usize::from(access.bytes) * usize::from(access.count);
        let mut values = [0u128; LANES];
        for &slot in access.slots[..usize::from(access.count)].iter().rev() {
            let element = (access.extend)(file.get(slot, mask)?);
            for lane in 0..LANES {
                values[lane] = (values[lane] << (8 * access.bytes)) | u128::from(element[lane]);
            }
        }
        for lane in lanes_of(mask) {
            let address = bases[lane].wrapping_add_signed(access.offset);
            self.stats.stores[bytes.ilog2() as usize] += 1;
            let request = Request { address, thread: self.first + lane as u32, read_only_path: false };
            let (hint, value) = (&mut self.hints[index], values[lane].to_le_bytes());
            let result = match bytes {
                1 => self.memory.store::<1>(hint, request, &value),
                2 => self.memory.store::<2>(hint, request, &value),
                4 => self.memory.store::<4>(hint, request, &value),
                8 => self.memory.store::<8>(hint, request, &value),
                _ => self.memory.store::<16>(hint, request, &value),
            };
            result.map_err(|fault| Stop::new(lane, Cause::Memory(fault)))?;
        }
        Ok(())
    }

    /// Bytes of a parameter: an address names the parameter and an offset in it.
    fn param(&self, address: u64, base: u64, bytes: usize) -> Result<u128, Cause> {
        let out = || Cause::ParamOutOfBounds(address);
        if address & !PARAM_MASK != base || address & (bytes as u64 - 1) != 0 {
            return Err(out());
        }
        let (index, offset) = (((address & PARAM_MASK) >> 32) as usize, (address & 0xffff_ffff) as usize);
        let param = self.launch.kernel.params.get(index).ok_or_else(out)?;
        if offset + bytes > param.size {
            return Err(out());
        }
        let from = param.offset + offset;
        let mut value = [0; 16];
        value[..bytes].copy_from_slice(&self.launch.params[from..from + bytes]);
        Ok(u128::from_le_bytes(value))
    }
}

/// The lanes where a predicate is `when`.
fn holds(p: &Lanes, when: bool) -> Mask {
    p.iter().rev().fold(0, |mask, &value| mask << 1 | Mask::from((value != 0) == when))
}

/// Takes the party furthest behind out of the list, joined with all others at the same operation.
/// Empty parties are dropped.
fn gather(waiting: &mut Vec<Party>) -> Option<Party> {
    waiting.retain(|party| party.mask != 0);
    let at = waiting.iter().map(|party| party.at).min()?;
    let mask = waiting.iter().filter(|party| party.at == at).fold(0, |mask, party| mask | party.mask);
    waiting.retain(|party| party.at != at);
    Some(Party { at, mask })
}

fn compare(op: &Compare, file: &mut File, mask: Mask) -> Result<(), Stop> {
    let result = (op.compare)(file.get(op.a, mask)?, file.get(op.b, mask)?);
    let c = file.get(op.c, mask)?.map(|c| c ^ u64::from(op.c_is_negated));
    file.set(op.d, mask, (op.join)(&result, &c));
    if let Some(opposite) = op.opposite {
        file.set(opposite, mask, (op.join)(&result.map(|result| result ^ 1), &c));
    }
    Ok(())
}
