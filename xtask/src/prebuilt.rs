//! `cargo xtask prebuilt`: the kernels' PTX and its manifest in `kernels/prebuilt/`, made by pinned compilers from PyPI.
//!
//! `--check` makes them anew and compares byte for byte. Either way two compilers, nvcc and NVRTC, must give the same PTX, and
//! ptxas must accept it for every architecture without a spill and with at most 64 registers.

#[path = "../../build/ptx.rs"]
mod ptx;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, anyhow, bail, ensure};

/// nvcc and NVRTC of one version, and a disassembler (the oldest on PyPI) that only counts instructions.
const WHEELS: [&str; 6] = [
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cuda-nvrtc==13.0.88",
    "nvidia-cuda-nvdisasm==13.2.51",
];
const COMPILER: &str = "13.0.88";
const ARCHITECTURES: [&str; 4] = ["sm_75", "sm_80", "sm_90", "sm_100"];
const ENTRIES: usize = 36;
/// Entries that step no tensor, and have nothing to move in 16-byte pieces.
const WITHOUT_STEP: [&str; 3] = ["prepare_sets", "set_masters_bf16", "set_masters_f16"];
const MOST_REGISTERS: u32 = 64;

/// Makes the PTX and its manifest, and writes them or, with `check`, compares them with those that are there.
pub(crate) fn run(check: bool) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace has no root")?;
    let kernels = root.join("kernels");
    let tools = Tools::at(root.join("target/prebuilt"))?;

    let text = tools.compile(&kernels)?;
    let manifest = manifest(&kernels, &text, &tools)?;
    for (name, made) in [("dual_adam.ptx", &text), ("MANIFEST.toml", &manifest)] {
        let file = kernels.join("prebuilt").join(name);
        if check {
            let kept = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
            ensure!(kept == *made, "{} is not what the sources give: run `cargo xtask prebuilt`", file.display());
        } else {
            fs::write(&file, made).with_context(|| file.display().to_string())?;
        }
    }
    println!("kernels/prebuilt: {}", if check { "as the sources give it" } else { "written" });
    Ok(())
}

/// The wheels, unpacked in a virtual environment of their own, which also takes the temporary files.
struct Tools {
    folder: PathBuf,
    wheels: PathBuf,
}

impl Tools {
    fn at(folder: PathBuf) -> Result<Self> {
        let environment = folder.join(format!("cuda-{COMPILER}"));
        let complete = environment.join("complete");
        if !complete.is_file() {
            fs::create_dir_all(&folder)?;
            run_tool(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&environment))?;
            run_tool(Command::new(environment.join("bin/pip")).args(["install", "--quiet"]).args(WHEELS))?;
            fs::write(&complete, WHEELS.join("\n"))?;
        }
        let found = ptx::wheels_in(&environment).into_iter().find(|wheels| wheels.join("bin/ptxas").is_file());
        let wheels = found.with_context(|| format!("{}: no ptxas", environment.display()))?;
        Ok(Self { folder, wheels })
    }

    fn program(&self, name: &str) -> Command {
        Command::new(self.wheels.join("bin").join(name))
    }

    /// The PTX of nvcc, which must be that of NVRTC.
    fn compile(&self, kernels: &Path) -> Result<String> {
        let nvcc = ptx::Compiler::Nvcc(self.wheels.join("bin/nvcc"));
        let nvrtc = ptx::nvrtc_in(&self.wheels.join("lib")).context("no NVRTC")?;
        let text = nvcc.compile(kernels, &self.folder).map_err(|error| anyhow!(error))?;
        let other = nvrtc.compile(kernels, &self.folder).map_err(|error| anyhow!(error))?;
        ensure!(text == other, "nvcc and NVRTC {COMPILER} give different PTX");
        ensure!(ptx::compiler_version(&text) == COMPILER, "the PTX is not by version {COMPILER}");
        Ok(text)
    }

    /// What ptxas makes of the PTX for one architecture.
    fn assemble(&self, text: &str, architecture: &str) -> Result<Vec<Entry>> {
        let (source, cubin) = (self.folder.join("dual_adam.ptx"), self.folder.join(format!("{architecture}.cubin")));
        fs::write(&source, text)?;
        let arch = format!("-arch={architecture}");
        let (_, report) = run_tool(self.program("ptxas").args(["-v", &arch, "-o"]).arg(&cubin).arg(&source))?;
        let (code, _) = run_tool(self.program("nvdisasm").arg("-c").arg(&cubin))?;
        let mut entries =
            code.split("\n.text.").skip(1).map(|section| Entry::read(section, &report)).collect::<Result<Vec<_>>>()?;
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        ensure!(entries.len() == ENTRIES, "{architecture}: {} entries", entries.len());
        Ok(entries)
    }
}

