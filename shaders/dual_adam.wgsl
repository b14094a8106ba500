// The entry points over one tensor, or a window of it; they do no arithmetic themselves. role.wgsl
// has the buffers and the functions that load and store them, once for each role. The build
// replaces the word after $ by a role whose format is f32: its buffer gives the tensor's length.
//
// The gradients are only read, but are bound as read_write: wgpu would refuse a read-only binding
// of a buffer that also holds something that is written.

const WORKGROUP: u32 = 256;

fn step_quad(dual: bool, at: u32) {
    // The length counts only whole quads.
    if at >= arrayLength(&$counted) { return; }
    let x = Elements(load_updated(at), load_exp_avg(at), load_exp_avg_sq(at));
    let stepped = update(dual, coeffs, load_grad(at), x);
    store_updated(at, stepped.p);
    store_exp_avg(at, stepped.m);
    store_exp_avg_sq(at, stepped.v);
}

// The number of this invocation. The workgroups lie in several rows if one row cannot hold them
// all.
fn invocation(group: vec3<u32>, groups: vec3<u32>, local: u32) -> u32 {
    return (group.y * groups.x + group.x) * WORKGROUP + local;
}

@compute @workgroup_size(WORKGROUP)
fn dual_adam(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    step_quad(true, invocation(group, groups, local));
}

@compute @workgroup_size(WORKGROUP)
fn adam(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    step_quad(false, invocation(group, groups, local));
}
