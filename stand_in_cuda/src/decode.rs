//! Decodes an entry as written into a kernel of numbered slots. Every opcode, modifier and operand
//! is checked here, once.

use std::collections::HashMap;
use std::sync::Arc;

use crate::op::{
    Access, Compare, GENERIC_PARAM_BASE, Kernel, Op, PARAM_BASE, PARAM_MASK, Param, SPECIALS, Slot, Space,
};
use crate::ptx::{Entry, Header, Item, Operand, ParamDecl, PtxError, Registers, Statement, parse_integer};
use crate::scalar::{self, Fn1, Type};

type Decoded<T> = Result<T, String>;

/// The most bytes of arguments: up to PTX 8.0, and in later versions.
const PARAM_LIMITS: (usize, usize) = (4352, 32764);

pub(crate) fn decode(entry: Entry, header: &Header, source: &Arc<Vec<String>>) -> Result<Kernel, PtxError> {
    let params = place_params(&entry.params);
    let mut decoder = Decoder::new(*header, params);
    decoder.check_param_size().map_err(|what| PtxError::new(entry.line, what))?;
    for item in &entry.body {
        let (line, result) = match item {
            Item::Registers(registers) => (registers.line, decoder.declare(registers)),
            Item::Label(name, line) => (*line, decoder.label(name)),
            Item::Statement(statement) => (statement.line, decoder.statement(statement)),
        };
        result.map_err(|what| PtxError::new(line, what))?;
    }
    decoder.resolve_branches()?;
    Ok(decoder.finish(entry, source))
}

fn place_params(declared: &[ParamDecl]) -> Vec<Param> {
    let mut end = 0usize;
    let place = |param: &ParamDecl| {
        let offset = end.next_multiple_of(param.align.max(1));
        end = offset + param.size;
        Param { name: param.name.clone(), offset, size: param.size }
    };
    declared.iter().map(place).collect()
}

struct Decoder {
    header: Header,
    params: Vec<Param>,
    slots: HashMap<String, Slot>,
    /// The type of a slot; `None` for a constant.
    types: Vec<Option<Type>>,
    names: Vec<String>,
    initial: Vec<u64>,
    ready: Vec<bool>,
    constants: HashMap<u64, Slot>,
    labels: HashMap<String, u32>,
    /// Branches whose label is not known yet: operation and label.
    open: Vec<(usize, String)>,
    ops: Vec<Op>,
    lines: Vec<u32>,
    line: u32,
    accesses: Vec<Access>,
    compares: Vec<Compare>,
    conversions: Vec<[Fn1; 3]>,
}

impl Decoder {
    fn new(header: Header, params: Vec<Param>) -> Self {
        let mut decoder = Self {
            header,
            params,
            slots: HashMap::new(),
            types: Vec::new(),
            names: Vec::new(),
            initial: Vec::new(),
            ready: Vec::new(),
            constants: HashMap::new(),
            labels: HashMap::new(),
            open: Vec::new(),
            ops: Vec::new(),
            lines: Vec::new(),
            line: 0,
            accesses: Vec::new(),
            compares: Vec::new(),
            conversions: Vec::new(),
        };
        for (slot, name) in SPECIALS.iter().enumerate() {
            decoder.add_slot((*name).to_owned(), Some(Type::U32), 0, true);
            decoder.slots.insert((*name).to_owned(), slot as Slot);
        }
        decoder
    }

    fn check_param_size(&self) -> Decoded<()> {
        let bytes = self.params.last().map_or(0, |last| last.offset + last.size);
        let limit = if self.header.version >= (8, 1) { PARAM_LIMITS.1 } else { PARAM_LIMITS.0 };
        if bytes > limit { Err(format!("parameters of {bytes} bytes, more than {limit}")) } else { Ok(()) }
    }

    fn finish(self, entry: Entry, source: &Arc<Vec<String>>) -> Kernel {
        Kernel {
            name: entry.name,
            params: self.params,
            max_threads: entry.max_threads,
            ops: self.ops,
            lines: self.lines,
            accesses: self.accesses,
            compares: self.compares,
            conversions: self.conversions,
            initial: self.initial,
            ready: self.ready,
            names: self.names,
            source: Arc::clone(source),
        }
    }

