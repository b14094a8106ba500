//! `cargo xtask prebuilt`: makes the PTX of the kernels and its manifest in `kernels/prebuilt/`,
//! with pinned compilers from PyPI, and the same for the kernels that the benchmark compares them
//! with.
//!
//! `--check` makes them again and compares byte for byte. Either way two compilers, nvcc and NVRTC,
//! must give the same PTX. The assemblers of three CUDA versions, which drivers contain, must
//! accept it for every architecture, without a spill and with at most 64 registers.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::thread;

use anyhow::{Context as _, Result, anyhow, ensure};

use crate::cuda_tools::{ASSEMBLERS, Assembler, COMPILER, Entry, Tools};
use crate::ptx::{self, Module};
use crate::variants::{self, Variant};

const MOST_REGISTERS: u32 = 64;
/// The prefixes of the step's kernels, and the groups of elements that a thread takes, as in
/// `kernels/tuning.cuh`.
const KINDS: [(&str, u32); 3] = [("dual_adam_", 2), ("adam_", 2), ("list_", 1)];
/// The prefix of the kernels that bring masters up to date, of variants with masters.
const SYNC: &str = "sync_master_";
/// The entry that steps no tensor, and so moves nothing in wide pieces.
const WITHOUT_STEP: &str = "prepare_sets";

/// The sources of the triad and of the other yardsticks. The first of each is what is compiled.
const TRIAD: [&str; 6] = [
    "triad.cu",
    "../../kernels/control.cuh",
    "../../kernels/pack.cuh",
    "../../kernels/step.cuh",
    "../../kernels/tuning.cuh",
    "../../kernels/update.cuh",
];
const YARDSTICKS: [&str; 4] =
    ["yardsticks.cu", "../../kernels/pack.cuh", "../../kernels/tuning.cuh", "../../kernels/update.cuh"];

/// Texts of PTX and their manifest, which lie in `prebuilt/` of a folder.
struct Unit {
    folder: &'static str,
    /// The files whose hash is in the manifest.
    sources: Vec<&'static str>,
    /// Each text's name, and the modules whose entries it has.
    texts: Vec<(String, Vec<Module>)>,
    entries: usize,
    variants: Vec<Variant>,
}

/// Makes the PTX and the manifests, and writes them or, with `check`, compares them with the files.
pub(crate) fn run(check: bool) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace has no root")?;
    let tools = Tools::at(root.join("target/prebuilt"))?;
    let variants = variants::read(root).map_err(|error| anyhow!(error))?;
    let units = [Unit::kernels(root, &variants), Unit::yardsticks(root, &variants)];
    units.iter().try_for_each(|unit| unit.make(root, &tools, check))
}

impl Unit {
    fn kernels(root: &Path, variants: &[Variant]) -> Self {
        let folder = "kernels";
        let modules = ptx::modules(&root.join(folder), variants);
        let texts = modules.into_iter().map(|module| (module.name.clone(), vec![module]));
        let with_master = variants.iter().filter(|variant| variant.format("master").is_some()).count();
        let entries = KINDS.len() * variants.len() + with_master + 1;
        Self { folder, sources: ptx::SOURCES.to_vec(), texts: texts.collect(), entries, variants: variants.to_vec() }
    }

    fn yardsticks(root: &Path, variants: &[Variant]) -> Self {
        let folder = root.join("benches/cuda");
        let triad =
            |variant: &Variant| Module::new(&format!("triad_{}", variant.name), &folder, &TRIAD).for_variant(variant);
        let mut modules: Vec<_> = variants.iter().map(triad).collect();
        modules.push(Module::new("yardsticks", &folder, &YARDSTICKS));
        Self {
            folder: "benches/cuda",
            sources: [&YARDSTICKS[..1], &TRIAD].concat(),
            texts: vec![("yardsticks".to_owned(), modules)],
            entries: variants.len() + 9,
            variants: variants.to_vec(),
        }
    }

    fn make(&self, root: &Path, tools: &Tools, check: bool) -> Result<()> {
        let folder = root.join(self.folder);
        let mut files = BTreeMap::new();
        for (name, modules) in &self.texts {
            let texts = modules.iter().map(|module| tools.compile(module)).collect::<Result<Vec<_>>>()?;
            files.insert(format!("{name}.ptx"), joined(&texts)?);
        }
        files.insert("MANIFEST.toml".to_owned(), self.manifest(&folder, &files, tools)?);
        let prebuilt = folder.join("prebuilt");
        fs::create_dir_all(&prebuilt).with_context(|| prebuilt.display().to_string())?;
        let kept = fs::read_dir(&prebuilt).with_context(|| prebuilt.display().to_string())?;
        for file in kept {
            let file = file?.path();
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if !files.contains_key(&name) {
                ensure!(!check, "no source makes {}: run `cargo xtask prebuilt`", file.display());
                fs::remove_file(&file).with_context(|| file.display().to_string())?;
            }
        }
        for (name, made) in &files {
            let file = prebuilt.join(name);
            if check {
                let kept = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
                ensure!(kept == *made, "{} is out of date: run `cargo xtask prebuilt`", file.display());
            } else {
                fs::write(&file, made).with_context(|| file.display().to_string())?;
            }
        }
        println!("{}/prebuilt: {}", self.folder, if check { "up to date" } else { "written" });
        Ok(())
    }

