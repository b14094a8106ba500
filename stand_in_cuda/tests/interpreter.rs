//! The interpreter on hand-written PTX: what each instruction does, and that each check fires.

use stand_in_cuda::exec::{Cause, Fault, Launch, Stats, run};
use stand_in_cuda::memory::{Memory, Wrong};
use stand_in_cuda::ptx::Module;

const NAN: u64 = 0x7fc0_1234;
const CANONICAL: u64 = 0x7fff_ffff;

fn f(x: f32) -> u64 {
    u64::from(x.to_bits())
}

fn d(x: f64) -> u64 {
    x.to_bits()
}

fn header(version: &str) -> String {
    format!(".version {version}\n.target sm_75\n.address_size 64\n")
}

/// An entry `k` with parameters `out`, `from` (pointers) and `n` (u32), and registers of every
/// kind.
fn entry(body: &str) -> String {
    format!(
        "{}.visible .entry k(.param .u64 out, .param .u64 from, .param .u32 n)\n{{\n\
         .reg .pred %p<8>; .reg .b16 %h<8>; .reg .b32 %r<16>; .reg .f32 %f<8>; .reg .b64 %d<16>; .reg .f64 %g<8>;\n\
         {body}\n}}\n",
        header("6.3")
    )
}

fn module(text: &str) -> Module {
    Module::parse(text).unwrap_or_else(|error| panic!("{error}"))
}

struct Setup {
    memory: Memory,
    out: u64,
    from: u64,
}

/// Two buffers: `out` of this many bytes, never written, and `from` with these values.
fn setup(out: usize, from: &[u64]) -> Setup {
    let mut memory = Memory::new();
    let out = memory.allocate(out, 0);
    let bytes: Vec<u8> = from.iter().flat_map(|value| value.to_le_bytes()).collect();
    let from = memory.allocate(bytes.len().max(8), 0);
    memory.write(from, &bytes).expect("fits");
    Setup { memory, out, from }
}

impl Setup {
    fn launch(&mut self, text: &str, grid: u32, block: u32) -> Result<Stats, Box<Fault>> {
        let module = module(text);
        let mut params = [self.out, self.from].map(u64::to_le_bytes).concat();
        params.extend((grid * block).to_le_bytes());
        let kernel = module.kernel("k").expect("the entry");
        let launch = Launch { kernel, grid: [grid, 1, 1], block: [block, 1, 1], params: &params, owner: Some(0) };
        run(&mut self.memory, &launch)
    }

    fn result(&self, index: u64) -> u64 {
        let bytes = self.memory.read(self.out + 8 * index, 8).expect("written");
        u64::from_le_bytes(bytes.try_into().expect("8 bytes"))
    }
}

/// Loads the values into `%d0`, `%d1`, … and, cut, into `%r…`, `%h…`, `%f…` and `%g…`; runs the
/// body; stores `%d15`.
fn eval(body: &str, from: &[u64]) -> u64 {
    let loads: String = (0..from.len())
        .map(|i| {
            let at = 8 * i;
            format!(
                "ld.global.b64 %d{i}, [%d14+{at}]; ld.global.b32 %r{i}, [%d14+{at}]; ld.global.b16 %h{i}, [%d14+{at}];\n\
                 ld.global.f32 %f{i}, [%d14+{at}]; ld.global.f64 %g{i}, [%d14+{at}];\n"
            )
        })
        .collect();
    let text = entry(&format!(
        "ld.param.u64 %d13, [out]; ld.param.u64 %d14, [from];\n{loads}{body}\nst.global.u64 [%d13], %d15;\nret;"
    ));
    let mut setup = setup(8, from);
    setup.launch(&text, 1, 1).unwrap_or_else(|fault| panic!("{fault}"));
    setup.result(0)
}

/// The same for an instruction on 32-bit registers that writes `%r15`.
fn eval32(instruction: &str, from: &[u64]) -> u64 {
    eval(&format!("{instruction}\ncvt.u64.u32 %d15, %r15;"), from)
}

fn eval16(instruction: &str, from: &[u64]) -> u64 {
    eval(&format!("{instruction}\ncvt.u64.u16 %d15, %h7;"), from)
}

fn eval_f32(instruction: &str, from: &[u64]) -> u64 {
    eval(&format!("{instruction}\nmov.b32 %r15, %f7;\ncvt.u64.u32 %d15, %r15;"), from)
}

fn eval_f64(instruction: &str, from: &[u64]) -> u64 {
    eval(&format!("{instruction}\nmov.b64 %d15, %g7;"), from)
}

/// An instruction that writes `%p7`.
fn eval_predicate(instruction: &str, from: &[u64]) -> u64 {
    eval(&format!("{instruction}\nselp.u64 %d15, 1, 0, %p7;"), from)
}

/// Why a text is refused.
fn refusal(body: &str) -> String {
    match Module::parse(&entry(body)) {
        Ok(_) => panic!("accepted: {body}"),
        Err(error) => error.to_string(),
    }
}

fn fault(body: &str, grid: u32, block: u32) -> Box<Fault> {
    let mut setup = setup(64, &[7; 16]);
    setup.launch(&entry(body), grid, block).expect_err("a fault")
}

const LOAD_ADDRESSES: &str = "ld.param.u64 %d0, [out]; ld.param.u64 %d1, [from];\n";

// ---- Integers ----

