//! Device memory: allocations at addresses that no host pointer has, and what is known about each
//! of their bytes.
//!
//! Every byte knows whether it was ever written, whether it may be written, and who touched it in
//! the launch under way. Addresses are never used twice, so that a use after free is seen as such.

use std::fmt;

/// The lowest device address. No host pointer looks like it: bits 48 to 63 of a host pointer are
/// all alike.
const FIRST_ADDRESS: u64 = 0x00d0_0000_0000_0000;
/// Allocations are aligned to 256 bytes and, on purpose, to no more than that.
const ALIGNMENT: u64 = 256;
/// The gap between two allocations, in which a wrong 32-bit offset ends.
const GUARD: u64 = 1 << 33;

const WRITTEN: u8 = 1;
const READ_ONLY: u8 = 2;

/// Whether a number may be a device address.
pub(crate) fn is_device_address(address: u64) -> bool {
    (FIRST_ADDRESS..FIRST_ADDRESS + (1 << 52)).contains(&address)
}

/// What was wrong with an access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrong {
    /// No live allocation holds all of its bytes.
    OutOfBounds,
    /// The address is not a multiple of the access's width.
    Misaligned,
    /// The memory was freed.
    Freed,
    /// The memory belongs to another context.
    OtherContext,
    /// Bytes that nothing ever wrote.
    NeverWritten,
    /// Bytes marked as read-only.
    ReadOnly,
    /// Bytes that another thread of the same launch wrote, or reads while this one writes them.
    Race,
    /// Bytes read through `ld.global.nc` and written in the same launch.
    ReadOnlyPath,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OutOfBounds => "out of bounds",
            Self::Misaligned => "misaligned",
            Self::Freed => "memory that was freed",
            Self::OtherContext => "memory of another context",
            Self::NeverWritten => "bytes that were never written",
            Self::ReadOnly => "read-only bytes",
            Self::Race => "a race with another thread of the launch",
            Self::ReadOnlyPath => "bytes read through the read-only path and written in one launch",
        })
    }
}

/// A wrong access: what, where, how many bytes, and near which allocation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryFault {
    /// What was wrong.
    pub wrong: Wrong,
    /// The first byte of the access.
    pub address: u64,
    /// Its width.
    pub bytes: usize,
    /// The allocation it lies in, or the nearest one before it: base and length.
    pub near: Option<(u64, u64)>,
}

impl fmt::Display for MemoryFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} bytes at {:#x}", self.wrong, self.bytes, self.address)?;
        match self.near {
            Some((base, len)) => {
                write!(
                    f,
                    ", which is byte {} of the allocation of {len} bytes at {base:#x}",
                    self.address.wrapping_sub(base)
                )
            }
            None => write!(f, ", before any allocation"),
        }
    }
}

impl std::error::Error for MemoryFault {}

/// A context, which owns allocations and makes accesses.
pub type Owner = u64;

/// The first and one past the last byte that a launch read or wrote in an allocation; empty where
/// `from >= to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hull {
    /// The first byte.
    pub from: u64,
    /// One past the last byte.
    pub to: u64,
}

impl Hull {
    /// No byte at all.
    pub const EMPTY: Self = Self { from: u64::MAX, to: 0 };

    /// A range.
    pub fn new(address: u64, bytes: u64) -> Self {
        Self { from: address, to: address + bytes }
    }

    /// Whether it holds no byte.
    pub fn is_empty(&self) -> bool {
        self.from >= self.to
    }

    /// Whether both hold some byte.
    pub fn meets(&self, other: &Self) -> bool {
        self.from < other.to && other.from < self.to
    }

    /// Whether all of `other` lies in it.
    pub fn covers(&self, other: &Self) -> bool {
        self.from <= other.from && other.to <= self.to
    }

    fn add(&mut self, address: u64, bytes: u64) {
        self.from = self.from.min(address);
        self.to = self.to.max(address + bytes);
    }
}