    // ---- Slots ----

    fn add_slot(&mut self, name: String, ty: Option<Type>, value: u64, ready: bool) -> Slot {
        let slot = self.types.len() as Slot;
        self.types.push(ty);
        self.names.push(name);
        self.initial.push(value);
        self.ready.push(ready);
        slot
    }

    fn declare(&mut self, registers: &Registers) -> Decoded<()> {
        let ty = Type::parse(&registers.ty).ok_or_else(|| format!("unknown register type `.{}`", registers.ty))?;
        let names: Vec<String> = match registers.count {
            Some(count) => (0..count).map(|number| format!("{}{number}", registers.stem)).collect(),
            None => vec![registers.stem.clone()],
        };
        for name in names {
            if self.types.len() >= usize::from(Slot::MAX) {
                return Err("too many registers".to_owned());
            }
            let slot = self.add_slot(name.clone(), Some(ty), 0, false);
            if self.slots.insert(name.clone(), slot).is_some() {
                return Err(format!("register `{name}` is declared twice"));
            }
        }
        Ok(())
    }

    fn constant(&mut self, value: u64) -> Decoded<Slot> {
        if let Some(slot) = self.constants.get(&value) {
            return Ok(*slot);
        }
        if self.types.len() >= usize::from(Slot::MAX) {
            return Err("too many constants".to_owned());
        }
        let slot = self.add_slot(format!("{value:#x}"), None, value, true);
        self.constants.insert(value, slot);
        Ok(slot)
    }

    /// A register, declared with a type that an instruction of type `ty` may use. `wider` lets the
    /// register be wider.
    fn register(&self, name: &str, ty: Type, wider: bool) -> Decoded<Slot> {
        let slot = *self.slots.get(name).ok_or_else(|| format!("unknown register `{name}`"))?;
        let Some(declared) = self.types[usize::from(slot)] else {
            return Err(format!("`{name}` is no register"));
        };
        let fits = declared.bits() == ty.bits() || (wider && declared.bits() > ty.bits());
        let mixed = (declared.is_float() && ty.is_integer()) || (declared.is_integer() && ty.is_float());
        let predicates = (declared == Type::Pred) == (ty == Type::Pred);
        if fits && !mixed && predicates {
            Ok(slot)
        } else {
            Err(format!("`{name}` is a {declared:?} register, the instruction wants {ty:?}"))
        }
    }

    fn width_of(&self, slot: Slot) -> u32 {
        self.types[usize::from(slot)].map_or(64, Type::bits)
    }

    /// A source: a register or a constant.
    fn source(&mut self, operand: &Operand, ty: Type) -> Decoded<Slot> {
        self.source_of(operand, ty, false)
    }

    fn source_of(&mut self, operand: &Operand, ty: Type, wider: bool) -> Decoded<Slot> {
        match operand {
            Operand::Word(word) if word.starts_with('%') => self.register(word, ty, wider),
            Operand::Word(word) => {
                let value = literal(word, ty, false)?;
                self.constant(value)
            }
            Operand::Negative(word) => {
                let value = literal(word, ty, true)?;
                self.constant(value)
            }
            other => Err(format!("{other:?} cannot be a source here")),
        }
    }

    fn destination(&self, operand: &Operand, ty: Type) -> Decoded<Slot> {
        self.destination_of(operand, ty, false)
    }

    fn destination_of(&self, operand: &Operand, ty: Type, wider: bool) -> Decoded<Slot> {
        match operand {
            Operand::Word(word) => {
                let slot = self.register(word, ty, wider)?;
                if SPECIALS.contains(&word.as_str()) { Err(format!("`{word}` cannot be written")) } else { Ok(slot) }
            }
            other => Err(format!("{other:?} cannot be a destination")),
        }
    }

    // ---- Control ----

