//! Reads PTX text: the module's directives and the statements of its entries, which `decode` turns
//! into kernels.
//!
//! Strict on purpose: whatever is not known is an error that names the line and its text.

use std::fmt;
use std::sync::Arc;

use crate::decode::decode;
use crate::op::Kernel;

/// A module: its header and its decoded entries.
#[derive(Debug)]
pub struct Module {
    /// `.version`, as major and minor.
    pub version: (u32, u32),
    /// `.target`: 75 for `sm_75`.
    pub target: u32,
    /// The entries, in the order of the text.
    pub kernels: Vec<Arc<Kernel>>,
}

impl Module {
    /// Reads PTX text.
    ///
    /// # Errors
    ///
    /// The first thing that is not understood, with its line.
    pub fn parse(text: &str) -> Result<Self, PtxError> {
        let source: Arc<Vec<String>> = Arc::new(text.lines().map(str::to_owned).collect());
        let mut parser = Parser { tokens: tokenize(text)?, at: 0 };
        let header = parser.header().map_err(|error| error.with_text(&source))?;
        let mut kernels = Vec::new();
        while parser.at < parser.tokens.len() {
            let entry = parser.entry().map_err(|error| error.with_text(&source))?;
            kernels.push(Arc::new(decode(entry, &header, &source).map_err(|error| error.with_text(&source))?));
        }
        Ok(Self { version: header.version, target: header.target, kernels })
    }

    /// The entry of this name.
    pub fn kernel(&self, name: &str) -> Option<&Arc<Kernel>> {
        self.kernels.iter().find(|kernel| kernel.name == name)
    }
}

/// `.version` and `.target` of a text, without reading the rest.
pub(crate) fn read_header(text: &str) -> Result<Header, PtxError> {
    let head: String = text.lines().take_while(|line| !line.contains('{')).flat_map(|line| [line, "\n"]).collect();
    Parser { tokens: tokenize(&head)?, at: 0 }.header()
}

/// The directives before the first entry.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Header {
    pub(crate) version: (u32, u32),
    pub(crate) target: u32,
}

/// PTX that was not understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PtxError {
    /// The line, counted from 1.
    pub line: u32,
    /// What is wrong with it.
    pub what: String,
    /// The line itself.
    pub text: String,
}

impl PtxError {
    pub(crate) fn new(line: u32, what: impl Into<String>) -> Self {
        Self { line, what: what.into(), text: String::new() }
    }

    fn with_text(mut self, source: &[String]) -> Self {
        let index = (self.line as usize).saturating_sub(1);
        self.text = source.get(index).map(|text| text.trim().to_owned()).unwrap_or_default();
        self
    }
}

impl fmt::Display for PtxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {} in `{}`", self.line, self.what, self.text)
    }
}

impl std::error::Error for PtxError {}

/// A declared parameter, before it has an offset.
#[derive(Debug)]
pub(crate) struct ParamDecl {
    pub(crate) name: String,
    pub(crate) size: usize,
    pub(crate) align: usize,
}

/// `.reg .type %stem<count>`.
#[derive(Debug)]
pub(crate) struct Registers {
    pub(crate) ty: String,
    pub(crate) stem: String,
    /// `None`: the stem itself is the one register.
    pub(crate) count: Option<u32>,
    pub(crate) line: u32,
}

/// An operand as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Operand {
    Word(String),
    Negative(String),
    /// `!p`
    Not(String),
    /// `{a, b}`
    Vector(Vec<String>),
    /// `[base+offset]`
    Address {
        base: String,
        offset: i64,
    },
    /// `p|q`
    Pair(String, String),
}

/// One instruction as written.
#[derive(Debug)]
pub(crate) struct Statement {
    pub(crate) line: u32,
    /// The predicate, and whether it is negated.
    pub(crate) guard: Option<(String, bool)>,
    pub(crate) opcode: String,
    pub(crate) operands: Vec<Operand>,
}

/// What a body is made of.
#[derive(Debug)]
pub(crate) enum Item {
    Registers(Registers),
    Label(String, u32),
    Statement(Statement),
}

/// An entry as written.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) line: u32,
    pub(crate) name: String,
    pub(crate) params: Vec<ParamDecl>,
    pub(crate) max_threads: Option<u64>,
    pub(crate) body: Vec<Item>,
}

#[derive(Debug, Clone)]
struct Token {
    line: u32,
    text: String,
}