#[derive(Debug)]
struct Block {
    base: u64,
    len: u64,
    owner: Owner,
    is_live: bool,
    data: Vec<u8>,
    flags: Vec<u8>,
    /// For each byte, who touched it last: see `touch`. Allocated when a launch first touches the
    /// allocation.
    touches: Vec<u32>,
    read: Hull,
    written: Hull,
    /// Whether this launch has touched it.
    is_in_use: bool,
}

/// How a byte was touched in a launch, in the low bits of its entry; above them is the number of
/// the thread, counted through all launches, so that the number tells the entries of earlier
/// launches.
mod touch {
    pub(super) const BITS: u32 = 2;
    pub(super) const MASK: u32 = (1 << BITS) - 1;
    pub(super) const READ_BY_ONE: u32 = 0;
    pub(super) const READ_BY_MANY: u32 = 1;
    pub(super) const READ_ONLY_PATH: u32 = 2;
    pub(super) const WRITTEN: u32 = 3;
    /// Numbers of threads are smaller than this.
    pub(super) const THREADS: u64 = 1 << (32 - BITS);
}

/// All of a machine's device memory.
#[derive(Debug)]
pub struct Memory {
    /// In the order of their addresses; freed ones stay, without their bytes.
    blocks: Vec<Block>,
    next_address: u64,
    live_bytes: u64,
    /// The number of the launch's first thread; smaller ones belong to earlier launches.
    launch_floor: u32,
    next_thread: u32,
    in_use: Vec<usize>,
    asker: Option<Owner>,
}

/// Who asks for which bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Request {
    pub(crate) address: u64,
    /// The number of the thread in the launch.
    pub(crate) thread: u32,
    pub(crate) read_only_path: bool,
}

/// A guess which allocation an access will touch: the one that the same instruction touched before.
pub(crate) type Hint = usize;

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

impl Memory {
    /// Memory without an allocation.
    pub fn new() -> Self {
        Self {
            blocks: Vec::new(),
            next_address: FIRST_ADDRESS + ALIGNMENT,
            live_bytes: 0,
            launch_floor: 1,
            next_thread: 1,
            in_use: Vec::new(),
            asker: None,
        }
    }

    /// A new allocation, none of its bytes written.
    pub fn allocate(&mut self, bytes: usize, owner: Owner) -> u64 {
        let base = self.next_address;
        // Odd multiples of the alignment: no allocation has a larger one.
        self.next_address = (base + bytes as u64 + GUARD).next_multiple_of(2 * ALIGNMENT) + ALIGNMENT;
        self.live_bytes += bytes as u64;
        self.blocks.push(Block {
            base,
            len: bytes as u64,
            owner,
            is_live: true,
            data: vec![0; bytes],
            flags: vec![0; bytes],
            touches: Vec::new(),
            read: Hull::EMPTY,
            written: Hull::EMPTY,
            is_in_use: false,
        });
        base
    }

    /// Frees the allocation that begins at `base`.
    ///
    /// # Errors
    ///
    /// When no live allocation begins there.
    pub fn free(&mut self, base: u64) -> Result<(), MemoryFault> {
        let index = self.find(base).filter(|&index| self.blocks[index].base == base);
        let Some(index) = index else {
            return Err(self.fault(Wrong::OutOfBounds, base, 0));
        };
        let block = &mut self.blocks[index];
        if !block.is_live {
            return Err(self.fault(Wrong::Freed, base, 0));
        }
        block.is_live = false;
        self.live_bytes -= block.len;
        (block.data, block.flags, block.touches) = (Vec::new(), Vec::new(), Vec::new());
        Ok(())
    }

    /// Frees all that an owner has.
    pub fn free_all_of(&mut self, owner: Owner) {
        let bases: Vec<u64> =
            self.blocks.iter().filter(|block| block.is_live && block.owner == owner).map(|block| block.base).collect();
        for base in bases {
            // Each was live just now.
            let _ = self.free(base);
        }
    }

    /// The live allocation around an address: base, length and owner.
    pub fn allocation(&self, address: u64) -> Option<(u64, u64, Owner)> {
        let block = &self.blocks[self.find(address)?];
        (block.is_live && address < block.base + block.len).then_some((block.base, block.len, block.owner))
    }

