//! The structs have the layout that they were published with, and C and C++ see the same.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use dualadam_capi::*;

/// The layout of structs: a line for each, with its size, its alignment and its fields' offsets;
/// and the same as assertions in C.
macro_rules! layouts {
    ($($name:ident { $($field:ident),+ })+) => {{
        let (mut lines, mut assertions) = (String::new(), String::new());
        $(
            let (size, align) = (size_of::<$name>(), align_of::<$name>());
            write!(lines, "{} {size} {align}:", stringify!($name)).unwrap();
            writeln!(assertions, "CHECK(sizeof({0}) == {size});\nCHECK(ALIGN({0}) == {align});", stringify!($name)).unwrap();
            $(
                let offset = std::mem::offset_of!($name, $field);
                write!(lines, " {} {offset}", stringify!($field)).unwrap();
                writeln!(assertions, "CHECK(offsetof({}, {}) == {offset});", stringify!($name), stringify!($field)).unwrap();
            )+
            // All fields are named: this does not compile otherwise.
            let _ = |value: $name| { let $name { $($field: _),+ } = value; };
            lines.push('\n');
        )+
        (lines, assertions)
    }};
}

fn all() -> (String, String) {
    layouts! {
        dualadam_config {
            size, lr, beta1, beta2, eps, weight_decay, weight_decay_kind, inverse_term, maximize, schedule, switching_rate, base, period,
            cutoff, switching_step
        }
        dualadam_coeffs {
            size, one_minus_beta1, one_minus_beta2, inv_sqrt_bc2, eps, inverse_eps, inverse_scale, adam_scale, decay, l2, grad_scale
        }
        dualadam_tensor {
            size, param, grad, exp_avg, exp_avg_sq, master, len, param_dtype, grad_dtype, master_dtype, coeffs_index
        }
        dualadam_tensor_spec { size, len, group, has_master }
        dualadam_tensor_state { size, len, step, exp_avg, exp_avg_sq, master, group, master_is_set }
        dualadam_cuda_control_group { size, config, lr_f32, lr_f64 }
        dualadam_cuda_control_set { size, group, step }
        dualadam_cuda_scalars { size, loss_scale, clip_factor, found_inf }
        dualadam_cuda_set_report { size, step, skipped, last_skip, reserved }
    }
}

/// Programs that were compiled against this layout exist: it grows at the ends of the structs only.
#[cfg(target_pointer_width = "64")]
#[test]
fn the_layout_is_the_published_one() {
    assert_eq!(
        all().0,
        "dualadam_config 104 8: size 0 lr 8 beta1 16 beta2 24 eps 32 weight_decay 40 weight_decay_kind 48 inverse_term 52 maximize 56 \
         schedule 60 switching_rate 64 base 72 period 80 cutoff 88 switching_step 96\n\
         dualadam_coeffs 48 8: size 0 one_minus_beta1 8 one_minus_beta2 12 inv_sqrt_bc2 16 eps 20 inverse_eps 24 inverse_scale 28 \
         adam_scale 32 decay 36 l2 40 grad_scale 44\n\
         dualadam_tensor 72 8: size 0 param 8 grad 16 exp_avg 24 exp_avg_sq 32 master 40 len 48 param_dtype 56 grad_dtype 60 \
         master_dtype 64 coeffs_index 68\n\
         dualadam_tensor_spec 24 8: size 0 len 8 group 16 has_master 20\n\
         dualadam_tensor_state 56 8: size 0 len 8 step 16 exp_avg 24 exp_avg_sq 32 master 40 group 48 master_is_set 52\n\
         dualadam_cuda_control_group 32 8: size 0 config 8 lr_f32 16 lr_f64 24\n\
         dualadam_cuda_control_set 24 8: size 0 group 8 step 16\n\
         dualadam_cuda_scalars 32 8: size 0 loss_scale 8 clip_factor 16 found_inf 24\n\
         dualadam_cuda_set_report 32 8: size 0 step 8 skipped 16 last_skip 24 reserved 28\n"
    );
}

