// The copy of the new parameters that most variants don't write.

fn store_copy(at: u32, p: vec4<f32>) {
}

fn store_copy_tail(at: u32, rest: u32, p: vec4<f32>) {
}
