//! The kernels with other constants than the library's, for the sweep of `benches/cuda/tune.rs`: a
//! PTX text each, and a list of them.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use serde_json::json;

use crate::cuda_tools::Tools;
use crate::ptx;
use crate::variants;

/// The variants that are swept.
const SWEPT: [&str; 2] = ["f32_f32", "bf16_bf16"];

/// Constants of `kernels/tuning.cuh` and their values.
type Defines = &'static [(&'static str, u32)];

/// The combinations that are swept, as differences from the library's constants. The first is the
/// library's own; the most informative come next.
const COMBINATIONS: &[Defines] = &[
    &[],
    &[("FLAT_GROUPS", 1), ("FLAT_BLOCKS_PER_SM", 6)],
    &[("LIST_GROUPS", 2), ("LIST_BLOCKS_PER_SM", 4)],
    &[("FLAT_GROUPS", 4), ("FLAT_BLOCKS_PER_SM", 2), ("LIST_GROUPS", 4), ("LIST_BLOCKS_PER_SM", 2)],
    &[("STREAMING", 1)],
    &[("STREAMING", 2)],
    &[("NATIVE_BF16", 1)],
    &[("CHUNK", 8192)],
    &[("CHUNK", 16384)],
    &[("CHUNK", 32768)],
    &[("CHUNK", 2048)],
    &[("SPAN", 8)],
    &[("AHEAD", 0)],
    &[("LIST_BLOCKS_PER_SM", 6), ("FLAT_BLOCKS_PER_SM", 3)],
    &[("BLOCK", 128), ("FLAT_BLOCKS_PER_SM", 8), ("LIST_BLOCKS_PER_SM", 10)],
    &[("BLOCK", 512), ("FLAT_BLOCKS_PER_SM", 2), ("LIST_BLOCKS_PER_SM", 2)],
    &[("BLOCK", 128), ("FLAT_BLOCKS_PER_SM", 12), ("FLAT_GROUPS", 1), ("LIST_BLOCKS_PER_SM", 12)],
    &[("BLOCK", 512), ("FLAT_BLOCKS_PER_SM", 3), ("FLAT_GROUPS", 1), ("LIST_BLOCKS_PER_SM", 3)],
    &[("BLOCK", 1024), ("FLAT_BLOCKS_PER_SM", 1), ("LIST_BLOCKS_PER_SM", 1)],
    &[("FLAT_GROUPS", 1), ("FLAT_BLOCKS_PER_SM", 6), ("STREAMING", 1)],
    &[("FLAT_GROUPS", 1), ("FLAT_BLOCKS_PER_SM", 6), ("STREAMING", 2)],
    &[("FLAT_GROUPS", 4), ("FLAT_BLOCKS_PER_SM", 3), ("LIST_GROUPS", 4), ("LIST_BLOCKS_PER_SM", 3)],
    &[("LIST_GROUPS", 2), ("LIST_BLOCKS_PER_SM", 4), ("CHUNK", 8192)],
    &[("LIST_GROUPS", 2), ("LIST_BLOCKS_PER_SM", 4), ("CHUNK", 16384)],
    &[("NATIVE_BF16", 1), ("STREAMING", 1)],
    &[("NATIVE_BF16", 1), ("STREAMING", 2)],
    &[("NATIVE_BF16", 1), ("FLAT_GROUPS", 1), ("FLAT_BLOCKS_PER_SM", 6)],
    &[("NATIVE_BF16", 1), ("LIST_GROUPS", 2), ("LIST_BLOCKS_PER_SM", 4)],
    &[("BLOCK", 512), ("FLAT_BLOCKS_PER_SM", 2), ("LIST_BLOCKS_PER_SM", 2), ("STREAMING", 2)],
];

/// Writes the texts and `index.json` into a folder.
pub(crate) fn write(root: &Path, folder: &Path) -> Result<()> {
    let tools = Tools::at(root.join("target/prebuilt"))?;
    let mut variants = variants::read(root).map_err(|error| anyhow!(error))?;
    variants.retain(|variant| SWEPT.contains(&variant.name.as_str()));
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let mut index = vec![];
    for (number, defines) in COMBINATIONS.iter().enumerate() {
        let mut files = serde_json::Map::new();
        let is_for_bf16 = defines.iter().any(|(name, _)| *name == "NATIVE_BF16");
        for variant in variants.iter().filter(|variant| variant.format("param") == Some("bf16") || !is_for_bf16) {
            let mut module = ptx::module_of(variant, &root.join("kernels"));
            defines.iter().for_each(|(name, value)| module.define(name, &value.to_string()));
            if is_for_bf16 {
                module.flags.retain(|flag| !flag.starts_with("-arch"));
                module.flags.push("-arch=compute_80".to_owned());
                module.ptx_version = "7.0";
            }
            let file = format!("{number:02}-{}.ptx", variant.name);
            fs::write(folder.join(&file), tools.compile_by_nvrtc(&module)?).with_context(|| file.clone())?;
            files.insert(variant.name.clone(), file.into());
        }
        let defines: serde_json::Map<_, _> =
            defines.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())).collect();
        index.push(json!({ "defines": defines, "files": files }));
    }
    fs::write(folder.join("index.json"), serde_json::to_string_pretty(&index)?)?;
    Ok(())
}
