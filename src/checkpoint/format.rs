//! The bytes of a state's file.
//!
//! The file is a [safetensors](https://docs.rs/safetensors) container:
//!
//! - The metadata key `dualadam` holds JSON: the format version, the config of each group, and each
//!   tensor's group, step and name, and whether it has masters and they are set.
//! - Tensor `i` has the arrays `i.exp_avg`, `i.exp_avg_sq` and, with masters, `i.master`, in f32.
//! - The last four bytes are the array `crc32`: the CRC-32 (IEEE, little-endian) of all bytes
//!   before it.

use std::borrow::Cow;
use std::collections::HashMap;

use safetensors::{SafeTensors, View};
use serde::{Deserialize, Serialize};

use crate::ledger::{Ledger, TensorSpec};
use crate::rule::{DualAdamConfig, in_standard_env};
use crate::tensor::{ArgumentError, Role};

use super::error::{StateError, StateProblem};
use super::state::{Arrays, State};

/// The version of the file format that this library reads and writes.
///
/// A file of another version is refused with [`StateProblem::Version`]. Needs the feature `files`.
pub const FORMAT_VERSION: u32 = 1;

const METADATA_KEY: &str = "dualadam";
const CRC_NAME: &str = "crc32";
pub(super) const CRC_BYTES: usize = 4;

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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<String>,
}

/// The version alone. Nothing else of the header is parsed before the version is known.
#[derive(Deserialize)]
struct VersionHeader {
    version: u32,
}

impl State {
    /// The bytes of the state's file, for programs that store them in another way than
    /// `State::save`.
    ///
    /// Needs the feature `files`.
    ///
    /// # Errors
    ///
    /// - [`StateError::Argument`] as [`validate`](Self::validate) returns it.
    ///
    /// # Examples
    ///
    /// ```
    /// use dualadam::{DualAdamConfig, State, TensorSpec};
    ///
    /// let state = State::new(&[DualAdamConfig::default()], &[TensorSpec::new(3)])?;
    /// assert_eq!(State::from_bytes(&state.to_bytes()?)?, state);
    /// # Ok::<(), dualadam::Error>(())
    /// ```
    pub fn to_bytes(&self) -> Result<Vec<u8>, StateError> {
        self.validate()?;
        let malformed = |error: &dyn std::fmt::Display| Box::new(StateProblem::Malformed(error.to_string()));
        let metadata = metadata(&self.ledger).map_err(|error| malformed(&error))?;
        let mut bytes = safetensors::serialize(arrays(&self.ledger, &self.arrays), Some(metadata))
            .map_err(|error| malformed(&error))?;
        let body = bytes.len() - CRC_BYTES;
        let crc = crc32fast::hash(&bytes[..body]);
        bytes[body..].copy_from_slice(&crc.to_le_bytes());
        Ok(bytes)
    }

    /// The state of the bytes of a file.
    ///
    /// The call checks the checksum before it uses any of the content. Needs the feature `files`.
    ///
    /// # Errors
    ///
    /// - [`StateError::Problem`] if the bytes are cut, damaged, of another format version, or not
    ///   those of a state.
    ///
    /// # Examples
    ///
    /// ```
    /// use dualadam::{DualAdamConfig, State, TensorSpec};
    ///
    /// let mut bytes = State::new(&[DualAdamConfig::default()], &[TensorSpec::new(3)])?.to_bytes()?;
    /// bytes[20] ^= 1;
    /// assert!(State::from_bytes(&bytes).unwrap_err().to_string().contains("the file is damaged or cut"));
    /// # Ok::<(), dualadam::Error>(())
    /// ```
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, StateError> {
        Ok(parse(bytes).map_err(Box::new)?)
    }
}

/// The state of a file's bytes.
pub(super) fn parse(bytes: &[u8]) -> Result<State, StateProblem> {
    // The parser of JSON numbers rounds under the thread's control word.
    in_standard_env(bytes, parse_in_env)
}

fn parse_in_env(bytes: &[u8]) -> Result<State, StateProblem> {
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
    let arrays = header.tensors.iter().enumerate().map(|(index, tensor)| {
        let array = |role| read_f32(&file, &array_name(index, role));
        Ok(Arrays {
            exp_avg: array(Role::ExpAvg)?,
            exp_avg_sq: array(Role::ExpAvgSq)?,
            master: tensor.master.then(|| array(Role::Master)).transpose()?,
        })
    });
    let arrays: Vec<_> = arrays.collect::<Result<_, _>>()?;
    let ledger = ledger(header, &arrays).map_err(|error| malformed(&error))?;
    let state = State { ledger, arrays };
    state.validate().map_err(|error| malformed(&error))?;
    Ok(state)
}

fn ledger(header: Header, arrays: &[Arrays]) -> Result<Ledger, ArgumentError> {
    let spec = |(tensor, arrays): (&TensorHeader, &Arrays)| {
        let name = tensor.name.as_deref().map(Into::into);
        TensorSpec { len: arrays.exp_avg.len(), group: tensor.group, has_master: tensor.master, name }
    };
    let specs: Vec<_> = header.tensors.iter().zip(arrays).map(spec).collect();
    let mut ledger = Ledger::new(&header.groups, &specs)?;
    for (index, tensor) in header.tensors.iter().enumerate() {
        ledger.set_step(index, tensor.step)?;
        ledger.set_master_is_set(index, tensor.master_is_set)?;
    }
    Ok(ledger)
}

/// The container's metadata.
pub(super) fn metadata(ledger: &Ledger) -> serde_json::Result<HashMap<String, String>> {
    let header = |(index, spec): (usize, &TensorSpec)| {
        let TensorSpec { group, has_master: master, ref name, .. } = *spec;
        let (step, master_is_set) = (ledger.step(index).unwrap_or(0), ledger.master_is_set(index).unwrap_or(false));
        TensorHeader { group, step, master, master_is_set, name: name.as_deref().map(str::to_owned) }
    };
    let tensors = ledger.specs().enumerate().map(header).collect();
    let header = Header { version: FORMAT_VERSION, groups: ledger.groups().to_vec(), tensors };
    Ok(HashMap::from([(METADATA_KEY.to_owned(), serde_json::to_string(&header)?)]))
}

/// The container's arrays, with four zero bytes in place of the checksum.
pub(super) fn arrays<'a>(ledger: &'a Ledger, arrays: &'a [Arrays]) -> impl Iterator<Item = (String, Array<'a>)> {
    let arrays = ledger.specs().zip(arrays).enumerate().flat_map(|(index, (spec, arrays))| {
        let named = move |(role, array)| (array_name(index, role), Array::f32(array));
        // An empty tensor's masters may be `None` in its arrays.
        let master = (spec.has_master && arrays.master.is_none()).then_some((Role::Master, [].as_slice()));
        arrays.by_role().chain(master).map(named)
    });
    // safetensors stores the narrowest type last, so the checksum ends the file.
    let crc = Array { dtype: safetensors::Dtype::U8, shape: [CRC_BYTES], bytes: Cow::Borrowed(&[0; CRC_BYTES]) };
    arrays.chain([(CRC_NAME.to_owned(), crc)])
}

fn array_name(tensor: usize, role: Role) -> String {
    format!("{tensor}.{role}")
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

/// An array as safetensors takes it.
pub(super) struct Array<'a> {
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
