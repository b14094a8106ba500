//! Checks of errors, of their variants and their texts. Only this file repeats the library's texts,
//! so that the tests need not.

use dualadam::{
    ConfigError, Error, Formats, ListError, Role, StateError, StateProblem, TensorError, TensorProblem, Variant,
};

/// The error of a call that must be refused.
#[track_caller]
pub fn refused<T, E: Into<Error>>(result: Result<T, E>) -> Error {
    match result {
        Ok(_) => panic!("not refused"),
        Err(error) => error.into(),
    }
}

/// Checks that a list, or a position in one, was refused with this error.
#[track_caller]
pub fn list<T, E: Into<Error>>(result: Result<T, E>, expected: ListError) {
    let error = refused(result);
    let text = match expected {
        ListError::Count { list, expected, actual } => format!("{list} must have {expected} entries, got {actual}"),
        ListError::Empty { list } => format!("{list} must have at least one entry, got none"),
        ListError::TooMany { list, limit, actual } => format!("{list} must number at most {limit}, got {actual}"),
        ListError::Position { list, len, value } => format!("{list} must be below {len}, got {value}"),
        other => panic!("no text of {other:?} is known"),
    };
    assert_eq!(error.to_string(), text);
    assert!(matches!(&error, Error::List(found) if *found == expected), "{error:?}");
}

#[track_caller]
pub fn count<T, E: Into<Error>>(result: Result<T, E>, list: &'static str, expected: usize, actual: usize) {
    self::list(result, ListError::Count { list, expected, actual });
}

#[track_caller]
pub fn empty<T, E: Into<Error>>(result: Result<T, E>, list: &'static str) {
    self::list(result, ListError::Empty { list });
}

#[track_caller]
pub fn position<T, E: Into<Error>>(result: Result<T, E>, list: &'static str, len: usize, value: usize) {
    self::list(result, ListError::Position { list, len, value });
}

#[track_caller]
pub fn too_many<T, E: Into<Error>>(result: Result<T, E>, list: &'static str, limit: u64, actual: u64) {
    self::list(result, ListError::TooMany { list, limit, actual });
}

/// Checks that the scalar of this name was refused. Returns its value.
#[track_caller]
pub fn value<T, E: Into<Error>>(result: Result<T, E>, expected: &str) -> f64 {
    let error = refused(result);
    let Error::Config(ConfigError::Value { name, requirement, value }) = error else { panic!("{error:?}") };
    assert_eq!(name, expected, "{error}");
    assert_eq!(error.to_string(), format!("{name} must {requirement}, got {value:?}"));
    value
}

/// The error of a state or its file.
#[track_caller]
pub fn state_error<T, E: Into<Error>>(result: Result<T, E>) -> StateError {
    match refused(result) {
        Error::State(error) => error,
        other => panic!("not an error of a state: {other:?}"),
    }
}

/// What is wrong with a state's file.
#[track_caller]
pub fn file_problem<T, E: Into<Error>>(result: Result<T, E>) -> StateProblem {
    match state_error(result) {
        StateError::File { problem, .. } => *problem,
        other => panic!("not an error of a file's content: {other:?}"),
    }
}

/// Checks that the scalar of this name was refused in the config of a group.
#[track_caller]
pub fn group_value<T, E: Into<Error>>(result: Result<T, E>, expected: usize, name: &str) {
    match refused(result) {
        Error::Group { group, problem } => {
            assert_eq!(group, expected);
            value(Err::<T, _>(problem), name);
        }
        other => panic!("not an error of a group: {other:?}"),
    }
}

/// The error of a tensor.
#[track_caller]
pub fn tensor_error<T, E: Into<Error>>(result: Result<T, E>) -> TensorError {
    match refused(result) {
        Error::Tensor(error) => error,
        other => panic!("not an error of a tensor: {other:?}"),
    }
}

/// Checks that this tensor, or this buffer of it, was refused for this problem.
#[track_caller]
pub fn problem<T, E: Into<Error>>(
    result: Result<T, E>,
    tensor: usize,
    buffer: impl Into<Option<Role>>,
    problem: TensorProblem,
) {
    let error = tensor_error(result);
    let buffer = buffer.into();
    assert_eq!((error.tensor, error.buffer, error.problem), (tensor, buffer, problem), "{error}");
    let of = buffer.map_or(String::new(), |buffer| format!("{buffer} of "));
    let name = error.name.as_ref().map_or(String::new(), |name| format!(" ({name})"));
    assert_eq!(error.to_string(), format!("{of}tensor {tensor}{name} must {}", requirement(problem)));
}