#[test]
fn integer_arithmetic_wraps() {
    assert_eq!(eval32("add.s32 %r15, %r0, %r1;", &[0xffff_ffff, 2]), 1);
    assert_eq!(eval32("sub.s32 %r15, %r0, 1;", &[0]), 0xffff_ffff);
    assert_eq!(eval16("add.s16 %h7, %h0, %h1;", &[0xffff, 2]), 1);
    assert_eq!(eval("add.s64 %d15, %d0, -1;", &[0]), u64::MAX);
    assert_eq!(eval32("mul.lo.s32 %r15, %r0, %r1;", &[0x1_0001, 0x1_0001]), 0x2_0001);
    assert_eq!(eval32("mul.hi.u32 %r15, %r0, %r1;", &[0xffff_ffff, 0xffff_ffff]), 0xffff_fffe);
    assert_eq!(eval32("mul.hi.s32 %r15, %r0, %r1;", &[0xffff_ffff, 5]), 0xffff_ffff);
    assert_eq!(eval("mul.hi.u64 %d15, %d0, %d1;", &[u64::MAX, u64::MAX]), u64::MAX - 1);
    assert_eq!(eval("mul.wide.u32 %d15, %r0, %r1;", &[0xffff_ffff, 2]), 0x1_ffff_fffe);
    assert_eq!(eval("mul.wide.s32 %d15, %r0, 2;", &[0xffff_ffff]), u64::MAX - 1);
    assert_eq!(eval32("mul.wide.u16 %r15, %h0, 4;", &[0xffff]), 0x3_fffc);
    assert_eq!(eval("mad.wide.u32 %d15, %r0, %r1, %d2;", &[0xffff_ffff, 2, 3]), 0x2_0000_0001);
    assert_eq!(eval32("mad.lo.s32 %r15, %r0, %r1, %r2;", &[7, 6, 0xffff_ffff]), 41);
    assert_eq!(eval32("mad.hi.u32 %r15, %r0, %r1, %r2;", &[1 << 31, 4, 1]), 3);
    assert_eq!(eval32("div.u32 %r15, %r0, %r1;", &[7, 2]), 3);
    assert_eq!(eval32("div.s32 %r15, %r0, %r1;", &[-7i32 as u32 as u64, 2]), -3i32 as u32 as u64);
    assert_eq!(eval32("rem.s32 %r15, %r0, %r1;", &[-7i32 as u32 as u64, 2]), -1i32 as u32 as u64);
    assert_eq!(eval("rem.u64 %d15, %d0, 10;", &[12345]), 5);
    assert_eq!(eval32("neg.s32 %r15, %r0;", &[5]), -5i32 as u32 as u64);
    assert_eq!(eval32("abs.s32 %r15, %r0;", &[-5i32 as u32 as u64]), 5);
    assert_eq!(eval32("min.s32 %r15, %r0, %r1;", &[0xffff_ffff, 1]), 0xffff_ffff);
    assert_eq!(eval32("min.u32 %r15, %r0, %r1;", &[0xffff_ffff, 1]), 1);
    assert_eq!(eval("max.s64 %d15, %d0, %d1;", &[u64::MAX, 1]), 1);
}

#[test]
fn shifts_by_the_width_or_more_leave_signs_only() {
    for (by, shl, shr, sar) in [(0, 0x8000_0001, 0x8000_0001, 0x8000_0001), (31, 1 << 31, 1, 0xffff_ffff)] {
        assert_eq!(eval32("shl.b32 %r15, %r0, %r1;", &[0x8000_0001, by]), shl);
        assert_eq!(eval32("shr.u32 %r15, %r0, %r1;", &[0x8000_0001, by]), shr);
        assert_eq!(eval32("shr.s32 %r15, %r0, %r1;", &[0x8000_0001, by]), sar);
    }
    for by in [32, 33, 64, 0xffff_ffff] {
        assert_eq!(eval32("shl.b32 %r15, %r0, %r1;", &[0x8000_0001, by]), 0);
        assert_eq!(eval32("shr.b32 %r15, %r0, %r1;", &[0x8000_0001, by]), 0);
        assert_eq!(eval32("shr.s32 %r15, %r0, %r1;", &[0x8000_0001, by]), 0xffff_ffff);
    }
    for by in [64, 65, 0x8000_0000] {
        assert_eq!(eval("shl.b64 %d15, %d0, %r1;", &[u64::MAX, by]), 0);
        assert_eq!(eval("shr.u64 %d15, %d0, %r1;", &[u64::MAX, by]), 0);
        assert_eq!(eval("shr.s64 %d15, %d0, %r1;", &[1 << 63, by]), u64::MAX);
    }
    assert_eq!(eval16("shl.b16 %h7, %h0, 15;", &[3]), 0x8000);
    assert_eq!(eval16("shr.u16 %h7, %h0, 16;", &[0xffff]), 0);
    assert_eq!(eval16("shr.s16 %h7, %h0, 99;", &[0x8000]), 0xffff);
}

#[test]
fn bits_are_picked_and_put() {
    assert_eq!(eval32("and.b32 %r15, %r0, -16;", &[0x1234_5678]), 0x1234_5670);
    assert_eq!(eval32("or.b32 %r15, %r0, %r1;", &[0xf0, 0x0f]), 0xff);
    assert_eq!(eval("xor.b64 %d15, %d0, -1;", &[1]), u64::MAX - 1);
    assert_eq!(eval32("not.b32 %r15, %r0;", &[0xffff_0000]), 0xffff);
    assert_eq!(eval16("not.b16 %h7, %h0;", &[1]), 0xfffe);
    // The table of a three-way majority, and of an exclusive or.
    assert_eq!(eval32("lop3.b32 %r15, %r0, %r1, %r2, 232;", &[0b1100, 0b1010, 0b1001]), 0b1000);
    assert_eq!(eval32("lop3.b32 %r15, %r0, %r1, %r2, 0x96;", &[0b1100, 0b1010, 0b1001]), 0b1111);
    assert_eq!(eval32("lop3.b32 %r15, %r0, %r1, %r2, 0x01;", &[0, 0, 0]), 0xffff_ffff);
    assert_eq!(eval32("prmt.b32 %r15, %r0, %r1, 0x7610;", &[0x3322_1100, 0x7766_5544]), 0x7766_1100);
    // Bytes 4, 5, 0 and 1 of the pair, from the lowest up.
    assert_eq!(eval32("prmt.b32 %r15, %r0, %r1, 0x1054;", &[0xaabb_ccdd, 0x11]), 0xccdd_0011);
    assert_eq!(eval32("prmt.b32 %r15, %r0, %r1, 0x9a98;", &[0x0080_ff7f, 0]), 0xffff_ff00);
    assert_eq!(eval32("shf.l.wrap.b32 %r15, %r0, %r1, 36;", &[0xf000_0000, 1]), 0x1f);
    assert_eq!(eval32("shf.l.clamp.b32 %r15, %r0, %r1, 36;", &[0xf000_0000, 1]), 0xf000_0000);
    assert_eq!(eval32("shf.r.wrap.b32 %r15, %r0, %r1, 4;", &[0xf0, 0xa]), 0xa000_000f);
    assert_eq!(eval32("shf.r.clamp.b32 %r15, %r0, %r1, 32;", &[0xf0, 0xa]), 0xa);
    assert_eq!(eval32("bfe.u32 %r15, %r0, 4, 8;", &[0xabcd_ef12]), 0xf1);
    assert_eq!(eval32("bfe.s32 %r15, %r0, 4, 8;", &[0xabcd_ef12]), 0xffff_fff1);
    assert_eq!(eval32("bfe.s32 %r15, %r0, 28, 8;", &[0x8000_0000]), 0xffff_fff8);
    assert_eq!(eval32("bfe.u32 %r15, %r0, 40, 8;", &[0xffff_ffff]), 0);
    assert_eq!(eval32("bfe.s32 %r15, %r0, 4, 0;", &[0xffff_ffff]), 0);
    assert_eq!(eval("bfe.u64 %d15, %d0, 0, 64;", &[u64::MAX]), u64::MAX);
    assert_eq!(eval32("bfi.b32 %r15, %r0, %r1, 8, 4;", &[0xff, 0]), 0xf00);
    assert_eq!(eval32("bfi.b32 %r15, %r0, %r1, 32, 4;", &[0xff, 9]), 9);
    assert_eq!(eval("popc.b64 %r14, %d0; cvt.u64.u32 %d15, %r14;", &[u64::MAX]), 64);
    assert_eq!(eval32("clz.b32 %r15, %r0;", &[1]), 31);
    assert_eq!(eval32("clz.b32 %r15, %r0;", &[0]), 32);
    assert_eq!(eval32("brev.b32 %r15, %r0;", &[1]), 1 << 31);
}