    fn label(&mut self, name: &str) -> Decoded<()> {
        match self.labels.insert(name.to_owned(), self.ops.len() as u32) {
            Some(_) => Err(format!("label `{name}` stands twice")),
            None => Ok(()),
        }
    }

    fn resolve_branches(&mut self) -> Result<(), PtxError> {
        for (op, label) in std::mem::take(&mut self.open) {
            let Some(&target) = self.labels.get(&label) else {
                return Err(PtxError::new(self.lines[op], format!("unknown label `{label}`")));
            };
            match &mut self.ops[op] {
                Op::Branch { to } | Op::BranchIf { to, .. } => *to = target,
                other => return Err(PtxError::new(self.lines[op], format!("{other:?} is no branch"))),
            }
        }
        Ok(())
    }

    fn push(&mut self, op: Op) {
        self.ops.push(op);
        self.lines.push(self.line);
    }

    /// Refuses a feature that is newer than the text's version or target.
    fn require(&self, version: (u32, u32), target: u32, what: &str) -> Decoded<()> {
        if self.header.version < version {
            return Err(format!("{what} needs .version {}.{} or later", version.0, version.1));
        }
        if self.header.target < target {
            return Err(format!("{what} needs .target sm_{target} or later"));
        }
        Ok(())
    }

    fn statement(&mut self, statement: &Statement) -> Decoded<()> {
        self.line = statement.line;
        let mut modifiers = Modifiers::new(&statement.opcode);
        let head = modifiers.head;
        let guard = match &statement.guard {
            Some((name, negated)) => Some((self.register(name, Type::Pred, false)?, !negated)),
            None => None,
        };
        if head == "bra" {
            modifiers.take("uni");
            modifiers.finish()?;
            return self.branch(guard, &statement.operands);
        }
        if let Some((p, when)) = guard {
            self.push(Op::Guard { p, when });
        }
        let before = self.ops.len();
        self.instruction(head, modifiers, &statement.operands)?;
        debug_assert_eq!(self.ops.len(), before + 1, "a guard covers one operation");
        Ok(())
    }

    fn branch(&mut self, guard: Option<(Slot, bool)>, operands: &[Operand]) -> Decoded<()> {
        let [Operand::Word(label)] = operands else {
            return Err("a branch takes one label".to_owned());
        };
        self.open.push((self.ops.len(), label.clone()));
        self.push(match guard {
            Some((p, when)) => Op::BranchIf { p, when, to: 0 },
            None => Op::Branch { to: 0 },
        });
        Ok(())
    }

    // ---- Instructions ----

    fn instruction(&mut self, head: &str, mut m: Modifiers<'_>, operands: &[Operand]) -> Decoded<()> {
        match head {
            "ret" | "exit" => self.plain(m, operands, Op::Return),
            "trap" => self.plain(m, operands, Op::Trap),
            "ld" | "st" => self.access(head == "st", m, operands),
            "prefetch" => self.prefetch(m, operands),
            "mov" => self.mov(m, operands),
            "cvta" => self.address_conversion(m, operands),
            "cvt" => self.conversion(m, operands),
            "setp" => self.comparison(m, operands),
            "selp" => {
                let ty = m.ty()?;
                m.finish()?;
                let [d, a, b, p] = exactly(operands)?;
                let d = self.destination(d, ty)?;
                let (a, b) = (self.source(a, ty)?, self.source(b, ty)?);
                let p = self.source(p, Type::Pred)?;
                self.push(Op::Select { d, a, b, p });
                Ok(())
            }
            "testp" => {
                let ty = m.ty()?;
                let class = m.next().ok_or("testp without a class")?;
                m.finish()?;
                let f = scalar::test_class(class, ty).ok_or_else(|| unknown_form(head))?;
                let [d, a] = exactly(operands)?;
                let (d, a) = (self.destination(d, Type::Pred)?, self.source(a, ty)?);
                self.push(Op::Unary { f, d, a });
                Ok(())
            }
            _ => self.arithmetic(head, m, operands),
        }
    }

