// Without a master, the parameter is updated.

fn load_updated(at: u32) -> vec4<f32> {
    return load_param(at);
}

fn store_updated(at: u32, p: vec4<f32>) {
    store_param(at, p);
}

fn load_updated_tail(at: u32, rest: u32) -> vec4<f32> {
    return load_param_tail(at, rest);
}

fn store_updated_tail(at: u32, rest: u32, p: vec4<f32>) {
    store_param_tail(at, rest, p);
}