// ---- Floats ----

#[test]
fn float_arithmetic_rounds_once_to_nearest_even() {
    let (a, b, c) = (1.000_000_1_f32, 1.000_000_2_f32, -1.0_f32);
    assert_eq!(eval_f32("fma.rn.f32 %f7, %f0, %f1, %f2;", &[f(a), f(b), f(c)]), f(a.mul_add(b, c)));
    assert_ne!(a.mul_add(b, c), a * b + c);
    assert_eq!(eval_f32("add.rn.f32 %f7, %f0, %f1;", &[f(1.0), f(2f32.powi(-24))]), f(1.0));
    assert_eq!(
        eval_f32("add.rn.f32 %f7, %f0, %f1;", &[f(1.0 + f32::EPSILON), f(2f32.powi(-24))]),
        f(1.0 + 2.0 * f32::EPSILON)
    );
    assert_eq!(eval_f32("sub.rn.f32 %f7, %f0, %f1;", &[f(1.0), f(1.0)]), f(0.0));
    assert_eq!(eval_f32("mul.rn.f32 %f7, %f0, %f1;", &[f(3.0), f(-0.0)]), f(-0.0));
    assert_eq!(eval_f32("div.rn.f32 %f7, %f0, %f1;", &[f(1.0), f(3.0)]), f(1.0 / 3.0));
    assert_eq!(eval_f32("div.rn.f32 %f7, %f0, %f1;", &[f(-1.0), f(0.0)]), f(f32::NEG_INFINITY));
    assert_eq!(eval_f32("sqrt.rn.f32 %f7, %f0;", &[f(2.0)]), f(2f32.sqrt()));
    assert_eq!(eval_f32("rcp.rn.f32 %f7, %f0;", &[f(3.0)]), f(1.0 / 3.0));
    assert_eq!(eval_f64("fma.rn.f64 %g7, %g0, %g1, %g2;", &[d(0.1), d(10.0), d(-1.0)]), d(0.1f64.mul_add(10.0, -1.0)));
    assert_eq!(eval_f64("sqrt.rn.f64 %g7, %g0;", &[d(2.0)]), d(2f64.sqrt()));
    assert_eq!(eval_f64("add.rn.f64 %g7, %g0, 0d3FF0000000000000;", &[d(2.0)]), d(3.0));
}

/// Results that lie between two doubles, next to a tie or at one, by their exact bits.
#[test]
fn double_precision_is_rounded_to_nearest_even() {
    let near_1 = |ulps: i64| 0x3ff0_0000_0000_0000_u64.wrapping_add_signed(ulps);
    // (1 + 2^-52)² = 1 + 2^-51 + 2^-104; (1 + 2^-52)(1 - 2^-53) = 1 + 2^-53 - 2^-105, just below a
    // tie.
    assert_eq!(eval_f64("mul.rn.f64 %g7, %g0, %g1;", &[near_1(1), near_1(1)]), near_1(2));
    assert_eq!(eval_f64("mul.rn.f64 %g7, %g0, %g1;", &[near_1(1), near_1(-1)]), near_1(0));
    assert_eq!(eval_f64("add.rn.f64 %g7, %g0, %g1;", &[near_1(0), d(2f64.powi(-53))]), near_1(0));
    assert_eq!(eval_f64("add.rn.f64 %g7, %g0, %g1;", &[near_1(1), d(2f64.powi(-53))]), near_1(2));
    // Below 1 the doubles are half as far apart.
    assert_eq!(eval_f64("sub.rn.f64 %g7, %g0, %g1;", &[near_1(0), d(2f64.powi(-54))]), near_1(0));
    assert_eq!(eval_f64("sub.rn.f64 %g7, %g0, %g1;", &[near_1(-1), d(2f64.powi(-54))]), near_1(-2));
    assert_eq!(eval_f64("div.rn.f64 %g7, %g0, %g1;", &[d(1.0), d(3.0)]), 0x3fd5_5555_5555_5555);
    assert_eq!(eval_f64("div.rn.f64 %g7, %g0, %g1;", &[d(1.0), near_1(-1)]), near_1(1));
    assert_eq!(eval_f64("sqrt.rn.f64 %g7, %g0;", &[d(2.0)]), 0x3ff6_a09e_667f_3bcd);
    assert_eq!(eval_f64("neg.f64 %g7, %g0;", &[d(2.5)]), d(-2.5));
    // Subnormals are kept.
    assert_eq!(eval_f64("mul.rn.f64 %g7, %g0, %g1;", &[d(f64::MIN_POSITIVE), d(0.5)]), 1 << 51);
    assert_eq!(eval_f32("cvt.rn.f32.f64 %f7, %g0;", &[d(1.0 + 2f64.powi(-24))]), f(1.0));
    assert_eq!(
        eval_f32("cvt.rn.f32.f64 %f7, %g0;", &[d(1.0 + 2f64.powi(-24) + 2f64.powi(-50))]),
        f(1.0 + f32::EPSILON)
    );
    assert_eq!(eval_f32("cvt.rn.f32.f64 %f7, %g0;", &[d(1e39)]), f(f32::INFINITY));
    assert_eq!(eval_f32("cvt.rn.f32.f64 %f7, %g0;", &[d(1e-45)]), 1);
    let two_53 = 1_u64 << 53;
    for (integer, expected) in [(two_53 + 1, two_53), (two_53 + 3, two_53 + 4), (u64::MAX - 1024, u64::MAX - 2047)] {
        assert_eq!(eval_f64("cvt.rn.f64.u64 %g7, %d0;", &[integer]), d(expected as f64));
    }
}