    fn plain(&mut self, modifiers: Modifiers<'_>, operands: &[Operand], op: Op) -> Decoded<()> {
        modifiers.finish()?;
        let [] = exactly(operands)?;
        self.push(op);
        Ok(())
    }

    /// Instructions whose sources all have the type of the instruction, with exceptions in the
    /// cases below.
    fn arithmetic(&mut self, head: &str, mut m: Modifiers<'_>, operands: &[Operand]) -> Decoded<()> {
        let ty = m.ty()?;
        let name = self.arithmetic_name(head, ty, &mut m)?;
        m.finish()?;
        let unknown = || unknown_form(&format!("{name} of {ty:?}"));
        match head {
            "neg" | "abs" | "not" | "sqrt" | "rcp" | "popc" | "clz" | "brev" => {
                let f = scalar::unary(&name, ty).ok_or_else(unknown)?;
                let result = if matches!(head, "popc" | "clz") { Type::U32 } else { ty };
                let [d, a] = exactly(operands)?;
                let (d, a) = (self.destination(d, result)?, self.source(a, ty)?);
                self.push(Op::Unary { f, d, a });
            }
            "add" | "sub" | "mul" | "min" | "max" | "and" | "or" | "xor" | "copysign" => {
                self.two_sources(scalar::binary(&name, ty).ok_or_else(unknown)?, &name, ty, ty, operands)?;
            }
            "div" if ty.is_float() => {
                self.two_sources(scalar::binary(&name, ty).ok_or_else(unknown)?, &name, ty, ty, operands)?;
            }
            "shl" | "shr" => {
                self.two_sources(scalar::shift(&name, ty).ok_or_else(unknown)?, &name, ty, Type::U32, operands)?;
            }
            "div" | "rem" => {
                let f = scalar::quotient(&name, ty).ok_or_else(unknown)?;
                let [d, a, b] = exactly(operands)?;
                let d = self.destination(d, ty)?;
                let (a, b) = (self.source(a, ty)?, self.source(b, ty)?);
                self.push(Op::Divide { f, d, a, b });
            }
            "fma" | "mad" | "prmt" | "shf" | "bfe" => {
                let f = scalar::ternary(&name, ty).ok_or_else(unknown)?;
                let [d, a, b, c] = exactly(operands)?;
                let result = if name == "mad.wide" { doubled(ty)? } else { ty };
                let (second, third) = match head {
                    "bfe" => (Type::U32, Type::U32),
                    "shf" => (ty, Type::U32),
                    _ => (ty, result),
                };
                let d = self.destination(d, result)?;
                let (a, b, c) = (self.source(a, ty)?, self.source(b, second)?, self.source(c, third)?);
                self.push(Op::Ternary { f, d, a, b, c });
            }
            "bfi" | "lop3" => {
                let f = scalar::quaternary(&name, ty).ok_or_else(unknown)?;
                let [d, a, b, c, e] = exactly(operands)?;
                let d = self.destination(d, ty)?;
                let third = if head == "bfi" { Type::U32 } else { ty };
                let from =
                    [self.source(a, ty)?, self.source(b, ty)?, self.source(c, third)?, self.source(e, Type::U32)?];
                self.push(Op::Quaternary { f, d, from });
            }
            _ => return Err(format!("unknown opcode `{head}`")),
        }
        Ok(())
    }

    fn two_sources(&mut self, f: scalar::Fn2, name: &str, ty: Type, second: Type, operands: &[Operand]) -> Decoded<()> {
        let [d, a, b] = exactly(operands)?;
        let result = if name == "mul.wide" { doubled(ty)? } else { ty };
        let d = self.destination(d, result)?;
        let (a, b) = (self.source(a, ty)?, self.source(b, second)?);
        self.push(Op::Binary { f, d, a, b });
        Ok(())
    }

