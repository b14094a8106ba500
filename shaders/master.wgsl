// With a master, the master is updated, and the parameter is its rounding.

fn load_updated(at: u32) -> vec4<f32> {
    return load_master(at);
}

fn store_updated(at: u32, p: vec4<f32>) {
    store_param(at, p);
    store_master(at, p);
}

fn load_updated_tail(at: u32, rest: u32) -> vec4<f32> {
    return load_master_tail(at, rest);
}

fn store_updated_tail(at: u32, rest: u32, p: vec4<f32>) {
    store_param_tail(at, rest, p);
    store_master_tail(at, rest, p);
}

// The entry points that set masters from their parameters.

@compute @workgroup_size(WORKGROUP)
fn set_masters(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let at = invocation(group, groups, local);
    if at >= arrayLength(&master) { return; }
    store_master(at, load_param(at));
}

@compute @workgroup_size(1)
fn set_masters_tail() {
    let len = arrayLength(&master_parts);
    store_master_tail(len / 4, len % 4, load_param_tail(len / 4, len % 4));
}