    fn manifest(&self, folder: &Path, texts: &BTreeMap<String, String>, tools: &Tools) -> Result<String> {
        let hash = ptx::source_hash(folder, &self.sources, &self.variants).map_err(|error| anyhow!(error))?;
        let mut out = String::from("# Generated by `cargo xtask prebuilt`; never edited.\n\n");
        writeln!(out, "source_sha256 = \"{hash}\"")?;
        writeln!(out, "compiler = \"{COMPILER}\"")?;
        writeln!(out, "flags = {:?}", ptx::FLAGS)?;
        writeln!(out, "ptx_version = \"{}\"", ptx::PTX_VERSION)?;
        out.push_str(
            "\n# What the ptxas of several versions makes of each entry for each architecture: registers, loads of 16 and 8 bytes, stores of\n\
             # 16 and 8 bytes, instructions of all paths. No entry spills, has a stack frame, or reads or writes local memory.\n",
        );
        for assembler in &ASSEMBLERS {
            writeln!(out, "\n[\"ptxas {}\"]", assembler.version)?;
            writeln!(out, "architectures = {:?}", assembler.architectures)?;
            let mut figures: BTreeMap<String, Vec<[u32; 6]>> = BTreeMap::new();
            for entry in entries(tools, assembler, texts, &self.variants)? {
                figures.entry(entry.name).or_default().push(entry.figures);
            }
            ensure!(figures.len() == self.entries, "{}: {} entries", self.folder, figures.len());
            for (name, figures) in figures {
                writeln!(out, "{name} = {figures:?}")?;
            }
        }
        Ok(out)
    }
}

/// Joins texts that have the same header into one text with all their entries.
fn joined(texts: &[String]) -> Result<String> {
    const HEADER_END: &str = "\n.address_size 64\n";
    let mut joined = texts.first().cloned().unwrap_or_default();
    for text in &texts[1..] {
        let (header, entries) = text.split_once(HEADER_END).context("a text without a header")?;
        ensure!(joined.starts_with(header), "the texts have different headers");
        joined.push_str(entries);
    }
    Ok(joined)
}

/// Assembles all modules' entries, for one architecture after the other.
fn entries(
    tools: &Tools,
    assembler: &Assembler,
    texts: &BTreeMap<String, String>,
    variants: &[Variant],
) -> Result<Vec<Entry>> {
    tools.install(assembler)?;
    let of_architecture = |architecture: &str| -> Result<Vec<Entry>> {
        let mut entries = vec![];
        for text in texts.values() {
            entries.extend(tools.assemble(assembler, text, architecture)?);
        }
        let checked = entries.iter().try_for_each(|entry| check(entry, variants));
        checked.with_context(|| format!("ptxas {}, {architecture}", assembler.version)).map(|()| entries)
    };
    thread::scope(|scope| {
        let of_architecture = &of_architecture;
        let started: Vec<_> = assembler
            .architectures
            .iter()
            .map(|architecture| scope.spawn(move || of_architecture(architecture)))
            .collect();
        let mut all = vec![];
        for thread in started {
            all.extend(thread.join().map_err(|_| anyhow!("a thread panicked"))??);
        }
        Ok(all)
    })
}

/// Fails if an entry takes too many registers, or moves streams of aligned buffers in small pieces.
fn check(entry: &Entry, variants: &[Variant]) -> Result<()> {
    let Entry { name, figures: [registers, loads_16, loads_8, stores_16, stores_8, _] } = entry;
    ensure!(*registers <= MOST_REGISTERS, "{name} takes {registers} registers");
    if name != WITHOUT_STEP {
        let (found, least) = ([*loads_16, *loads_8, *stores_16, *stores_8], least_accesses(name, variants));
        let what = "loads of 16 and 8 bytes and stores of 16 and 8";
        ensure!(
            found.iter().zip(least).all(|(found, least)| *found >= least),
            "{name} has {found:?} {what}, not {least:?}"
        );
    }
    Ok(())
}

/// The least numbers of loads of 16 and of 8 bytes, and of stores of 16 and of 8, that an entry may
/// have. Each place of a step's kernel that handles groups of four elements has one for each stream
/// of each group.
///
/// Such places handle all groups of a thread at once or, if there are several, one alone; each
/// exists for aligned buffers and for others. For 16-bit streams only the first place is counted,
/// because other accesses have 8 bytes too; the kernels' tests check them by the interpreter's
/// statistics. A kernel that brings masters up to date has one place, with one store.
fn least_accesses(name: &str, variants: &[Variant]) -> [u32; 4] {
    if name.starts_with(SYNC) {
        return [1, 1, 1, 0];
    }
    let variant_of = |name| variants.iter().find(|variant| variant.name == name);
    let found = KINDS.iter().find_map(|&(kind, groups)| Some((groups, variant_of(name.strip_prefix(kind)?)?)));
    let Some((groups, variant)) = found else { return [1, 0, 1, 0] };
    let updated = if variant.format("master").is_some() { "master" } else { "param" };
    let (read, written) = ([updated, "grad", "exp_avg", "exp_avg_sq"], ["param", "exp_avg", "exp_avg_sq", "master"]);
    let count = |roles: [&str; 4], is_wanted: fn(&str) -> bool| {
        roles.into_iter().filter_map(|role| variant.format(role)).filter(|format| is_wanted(format)).count() as u32
    };
    let (is_f32, is_16_bit) = (|format: &str| format == "f32", |format: &str| format != "f32");
    let wide = 2 * (groups + u32::from(groups > 1));
    [
        wide * count(read, is_f32),
        groups * count(read, is_16_bit),
        wide * count(written, is_f32),
        groups * count(written, is_16_bit),
    ]
}
