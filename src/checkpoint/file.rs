//! The file of a state, which is replaced atomically.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use safetensors::SafeTensorError;

use crate::ledger::Ledger;

use super::error::StateError;
use super::format::{self, CRC_BYTES};
use super::state::{Arrays, State};

impl State {
    /// Writes the state to the file `path`, and replaces a file that is there.
    ///
    /// The call writes a temporary file in the same folder, syncs it and renames it. A crash at any
    /// point leaves the old or the new file complete. A process that is killed meanwhile leaves the
    /// temporary file (`.dualadam-*.tmp` or `.tmp*`) behind. A symbolic link at `path` is replaced,
    /// not followed.
    ///
    /// Needs the feature `files`. Not available on wasm.
    ///
    /// # Errors
    ///
    /// - [`StateError::Argument`] as [`validate`](Self::validate) returns it. Nothing is written.
    /// - [`StateError::Io`] if a file cannot be written. The file at `path` is the old one then,
    ///   unless only the sync of the folder failed, after the renaming.
    ///
    /// # Examples
    ///
    /// ```
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("optimizer.safetensors");
    /// use dualadam::{DualAdamConfig, State, TensorSpec};
    ///
    /// let state = State::new(&[DualAdamConfig::default()], &[TensorSpec::new(3)])?;
    /// state.save(&path)?;
    /// assert_eq!(State::load(&path)?, state);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), StateError> {
        self.validate()?;
        let path = path.as_ref();
        let failed = |action| move |source| StateError::Io { action, path: path.to_owned(), source };
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let (file, temporary) = temporary_file(folder).map_err(failed("create a temporary file beside"))?.into_parts();
        let permissions = file.metadata().map_err(failed("create a temporary file beside"))?.permissions();
        drop(file);
        // This replaces the temporary file, so `file` is closed before and opened again after.
        write(&self.ledger, &self.arrays, &temporary).map_err(failed("write"))?;
        let mut file = File::options().read(true).write(true).open(&temporary).map_err(failed("write"))?;
        file.set_permissions(permissions).map_err(failed("set the permissions of"))?;
        seal(&mut file).map_err(failed("write the checksum of"))?;
        file.sync_all().map_err(failed("sync"))?;
        temporary.persist(path).map_err(|error| failed("replace")(error.error))?;
        sync_folder(folder).map_err(failed("sync the folder of"))
    }

    /// Reads a state from the file `path`.
    ///
    /// The call reads the whole file and checks its checksum before it uses any of the content.
    ///
    /// Needs the feature `files`. Not available on wasm.
    ///
    /// # Errors
    ///
    /// - [`StateError::Io`] if the file cannot be read.
    /// - [`StateError::File`] if the file is cut, damaged, of another format version, or not that
    ///   of a state.
    ///
    /// # Examples
    ///
    /// ```
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("optimizer.safetensors");
    /// use dualadam::{State, StateError, StateProblem};
    ///
    /// std::fs::write(&path, [0; 100])?;
    /// let error = State::load(&path).unwrap_err();
    /// assert!(matches!(error, StateError::File { problem, .. } if matches!(*problem, StateProblem::Checksum { .. })));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn load(path: impl AsRef<Path>) -> Result<Self, StateError> {
        let path = path.as_ref();
        let bytes = std::fs::read(path);
        let bytes = bytes.map_err(|source| StateError::Io { action: "read", path: path.to_owned(), source })?;
        format::parse(&bytes).map_err(|problem| StateError::File { path: path.to_owned(), problem: problem.into() })
    }

    /// [`load`](Self::load) of a state that must be of this ledger's model. Tensors without a name
    /// in the file get the ledger's.
    pub(crate) fn load_for(ledger: &Ledger, path: &Path) -> Result<Self, StateError> {
        let mut state = Self::load(path)?;
        super::state::check_layout(ledger, &state.ledger)
            .map_err(|problem| StateError::File { path: path.to_owned(), problem })?;
        state.ledger.fill_names(ledger);
        Ok(state)
    }
}

/// Writes the file with four zero bytes in place of the checksum.
fn write(ledger: &Ledger, arrays: &[Arrays], path: &Path) -> io::Result<()> {
    let metadata = format::metadata(ledger)?;
    let written = safetensors::serialize_to_file(format::arrays(ledger, arrays), Some(metadata), path);
    written.map_err(|error| match error {
        SafeTensorError::IoError(error) => error,
        other => io::Error::other(other),
    })
}

/// A new file with the permissions that a new file has by default. Removed unless it is renamed.
fn temporary_file(folder: &Path) -> io::Result<tempfile::NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".dualadam-").suffix(".tmp");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    builder.tempfile_in(folder)
}

/// Writes the checksum of all other bytes to the last four.
fn seal(file: &mut File) -> io::Result<()> {
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

/// Makes the renaming durable. Other systems than Unix cannot sync a folder, and need not.
fn sync_folder(folder: &Path) -> io::Result<()> {
    #[cfg(unix)]
    File::open(folder)?.sync_all()?;
    #[cfg(not(unix))]
    let _ = folder;
    Ok(())
}
