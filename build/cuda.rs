//! The kernels as PTX, one text for each module, in `$OUT_DIR/<module>.ptx`; and
//! `$OUT_DIR/modules.rs`, which embeds them.
//!
//! If the build finds a CUDA compiler, it compiles the kernels. Otherwise it takes the snapshot in
//! `kernels/prebuilt/`, if that was made from these sources. `DUALADAM_PTX=prebuilt` selects the
//! snapshot.
//!
//! The build also uses a compiler of another version than the snapshot's. It cannot change a
//! result, since the source spells out every rounding. It can change the number of registers, the
//! speed, and which drivers load the PTX. So the build warns, and the crate knows where its PTX is
//! from (`DUALADAM_PTX_ORIGIN`).

use std::env;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::ptx::{self, Compiler, Module};
use super::variants::Variant;
use super::write;

const KERNELS: &str = "kernels";

/// The environment variables that say where compilers are.
const SEARCHED: [&str; 5] = ["NVCC", "CUDA_HOME", "CUDA_PATH", "PATH", "VIRTUAL_ENV"];

pub(crate) fn embed_ptx(variants: &[Variant], out: &Path) -> ptx::Result<()> {
    println!("cargo::rerun-if-changed={KERNELS}");
    println!("cargo::rerun-if-env-changed=DUALADAM_PTX");
    for variable in SEARCHED {
        println!("cargo::rerun-if-env-changed={variable}");
    }

    let kernels = Path::new(KERNELS);
    let compiler = match env::var("DUALADAM_PTX").as_deref() {
        Ok("prebuilt") => None,
        Ok("") | Err(env::VarError::NotPresent) => find_compiler(),
        Ok(other) => return Err(format!("DUALADAM_PTX={other}: it can only be `prebuilt`, or not be set")),
        Err(error) => return Err(format!("DUALADAM_PTX: {error}")),
    };
    let modules = ptx::modules(kernels, variants);
    let (texts, origin) = match compiler {
        Some(compiler) => compiled(&compiler, kernels, &modules, out)?,
        None => prebuilt(kernels, variants, &modules)?,
    };
    for (module, text) in modules.iter().zip(texts) {
        write(&out.join(format!("{}.ptx", module.name)), &text)?;
    }
    write(&out.join("modules.rs"), &embedded(variants))?;
    println!("cargo::rustc-env=DUALADAM_PTX_ORIGIN={origin}");
    Ok(())
}

/// The Rust source that embeds the texts.
fn embedded(variants: &[Variant]) -> String {
    let text = |module: &str| format!("concat!(include_str!(concat!(env!(\"OUT_DIR\"), \"/{module}.ptx\")), \"\\0\")");
    let mut rust = format!(
        "/// The PTX of each variant, in the table's order. Each ends in a zero byte.\n\
         const MODULES: [&str; {}] = [\n",
        variants.len()
    );
    for variant in variants {
        let _ = writeln!(rust, "    {},", text(&variant.name));
    }
    let _ = write!(
        rust,
        "];\n/// The PTX that prepares controlled steps, likewise.\nconst CONTROL: &str = {};\n",
        text("control")
    );
    rust
}

fn compiled(compiler: &Compiler, kernels: &Path, modules: &[Module], out: &Path) -> ptx::Result<(Vec<String>, String)> {
    println!("cargo::rerun-if-changed={}", compiler.path().display());
    let texts = modules.iter().map(|module| compiler.compile(module, out)).collect::<ptx::Result<Vec<_>>>();
    let texts = texts.map_err(|error| {
        format!("{error}\nDUALADAM_PTX=prebuilt builds without a CUDA compiler, from the PTX in {KERNELS}/prebuilt")
    })?;
    let version = texts.first().map(|text| ptx::compiler_version(text)).unwrap_or_default();
    let pinned = manifest_value(kernels, "compiler")?;
    if version != pinned {
        println!(
            "cargo::warning=the kernels were compiled by {} ({version}), the tested PTX by version {pinned}; \
             DUALADAM_PTX=prebuilt takes the tested PTX",
            compiler.path().display(),
        );
    }
    Ok((texts, format!("compiled by {version}")))
}

fn prebuilt(kernels: &Path, variants: &[Variant], modules: &[Module]) -> ptx::Result<(Vec<String>, String)> {
    if ptx::source_hash(kernels, &ptx::SOURCES, variants)? != manifest_value(kernels, "source_sha256")? {
        return Err(format!(
            "the PTX in {KERNELS}/prebuilt was not made from the sources in {KERNELS} and the table of variants, and no CUDA compiler {}.\n\
             To compile here, activate a Python virtual environment with nvidia-cuda-nvrtc {} (needs no GPU), or set \
             NVCC. `cargo xtask prebuilt` makes the PTX again, with compilers that it fetches.",
            match env::var("DUALADAM_PTX").as_deref() {
                Ok("prebuilt") => "may be used (DUALADAM_PTX=prebuilt)".to_owned(),
                _ => format!("was found through {}", SEARCHED.join(", ")),
            },
            manifest_value(kernels, "compiler")?,
        ));
    }
    let read = |module: &Module| ptx::read(&kernels.join(format!("prebuilt/{}.ptx", module.name)));
    let texts = modules.iter().map(read).collect::<ptx::Result<Vec<_>>>()?;
    Ok((texts, format!("prebuilt by {}", manifest_value(kernels, "compiler")?)))
}

/// A string of `prebuilt/MANIFEST.toml`, which is generated: one `key = "value"` a line.
fn manifest_value(kernels: &Path, key: &str) -> ptx::Result<String> {
    let file = kernels.join("prebuilt/MANIFEST.toml");
    let text = ptx::read(&file)?;
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = \"")?.strip_suffix('"'));
    value.map(str::to_owned).ok_or_else(|| format!("{}: no {key}", file.display()))
}

/// Any nvcc comes before any NVRTC, though both give the same bytes: the user chose the nvcc that
/// `$NVCC` or the path names.
fn find_compiler() -> Option<Compiler> {
    if let Some(nvcc) = variable("NVCC") {
        return Some(Compiler::Nvcc(nvcc)); // the user named it: if it is missing, the build must fail
    }
    let toolkits: Vec<_> = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(variable).collect();
    let wheels = variable("VIRTUAL_ENV").map(|environment| ptx::wheels_in(&environment)).unwrap_or_default();
    let path = variable("PATH").unwrap_or_default();

    let mut programs: Vec<_> = toolkits.iter().map(|toolkit| toolkit.join("bin")).collect();
    programs.extend(env::split_paths(&path));
    programs.extend(wheels.iter().map(|wheel| wheel.join("bin")));
    let name = format!("nvcc{}", env::consts::EXE_SUFFIX);
    if let Some(nvcc) = programs.iter().map(|folder| folder.join(&name)).find(|file| file.is_file()) {
        return Some(Compiler::Nvcc(nvcc));
    }

    let mut libraries: Vec<_> =
        toolkits.iter().flat_map(|toolkit| [toolkit.join("lib64"), toolkit.join("lib")]).collect();
    libraries.extend(wheels.iter().map(|wheel| wheel.join("lib")));
    libraries.iter().find_map(|folder| ptx::nvrtc_in(folder))
}

fn variable(name: &str) -> Option<PathBuf> {
    env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}