    /// Bytes in live allocations.
    pub fn live_bytes(&self) -> u64 {
        self.live_bytes
    }

    /// How many allocations are live.
    pub fn live_allocations(&self) -> usize {
        self.blocks.iter().filter(|block| block.is_live).count()
    }

    /// Checks that a live allocation holds all of these bytes.
    ///
    /// # Errors
    ///
    /// When none does.
    pub fn check(&self, address: u64, bytes: usize) -> Result<(), MemoryFault> {
        self.locate(address, bytes).map(|_| ())
    }

    /// Copies from the host.
    ///
    /// # Errors
    ///
    /// Out of bounds, freed, or read-only.
    pub fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), MemoryFault> {
        let (index, at) = self.locate_writable(address, bytes.len())?;
        let block = &mut self.blocks[index];
        block.data[at..at + bytes.len()].copy_from_slice(bytes);
        block.flags[at..at + bytes.len()].iter_mut().for_each(|flag| *flag |= WRITTEN);
        Ok(())
    }

    /// Copies to the host.
    ///
    /// # Errors
    ///
    /// Out of bounds, freed, or bytes that were never written.
    pub fn read(&self, address: u64, bytes: usize) -> Result<&[u8], MemoryFault> {
        let (index, at) = self.locate(address, bytes)?;
        let block = &self.blocks[index];
        match block.flags[at..at + bytes].iter().position(|flag| flag & WRITTEN == 0) {
            Some(first) => Err(self.fault(Wrong::NeverWritten, address + first as u64, bytes - first)),
            None => Ok(&block.data[at..at + bytes]),
        }
    }

    /// Copies inside the device: bytes that were never written stay so.
    ///
    /// # Errors
    ///
    /// Out of bounds, freed, or read-only.
    pub fn copy(&mut self, to: u64, from: u64, bytes: usize) -> Result<(), MemoryFault> {
        let (source, at) = self.locate(from, bytes)?;
        let data = self.blocks[source].data[at..at + bytes].to_vec();
        let written: Vec<u8> = self.blocks[source].flags[at..at + bytes].iter().map(|flag| flag & WRITTEN).collect();
        let (target, at) = self.locate_writable(to, bytes)?;
        let block = &mut self.blocks[target];
        block.data[at..at + bytes].copy_from_slice(&data);
        for (flag, written) in block.flags[at..at + bytes].iter_mut().zip(written) {
            *flag = (*flag & !WRITTEN) | written;
        }
        Ok(())
    }

    /// Marks a range as read-only, or as writable again.
    ///
    /// # Errors
    ///
    /// Out of bounds or freed.
    pub fn set_read_only(&mut self, address: u64, bytes: usize, read_only: bool) -> Result<(), MemoryFault> {
        let (index, at) = self.locate(address, bytes)?;
        for flag in &mut self.blocks[index].flags[at..at + bytes] {
            *flag = if read_only { *flag | READ_ONLY } else { *flag & !READ_ONLY };
        }
        Ok(())
    }

    /// Marks a range as never written.
    ///
    /// # Errors
    ///
    /// Out of bounds or freed.
    pub fn forget(&mut self, address: u64, bytes: usize) -> Result<(), MemoryFault> {
        let (index, at) = self.locate(address, bytes)?;
        self.blocks[index].flags[at..at + bytes].iter_mut().for_each(|flag| *flag &= !WRITTEN);
        Ok(())
    }

    // ---- A launch ----

    /// Begins a launch of this many threads for a context (`None` may touch all memory). Returns
    /// `false` when there are more threads than can be told apart.
    pub(crate) fn begin_launch(&mut self, threads: u64, asker: Option<Owner>) -> bool {
        if threads >= touch::THREADS {
            return false;
        }
        if u64::from(self.next_thread) + threads >= touch::THREADS {
            self.blocks.iter_mut().for_each(|block| block.touches.fill(0));
            self.next_thread = 1;
        }
        self.launch_floor = self.next_thread;
        self.next_thread += threads as u32;
        self.asker = asker;
        for index in std::mem::take(&mut self.in_use) {
            let block = &mut self.blocks[index];
            (block.read, block.written, block.is_in_use) = (Hull::EMPTY, Hull::EMPTY, false);
        }
        true
    }

    /// What the last launch read and wrote, allocation by allocation: base, read, written.
    pub(crate) fn touched(&self) -> impl Iterator<Item = (u64, Hull, Hull)> {
        self.in_use.iter().map(|&index| {
            let block = &self.blocks[index];
            (block.base, block.read, block.written)
        })
    }

    /// A kernel's load of `N` bytes.
    #[inline]
    pub(crate) fn load<const N: usize>(&mut self, hint: &mut Hint, request: Request) -> Result<[u8; 16], MemoryFault> {
        let (index, at) = self.enter(hint, request.address, N)?;
        let floor = self.launch_floor;
        let number = floor + request.thread;
        let kind = if request.read_only_path { touch::READ_ONLY_PATH } else { touch::READ_BY_ONE };
        let block = &mut self.blocks[index];
        let touches = window::<N, _>(&mut block.touches, at);
        // Without early exits, so that the compiler works on all bytes at once.
        if touches.iter().fold(0, |most, &entry| most.max(entry)) >> touch::BITS < floor {
            *touches = [number << touch::BITS | kind; N];
        } else if let Err(wrong) = touches.iter_mut().try_for_each(|entry| mark_read(entry, floor, number, kind)) {
            return Err(self.fault(wrong, request.address, N));
        }
        if window::<N, _>(&mut block.flags, at).iter().fold(WRITTEN, |all, flag| all & flag) == 0 {
            return Err(self.fault(Wrong::NeverWritten, request.address, N));
        }
        block.read.add(request.address, N as u64);
        let mut value = [0; 16];
        value[..N].copy_from_slice(window::<N, _>(&mut block.data, at));
        Ok(value)
    }

    /// A kernel's store of the first `N` bytes of `value`.
    #[inline]
    pub(crate) fn store<const N: usize>(
        &mut self,
        hint: &mut Hint,
        request: Request,
        value: &[u8; 16],
    ) -> Result<(), MemoryFault> {
        let (index, at) = self.enter(hint, request.address, N)?;
        let floor = self.launch_floor;
        let number = floor + request.thread;
        let block = &mut self.blocks[index];
        let touches = window::<N, _>(&mut block.touches, at);
        let own = number << touch::BITS;
        // The usual case: read by this thread alone, if by anyone.
        let is_usual = touches.iter().fold(true, |all, &entry| all & (entry >> touch::BITS < floor || entry == own));
        if !is_usual && let Err(wrong) = touches.iter().try_for_each(|&entry| check_write(entry, floor, number)) {
            return Err(self.fault(wrong, request.address, N));
        }
        *touches = [own | touch::WRITTEN; N];
        let flags = window::<N, _>(&mut block.flags, at);
        if flags.iter().fold(0, |any, flag| any | flag) & READ_ONLY != 0 {
            return Err(self.fault(Wrong::ReadOnly, request.address, N));
        }
        *flags = [WRITTEN; N];
        block.written.add(request.address, N as u64);
        *window(&mut block.data, at) = *window::<N, _>(&mut value.clone(), 0);
        Ok(())
    }

    /// Finds the bytes of a kernel's access and checks the alignment.
    #[inline]
    fn enter(&mut self, hint: &mut Hint, address: u64, bytes: usize) -> Result<(usize, usize), MemoryFault> {
        if address & (bytes as u64 - 1) != 0 {
            return Err(self.fault(Wrong::Misaligned, address, bytes));
        }
        if let Some(block) = self.blocks.get(*hint)
            && block.is_in_use
            && address >= block.base
            && address - block.base + bytes as u64 <= block.len
        {
            return Ok((*hint, (address - block.base) as usize));
        }
        self.enter_anew(hint, address, bytes)
    }

    #[cold]
    fn enter_anew(&mut self, hint: &mut Hint, address: u64, bytes: usize) -> Result<(usize, usize), MemoryFault> {
        let (index, at) = self.locate(address, bytes)?;
        let block = &mut self.blocks[index];
        if self.asker.is_some_and(|asker| asker != block.owner) {
            return Err(self.fault(Wrong::OtherContext, address, bytes));
        }
        if !block.is_in_use {
            block.is_in_use = true;
            self.in_use.push(index);
        }
        if block.touches.is_empty() {
            block.touches = vec![0; block.len as usize];
        }
        *hint = index;
        Ok((index, at))
    }

    // ---- Finding ----

    /// The last allocation, live or not, that begins at or before an address.
    fn find(&self, address: u64) -> Option<usize> {
        self.blocks.partition_point(|block| block.base <= address).checked_sub(1)
    }

    fn locate(&self, address: u64, bytes: usize) -> Result<(usize, usize), MemoryFault> {
        let Some(index) = self.find(address) else {
            return Err(self.fault(Wrong::OutOfBounds, address, bytes));
        };
        let block = &self.blocks[index];
        let offset = address - block.base;
        if offset.checked_add(bytes as u64).is_none_or(|end| end > block.len) {
            return Err(self.fault(Wrong::OutOfBounds, address, bytes));
        }
        if !block.is_live {
            return Err(self.fault(Wrong::Freed, address, bytes));
        }
        Ok((index, offset as usize))
    }

    fn locate_writable(&self, address: u64, bytes: usize) -> Result<(usize, usize), MemoryFault> {
        let (index, at) = self.locate(address, bytes)?;
        match self.blocks[index].flags[at..at + bytes].iter().position(|flag| flag & READ_ONLY != 0) {
            Some(first) => Err(self.fault(Wrong::ReadOnly, address + first as u64, bytes - first)),
            None => Ok((index, at)),
        }
    }

    #[cold]
    fn fault(&self, wrong: Wrong, address: u64, bytes: usize) -> MemoryFault {
        let near = self.find(address).map(|index| (self.blocks[index].base, self.blocks[index].len));
        MemoryFault { wrong, address, bytes, near }
    }
}

