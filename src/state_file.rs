//! The file that an optimizer's state is saved in.
//!
//! It is a [safetensors](https://docs.rs/safetensors) container. Its metadata key `dualadam` holds JSON: the format
//! version, the groups' configurations, and each tensor's group and step. Tensor `i` has the arrays `i.exp_avg`,
//! `i.exp_avg_sq` and, where it has f32 masters, `i.master`. The last array, `crc32`, is the CRC-32 (IEEE, little-endian)
//! of every byte before it, and its four bytes are the last of the file.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use safetensors::{SafeTensorError, SafeTensors, View};
use serde::{Deserialize, Serialize};

use crate::{DualAdamConfig, Error, State, StateProblem, TensorState};

/// The version of the file format that this library reads and writes.
pub const FORMAT_VERSION: u32 = 1;

const METADATA_KEY: &str = "dualadam";
const CRC_NAME: &str = "crc32";
const CRC_BYTES: usize = 4;

#[derive(Serialize, Deserialize)]
struct Header {
    version: u32,
    groups: Vec<DualAdamConfig>,
    tensors: Vec<TensorHeader>,
}

#[derive(Serialize, Deserialize)]
struct TensorHeader {
    group: usize,
    step: u64,
    master: bool,
    master_is_set: bool,
}

/// Only the version: all that may be asked of a file before it is known to be of this one.
#[derive(Deserialize)]
struct VersionHeader {
    version: u32,
}

impl State {
    /// Writes the state to `path`, replacing what is there.
    ///
    /// A temporary file in the same folder is written, synced and renamed, so that a crash at any point leaves the old or
    /// the new file whole. A process that is killed meanwhile leaves its temporary file (`.dualadam-*.tmp` or `.tmp*`) behind; a
    /// symbolic link at `path` is replaced, not followed.
    ///
    /// # Errors
    ///
    /// As [`validate`](Self::validate): what cannot be loaded is not saved. [`Error::Io`] if the file cannot be written; what was
    /// at `path` is still there then, unless syncing the folder was all that failed.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), Error> {
        self.validate()?;
        let path = path.as_ref();
        let failed = |action| move |source| Error::Io { action, path: path.to_owned(), source };
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let (file, temporary) = temporary_file(folder).map_err(failed("create a temporary file beside"))?.into_parts();
        let permissions = file.metadata().map_err(failed("create a temporary file beside"))?.permissions();
        drop(file);
        // This puts a file of its own in the temporary one's place.
        self.write(&temporary).map_err(failed("write"))?;
        let mut file = File::options().read(true).write(true).open(&temporary).map_err(failed("write"))?;
        file.set_permissions(permissions).map_err(failed("set the permissions of"))?;
        seal(&mut file).map_err(failed("write the checksum of"))?;
        file.sync_all().map_err(failed("sync"))?;
        temporary.persist(path).map_err(|error| failed("replace")(error.error))?;
        sync_folder(folder).map_err(failed("sync the folder of"))
    }

    /// Reads a state from `path`.
    ///
    /// The whole file is read and its checksum tested before anything is used of it.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the file cannot be read; [`Error::State`] if it is cut, damaged, of another version, or not a state.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let bytes =
            std::fs::read(path).map_err(|source| Error::Io { action: "read", path: path.to_owned(), source })?;
        Self::from_bytes(&bytes).map_err(|problem| Error::State { path: path.to_owned(), problem })
    }

    fn write(&self, path: &Path) -> std::io::Result<()> {
        let header = Header {
            version: FORMAT_VERSION,
            groups: self.groups.clone(),
            tensors: self
                .tensors
                .iter()
                .map(|tensor| TensorHeader {
                    group: tensor.group,
                    step: tensor.step,
                    master: tensor.master.is_some(),
                    master_is_set: tensor.master_is_set,
                })
                .collect(),
        };
        let metadata = HashMap::from([(METADATA_KEY.to_owned(), serde_json::to_string(&header)?)]);
        safetensors::serialize_to_file(self.arrays(), Some(metadata), path).map_err(|error| match error {
            SafeTensorError::IoError(error) => error,
            other => std::io::Error::other(other),
        })
    }

    fn arrays(&self) -> impl Iterator<Item = (String, Array<'_>)> {
        let moments = self.tensors.iter().enumerate().flat_map(|(index, tensor)| {
            [
                Some((format!("{index}.exp_avg"), Array::f32(&tensor.exp_avg))),
                Some((format!("{index}.exp_avg_sq"), Array::f32(&tensor.exp_avg_sq))),
                tensor.master.as_ref().map(|master| (format!("{index}.master"), Array::f32(master))),
            ]
        });
        // The narrowest type is stored last, so the checksum ends the file.
        let crc = Array { dtype: safetensors::Dtype::U8, shape: [CRC_BYTES], bytes: Cow::Borrowed(&[0; CRC_BYTES]) };
        moments.flatten().chain([(CRC_NAME.to_owned(), crc)])
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, StateProblem> {
        let malformed = |what: &dyn std::fmt::Display| StateProblem::Malformed(what.to_string());
        check_crc(bytes)?;
        let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|error| malformed(&error))?;
        let file = SafeTensors::deserialize(bytes).map_err(|error| malformed(&error))?;
        let json = metadata.metadata().as_ref().and_then(|entries| entries.get(METADATA_KEY));
        let json = json.ok_or_else(|| malformed(&"it has no metadata of that name"))?;
        let VersionHeader { version } = serde_json::from_str(json).map_err(|error| malformed(&error))?;
        if version != FORMAT_VERSION {
            return Err(StateProblem::Version { supported: FORMAT_VERSION, found: version });
        }
        let header: Header = serde_json::from_str(json).map_err(|error| malformed(&error))?;
        let tensors = header.tensors.iter().enumerate().map(|(index, tensor)| {
            let array = |kind| read_f32(&file, &format!("{index}.{kind}"));
            let exp_avg = array("exp_avg")?;
            let exp_avg_sq = array("exp_avg_sq")?;
            let master = tensor.master.then(|| array("master")).transpose()?;
            let TensorHeader { group, step, master_is_set, .. } = *tensor;
            Ok(TensorState { group, step, exp_avg, exp_avg_sq, master, master_is_set })
        });
        let tensors = tensors.collect::<Result<_, _>>()?;
        let state = Self { groups: header.groups, tensors };
        state.validate().map_err(|error| malformed(&error))?;
        Ok(state)
    }
}

