//! The pinned CUDA compilers, as wheels from PyPI: nvcc and NVRTC of one version, the assemblers of
//! several, a disassembler.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, anyhow, bail, ensure};

use crate::ptx::{self, Module};

pub(crate) const COMPILER: &str = "13.0.88";
/// nvcc and NVRTC of that version, and a disassembler (the oldest on PyPI) that only counts
/// instructions.
const WHEELS: &[&str] = &[
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cuda-nvrtc==13.0.88",
    "nvidia-cuda-nvdisasm==13.2.51",
];

/// A version of ptxas: drivers compile PTX with the one that they were released with.
pub(crate) struct Assembler {
    pub(crate) version: &'static str,
    wheels: &'static [&'static str],
    pub(crate) architectures: &'static [&'static str],
}

pub(crate) const ASSEMBLERS: [Assembler; 3] = [
    Assembler {
        version: "11.8.89",
        wheels: &["nvidia-cuda-nvcc-cu11==11.8.89"],
        architectures: &["sm_75", "sm_80", "sm_86", "sm_89", "sm_90"],
    },
    Assembler {
        version: "12.4.131",
        wheels: &["nvidia-cuda-nvcc-cu12==12.4.131"],
        architectures: &["sm_75", "sm_80", "sm_86", "sm_89", "sm_90"],
    },
    Assembler {
        version: COMPILER,
        wheels: WHEELS,
        architectures: &["sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"],
    },
];

/// The wheels, unpacked in virtual environments of their own, and a folder for temporary files.
pub(crate) struct Tools {
    folder: PathBuf,
    wheels: PathBuf,
}

impl Tools {
    pub(crate) fn at(folder: PathBuf) -> Result<Self> {
        let wheels = installed(&folder, COMPILER, WHEELS)?;
        Ok(Self { folder, wheels })
    }

    /// Compiles with nvcc. Fails if NVRTC gives other PTX.
    pub(crate) fn compile(&self, module: &Module) -> Result<String> {
        let nvcc = ptx::Compiler::Nvcc(self.wheels.join("bin/nvcc"));
        let text = nvcc.compile(module, &self.folder).map_err(|error| anyhow!(error))?;
        ensure!(text == self.compile_by_nvrtc(module)?, "nvcc and NVRTC {COMPILER} give different PTX");
        ensure!(ptx::compiler_version(&text) == COMPILER, "the PTX is not by version {COMPILER}");
        Ok(text)
    }

    /// Compiles with NVRTC, which is quicker.
    pub(crate) fn compile_by_nvrtc(&self, module: &Module) -> Result<String> {
        let nvrtc = ptx::nvrtc_in(&self.wheels.join("lib")).context("no NVRTC")?;
        nvrtc.compile(module, &self.folder).map_err(|error| anyhow!(error))
    }

    /// Installs an assembler unless it is installed.
    pub(crate) fn install(&self, assembler: &Assembler) -> Result<()> {
        installed(&self.folder, assembler.version, assembler.wheels).map(|_| ())
    }

    /// Assembles PTX for one architecture with an installed ptxas, and returns its entries. Threads
    /// may do so at once for different architectures.
    pub(crate) fn assemble(&self, assembler: &Assembler, text: &str, architecture: &str) -> Result<Vec<Entry>> {
        let wheels = installed(&self.folder, assembler.version, assembler.wheels)?;
        let file = |kind: &str| self.folder.join(format!("{}-{architecture}.{kind}", assembler.version));
        let (source, cubin) = (file("ptx"), file("cubin"));
        fs::write(&source, text)?;
        let arch = format!("-arch={architecture}");
        let ptxas = wheels.join("bin/ptxas");
        let (_, report) = run_tool(Command::new(ptxas).args(["-v", &arch, "-o"]).arg(&cubin).arg(&source))?;
        let (code, _) = run_tool(Command::new(self.wheels.join("bin/nvdisasm")).arg("-c").arg(&cubin))?;
        code.split("\n.text.").skip(1).map(|section| Entry::read(section, &report)).collect()
    }
}

/// The folder of the wheels of a version, which are installed first if necessary.
fn installed(folder: &Path, version: &str, wheels: &[&str]) -> Result<PathBuf> {
    let environment = folder.join(format!("cuda-{version}"));
    let complete = environment.join("complete");
    if !complete.is_file() {
        fs::create_dir_all(folder)?;
        run_tool(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&environment))?;
        run_tool(Command::new(environment.join("bin/pip")).args(["install", "--quiet", "--no-deps"]).args(wheels))?;
        fs::write(&complete, wheels.join("\n"))?;
    }
    let found = ptx::wheels_in(&environment).into_iter().find(|wheels| wheels.join("bin/ptxas").is_file());
    found.with_context(|| format!("{}: no ptxas", environment.display()))
}

/// Runs a program and returns its standard output and error; a failure names the command.
fn run_tool(command: &mut Command) -> Result<(String, String)> {
    let run = command.output().with_context(|| format!("{command:?}"))?;
    let stderr = String::from_utf8_lossy(&run.stderr).into_owned();
    if !run.status.success() {
        bail!("{command:?}: {}\n{stderr}", run.status);
    }
    Ok((String::from_utf8(run.stdout)?, stderr))
}

/// An entry point as machine code.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) name: String,
    /// Registers, loads of 16 and 8 bytes, stores of 16 and 8 bytes, instructions of all paths.
    pub(crate) figures: [u32; 6],
}

impl Entry {
    /// `section` is its disassembly, from its name on; `report` is all that ptxas printed.
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

        let count = |of: &str| code.lines().filter(|line| line.contains(of)).count() as u32;
        let wide = |access: &str, bits: &str| {
            let is_it = |line: &&str| line.contains(access) && line.contains(bits);
            code.lines().filter(is_it).count() as u32
        };
        let is_instruction = |line: &&str| line.contains("*/   ") && line.trim_end().ends_with(';');
        let instructions = code.lines().filter(is_instruction).count() as u32 - count(" NOP");
        ensure!(
            count(" LDL") + count(" STL") + count(" LD.E") + count(" ST.E") == 0,
            "{name} has local or generic accesses"
        );
        let [loads_16, loads_8] = [".128", ".64"].map(|bits| wide(" LDG.E", bits));
        let [stores_16, stores_8] = [".128", ".64"].map(|bits| wide(" STG.E", bits));
        let figures = [registers, loads_16, loads_8, stores_16, stores_8, instructions];
        Ok(Self { name: name.to_owned(), figures })
    }
}
