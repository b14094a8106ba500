// The entry points for the whole quads of one tensor, or of a window of it. The arithmetic is in
// update.wgsl. The buffers, and the functions that load and store them, are in role.wgsl, once for
// each role. The word after $ stands for the role of an f32 buffer, which has the tensor's length.
//
// The gradients are only read. They are bound as read_write nevertheless, since wgpu would refuse a
// buffer that holds both gradients and a role that is written.

const WORKGROUP: u32 = 256;

fn step_quad(dual: bool, at: u32) {
    // The length of an array of quads counts whole quads only.
    if at >= arrayLength(&$counted) { return; }
    let x = Elements(load_updated(at), load_exp_avg(at), load_exp_avg_sq(at));
    let stepped = update(dual, coeffs, load_grad(at), x);
    store_updated(at, stepped.p);
    store_exp_avg(at, stepped.m);
    store_exp_avg_sq(at, stepped.v);
}

// The number of this invocation. The workgroups form several rows if one row cannot have all.
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