/// Words keep their dots and double colons: `ld.global.L1::no_allocate.f32` is one.
fn tokenize(text: &str) -> Result<Vec<Token>, PtxError> {
    let mut tokens = Vec::new();
    let mut in_comment = false;
    for (index, full) in text.lines().enumerate() {
        let line = index as u32 + 1;
        let mut rest = full;
        while let Some(first) = rest.chars().next() {
            if in_comment {
                match rest.find("*/") {
                    Some(end) => (rest, in_comment) = (&rest[end + 2..], false),
                    None => break,
                }
            } else if rest.starts_with("//") {
                break;
            } else if rest.starts_with("/*") {
                (rest, in_comment) = (&rest[2..], true);
            } else if first.is_whitespace() {
                rest = rest.trim_start();
            } else {
                let length = token_length(rest).ok_or_else(|| PtxError {
                    line,
                    what: format!("unexpected character {first:?}"),
                    text: full.trim().to_owned(),
                })?;
                tokens.push(Token { line, text: rest[..length].to_owned() });
                rest = &rest[length..];
            }
        }
    }
    Ok(tokens)
}

fn token_length(rest: &str) -> Option<usize> {
    let bytes = rest.as_bytes();
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | b'%' | b'.');
    if bytes[0] == b'"' {
        return rest[1..].find('"').map(|end| end + 2);
    }
    if !is_word(bytes[0]) {
        return b"{}[](),;:@!|+-<>=".contains(&bytes[0]).then_some(1);
    }
    let mut end = 1;
    while end < bytes.len() {
        if is_word(bytes[end]) {
            end += 1;
        } else if rest[end..].starts_with("::") {
            end += 2;
        } else {
            break;
        }
    }
    Some(end)
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
}

impl Parser {
    fn line(&self) -> u32 {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(1, |token| token.line)
    }

    fn fail<T>(&self, what: impl Into<String>) -> Result<T, PtxError> {
        Err(PtxError::new(self.line(), what))
    }

    fn peek(&self) -> &str {
        self.tokens.get(self.at).map_or("", |token| &token.text)
    }

    fn next(&mut self) -> Result<String, PtxError> {
        match self.tokens.get(self.at) {
            Some(token) => {
                self.at += 1;
                Ok(token.text.clone())
            }
            None => self.fail("the text ends too early"),
        }
    }

    fn take(&mut self, text: &str) -> bool {
        let found = self.peek() == text;
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, text: &str) -> Result<(), PtxError> {
        if self.take(text) { Ok(()) } else { self.fail(format!("expected `{text}`, found `{}`", self.peek())) }
    }

    fn number(&mut self) -> Result<u64, PtxError> {
        let word = self.next()?;
        match parse_integer(&word) {
            Some(value) => Ok(value),
            None => self.fail(format!("`{word}` is not a number")),
        }
    }