/// The C compiler that Rust links with sees the same; and the constants, which the header has as
/// macros, are those of the sources.
#[test]
fn c_sees_the_layout_of_rust() {
    let (_, mut assertions) = all();
    let constants = [
        ("DUALADAM_STATUS_PANIC", DUALADAM_STATUS_PANIC as u32),
        ("DUALADAM_STATUS_CUDA_CAPTURED", DUALADAM_STATUS_CUDA_CAPTURED as u32),
        ("DUALADAM_STATUS_CUDA_STUB_DRIVER", DUALADAM_STATUS_CUDA_STUB_DRIVER as u32),
        ("DUALADAM_SKIP_NONE", DUALADAM_SKIP_NONE),
        ("DUALADAM_SKIP_STEP", DUALADAM_SKIP_STEP),
        ("DUALADAM_DTYPE_F16", DUALADAM_DTYPE_F16),
        ("DUALADAM_DECAY_L2", DUALADAM_DECAY_L2),
        ("DUALADAM_INVERSE_TERM_WITH_EPS", DUALADAM_INVERSE_TERM_WITH_EPS),
        ("DUALADAM_SCHEDULE_FIXED", DUALADAM_SCHEDULE_FIXED),
    ];
    for (name, value) in constants {
        writeln!(assertions, "CHECK({name} == {value});").unwrap();
    }
    let c = "#define CHECK(x) _Static_assert(x, #x)\n#define ALIGN(x) _Alignof(x)\n";
    let cpp = "#define CHECK(x) static_assert(x, #x)\n#define ALIGN(x) alignof(x)\n";
    let folder = tempfile::tempdir().unwrap();
    for (language, standard, macros) in [("c", "-std=c11", c), ("c++", "-std=c++17", cpp)] {
        if language == "c++" && Command::new("c++").arg("--version").output().is_err() {
            println!("not compiled as C++: there is no C++ compiler");
            continue;
        }
        let source = folder.path().join("layout.c");
        std::fs::write(&source, format!("#include \"dualadam.h\"\n{macros}{assertions}")).unwrap();
        let compiler = if language == "c" { "cc" } else { "c++" };
        compile(compiler, &[standard, "-x", language], &source);
    }
}

/// Fails if the compiler has an error or a warning.
fn compile(compiler: &str, more: &[&str], source: &Path) {
    let include = concat!("-I", env!("CARGO_MANIFEST_DIR"), "/../include");
    let output = Command::new(compiler)
        .args(["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only", include])
        .args(more)
        .arg(source)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The variables that the examples in the header use without declaring them.
const GIVEN: &str = "
    void *param, void *grad, void *exp_avg, void *exp_avg_sq, void *master, uint64_t len, uint64_t step,
    const dualadam_config *config, const dualadam_config *configs, const dualadam_coeffs *coeffs,
    dualadam_tensor *tensor, dualadam_tensor *tensors, size_t count, dualadam_cuda_kernels kernels,
    dualadam_cuda_list list, dualadam_cuda_control control, const float *lr, const float *found_inf, void *stream";

/// The examples in the documentation of the functions and structs compile without a warning.
#[test]
fn the_examples_of_the_header_compile() {
    let mut program = "#include \"dualadam.h\"\n#include <stdio.h>\n".to_owned();
    let mut count = 0;
    let folders =
        ["", "types", "status", "cuda"].map(|folder| Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(folder));
    for entry in folders.iter().flat_map(|folder| std::fs::read_dir(folder).unwrap()) {
        let path = entry.unwrap().path();
        if path.is_dir() {
            continue;
        }
        let mut is_example = false;
        for line in std::fs::read_to_string(&path).unwrap().lines() {
            let Some(text) = line.strip_prefix("///").or(line.strip_prefix("//!")) else { continue };
            match text.trim() {
                // The introduction has a whole program.
                "```c" if path.ends_with("lib.rs") => (is_example, count) = (true, count + 1),
                "```c" => {
                    writeln!(program, "void example_{count}({GIVEN});\nvoid example_{count}({GIVEN})\n{{ {{").unwrap();
                    (is_example, count) = (true, count + 1);
                }
                "```" if is_example => {
                    program += if path.ends_with("lib.rs") { "\n" } else { "} }\n" };
                    is_example = false;
                }
                _ if is_example => program += &format!("{text}\n"),
                _ => {}
            }
        }
    }
    assert_eq!(count, 15);
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("examples.c");
    std::fs::write(&source, program).unwrap();
    compile("cc", &["-std=c11", "-Wno-unused-parameter", "-Wno-unused-but-set-variable"], &source);
}
