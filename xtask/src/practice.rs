//! `cargo xtask practice`: the bundle's `run` on the stand-in driver, with deadlines that are too
//! short, and killed. It must end in time, and the files that it leaves must be whole.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::bundle::{PROGRAMS, Program, add_files, output};
use crate::tune;

/// The tests on the stand-in driver, in place of those for a device.
const TESTS: Program = Program { name: "cuda_practice", cargo: &["test", "--all-features", "--test", "cuda"] };
/// The parts that each run must report. The sanitizer has two.
const PARTS: [&str; 10] =
    ["facts", "correctness", "bench", "peers", "sweep", "memcheck", "initcheck", "python_cuda", "vulkan", "beyond"];
/// Texts in key numbers, and the least number of key numbers with each: of the time to load, of the
/// benchmark, and of the sweep.
const KEYS: [(&str, usize); 3] = [("loading, ", 3), ("GB/s", 12), ("sweep ", 4)];
const MOST_TABLE: usize = 8000;
const MOST_FILES: usize = 8;

pub(crate) fn run(root: &Path) -> Result<()> {
    let folder = root.join("target/practice");
    make(root, &folder)?;
    for deadline in [480, 12, 4] {
        let results = folder.join(format!("results-{deadline}"));
        let start = Instant::now();
        let run = command(&folder, &results).args(["--deadline", &deadline.to_string()]).output()?;
        let (seconds, status) = (start.elapsed().as_secs_f64(), run.status.code());
        let printed = String::from_utf8_lossy(&run.stdout).into_owned();
        println!(
            "{}",
            printed.lines().rev().take(30).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n")
        );
        ensure!(seconds < f64::from(deadline), "a deadline of {deadline} s took {seconds:.1} s");
        // Status 2 says that there was no time for the correctness tests.
        ensure!(status == Some(0) || status == Some(2), "a deadline of {deadline} s: {status:?}");
        check_whole(&results, &printed)?;
        if deadline == 480 {
            check_keys(&results)?;
        }
        println!("a deadline of {deadline} s: ended after {seconds:.1} s\n");
    }
    for _ in 0..4 {
        let results = folder.join("results-killed");
        let _ = fs::remove_dir_all(&results);
        let mut child = command(&folder, &results).stdout(Stdio::null()).spawn()?;
        let wait = random_wait()?;
        thread::sleep(wait);
        // The whole session, since a part has a process group of its own.
        output(Command::new("pkill").args(["-9", "-s", &child.id().to_string()]))?;
        child.wait()?;
        let files = check_json(&results)?;
        println!("killed after {:.1} s: {files} whole JSON files", wait.as_secs_f64());
    }
    Ok(())
}

/// A time within a run's first 25 seconds.
fn random_wait() -> Result<Duration> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    Ok(Duration::from_millis(u64::from(now.subsec_micros()) % 25_000))
}

/// Makes the bundle, as far as it can run here.
fn make(root: &Path, folder: &Path) -> Result<()> {
    let _ = fs::remove_dir_all(folder);
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let bench = PROGRAMS.iter().find(|program| program.name == "cuda_bench").context("the bundle has a benchmark")?;
    for program in [&TESTS, bench] {
        let built = program.build(root)?;
        fs::copy(&built, folder.join(program.name)).with_context(|| built.display().to_string())?;
        let library = built.with_file_name("libstand_in_cuda.so");
        fs::copy(&library, folder.join("libstand_in_cuda.so")).with_context(|| library.display().to_string())?;
    }
    tune::write(root, &folder.join("tune"))?;
    add_files(root, folder)
}

/// `run` in a session of its own.
fn command(folder: &Path, results: &Path) -> Command {
    let mut command = Command::new("setsid");
    command.arg(folder.join("run")).args(["--practice", "--out"]).arg(results);
    command
}

/// Checks that all parts are reported, and that files and table are small enough.
fn check_whole(results: &Path, printed: &str) -> Result<()> {
    check_json(results)?;
    let summary: Value = serde_json::from_str(&fs::read_to_string(results.join("summary.json"))?)?;
    let parts = summary["parts"].as_array().context("the summary has parts")?;
    let text = |part: &Value, field: &str| part[field].as_str().unwrap_or_default().to_owned();
    let named: Vec<_> = parts.iter().map(|part| text(part, "part")).collect();
    let is_there = |part: &&str| {
        named.iter().any(|name| name == part)
            || (part.ends_with("check") && named.iter().any(|name| name == "sanitizer"))
    };
    let missing: Vec<_> = PARTS.iter().filter(|part| !is_there(part)).collect();
    ensure!(missing.is_empty(), "not reported: {missing:?}, of {named:?}");
    for part in parts {
        let outcome = text(part, "outcome");
        let known = ["passed", "cut: ", "did not run: "].iter().any(|start| outcome.starts_with(start));
        ensure!(known, "{}: {outcome}", text(part, "part"));
    }
    let files = fs::read_dir(results)?.count();
    ensure!(files <= MOST_FILES, "{files} files");
    let table = printed.rfind("| part ").map(|start| &printed[start..]).context("a table is printed last")?;
    ensure!(table.len() < MOST_TABLE, "the table has {} characters", table.len());
    Ok(())
}

/// Checks that the parts that run here have reported their numbers.
fn check_keys(results: &Path) -> Result<()> {
    let summary: Value = serde_json::from_str(&fs::read_to_string(results.join("summary.json"))?)?;
    let keys = summary["key_numbers"].as_array().context("the summary has numbers")?;
    for (wanted, least) in KEYS {
        let found = keys.iter().filter(|key| key.as_str().is_some_and(|key| key.contains(wanted))).count();
        ensure!(found >= least, "{found} key numbers of {wanted:?}, not {least}: {keys:?}");
    }
    Ok(())
}

/// Checks that every JSON file is whole. Returns how many there are.
fn check_json(results: &Path) -> Result<usize> {
    let Ok(entries) = fs::read_dir(results) else { return Ok(0) };
    let files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    let json: Vec<_> = files.iter().filter(|file| file.extension().is_some_and(|end| end == "json")).collect();
    for file in &json {
        let parsed: Result<Value, _> = serde_json::from_str(&fs::read_to_string(file)?);
        parsed.with_context(|| file.display().to_string())?;
    }
    Ok(json.len())
}