#[test]
fn subnormals_are_not_flushed() {
    let tiny = f32::from_bits(3);
    assert_eq!(eval_f32("add.rn.f32 %f7, %f0, %f0;", &[f(tiny)]), 6);
    assert_eq!(eval_f32("mul.rn.f32 %f7, %f0, 0f3F000000;", &[f(f32::from_bits(6))]), 3);
    assert_eq!(eval_f32("mul.rn.f32 %f7, %f0, 0f3F000000;", &[f(tiny)]), 2, "1.5 units tie to even");
    assert_eq!(
        eval_f32("fma.rn.f32 %f7, %f0, %f1, %f2;", &[f(1e-30), f(1e-10), f(0.0)]),
        f(1e-30f32.mul_add(1e-10, 0.0))
    );
}

#[test]
fn a_nan_that_an_f32_operation_makes_is_canonical() {
    for instruction in ["add.rn.f32 %f7, %f0, %f1;", "mul.rn.f32 %f7, %f1, %f0;", "fma.rn.f32 %f7, %f1, %f1, %f0;"] {
        assert_eq!(eval_f32(instruction, &[NAN, f(1.0)]), CANONICAL);
    }
    assert_eq!(eval_f32("sqrt.rn.f32 %f7, %f0;", &[f(-1.0)]), CANONICAL);
    assert_eq!(eval_f32("div.rn.f32 %f7, %f0, %f0;", &[f(0.0)]), CANONICAL);
    assert_eq!(eval_f32("mov.f32 %f7, %f0;", &[NAN]), NAN, "a move keeps the payload");
    assert_eq!(eval_f32("selp.f32 %f7, %f0, %f1, 1;", &[NAN, 0]), NAN);
}

#[test]
fn min_and_max_prefer_numbers_and_order_zeros() {
    assert_eq!(eval_f32("min.f32 %f7, %f0, %f1;", &[NAN, f(1.0)]), f(1.0));
    assert_eq!(eval_f32("max.f32 %f7, %f0, %f1;", &[f(1.0), NAN]), f(1.0));
    assert_eq!(eval_f32("max.f32 %f7, %f0, %f0;", &[NAN]), CANONICAL);
    for (a, b) in [(0.0, -0.0), (-0.0, 0.0)] {
        assert_eq!(eval_f32("min.f32 %f7, %f0, %f1;", &[f(a), f(b)]), f(-0.0));
        assert_eq!(eval_f32("max.f32 %f7, %f0, %f1;", &[f(a), f(b)]), f(0.0));
    }
    assert_eq!(eval_f64("max.f64 %g7, %g0, %g1;", &[d(-1.0), d(2.0)]), d(2.0));
}

#[test]
fn signs_and_classes() {
    assert_eq!(eval_f32("neg.f32 %f7, %f0;", &[f(0.0)]), f(-0.0));
    assert_eq!(eval_f32("abs.f32 %f7, %f0;", &[f(-3.0)]), f(3.0));
    assert_eq!(eval_f32("copysign.f32 %f7, %f0, %f1;", &[f(-1.0), f(3.0)]), f(-3.0));
    for (class, of) in [
        ("finite", f(1.0)),
        ("infinite", f(f32::INFINITY)),
        ("number", f(f32::INFINITY)),
        ("notanumber", NAN),
        ("normal", f(1.0)),
        ("subnormal", 1),
    ] {
        assert_eq!(eval_predicate(&format!("testp.{class}.f32 %p7, %f0;"), &[of]), 1, "{class}");
        let other = if class == "notanumber" || class == "subnormal" { f(1.0) } else { NAN };
        assert_eq!(eval_predicate(&format!("testp.{class}.f32 %p7, %f0;"), &[other]), 0, "not {class}");
    }
}

// ---- Comparisons and predicates ----

#[test]
fn comparisons_with_nan_are_false_unless_they_say_u() {
    for (name, plain, with_nan) in [
        ("eq", 0, 0),
        ("ne", 1, 0),
        ("lt", 1, 0),
        ("le", 1, 0),
        ("gt", 0, 0),
        ("ge", 0, 0),
        ("equ", 0, 1),
        ("neu", 1, 1),
        ("ltu", 1, 1),
        ("leu", 1, 1),
        ("gtu", 0, 1),
        ("geu", 0, 1),
        ("num", 1, 0),
        ("nan", 0, 1),
    ] {
        assert_eq!(eval_predicate(&format!("setp.{name}.f32 %p7, %f0, %f1;"), &[f(1.0), f(2.0)]), plain, "{name}");
        assert_eq!(eval_predicate(&format!("setp.{name}.f32 %p7, %f0, %f1;"), &[NAN, f(2.0)]), with_nan, "{name} NaN");
        assert_eq!(eval_predicate(&format!("setp.{name}.f32 %p7, %f1, %f0;"), &[NAN, f(2.0)]), with_nan, "{name} NaN");
    }
    assert_eq!(eval_predicate("setp.eq.f32 %p7, %f0, 0f00000000;", &[f(-0.0)]), 1);
}

#[test]
fn integer_comparisons_know_their_sign() {
    let minus = 0xffff_ffff;
    assert_eq!(eval_predicate("setp.lt.s32 %p7, %r0, %r1;", &[minus, 1]), 1);
    assert_eq!(eval_predicate("setp.lt.u32 %p7, %r0, %r1;", &[minus, 1]), 0);
    assert_eq!(eval_predicate("setp.hi.u32 %p7, %r0, %r1;", &[minus, 1]), 1);
    assert_eq!(eval_predicate("setp.ge.s64 %p7, %d0, 0;", &[u64::MAX]), 0);
    assert_eq!(eval_predicate("setp.gt.s16 %p7, %h0, -1;", &[0xffff]), 0);
    assert_eq!(eval_predicate("setp.eq.b32 %p7, %r0, -1;", &[minus]), 1);
}

#[test]
fn setp_joins_a_predicate_and_gives_the_opposite() {
    let join = |op: &str, c: &str| {
        let body = format!("setp.eq.u32 %p0, %r0, %r0; setp.lt.{op}.u32 %p7|%p6, %r0, %r1, {c}%p0;\n");
        let both = eval(
            &format!("{body}selp.u64 %d15, 1, 0, %p7;\nselp.u64 %d12, 2, 0, %p6; or.b64 %d15, %d15, %d12;"),
            &[1, 2],
        );
        (both & 1, both >> 1)
    };
    assert_eq!(join("and", ""), (1, 0));
    assert_eq!(join("and", "!"), (0, 0));
    assert_eq!(join("or", ""), (1, 1));
    assert_eq!(join("or", "!"), (1, 0));
    assert_eq!(join("xor", ""), (0, 1));
    assert_eq!(eval_predicate("setp.lt.u32 %p7|%p6, %r0, %r1;", &[3, 2]), 0);
    assert_eq!(eval_predicate("setp.lt.u32 %p6|%p7, %r0, %r1;", &[3, 2]), 1);
    assert_eq!(eval_predicate("mov.pred %p0, 1; not.pred %p1, %p0; xor.pred %p7, %p0, %p1;", &[]), 1);
    assert_eq!(eval_predicate("mov.pred %p0, -1; and.pred %p7, %p0, %p0;", &[]), 1);
}

