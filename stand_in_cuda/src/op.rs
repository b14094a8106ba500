//! The decoded form of a kernel: operations whose operands are numbered slots, ready to execute
//! without any lookup.

use std::sync::Arc;

use crate::scalar::{Fn1, Fn2, Fn3, Fn4};

/// The place of a value: a register, a constant or a special register, all in one file.
pub(crate) type Slot = u16;

/// Special registers, in the order of their slots.
pub(crate) const SPECIALS: [&str; 12] = [
    "%tid.x",
    "%tid.y",
    "%tid.z",
    "%ctaid.x",
    "%ctaid.y",
    "%ctaid.z",
    "%ntid.x",
    "%ntid.y",
    "%ntid.z",
    "%nctaid.x",
    "%nctaid.y",
    "%nctaid.z",
];

/// The address of a kernel parameter as `mov` gives it, valid in `ld.param` alone: the parameter's
/// index from bit 32 on.
pub(crate) const PARAM_BASE: u64 = 0x00c0_0000_0000_0000;
/// The generic address of a kernel parameter, as `cvta.param` gives it.
pub(crate) const GENERIC_PARAM_BASE: u64 = 0x00c1_0000_0000_0000;
/// The bits that both bases leave free, for the parameter's index and the offset in it.
pub(crate) const PARAM_MASK: u64 = 0x0000_ffff_ffff_ffff;

/// Which memory an access means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Space {
    Global,
    Param,
    Generic,
}

/// A load or a store.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Access {
    pub(crate) space: Space,
    /// `ld.global.nc`: what it reads must not be written during the launch.
    pub(crate) read_only_path: bool,
    pub(crate) base: Slot,
    pub(crate) offset: i64,
    /// Up to four elements, each of `bytes`.
    pub(crate) slots: [Slot; 4],
    pub(crate) count: u8,
    pub(crate) bytes: u8,
    /// From the loaded bits to the register's value.
    pub(crate) extend: Fn1,
    pub(crate) chop: Fn1,
}

/// `setp` with a second predicate to combine with, or with the opposite result as well.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Compare {
    pub(crate) compare: Fn2,
    pub(crate) join: Fn2,
    pub(crate) d: Slot,
    pub(crate) opposite: Option<Slot>,
    pub(crate) a: Slot,
    pub(crate) b: Slot,
    pub(crate) c: Slot,
    pub(crate) c_is_negated: bool,
}

/// One operation.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Op {
    Unary {
        f: Fn1,
        d: Slot,
        a: Slot,
    },
    Binary {
        f: Fn2,
        d: Slot,
        a: Slot,
        b: Slot,
    },
    Ternary {
        f: Fn3,
        d: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
    },
    Quaternary {
        f: Fn4,
        d: Slot,
        from: [Slot; 4],
    },
    Move {
        d: Slot,
        a: Slot,
    },
    /// `div` and `rem` of integers.
    Divide {
        f: Fn2,
        d: Slot,
        a: Slot,
        b: Slot,
    },
    Convert {
        index: u16,
        d: Slot,
        a: Slot,
    },
    Compare {
        index: u16,
    },
    Select {
        d: Slot,
        a: Slot,
        b: Slot,
        p: Slot,
    },
    Pack {
        d: Slot,
        parts: [Slot; 4],
        count: u8,
        bits: u8,
    },
    Unpack {
        parts: [Slot; 4],
        count: u8,
        bits: u8,
        a: Slot,
    },
    Load {
        index: u16,
    },
    Store {
        index: u16,
    },
    /// The next operation runs only where `p` is `when`.
    Guard {
        p: Slot,
        when: bool,
    },
    Branch {
        to: u32,
    },
    BranchIf {
        p: Slot,
        when: bool,
        to: u32,
    },
    /// Only the address is checked.
    Prefetch {
        base: Slot,
        offset: i64,
    },
    Return,
    Trap,
}

/// A kernel parameter.
#[derive(Debug, Clone)]
pub struct Param {
    /// Its name in the text.
    pub name: String,
    /// Where it lies in the argument block.
    pub offset: usize,
    /// Its size in bytes.
    pub size: usize,
}

/// A decoded kernel.
#[derive(Debug)]
pub struct Kernel {
    /// The entry's name.
    pub name: String,
    /// Its parameters, in order.
    pub params: Vec<Param>,
    /// The most threads a block may have (`.maxntid`, `.reqntid`).
    pub max_threads: Option<u64>,
    pub(crate) ops: Vec<Op>,
    /// The source line of each operation.
    pub(crate) lines: Vec<u32>,
    pub(crate) accesses: Vec<Access>,
    pub(crate) compares: Vec<Compare>,
    pub(crate) conversions: Vec<[Fn1; 3]>,
    /// The slot file at a thread's start: constants in place, and which slots hold a value.
    pub(crate) initial: Vec<u64>,
    pub(crate) ready: Vec<bool>,
    /// Names of the slots, for messages.
    pub(crate) names: Vec<String>,
    /// The text it came from, by lines, shared by a module's kernels.
    pub(crate) source: Arc<Vec<String>>,
}

impl Kernel {
    /// The size of the argument block.
    pub fn param_bytes(&self) -> usize {
        self.params.last().map_or(0, |last| last.offset + last.size)
    }

    /// The text of a source line, counted from 1.
    pub(crate) fn text(&self, line: u32) -> &str {
        self.source.get((line as usize).saturating_sub(1)).map_or("", |text| text.trim())
    }
}