/// A new file with the permissions that any new file gets, removed again unless it is renamed.
fn temporary_file(folder: &Path) -> std::io::Result<tempfile::NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".dualadam-").suffix(".tmp");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    builder.tempfile_in(folder)
}

/// Puts the checksum of all that is before the last four bytes into them.
fn seal(file: &mut File) -> std::io::Result<()> {
    let body = file.seek(SeekFrom::End(0))? - CRC_BYTES as u64;
    file.rewind()?;
    let mut crc = crc32fast::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    let mut rest = Read::take(&mut *file, body);
    loop {
        let read = rest.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        crc.update(&buffer[..read]);
    }
    file.seek(SeekFrom::Start(body))?;
    file.write_all(&crc.finalize().to_le_bytes())
}

/// Makes the renaming durable. Only Unix can, and needs to, sync a folder.
fn sync_folder(folder: &Path) -> std::io::Result<()> {
    #[cfg(unix)]
    File::open(folder)?.sync_all()?;
    #[cfg(not(unix))]
    let _ = folder;
    Ok(())
}

fn check_crc(bytes: &[u8]) -> Result<(), StateProblem> {
    let Some((body, stored)) = bytes.split_last_chunk::<CRC_BYTES>() else {
        return Err(StateProblem::TooShort { min: CRC_BYTES, actual: bytes.len() });
    };
    let (stored, computed) = (u32::from_le_bytes(*stored), crc32fast::hash(body));
    if stored != computed {
        return Err(StateProblem::Checksum { stored, computed });
    }
    Ok(())
}

fn read_f32(file: &SafeTensors<'_>, name: &str) -> Result<Vec<f32>, StateProblem> {
    let array = file.tensor(name).map_err(|error| StateProblem::Malformed(format!("{name}: {error}")))?;
    if array.dtype() != safetensors::Dtype::F32 {
        return Err(StateProblem::Malformed(format!("{name} must be F32, it is {:?}", array.dtype())));
    }
    Ok(array.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
}

/// An array on its way into the file.
struct Array<'a> {
    dtype: safetensors::Dtype,
    shape: [usize; 1],
    bytes: Cow<'a, [u8]>,
}

impl<'a> Array<'a> {
    fn f32(values: &'a [f32]) -> Self {
        let bytes = if cfg!(target_endian = "little") {
            Cow::Borrowed(bytemuck::cast_slice(values))
        } else {
            values.iter().flat_map(|value| value.to_le_bytes()).collect()
        };
        Self { dtype: safetensors::Dtype::F32, shape: [values.len()], bytes }
    }
}

impl View for Array<'_> {
    fn dtype(&self) -> safetensors::Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}
