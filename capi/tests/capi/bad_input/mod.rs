//! What must not be is refused with a status and a text that names argument and value, and nothing
//! is written.

mod arguments;
mod states;
mod tensors;
