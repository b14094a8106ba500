//! From the files in `shaders/` to the text of each variant, and from a line of that text back to its file. Shared by the build
//! script and the tests.

use std::path::Path;
use std::{fmt, fs};

pub(crate) use super::variants::VARIANTS as TYPES;

/// Where the coefficients come from. `immediate` needs a feature of the device.
pub(crate) const COEFFS: [&str; 2] = ["uniform", "immediate"];

/// A variant's text, and where its lines are from.
pub(crate) struct Joined {
    pub(crate) text: String,
    files: Vec<JoinedFile>,
}

struct JoinedFile {
    name: String,
    lines: usize,
}

/// A line and a column of a file, counted from 1.
pub(crate) struct Place {
    pub(crate) file: String,
    pub(crate) line: usize,
    pub(crate) column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// Joins the variant of these types and this source of coefficients from the files in `shaders`.
pub(crate) fn join(shaders: &Path, types: &str, coeffs: &str) -> Result<Joined, String> {
    let streams: Vec<_> = ["params", "grads", "copy"].into_iter().zip(types.split('_')).collect();
    let mut dtypes: Vec<_> = streams.iter().map(|(_, dtype)| *dtype).collect();
    dtypes.sort_unstable();
    dtypes.dedup();

    let mut joined = Joined { text: String::new(), files: vec![] };
    joined.push_file(shaders, "update.wgsl")?;
    joined.push_file(shaders, &format!("coeffs_{coeffs}.wgsl"))?;
    for dtype in dtypes {
        joined.push_file(shaders, &format!("storage_{dtype}.wgsl"))?;
    }
    let names: String = streams.iter().map(|(stream, dtype)| names_of(stream, dtype)).collect();
    joined.push(format!("the lines generated for {types}"), &names);
    joined.push_file(shaders, if streams.len() > 2 { "copy.wgsl" } else { "no_copy.wgsl" })?;
    joined.push_file(shaders, "dual_adam.wgsl")?;
    joined.push_file(shaders, "tail.wgsl")?;
    if streams.len() > 2 {
        joined.push_file(shaders, "masters.wgsl")?;
    }
    Ok(joined)
}

/// What a stream's type and functions are called where the type does not matter.
fn names_of(stream: &str, dtype: &str) -> String {
    let capital = |word: &str| word[..1].to_uppercase() + &word[1..];
    let (stream_type, dtype_type) = (capital(stream), capital(dtype));
    let (stream_const, dtype_const) = (stream.to_uppercase(), dtype.to_uppercase());
    let mut names = format!(
        "alias Quad{stream_type} = Quad{dtype_type};\n\
         alias Part{stream_type} = Part{dtype_type};\n\
         const PART_{stream_const} = PART_{dtype_const};\n\
         const PARTS_{stream_const} = 4 / PART_{dtype_const};\n"
    );
    let (wide, quad, part) = ("vec4<f32>", format!("Quad{stream_type}"), format!("Part{stream_type}"));
    names += &format!("fn widen_{stream}(quad: {quad}) -> {wide} {{ return widen_{dtype}(quad); }}\n");
    if stream != "grads" {
        names += &format!("fn narrow_{stream}(x: {wide}) -> {quad} {{ return narrow_{dtype}(x); }}\n");
        names +=
            &format!("fn first_{stream}(now: {part}, old: {part}) -> {part} {{ return first_{dtype}(now, old); }}\n");
    }
    names
}

impl Joined {
    fn push_file(&mut self, shaders: &Path, name: &str) -> Result<(), String> {
        let file = shaders.join(name);
        let text = fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
        self.push(format!("shaders/{name}"), &text);
        Ok(())
    }

    fn push(&mut self, name: String, text: &str) {
        let start = self.text.len();
        for line in text.lines() {
            self.text.push_str(line);
            self.text.push('\n');
        }
        let lines = self.text[start..].lines().count();
        self.files.push(JoinedFile { name, lines });
    }

    /// Where a line of the text is from. Both are counted from 1.
    pub(crate) fn place(&self, mut line: usize, column: usize) -> Place {
        for JoinedFile { name, lines } in &self.files {
            if line <= *lines {
                return Place { file: name.clone(), line, column };
            }
            line -= lines;
        }
        Place { file: "after the last of the shaders".to_owned(), line, column }
    }
}