// ---- Conversions and moves ----

#[test]
fn integer_conversions_extend_and_cut() {
    assert_eq!(eval("cvt.s64.s32 %d15, %r0;", &[0xffff_ffff]), u64::MAX);
    assert_eq!(eval("cvt.u64.u32 %d15, %r0;", &[0xffff_ffff]), 0xffff_ffff);
    assert_eq!(eval32("cvt.u32.u64 %r15, %d0;", &[0x1_2345_6789]), 0x2345_6789);
    assert_eq!(eval32("cvt.s32.s16 %r15, %h0;", &[0x8000]), 0xffff_8000);
    assert_eq!(eval32("cvt.u32.u16 %r15, %h0;", &[0x8000]), 0x8000);
    assert_eq!(eval32("cvt.s32.s8 %r15, %r0;", &[0x1_80]), 0xffff_ff80);
    assert_eq!(eval16("cvt.u16.u32 %h7, %r0;", &[0x1_2345]), 0x2345);
    assert_eq!(eval32("cvt.u32.s16 %r15, %h0;", &[0xffff]), 0xffff_ffff);
}

#[test]
fn conversions_to_and_from_floats() {
    assert_eq!(eval_f32("cvt.rn.f32.u32 %f7, %r0;", &[16_777_217]), f(16_777_216.0));
    assert_eq!(eval_f32("cvt.rn.f32.s32 %f7, %r0;", &[0xffff_ffff]), f(-1.0));
    assert_eq!(eval_f32("cvt.rn.f32.u64 %f7, %d0;", &[u64::MAX]), f(18_446_744_073_709_551_615.0));
    assert_eq!(eval_f64("cvt.rn.f64.s64 %g7, %d0;", &[u64::MAX]), d(-1.0));
    assert_eq!(eval_f64("cvt.f64.f32 %g7, %f0;", &[f(0.1)]), d(f64::from(0.1f32)));
    assert_eq!(eval_f32("cvt.rn.f32.f64 %f7, %g0;", &[d(0.1)]), f(0.1));
    for (rounding, of, to) in
        [("rni", 2.5, 2.0), ("rni", 3.5, 4.0), ("rzi", -2.7, -2.0), ("rmi", -2.1, -3.0), ("rpi", 2.1, 3.0)]
    {
        assert_eq!(eval_f32(&format!("cvt.{rounding}.f32.f32 %f7, %f0;"), &[f(of)]), f(to));
        let integer = eval32(&format!("cvt.{rounding}.s32.f32 %r15, %f0;"), &[f(of)]);
        assert_eq!(integer, to as i32 as u32 as u64);
    }
    assert_eq!(eval32("cvt.rzi.u32.f32 %r15, %f0;", &[f(-5.0)]), 0);
    assert_eq!(eval32("cvt.rzi.s32.f32 %r15, %f0;", &[f(3e9)]), 0x7fff_ffff);
    assert_eq!(eval32("cvt.rzi.s32.f32 %r15, %f0;", &[NAN]), 0);
    assert_eq!(eval("cvt.rzi.u64.f64 %d15, %g0;", &[d(1e300)]), u64::MAX);
}

#[test]
fn half_precision_conversions_agree_with_another_implementation() {
    // Every f16, in portions; then f32 values around every tie.
    for bits in (0..=u16::MAX).step_by(13) {
        let got = f32::from_bits(eval_f32("cvt.f32.f16 %f7, %h0;", &[u64::from(bits)]) as u32);
        let want = half::f16::from_bits(bits).to_f32();
        assert!(got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan()), "{bits:#x}");
    }
    for high in (0..=u16::MAX).step_by(37) {
        for low in [0u32, 0xfff, 0x1000, 0x1001, 0x3000] {
            let x = f32::from_bits((u32::from(high) << 16) | low);
            let got = half::f16::from_bits(eval16("cvt.rn.f16.f32 %h7, %f0;", &[f(x)]) as u16);
            let want = half::f16::from_f32(x);
            assert!(got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan()), "{x:e}");
        }
    }
}

#[test]
fn moves_pack_and_unpack() {
    assert_eq!(eval32("mov.b32 %r15, {%h0, %h1};", &[0x1111, 0x2222]), 0x2222_1111);
    assert_eq!(eval32("mov.b32 {%h6, %h7}, %r0; cvt.u32.u16 %r15, %h7;", &[0x2222_1111]), 0x2222);
    assert_eq!(eval("mov.b64 %d15, {%r0, %r1};", &[1, 2]), 0x2_0000_0001);
    assert_eq!(eval32("mov.b64 {%r14, %r15}, %d0;", &[0x2_0000_0001]), 2);
    assert_eq!(eval("mov.b64 %d15, {%h0, %h1, %h2, %h3};", &[1, 2, 3, 4]), 0x0004_0003_0002_0001);
    assert_eq!(eval32("mov.b32 %r15, %f0;", &[f(1.0)]), f(1.0));
    assert_eq!(eval16("selp.b16 %h7, %h0, %h1, 0;", &[1, 2]), 2);
}

// ---- Control ----

#[test]
fn threads_that_part_meet_again() {
    // out[i] = sum of 0..i, with a loop of another length in every thread, and a detour for odd
    // ones.
    let text = entry(
        "ld.param.u64 %d0, [out]; mov.u32 %r0, %tid.x; mov.u32 %r1, %ctaid.x; mov.u32 %r2, %ntid.x;
         mad.lo.s32 %r0, %r1, %r2, %r0; mul.wide.u32 %d1, %r0, 8; add.s64 %d0, %d0, %d1;
         mov.u32 %r3, 0; mov.u32 %r4, 0;
         and.b32 %r5, %r0, 1; setp.eq.u32 %p1, %r5, 1; @!%p1 bra $loop; add.s32 %r3, %r3, 1000;
         $loop: setp.ge.u32 %p0, %r4, %r0; @%p0 bra $done; add.s32 %r3, %r3, %r4; add.s32 %r4, %r4, 1; bra.uni $loop;
         $done: cvt.u64.u32 %d2, %r3; st.global.u64 [%d0], %d2; ret;",
    );
    let mut setup = setup(8 * 150, &[]);
    let stats = setup.launch(&text, 3, 50).expect("runs");
    assert_eq!(stats.threads, 150);
    for i in 0..150u64 {
        assert_eq!(setup.result(i), i * i.saturating_sub(1) / 2 + if i % 2 == 1 { 1000 } else { 0 });
    }
}