fn requirement(problem: TensorProblem) -> String {
    use TensorProblem as Problem;
    match problem {
        Problem::Length { expected, actual } => format!("have {expected} elements, got {actual}"),
        Problem::TooLong { limit, actual } => format!("have at most {limit} elements, got {actual}"),
        Problem::Formats { formats } => {
            let names: Vec<_> = Variant::all().map(Variant::name).collect();
            format!("have the formats of a variant ({}), got {formats}", names.join(", "))
        }
        Problem::MasterFormats { param, master } => {
            let names = Variant::all().filter(|variant| variant.formats().master.is_some()).map(Variant::name);
            let names = names.collect::<Vec<_>>().join(", ");
            format!("have the param and master of a variant ({names}), got {param} param, {master} master")
        }
        Problem::Null => "not be null".to_owned(),
        Problem::Misaligned { address, align } => format!("be aligned to {align} bytes, got address {address:#x}"),
        Problem::Extent { address, len, size } => {
            format!("end within 2^64 bytes, got {len} elements of {size} bytes at {address:#x}")
        }
        Problem::Overlap { other_tensor, other_buffer, address } => {
            format!("not overlap {other_buffer} of tensor {other_tensor}, both have address {address:#x}")
        }
        Problem::FixedLength { expected, actual } => format!("keep its length of {expected} elements, got {actual}"),
        Problem::FixedFormats { expected, actual } => format!("keep its formats ({expected}), got {actual}"),
        Problem::CoeffsIndex { len, value } => format!("have a coeffs_index below {len}, got {value}"),
        Problem::Group { len, value } => format!("have a group below {len}, got {value}"),
        Problem::StepOverflow => format!("be at a step below {0} to be updated, got {0}", u64::MAX),
        Problem::Negative { value } => format!("be at least 0 everywhere, got {value:?}"),
        Problem::NoMaster => "exist to be set, the tensor has no master".to_owned(),
        Problem::Memory { bytes } => format!("fit in memory, each of its arrays needs {bytes} bytes"),
        other => panic!("no text of {other:?} is known"),
    }
}

#[track_caller]
pub fn length<T, E: Into<Error>>(result: Result<T, E>, tensor: usize, buffer: Role, expected: usize, actual: usize) {
    problem(result, tensor, buffer, TensorProblem::Length { expected, actual });
}

#[track_caller]
pub fn coeffs_index<T, E: Into<Error>>(result: Result<T, E>, tensor: usize, len: usize, value: usize) {
    problem(result, tensor, None, TensorProblem::CoeffsIndex { len, value });
}

#[track_caller]
pub fn group<T, E: Into<Error>>(result: Result<T, E>, tensor: usize, len: usize, value: usize) {
    problem(result, tensor, None, TensorProblem::Group { len, value });
}

#[track_caller]
pub fn step_overflow<T, E: Into<Error>>(result: Result<T, E>, tensor: usize) {
    problem(result, tensor, None, TensorProblem::StepOverflow);
}

#[track_caller]
pub fn formats<T, E: Into<Error>>(result: Result<T, E>, tensor: usize, formats: Formats) {
    problem(result, tensor, None, TensorProblem::Formats { formats });
}

/// Checks that two buffers were refused because they overlap. Returns them, the first in the list
/// first, and the first address that both have.
#[track_caller]
pub fn overlap<T, E: Into<Error>>(result: Result<T, E>) -> ([(usize, Role); 2], u64) {
    let error = tensor_error(result);
    let Some(buffer) = error.buffer else { panic!("{error}") };
    let TensorProblem::Overlap { other_tensor, other_buffer, address } = error.problem else { panic!("{error}") };
    let mut both = [(error.tensor, buffer), (other_tensor, other_buffer)];
    problem(Err::<(), _>(error.clone()), error.tensor, buffer, error.problem);
    both.sort_unstable();
    (both, address)
}
