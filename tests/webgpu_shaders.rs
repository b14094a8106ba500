//! Every variant of the shaders, translated for drivers that the tests cannot run, and checked by
//! the tools that are installed.

#[path = "../build/variants.rs"]
mod variants;
#[path = "../build/wgsl.rs"]
mod wgsl;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use naga::back::{hlsl, msl, spv};
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{Module, ShaderStage};
use variants::Variant;
use wgsl::{COEFFS, join};

fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn shaders() -> PathBuf {
    project().join("shaders")
}

fn table() -> Vec<Variant> {
    variants::read(project()).unwrap()
}

/// The name and text of each variant with each source of coefficients.
fn texts() -> impl Iterator<Item = (String, String)> {
    let of = |variant: Variant| {
        COEFFS.map(|coeffs| (format!("{}_{coeffs}", variant.name), join(&shaders(), &variant, coeffs).unwrap().text))
    };
    table().into_iter().flat_map(of)
}

fn validated(text: &str) -> (Module, ModuleInfo) {
    let module = naga::front::wgsl::parse_str(text).unwrap();
    let info = Validator::new(ValidationFlags::all(), Capabilities::IMMEDIATES).validate(&module).unwrap();
    (module, info)
}

/// Hands each entry point, alone in its module, to a writer.
fn for_each_entry_point(mut write: impl FnMut(&str, &Module, &ModuleInfo, &str)) {
    let mut count = 0;
    for (variant, text) in texts() {
        let (module, info) = validated(&text);
        for entry in &module.entry_points {
            let only = Some((ShaderStage::Compute, entry.name.as_str()));
            let (module, info) =
                naga::back::pipeline_constants::process_overrides(&module, &info, only, &Default::default()).unwrap();
            write(&format!("{variant}, {}", entry.name), &module, &info, &entry.name);
            count += 1;
        }
    }
    let masters = table().iter().filter(|variant| variant.format("master").is_some()).count();
    assert_eq!(count, COEFFS.len() * (4 * table().len() + 4 * masters));
}

#[test]
fn spirv_is_written_and_valid() {
    let validator = find("spirv-val");
    for_each_entry_point(|what, module, info, entry_point| {
        let pipeline = spv::PipelineOptions { shader_stage: ShaderStage::Compute, entry_point: entry_point.to_owned() };
        let options = spv::Options { lang_version: (1, 3), ..Default::default() };
        let words = spv::write_vec(module, info, &options, Some(&pipeline)).unwrap();
        assert_eq!(words[0], 0x0723_0203, "{what}");
        if let Some(validator) = &validator {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            run(Command::new(validator).args(["--target-env", "vulkan1.1"]), &bytes, ".spv", what);
        }
    });
}

#[test]
fn msl_is_written() {
    for_each_entry_point(|what, module, info, entry_point| {
        let options = msl::Options { lang_version: (2, 0), fake_missing_bindings: true, ..Default::default() };
        let (text, _) = msl::write_string(module, info, &options, &Default::default()).unwrap();
        assert!(text.contains(&format!("kernel void {entry_point}")), "{what}: {text}");
    });
}

#[test]
fn hlsl_is_written() {
    for_each_entry_point(|what, module, info, entry_point| {
        let immediates_target = Some(hlsl::BindTarget { register: 9, ..Default::default() });
        let options = hlsl::Options { fake_missing_bindings: true, immediates_target, ..Default::default() };
        let mut text = String::new();
        hlsl::Writer::new(&mut text, &options, &Default::default()).write(module, info, None).unwrap();
        assert!(text.contains(&format!("void {entry_point}(")), "{what}: {text}");
        // Each entry point has one view of a buffer: a second one would use the same register.
        assert_eq!(text.contains("param_parts"), entry_point.ends_with("tail"), "{what}: {text}");
    });
}

/// Tint is the compiler of Chromium.
#[test]
fn tint_accepts_all() {
    let Some(tint) = find("tint") else { return };
    for (variant, text) in texts() {
        run(Command::new(&tint).args(["--format", "wgsl", "-o", "/dev/null"]), text.as_bytes(), ".wgsl", &variant);
    }
}

/// Finds a program on the path, and prints if it is not there.
fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file());
    if found.is_none() {
        // Not with `eprintln!`, whose output the harness hides if the test passes.
        let mut stderr = std::io::stderr();
        writeln!(stderr, "not checked by {program}: it is not on the path").unwrap();
    }
    found
}

/// Runs a checker on a file with this content.
fn run(command: &mut Command, content: &[u8], suffix: &str, what: &str) {
    let mut file = tempfile::Builder::new().suffix(suffix).tempfile().unwrap();
    file.write_all(content).unwrap();
    let output = command.arg(file.path()).output().unwrap();
    assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&[output.stdout, output.stderr].concat()));
}

#[test]
fn lines_are_those_of_their_files() {
    let variant = table().into_iter().find(|variant| variant.name == "bf16_f32_master").unwrap();
    let joined = join(&shaders(), &variant, "uniform").unwrap();
    let mut seen = std::collections::BTreeSet::new();
    for (index, line) in joined.text.lines().enumerate() {
        let place = joined.place(index + 1, 7);
        assert_eq!(place.column, 7);
        let name = place.file.split_once(" (").map_or(place.file.as_str(), |(name, _)| name);
        let text = std::fs::read_to_string(project().join(name)).unwrap();
        let of_file = text.lines().nth(place.line - 1).unwrap();
        // The build replaces the words that begin with `$`.
        let is_right = match of_file.split_once('$') {
            Some((fixed, _)) => line.starts_with(fixed),
            None => line == of_file,
        };
        assert!(is_right, "{place}: {line}");
        seen.insert(place.file);
    }
    let files = ["coeffs_uniform", "dual_adam", "master", "storage_bf16", "storage_f32", "tail", "update"];
    let roles = ["exp_avg", "exp_avg_sq", "grad", "master", "param"].map(|role| format!("shaders/role.wgsl ({role})"));
    let files = files.map(|file| format!("shaders/{file}.wgsl")).into_iter().chain(roles);
    assert_eq!(seen, files.collect());
}