#[test]
fn a_predicate_guards_one_instruction() {
    let body = "mov.u64 %d15, 0; setp.eq.u32 %p0, %r0, 1; @%p0 add.s64 %d15, %d15, 1; @!%p0 add.s64 %d15, %d15, 2;";
    assert_eq!(eval(body, &[1]), 1);
    assert_eq!(eval(body, &[0]), 2);
    // Half of a group returns early.
    let text = entry(
        "ld.param.u64 %d0, [out]; mov.u32 %r0, %tid.x; setp.ge.u32 %p0, %r0, 4; @%p0 ret;
         mul.wide.u32 %d1, %r0, 8; add.s64 %d0, %d0, %d1; st.global.u64 [%d0], 9; ret;",
    );
    let mut setup = setup(32, &[]);
    let stats = setup.launch(&text, 1, 8).expect("runs");
    assert_eq!((0..4).map(|i| setup.result(i)).sum::<u64>(), 36);
    assert_eq!(stats.instructions, 4 * 8 + 4 * 4);
}

#[test]
fn special_registers_have_three_axes() {
    let text = entry(
        "ld.param.u64 %d0, [out]; mov.u32 %r0, %tid.y; mov.u32 %r1, %ctaid.z; mov.u32 %r2, %ntid.y; mov.u32 %r3, %nctaid.z;
         mov.u32 %r4, %tid.x; setp.ne.u32 %p0, %r4, 0; @%p0 ret;
         mad.lo.s32 %r5, %r1, %r2, %r0; mul.wide.u32 %d1, %r5, 8; add.s64 %d0, %d0, %d1;
         mul.lo.s32 %r6, %r2, 100; add.s32 %r6, %r6, %r3; cvt.u64.u32 %d2, %r6; st.global.u64 [%d0], %d2; ret;",
    );
    let module = module(&text);
    let mut setup = setup(8 * 6, &[]);
    let params = [&setup.out.to_le_bytes()[..], &setup.from.to_le_bytes(), &[0; 4]].concat();
    let kernel = module.kernel("k").expect("the entry");
    let launch = Launch { kernel, grid: [1, 1, 2], block: [5, 3, 1], params: &params, owner: None };
    run(&mut setup.memory, &launch).expect("runs");
    assert_eq!((0..6).map(|i| setup.result(i)).collect::<Vec<_>>(), vec![302; 6]);
}

#[test]
fn an_endless_loop_ends() {
    let fault = fault("$again: bra.uni $again;", 1, 1);
    assert_eq!(fault.cause, Cause::Endless);
}

#[test]
fn a_trap_and_a_missing_return_are_faults() {
    assert_eq!(fault("trap;", 1, 1).cause, Cause::Trap);
    assert_eq!(fault("mov.u32 %r0, 0;", 1, 1).cause, Cause::NoReturn);
    assert_eq!(fault("mov.u32 %r0, 0; div.u32 %r1, 7, %r0; ret;", 1, 1).cause, Cause::DivisionByZero);
}

#[test]
fn a_register_read_before_it_is_written_is_a_fault() {
    let fault = fault(&format!("{LOAD_ADDRESSES} st.global.u64 [%d0], %d7; ret;"), 1, 1);
    assert_eq!(fault.cause, Cause::Undefined("%d7".to_owned()));
    assert!(fault.text.contains("st.global.u64 [%d0], %d7"), "{fault}");
}

#[test]
fn what_one_thread_left_in_a_register_is_not_there_for_the_next() {
    // Only thread 0 writes %r1; thread 40, in another group, and thread 1, in the same, read it.
    let body = |reader: u32| {
        format!(
            "mov.u32 %r0, %tid.x; setp.ne.u32 %p0, %r0, 0; @!%p0 mov.u32 %r1, 5;
             setp.eq.u32 %p1, %r0, {reader}; @%p1 add.s32 %r2, %r1, 1; ret;"
        )
    };
    for reader in [1, 40] {
        let fault = fault(&body(reader), 1, 64);
        assert_eq!(fault.cause, Cause::Undefined("%r1".to_owned()));
        assert_eq!(fault.thread, [reader, 0, 0]);
    }
}

// ---- Memory ----

#[test]
fn vectors_and_narrow_accesses() {
    let text = entry(&format!(
        "{LOAD_ADDRESSES} ld.global.v4.f32 {{%f0, %f1, %f2, %f3}}, [%d1]; st.global.v4.f32 [%d0], {{%f3, %f2, %f1, %f0}};
         ld.global.v4.u16 {{%h0, %h1, %h2, %h3}}, [%d1]; st.global.v2.u16 [%d0+16], {{%h1, %h0}};
         ld.global.s8 %r0, [%d1+4]; st.global.b32 [%d0+20], %r0; st.global.u8 [%d0+24], %r0;
         ld.global.nc.u32 %d2, [%d1+4]; st.global.u32 [%d0+28], %d2; ret;"
    ));
    let mut setup = setup(32, &[0x0002_0001_0004_0003, 0x8]);
    setup.memory.write(setup.from, &[1, 0, 2, 0, 0xfe, 0xff, 4, 0, 5, 0, 6, 0, 7, 0, 8, 0]).expect("fits");
    let stats = setup.launch(&text, 1, 1).expect("runs");
    let read = |memory: &Memory, at, bytes| memory.read(at, bytes).expect("written").to_vec();
    assert_eq!(read(&setup.memory, setup.out, 16), [7, 0, 8, 0, 5, 0, 6, 0, 0xfe, 0xff, 4, 0, 1, 0, 2, 0]);
    assert_eq!(read(&setup.memory, setup.out + 16, 9), [2, 0, 1, 0, 0xfe, 0xff, 0xff, 0xff, 0xfe]);
    assert_eq!(read(&setup.memory, setup.out + 28, 4), [0xfe, 0xff, 4, 0]);
    assert_eq!(stats.loads, [1, 0, 1, 1, 1]);
    assert_eq!(stats.stores, [1, 0, 3, 0, 1]);
    assert_eq!(stats.bytes(), 1 + 4 + 8 + 16 + 1 + 12 + 16);
}