    /// The opcode with the modifiers that choose its meaning.
    fn arithmetic_name(&self, head: &str, ty: Type, m: &mut Modifiers<'_>) -> Decoded<String> {
        let modes: &[&str] = match head {
            "mul" | "mad" if !ty.is_float() => &["lo", "hi", "wide"],
            "shf" => &["l", "r"],
            "add" | "sub" | "mul" | "div" | "fma" | "sqrt" | "rcp" if ty.is_float() => {
                if !m.take("rn") {
                    return Err(format!(
                        "`{head}` of {ty:?} without `.rn`: a compiler may fuse or approximate it, so its bits are not defined"
                    ));
                }
                return Ok(format!("{head}.rn"));
            }
            _ => return Ok(head.to_owned()),
        };
        let mode = modes.iter().find(|mode| m.take(mode));
        let mode = mode.ok_or_else(|| format!("`{head}` needs one of {modes:?}"))?;
        if head != "shf" {
            return Ok(format!("{head}.{mode}"));
        }
        let bound = ["wrap", "clamp"].into_iter().find(|bound| m.take(bound)).ok_or("`shf` needs `wrap` or `clamp`")?;
        Ok(format!("shf.{mode}.{bound}"))
    }

    fn mov(&mut self, mut m: Modifiers<'_>, operands: &[Operand]) -> Decoded<()> {
        let ty = m.ty()?;
        m.finish()?;
        match operands {
            [d, Operand::Vector(parts)] => {
                let (bits, count) = self.part_width(ty, parts)?;
                let part = part_type(bits)?;
                let d = self.destination(d, ty)?;
                let slots = self.four(parts, |decoder, word| decoder.source(&Operand::Word(word.to_owned()), part))?;
                self.push(Op::Pack { d, parts: slots, count, bits: bits as u8 });
            }
            [Operand::Vector(parts), a] => {
                let (bits, count) = self.part_width(ty, parts)?;
                let part = part_type(bits)?;
                let a = self.source(a, ty)?;
                let slots =
                    self.four(parts, |decoder, word| decoder.destination(&Operand::Word(word.to_owned()), part))?;
                self.push(Op::Unpack { parts: slots, count, bits: bits as u8, a });
            }
            [d, Operand::Word(word)] if self.param_index(word).is_some() => {
                if ty.bits() != 64 {
                    return Err("an address has 64 bits".to_owned());
                }
                let address = self.param_address(word, 0)?;
                let (d, a) = (self.destination(d, ty)?, self.constant(address)?);
                self.push(Op::Move { d, a });
            }
            [d, a] => {
                let (d, a) = (self.destination(d, ty)?, self.source(a, ty)?);
                self.push(Op::Move { d, a });
            }
            _ => return Err("`mov` takes two operands".to_owned()),
        }
        Ok(())
    }

    fn part_width(&self, ty: Type, parts: &[String]) -> Decoded<(u32, u8)> {
        match (ty, parts.len()) {
            (Type::B32 | Type::B64, 2 | 4) if ty.is_untyped() => {
                Ok((ty.bits() / parts.len() as u32, parts.len() as u8))
            }
            _ => Err(format!("`mov` of {} parts as {ty:?}", parts.len())),
        }
    }

    fn four(&mut self, words: &[String], mut slot: impl FnMut(&mut Self, &str) -> Decoded<Slot>) -> Decoded<[Slot; 4]> {
        let mut slots = [0; 4];
        for (at, word) in slots.iter_mut().zip(words) {
            *at = slot(self, word)?;
        }
        Ok(slots)
    }

    fn param_index(&self, name: &str) -> Option<usize> {
        self.params.iter().position(|param| param.name == name)
    }

    fn param_address(&self, name: &str, offset: i64) -> Decoded<u64> {
        let index = self.param_index(name).ok_or_else(|| format!("unknown parameter `{name}`"))?;
        let offset = u64::try_from(offset).map_err(|_| "a negative parameter offset".to_owned())?;
        Ok(PARAM_BASE | (index as u64) << 32 | offset)
    }