    fn header(&mut self) -> Result<Header, PtxError> {
        self.expect(".version")?;
        let version = self.next()?;
        let Some(version) = version.split_once('.').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?))) else {
            return self.fail(format!("`{version}` is no version"));
        };
        self.expect(".target")?;
        let name = self.next()?;
        let Some(target) = name.strip_prefix("sm_").and_then(|number| number.parse().ok()) else {
            return self.fail(format!("unknown target `{name}`"));
        };
        self.expect(".address_size")?;
        match self.number()? {
            64 => Ok(Header { version, target }),
            other => self.fail(format!("addresses of {other} bits")),
        }
    }

    fn entry(&mut self) -> Result<Entry, PtxError> {
        let line = self.line();
        self.take(".visible");
        if !self.take(".entry") {
            return self.fail(format!("unknown directive `{}`", self.peek()));
        }
        let name = self.next()?;
        let params = self.params()?;
        let max_threads = self.performance_directives()?;
        self.expect("{")?;
        let mut body = Vec::new();
        while !self.take("}") {
            self.item(&mut body)?;
        }
        Ok(Entry { line, name, params, max_threads, body })
    }

    fn params(&mut self) -> Result<Vec<ParamDecl>, PtxError> {
        let mut params = Vec::new();
        if !self.take("(") || self.take(")") {
            return Ok(params);
        }
        loop {
            params.push(self.param()?);
            if self.take(")") {
                return Ok(params);
            }
            self.expect(",")?;
        }
    }

    fn param(&mut self) -> Result<ParamDecl, PtxError> {
        self.expect(".param")?;
        let mut align = None;
        let mut size = None;
        let name = loop {
            let word = self.next()?;
            match word.as_str() {
                ".align" => align = Some(self.number()? as usize),
                ".ptr" | ".global" => {}
                ".b8" | ".u8" | ".s8" => size = Some(1),
                ".b16" | ".u16" | ".s16" => size = Some(2),
                ".b32" | ".u32" | ".s32" | ".f32" => size = Some(4),
                ".b64" | ".u64" | ".s64" | ".f64" => size = Some(8),
                name if !name.starts_with('.') => break name.to_owned(),
                other => return self.fail(format!("unknown parameter attribute `{other}`")),
            }
        };
        let Some(element) = size else {
            return self.fail(format!("parameter `{name}` has no type"));
        };
        let count = if self.take("[") {
            let count = self.number()? as usize;
            self.expect("]")?;
            count
        } else {
            // `.align` of a plain pointer belongs to what it points at.
            align = None;
            1
        };
        Ok(ParamDecl { name, size: element * count, align: align.unwrap_or(element) })
    }

    fn performance_directives(&mut self) -> Result<Option<u64>, PtxError> {
        let mut max_threads = None;
        loop {
            match self.peek() {
                ".maxntid" | ".reqntid" => {
                    self.at += 1;
                    let mut threads = self.number()?;
                    while self.take(",") {
                        threads *= self.number()?;
                    }
                    max_threads = Some(threads);
                }
                ".minnctapersm" | ".maxnreg" => {
                    self.at += 1;
                    self.number()?;
                }
                _ => return Ok(max_threads),
            }
        }
    }

    fn item(&mut self, body: &mut Vec<Item>) -> Result<(), PtxError> {
        let line = self.line();
        if self.take(".reg") {
            return self.registers(body);
        }
        if self.take(".pragma") {
            // Pragmas advise the compiler; they change no result.
            self.next()?;
            return self.expect(";");
        }
        if self.peek().starts_with('.') {
            return self.fail(format!("unknown directive `{}`", self.peek()));
        }
        if self.tokens.get(self.at + 1).is_some_and(|next| next.text == ":") {
            let label = self.next()?;
            self.at += 1;
            body.push(Item::Label(label, line));
            return Ok(());
        }
        let statement = self.statement(line)?;
        body.push(Item::Statement(statement));
        Ok(())
    }

    fn registers(&mut self, body: &mut Vec<Item>) -> Result<(), PtxError> {
        let ty = self.next()?.trim_start_matches('.').to_owned();
        loop {
            let line = self.line();
            let stem = self.next()?;
            let count = if self.take("<") {
                let count = self.number()? as u32;
                self.expect(">")?;
                Some(count)
            } else {
                None
            };
            body.push(Item::Registers(Registers { ty: ty.clone(), stem, count, line }));
            if self.take(";") {
                return Ok(());
            }
            self.expect(",")?;
        }
    }

    fn statement(&mut self, line: u32) -> Result<Statement, PtxError> {
        let guard = if self.take("@") {
            let negated = self.take("!");
            Some((self.next()?, negated))
        } else {
            None
        };
        let opcode = self.next()?;
        if !opcode.starts_with(|first: char| first.is_ascii_alphabetic()) {
            self.at -= 1;
            return self.fail(format!("expected an instruction, found `{opcode}`"));
        }
        let mut operands = Vec::new();
        while !self.take(";") {
            if !operands.is_empty() {
                self.expect(",")?;
            }
            operands.push(self.operand()?);
        }
        Ok(Statement { line, guard, opcode, operands })
    }

    fn operand(&mut self) -> Result<Operand, PtxError> {
        match self.next()?.as_str() {
            "{" => {
                let mut parts = vec![self.next()?];
                while self.take(",") {
                    parts.push(self.next()?);
                }
                self.expect("}")?;
                Ok(Operand::Vector(parts))
            }
            "[" => {
                let base = self.next()?;
                let offset = if self.take("+") { self.signed_number()? } else { 0 };
                self.expect("]")?;
                Ok(Operand::Address { base, offset })
            }
            "!" => Ok(Operand::Not(self.next()?)),
            "-" => Ok(Operand::Negative(self.next()?)),
            word if word.starts_with(|first: char| first.is_ascii_alphanumeric() || "_$%".contains(first)) => {
                let word = word.to_owned();
                if self.take("|") { Ok(Operand::Pair(word, self.next()?)) } else { Ok(Operand::Word(word)) }
            }
            other => {
                self.at -= 1;
                self.fail(format!("unexpected `{other}`"))
            }
        }
    }

    fn signed_number(&mut self) -> Result<i64, PtxError> {
        let negative = self.take("-");
        let magnitude = self.number()? as i64;
        Ok(if negative { -magnitude } else { magnitude })
    }
}

/// A decimal, hexadecimal, octal or binary literal, perhaps with a `U`.
pub(crate) fn parse_integer(word: &str) -> Option<u64> {
    let word = word.strip_suffix('U').unwrap_or(word);
    if let Some(digits) = word.strip_prefix("0x").or(word.strip_prefix("0X")) {
        u64::from_str_radix(digits, 16).ok()
    } else if let Some(digits) = word.strip_prefix("0b").or(word.strip_prefix("0B")) {
        u64::from_str_radix(digits, 2).ok()
    } else if word.len() > 1 && word.starts_with('0') {
        u64::from_str_radix(&word[1..], 8).ok()
    } else {
        word.parse().ok()
    }
}