fn wrong(body: &str, threads: u32) -> Wrong {
    let fault = fault(&format!("{LOAD_ADDRESSES}{body}\nret;"), 1, threads);
    fault.wrong().unwrap_or_else(|| panic!("{fault}"))
}

#[test]
fn accesses_outside_of_allocations() {
    assert_eq!(wrong("st.global.u64 [%d0+64], 1;", 1), Wrong::OutOfBounds);
    assert_eq!(wrong("st.global.u64 [%d0+-8], 1;", 1), Wrong::OutOfBounds);
    assert_eq!(wrong("mov.u64 %d2, 0; st.global.u64 [%d2], 1;", 1), Wrong::OutOfBounds);
    assert_eq!(wrong("mov.u64 %d2, -16; ld.global.v2.u64 {%d3, %d4}, [%d2];", 1), Wrong::OutOfBounds);
    assert_eq!(wrong("add.s64 %d2, %d1, 4294967296; ld.global.u8 %r0, [%d2];", 1), Wrong::OutOfBounds);
}

#[test]
fn accesses_at_odd_addresses() {
    assert_eq!(wrong("ld.global.u64 %d2, [%d1+4];", 1), Wrong::Misaligned);
    assert_eq!(wrong("ld.global.v4.f32 {%f0, %f1, %f2, %f3}, [%d1+8];", 1), Wrong::Misaligned);
    assert_eq!(wrong("st.global.v2.u16 [%d0+2], {1, 2};", 1), Wrong::Misaligned);
}

#[test]
fn reads_of_bytes_that_nothing_wrote() {
    assert_eq!(wrong("ld.global.u8 %r0, [%d0];", 1), Wrong::NeverWritten);
    assert_eq!(wrong("st.global.u16 [%d0], 1; ld.global.u32 %r0, [%d0];", 1), Wrong::NeverWritten);
}

#[test]
fn writes_to_read_only_bytes_and_to_freed_memory() {
    let store = entry(&format!("{LOAD_ADDRESSES} st.global.u16 [%d0+2], 1; ret;"));
    let mut one = setup(8, &[]);
    one.memory.set_read_only(one.out + 3, 1, true).expect("live");
    assert_eq!(one.launch(&store, 1, 1).expect_err("refused").wrong(), Some(Wrong::ReadOnly));
    assert!(one.memory.write(one.out, &[0; 8]).is_err());
    one.memory.set_read_only(one.out, 8, false).expect("live");
    one.launch(&store, 1, 1).expect("allowed again");
    one.memory.free(one.out).expect("live");
    assert_eq!(one.launch(&store, 1, 1).expect_err("gone").wrong(), Some(Wrong::Freed));
    assert!(one.memory.free(one.out).is_err(), "a second free");
}

#[test]
fn memory_of_another_context() {
    let mut one = setup(8, &[]);
    one.out = one.memory.allocate(8, 5);
    let store = entry(&format!("{LOAD_ADDRESSES} st.global.u16 [%d0+2], 1; ret;"));
    assert_eq!(one.launch(&store, 1, 1).expect_err("refused").wrong(), Some(Wrong::OtherContext));
}

#[test]
fn races_between_threads() {
    let to_own = "mov.u32 %r0, %tid.x; mul.wide.u32 %d2, %r0, 4; add.s64 %d3, %d0, %d2; add.s64 %d4, %d1, %d2;";
    // All write one place; in one group, and in two.
    assert_eq!(wrong("st.global.u32 [%d0], 1;", 2), Wrong::Race);
    assert_eq!(
        wrong(
            &format!(
                "{to_own} and.b32 %r1, %r0, 31; setp.ne.u32 %p0, %r1, 7; @%p0 bra $end; st.global.u32 [%d0], 1; $end:"
            ),
            64
        ),
        Wrong::Race
    );
    // Each reads what its neighbour writes; each writes what its neighbour has read.
    assert_eq!(
        wrong(
            &format!(
                "{to_own} st.global.u32 [%d3], 1; xor.b32 %r1, %r0, 1; mul.wide.u32 %d2, %r1, 4; add.s64 %d3, %d0, %d2; ld.global.u32 %r2, [%d3];"
            ),
            2
        ),
        Wrong::Race
    );
    assert_eq!(wrong(&format!("{to_own} ld.global.u32 %r2, [%d4]; st.global.u32 [%d1], 1;"), 2), Wrong::Race);
    assert_eq!(wrong(&format!("{to_own} ld.global.u32 %r2, [%d1]; st.global.u32 [%d4], 1;"), 2), Wrong::Race);
    // Threads may read the same bytes, and a thread may write what only it has read.
    let mut sound = setup(64, &[7; 8]);
    let body = format!(
        "{LOAD_ADDRESSES}{to_own} ld.global.u32 %r2, [%d1+32]; ld.global.u32 %r2, [%d4]; st.global.u32 [%d4], %r2; st.global.u32 [%d3], %r2; ret;"
    );
    sound.launch(&entry(&body), 1, 8).expect("sound");
    // Accesses of an earlier launch do not count.
    sound.launch(&entry(&format!("{LOAD_ADDRESSES} st.global.u32 [%d1], 3; ret;")), 1, 1).expect("sound");
}

#[test]
fn the_read_only_path_excludes_writes() {
    assert_eq!(wrong("ld.global.nc.u32 %r0, [%d1]; st.global.u32 [%d1], 1;", 1), Wrong::ReadOnlyPath);
    assert_eq!(wrong("st.global.u32 [%d1], 1; ld.global.nc.u32 %r0, [%d1];", 1), Wrong::ReadOnlyPath);
    assert_eq!(
        wrong("ld.global.u32 %r0, [%d1]; ld.global.nc.u32 %r0, [%d1]; st.global.u32 [%d1], 1;", 1),
        Wrong::ReadOnlyPath
    );
}