/// `N` entries from `at` on; the caller has checked that they exist.
#[inline(always)]
fn window<const N: usize, T>(list: &mut [T], at: usize) -> &mut [T; N] {
    let (window, _) = list[at..].split_first_chunk_mut().unwrap_or_else(|| unreachable!("bounds are checked before"));
    window
}

/// A read of a byte: by one thread, by many, or through the read-only path; never beside a write.
fn mark_read(entry: &mut u32, floor: u32, number: u32, kind: u32) -> Result<(), Wrong> {
    let (before, who) = (*entry & touch::MASK, *entry >> touch::BITS);
    if who < floor {
        *entry = number << touch::BITS | kind;
        return Ok(());
    }
    match before {
        touch::WRITTEN if kind == touch::READ_ONLY_PATH => Err(Wrong::ReadOnlyPath),
        touch::WRITTEN if who != number => Err(Wrong::Race),
        touch::WRITTEN | touch::READ_ONLY_PATH => Ok(()),
        _ if kind == touch::READ_ONLY_PATH => {
            *entry = number << touch::BITS | kind;
            Ok(())
        }
        touch::READ_BY_ONE if who != number => {
            *entry = number << touch::BITS | touch::READ_BY_MANY;
            Ok(())
        }
        _ => Ok(()),
    }
}

/// A write of a byte: nobody else may have touched it.
fn check_write(entry: u32, floor: u32, number: u32) -> Result<(), Wrong> {
    let (before, who) = (entry & touch::MASK, entry >> touch::BITS);
    match before {
        _ if who < floor => Ok(()),
        touch::READ_ONLY_PATH => Err(Wrong::ReadOnlyPath),
        touch::READ_BY_MANY => Err(Wrong::Race),
        _ if who != number => Err(Wrong::Race),
        _ => Ok(()),
    }
}