    fn access(&mut self, is_store: bool, mut m: Modifiers<'_>, operands: &[Operand]) -> Decoded<()> {
        let ty = m.ty()?;
        let space = self.space(is_store, &mut m)?;
        let read_only_path = !is_store && space == Space::Global && m.take("nc");
        let count = if m.take("v2") {
            2
        } else if m.take("v4") {
            4
        } else {
            1
        };
        self.cache_hints(is_store, &mut m)?;
        m.finish()?;
        let bytes = ty.bits() / 8;
        if ty == Type::Pred || bytes * count > 16 {
            return Err(format!("an access of {count} {ty:?}"));
        }
        let (values, address) = match (is_store, operands) {
            (false, [values, address]) | (true, [address, values]) => (values, address),
            _ => return Err("an access takes a value and an address".to_owned()),
        };
        let (base, offset) = self.address(space, address, u64::from(bytes * count))?;
        let slots = self.access_slots(is_store, ty, count, values)?;
        let width = if is_store { 64 } else { self.width_of(slots[0]) };
        let access = Access {
            space,
            read_only_path,
            base,
            offset,
            slots,
            count: count as u8,
            bytes: bytes as u8,
            extend: scalar::extend(ty).ok_or("an access of predicates")?,
            chop: scalar::chop(width),
        };
        let index = u16::try_from(self.accesses.len()).map_err(|_| "too many accesses".to_owned())?;
        self.accesses.push(access);
        self.push(if is_store { Op::Store { index } } else { Op::Load { index } });
        Ok(())
    }

    /// `prefetch.global.L2`. Other prefetches are refused: they do not help other blocks.
    fn prefetch(&mut self, mut m: Modifiers<'_>, operands: &[Operand]) -> Decoded<()> {
        if !(m.take("global") && m.take("L2")) {
            return Err(unknown_form("prefetch"));
        }
        m.finish()?;
        let [address] = exactly(operands)?;
        let (base, offset) = self.address(Space::Global, address, 1)?;
        self.push(Op::Prefetch { base, offset });
        Ok(())
    }

    fn space(&self, is_store: bool, m: &mut Modifiers<'_>) -> Decoded<Space> {
        if m.take("global") {
            Ok(Space::Global)
        } else if m.take("param") {
            if is_store { Err("a kernel cannot write its parameters".to_owned()) } else { Ok(Space::Param) }
        } else {
            Ok(Space::Generic)
        }
    }

    /// Hints on caching change no result; those that newer PTX brought are refused in older text.
    fn cache_hints(&self, is_store: bool, m: &mut Modifiers<'_>) -> Decoded<()> {
        let operators: &[&str] = if is_store { &["wb", "cg", "cs", "wt"] } else { &["ca", "cg", "cs", "lu", "cv"] };
        let _ = operators.iter().any(|name| m.take(name)) || m.take("weak");
        const EVICTION: [&str; 5] =
            ["L1::evict_normal", "L1::evict_unchanged", "L1::evict_first", "L1::evict_last", "L1::no_allocate"];
        if EVICTION.iter().any(|name| m.take(name)) {
            self.require((7, 4), 70, "an L1 eviction priority")?;
        }
        if !is_store && ["L2::64B", "L2::128B", "L2::256B"].iter().any(|name| m.take(name)) {
            self.require((7, 4), 75, "an L2 prefetch size")?;
        }
        Ok(())
    }

    fn address(&mut self, space: Space, operand: &Operand, bytes: u64) -> Decoded<(Slot, i64)> {
        let Operand::Address { base, offset } = operand else {
            return Err(format!("{operand:?} is no address"));
        };
        if base.starts_with('%') {
            return Ok((self.register(base, Type::U64, false)?, *offset));
        }
        if space != Space::Param {
            return Err(format!("`{base}` is no register"));
        }
        let address = self.param_address(base, *offset)?;
        let param = &self.params[self.param_index(base).unwrap_or_default()];
        if *offset as u64 + bytes > param.size as u64 || !(*offset as u64).is_multiple_of(bytes) {
            return Err(format!("{bytes} bytes at {offset} of parameter `{base}` of {} bytes", param.size));
        }
        Ok((self.constant(address)?, 0))
    }