/// Runs a program and gives its standard output and error; a failure names the command.
fn run_tool(command: &mut Command) -> Result<(String, String)> {
    let run = command.output().with_context(|| format!("{command:?}"))?;
    let stderr = String::from_utf8_lossy(&run.stderr).into_owned();
    if !run.status.success() {
        bail!("{command:?}: {}\n{stderr}", run.status);
    }
    Ok((String::from_utf8(run.stdout)?, stderr))
}

/// An entry point as machine code.
struct Entry {
    name: String,
    registers: u32,
    instructions: usize,
    loads_128: usize,
    stores_128: usize,
}

impl Entry {
    /// `section` is its disassembly, from its name on; `report` is all that ptxas said.
    fn read(section: &str, report: &str) -> Result<Self> {
        let (name, code) = section.split_once(':').context("a section without a name")?;
        let (_, report) =
            report.split_once(&format!("Function properties for {name}\n")).context("no report of an entry")?;
        let mut lines = report.lines();
        let (memory, usage) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
        ensure!(
            memory.trim() == "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads",
            "{name} uses local memory: {memory}"
        );
        let registers = usage.split_once("Used ").and_then(|(_, rest)| rest.split(' ').next()?.parse().ok());
        let registers = registers.with_context(|| format!("{name}: {usage}"))?;
        ensure!(registers <= MOST_REGISTERS, "{name} takes {registers} registers");

        let count = |of: &str| code.lines().filter(|line| line.contains(of)).count();
        let entry = Self {
            name: name.to_owned(),
            registers,
            instructions: code.lines().filter(|line| line.contains("*/   ") && line.trim_end().ends_with(';')).count()
                - count(" NOP"),
            loads_128: count(" LDG.E.128"),
            stores_128: count(" STG.E.128"),
        };
        let steps = !WITHOUT_STEP.contains(&name);
        ensure!(!steps || entry.loads_128 > 0 && entry.stores_128 > 0, "{name} has no 16-byte loads or stores");
        ensure!(
            count(" LDL") + count(" STL") + count(" LD.E") + count(" ST.E") == 0,
            "{name} has local or generic accesses"
        );
        Ok(entry)
    }
}

fn manifest(kernels: &Path, text: &str, tools: &Tools) -> Result<String> {
    let hash = ptx::source_hash(kernels).map_err(|error| anyhow!(error))?;
    let mut out = String::from("# Generated by `cargo xtask prebuilt`; never edited.\n\n");
    writeln!(out, "source_sha256 = \"{hash}\"")?;
    writeln!(out, "compiler = \"{COMPILER}\"")?;
    writeln!(out, "flags = {:?}", ptx::FLAGS)?;
    writeln!(out, "ptx_version = \"{}\"", ptx::PTX_VERSION)?;
    out.push_str("\n# What ptxas of that version makes of it: registers, 16-byte loads, 16-byte stores, instructions of all paths.\n");
    out.push_str("# No entry spills, has a stack frame, or reads or writes local memory.\n");
    for architecture in ARCHITECTURES {
        writeln!(out, "\n[{architecture}]")?;
        for Entry { name, registers, instructions, loads_128, stores_128 } in tools.assemble(text, architecture)? {
            writeln!(out, "{name} = [{registers}, {loads_128}, {stores_128}, {instructions}]")?;
        }
    }
    Ok(out)
}
