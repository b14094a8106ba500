//! NVRTC, the CUDA compiler as a library. It needs no GPU, no host compiler and no header, and its
//! PTX has the same bytes as nvcc's.

use std::ffi::{CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::ptr;

use libloading::Library;

use super::{Result, entries};

type Program = *mut c_void;
type SizeOf = unsafe extern "C" fn(Program, *mut usize) -> c_int;
type TextOf = unsafe extern "C" fn(Program, *mut c_char) -> c_int;

/// The newest `libnvrtc.so*` of a folder.
pub(super) fn library_in(folder: &Path) -> Option<PathBuf> {
    newest(folder, "libnvrtc.so")
}

fn newest(folder: &Path, prefix: &str) -> Option<PathBuf> {
    let named = |file: &PathBuf| file.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix));
    entries(folder).into_iter().rfind(named)
}

/// Compiles the first of the named sources; the others are what it may include.
pub(super) fn compile(library: &Path, sources: &[(&str, String)], flags: &[&str]) -> Result<String> {
    // NVRTC opens its builtins by bare name. The loader finds them only in its search path, or if
    // they are loaded already.
    let builtins = library.parent().and_then(|folder| newest(folder, "libnvrtc-builtins.so"));
    let _builtins = builtins.map(|file| open(&file)).transpose()?;
    let nvrtc = Nvrtc(open(library)?);

    let c_strings = |texts: Vec<&str>| texts.into_iter().map(CString::new).collect::<std::result::Result<Vec<_>, _>>();
    let names = c_strings(sources.iter().map(|(name, _)| *name).collect()).map_err(|error| error.to_string())?;
    let texts =
        c_strings(sources.iter().map(|(_, text)| text.as_str()).collect()).map_err(|error| error.to_string())?;
    let flags = c_strings(flags.to_vec()).map_err(|error| error.to_string())?;
    nvrtc.compile(&names, &texts, &flags)
}

fn open(library: &Path) -> Result<Library> {
    // SAFETY: NVIDIA's libraries run only their own set-up code when they are loaded.
    unsafe { Library::new(library) }.map_err(|error| format!("{}: {error}", library.display()))
}

struct Nvrtc(Library);

impl Nvrtc {
    fn compile(&self, names: &[CString], texts: &[CString], flags: &[CString]) -> Result<String> {
        type Create = unsafe extern "C" fn(
            *mut Program,
            *const c_char,
            *const c_char,
            c_int,
            *const *const c_char,
            *const *const c_char,
        ) -> c_int;
        type Compile = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int;

        let pointers = |strings: &[CString]| strings.iter().map(|string| string.as_ptr()).collect::<Vec<_>>();
        let (name_pointers, text_pointers, flag_pointers) = (pointers(names), pointers(texts), pointers(flags));
        let headers = c_int::try_from(names.len() - 1).map_err(|error| error.to_string())?;
        let flag_count = c_int::try_from(flags.len()).map_err(|error| error.to_string())?;
        let mut program: Program = ptr::null_mut();

        // SAFETY: the signatures are those of nvrtc.h; every pointer is to a NUL-terminated string,
        // or to an array of as many of them as the count beside it says, that lives until the end
        // of this function. NVRTC copies what it keeps.
        let (created, compiled) = unsafe {
            let create = self.0.get::<Create>(b"nvrtcCreateProgram\0").map_err(|error| error.to_string())?;
            let compile = self.0.get::<Compile>(b"nvrtcCompileProgram\0").map_err(|error| error.to_string())?;
            let (header_texts, header_names) = (text_pointers[1..].as_ptr(), name_pointers[1..].as_ptr());
            let created =
                create(&raw mut program, text_pointers[0], name_pointers[0], headers, header_texts, header_names);
            (created, if created == 0 { compile(program, flag_count, flag_pointers.as_ptr()) } else { created })
        };
        if created != 0 {
            return Err(format!("NVRTC made no program: error {created}"));
        }
        // The program is not destroyed: the process ends soon.
        if compiled != 0 {
            let log = self.text(program, b"nvrtcGetProgramLogSize\0", b"nvrtcGetProgramLog\0")?;
            return Err(format!("the CUDA compiler failed: NVRTC error {compiled}\nflags: {flags:?}\nlog:\n{log}"));
        }
        self.text(program, b"nvrtcGetPTXSize\0", b"nvrtcGetPTX\0")
    }

    /// A text of a program that the library created and has not destroyed.
    fn text(&self, program: Program, size_name: &[u8], text_name: &[u8]) -> Result<String> {
        let mut size = 0;
        let mut bytes;
        // SAFETY: the signatures are those of nvrtc.h; the text is written into a buffer of the
        // size that NVRTC asks for.
        let status = unsafe {
            let size_of = self.0.get::<SizeOf>(size_name).map_err(|error| error.to_string())?;
            let text_of = self.0.get::<TextOf>(text_name).map_err(|error| error.to_string())?;
            let status = size_of(program, &raw mut size);
            bytes = vec![0_u8; size];
            if status == 0 { text_of(program, bytes.as_mut_ptr().cast()) } else { status }
        };
        if status != 0 {
            return Err(format!("NVRTC gave no text: error {status}"));
        }
        bytes.pop(); // the NUL at the end
        String::from_utf8(bytes).map_err(|error| error.to_string())
    }
}