    fn access_slots(&mut self, is_store: bool, ty: Type, count: u32, values: &Operand) -> Decoded<[Slot; 4]> {
        let words: Vec<String> = match values {
            Operand::Vector(words) if words.len() as u32 == count && count > 1 => words.clone(),
            Operand::Word(word) if count == 1 => vec![word.clone()],
            other => return Err(format!("{other:?} for an access of {count}")),
        };
        self.four(&words, |decoder, word| {
            let operand = Operand::Word(word.to_owned());
            if is_store { decoder.source_of(&operand, ty, true) } else { decoder.destination_of(&operand, ty, true) }
        })
    }

    /// Global and generic addresses are the same numbers here; those of parameters are not.
    fn address_conversion(&mut self, mut m: Modifiers<'_>, operands: &[Operand]) -> Decoded<()> {
        if m.ty()?.bits() != 64 {
            return Err("an address has 64 bits".to_owned());
        }
        let to = m.take("to");
        let f: Fn1 = if m.take("global") {
            |a| *a
        } else if m.take("param") {
            self.require((7, 7), 70, "`cvta.param`")?;
            if to {
                |a| a.map(|a| swap_base(a, GENERIC_PARAM_BASE, PARAM_BASE))
            } else {
                |a| a.map(|a| swap_base(a, PARAM_BASE, GENERIC_PARAM_BASE))
            }
        } else {
            return Err(unknown_form("cvta"));
        };
        m.finish()?;
        let [d, a] = exactly(operands)?;
        let (d, a) = (self.destination(d, Type::U64)?, self.source(a, Type::U64)?);
        self.push(Op::Unary { f, d, a });
        Ok(())
    }

    fn conversion(&mut self, mut m: Modifiers<'_>, operands: &[Operand]) -> Decoded<()> {
        let from = m.ty()?;
        let to = m.ty()?;
        let rounding = ["rn", "rni", "rzi", "rmi", "rpi"].into_iter().find(|name| m.take(name));
        m.finish()?;
        if to == Type::Bf16 {
            self.require((7, 0), 80, "a conversion to bf16")?;
        }
        let [d, a] = exactly(operands)?;
        let d = self.destination_of(d, to, true)?;
        let a = self.source_of(a, from, true)?;
        let steps = scalar::convert(to, from, rounding, self.width_of(d))
            .ok_or_else(|| unknown_form(&format!("cvt from {from:?} to {to:?}, rounding {rounding:?}")))?;
        let index = u16::try_from(self.conversions.len()).map_err(|_| "too many conversions".to_owned())?;
        self.conversions.push(steps);
        self.push(Op::Convert { index, d, a });
        Ok(())
    }

    fn comparison(&mut self, mut m: Modifiers<'_>, operands: &[Operand]) -> Decoded<()> {
        let ty = m.ty()?;
        let name = m.next().ok_or("setp without a comparison")?;
        let join = ["and", "or", "xor"].into_iter().find(|name| m.take(name));
        m.finish()?;
        let f = scalar::compare(name, ty).ok_or_else(|| unknown_form(&format!("setp.{name} of {ty:?}")))?;
        let (target, a, b, third) = match (join, operands) {
            (None, [d, a, b]) => (d, a, b, None),
            (Some(_), [d, a, b, c]) => (d, a, b, Some(c)),
            _ => return Err("wrong number of operands".to_owned()),
        };
        let (a, b) = (self.source(a, ty)?, self.source(b, ty)?);
        let (d, opposite) = match target {
            Operand::Pair(p, q) => (p.clone(), Some(self.register(q, Type::Pred, false)?)),
            Operand::Word(p) => (p.clone(), None),
            other => return Err(format!("{other:?} cannot be a destination")),
        };
        let d = self.register(&d, Type::Pred, false)?;
        if join.is_none() && opposite.is_none() {
            self.push(Op::Binary { f, d, a, b });
            return Ok(());
        }
        let (c, c_is_negated) = match third {
            Some(Operand::Not(word)) => (self.register(word, Type::Pred, false)?, true),
            Some(operand) => (self.source(operand, Type::Pred)?, false),
            None => (self.constant(1)?, false),
        };
        let join = scalar::binary(join.unwrap_or("and"), Type::Pred).ok_or_else(|| unknown_form("setp"))?;
        let index = u16::try_from(self.compares.len()).map_err(|_| "too many comparisons".to_owned())?;
        self.compares.push(Compare { compare: f, join, d, opposite, a, b, c, c_is_negated });
        self.push(Op::Compare { index });
        Ok(())
    }
}