#[test]
fn parameters_are_read_by_value_and_within_bounds() {
    let text = format!(
        "{}.visible .entry k(.param .u64 out, .param .u64 from, .param .u32 n, .param .align 4 .b8 set[12])\n{{\n\
         .reg .b64 %d<8>; .reg .b32 %r<8>;\n\
         ld.param.u64 %d0, [out]; ld.param.u32 %r0, [n]; mov.b64 %d1, set; cvt.u64.u32 %d2, %r0; add.s64 %d3, %d1, %d2;\n\
         ld.param.u32 %r1, [%d3+4]; ld.param.u32 %r2, [set+8]; add.s32 %r1, %r1, %r2; cvt.u64.u32 %d4, %r1;\n\
         cvta.param.u64 %d5, %d3; ld.u32 %r3, [%d5]; cvt.u64.u32 %d6, %r3; add.s64 %d4, %d4, %d6;\n\
         st.global.u64 [%d0], %d4; ret;\n}}\n",
        header("7.7")
    );
    let module = module(&text);
    let kernel = module.kernel("k").expect("the entry");
    let offsets: Vec<usize> = kernel.params.iter().map(|param| param.offset).collect();
    assert_eq!((offsets, kernel.param_bytes()), (vec![0, 8, 16, 20], 32));
    let go = |n: u32| {
        let mut setup = setup(8, &[]);
        let mut params = [setup.out.to_le_bytes(), setup.from.to_le_bytes()].concat();
        params.extend([n, 1, 20, 300].iter().flat_map(|word| word.to_le_bytes()));
        let launch = Launch { kernel, grid: [1; 3], block: [1; 3], params: &params, owner: None };
        run(&mut setup.memory, &launch).map(|_| setup.result(0))
    };
    assert_eq!(go(0), Ok(20 + 300 + 1));
    assert_eq!(go(4), Ok(300 + 300 + 20));
    for outside in [8, u32::MAX - 3, 2] {
        assert!(matches!(go(outside).expect_err("outside").cause, Cause::ParamOutOfBounds(_)), "{outside}");
    }
}

// ---- What is refused ----

#[test]
fn what_is_not_known_is_named_with_its_line() {
    for (body, part) in [
        ("frobnicate.u32 %r0, %r1;", "unknown opcode `frobnicate`"),
        ("bar.sync 0;", "unknown"),
        ("add.sat.s32 %r0, %r1, %r2;", "unknown modifier `.sat` of `add`"),
        ("add.q32 %r0, %r1, %r2;", "unknown type `.q32`"),
        ("ld.volatile.global.u32 %r0, [%d0];", "unknown modifier `.volatile`"),
        ("ld.shared.u32 %r0, [%d0];", "unknown modifier `.shared`"),
        ("add.rn.ftz.f32 %f0, %f1, %f2;", "unknown modifier `.ftz`"),
        ("fma.rz.f32 %f0, %f1, %f2, %f3;", "without `.rn`"),
        ("add.f32 %f0, %f1, %f2;", "without `.rn`"),
        ("mul.f32 %f0, %f1, %f2;", "without `.rn`"),
        ("div.approx.f32 %f0, %f1, %f2;", "without `.rn`"),
        ("sqrt.approx.f32 %f0, %f1;", "without `.rn`"),
        ("mul.s32 %r0, %r1, %r2;", "needs one of"),
        (".shared .b32 x;", "unknown directive `.shared`"),
        ("bra $nowhere;", "unknown label `$nowhere`"),
        ("mov.u32 %r0, %r99;", "unknown register `%r99`"),
        ("mov.u32 %r0, %laneid;", "unknown register `%laneid`"),
        ("mov.u32 %tid.x, 0;", "cannot be written"),
        ("add.s32 %r0, %r1, %d0;", "instruction wants S32"),
        ("add.s32 %r0, %r1, %f0;", "instruction wants S32"),
        ("add.rn.f32 %f0, %f1, 1;", "is no F32 literal"),
        ("add.s32 %r0, %r1, 4294967296;", "is no S32 literal"),
        ("add.s32 %r0, %r1;", "2 operands, expected 3"),
        ("st.param.u32 [n], %r0;", "cannot write its parameters"),
        ("ld.param.u64 %d0, [n];", "of parameter `n`"),
        ("ld.param.u32 %r0, [m];", "unknown parameter `m`"),
        ("cvta.param.u64 %d0, %d1;", "needs .version 7.7"),
        ("ld.global.L1::no_allocate.u32 %r0, [%d0];", "needs .version 7.4"),
        ("ld.global.v4.u64 {%d0, %d1, %d2, %d3}, [%d4];", "an access of 4"),
        ("cvt.u32.f32 %r0, %f0;", "unknown form"),
        ("mov.u32 %r0 %r1;", "expected `,`"),
    ] {
        let error = refusal(&format!("\n\n{body}"));
        assert!(error.contains(part), "{body}: {error}");
        assert!(error.starts_with("line 9:") || body.starts_with("bra"), "{body}: {error}");
    }
}

#[test]
fn headers_and_parameters_are_checked() {
    let error = |text: &str| Module::parse(text).expect_err("refused").to_string();
    assert!(error("").contains("expected `.version`"));
    assert!(error(".version x\n").contains("no version"));
    assert!(error(".version 6.3\n.target gfx90\n").contains("unknown target"));
    assert!(error(".version 6.3\n.target sm_75\n.address_size 32\n").contains("32 bits"));
    assert!(error(&format!("{}.global .u32 x;", header("6.3"))).contains("unknown directive `.global`"));
    let big = |version: &str| format!("{}.visible .entry k(.param .align 4 .b8 x[4356])\n{{ ret; }}", header(version));
    assert!(error(&big("8.0")).contains("parameters of 4356 bytes"));
    assert!(Module::parse(&big("8.1")).is_ok());
    let twice = entry("x: ret; x: ret;");
    assert!(error(&twice).contains("stands twice"));
    let module = module(&format!(
        "{}.visible .entry a() .maxntid 64, 2, 1 {{ ret; }} /* two */ .entry b() {{ ret; }}",
        header("6.3")
    ));
    assert_eq!(module.kernels.iter().map(|kernel| kernel.max_threads).collect::<Vec<_>>(), [Some(128), None]);
    assert_eq!((module.version, module.target), ((6, 3), 75));
}

#[test]
fn launches_that_cannot_be() {
    let module = module(&format!("{}.visible .entry k(.param .u32 n) .maxntid 64 {{ ret; }}", header("6.3")));
    let kernel = module.kernel("k").expect("the entry");
    let mut memory = Memory::new();
    let mut go = |grid: [u32; 3], block: u32, params: &[u8]| {
        run(&mut memory, &Launch { kernel, grid, block: [block, 1, 1], params, owner: None })
            .map_err(|fault| fault.cause)
    };
    assert!(go([1, 1, 1], 64, &[0; 4]).is_ok());
    for (grid, block, params) in
        [([1, 1, 1], 65, 4), ([0, 1, 1], 1, 4), ([1, 1, 1], 0, 4), ([1, 1, 1], 1, 8), ([1 << 31, 1, 1], 64, 4)]
    {
        assert!(matches!(go(grid, block, &vec![0; params]), Err(Cause::BadLaunch(_))));
    }
}