/// The dotted parts of an opcode, taken one by one; a part that is left at the end is unknown.
struct Modifiers<'a> {
    head: &'a str,
    rest: Vec<&'a str>,
}

impl<'a> Modifiers<'a> {
    fn new(opcode: &'a str) -> Self {
        let mut parts = opcode.split('.');
        Self { head: parts.next().unwrap_or(""), rest: parts.collect() }
    }

    fn take(&mut self, name: &str) -> bool {
        let found = self.rest.iter().position(|part| *part == name);
        if let Some(at) = found {
            self.rest.remove(at);
        }
        found.is_some()
    }

    fn next(&mut self) -> Option<&'a str> {
        if self.rest.is_empty() { None } else { Some(self.rest.remove(0)) }
    }

    /// The type, which stands last.
    fn ty(&mut self) -> Decoded<Type> {
        let name = self.rest.last().copied().unwrap_or("");
        let ty = Type::parse(name).ok_or_else(|| match name {
            "" => format!("unknown opcode `{}`", self.head),
            name => format!("unknown type `.{name}` of `{}`", self.head),
        })?;
        self.rest.pop();
        Ok(ty)
    }

    fn finish(&self) -> Decoded<()> {
        match self.rest.first() {
            Some(unknown) => Err(format!("unknown modifier `.{unknown}` of `{}`", self.head)),
            None => Ok(()),
        }
    }
}

fn unknown_form(what: &str) -> String {
    format!("unknown form of `{what}`")
}

fn exactly<const N: usize>(operands: &[Operand]) -> Decoded<&[Operand; N]> {
    operands.try_into().map_err(|_| format!("{} operands, expected {N}", operands.len()))
}

fn doubled(ty: Type) -> Decoded<Type> {
    Ok(match ty {
        Type::U16 => Type::U32,
        Type::S16 => Type::S32,
        Type::U32 => Type::U64,
        Type::S32 => Type::S64,
        _ => return Err(format!("no type is twice as wide as {ty:?}")),
    })
}

fn part_type(bits: u32) -> Decoded<Type> {
    match bits {
        8 => Ok(Type::B8),
        16 => Ok(Type::B16),
        32 => Ok(Type::B32),
        _ => Err(format!("parts of {bits} bits")),
    }
}

/// Turns an address of the kind `from` into one of the kind `to`. Anything else becomes 0, which no
/// access accepts.
fn swap_base(address: u64, from: u64, to: u64) -> u64 {
    if address & !PARAM_MASK == from { to | (address & PARAM_MASK) } else { 0 }
}

fn literal(word: &str, ty: Type, negative: bool) -> Decoded<u64> {
    let bad = || format!("`{word}` is no {ty:?} literal");
    if ty == Type::F16 {
        return Err(bad());
    }
    if ty.is_float() {
        let (prefix, digits) = if ty == Type::F32 { ("0f", 8) } else { ("0d", 16) };
        let lower = word.to_ascii_lowercase();
        let hex = lower.strip_prefix(prefix).filter(|hex| hex.len() == digits && !negative).ok_or_else(bad)?;
        return u64::from_str_radix(hex, 16).map_err(|_| bad());
    }
    let value = parse_integer(word).ok_or_else(bad)?;
    let value = if negative { value.wrapping_neg() } else { value };
    let bits = ty.bits();
    let mask = if bits == 64 { u64::MAX } else { (1 << bits) - 1 };
    let fits = value & !mask == 0 || (negative && value | mask == u64::MAX);
    if fits { Ok(value & mask) } else { Err(bad()) }
}
