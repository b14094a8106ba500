// The entry points over one tensor, or a window of it. No arithmetic of their own.
//
// QuadParams, widen_params and the like stand for those of the parameters' type, and so on: the lines before this file say which.
// The gradients are only read. They are bound as read_write all the same, since wgpu would refuse a buffer that holds both them and
// something that is written.

const WORKGROUP: u32 = 256;

@group(0) @binding(0) var<storage, read_write> params: array<QuadParams>;
@group(0) @binding(1) var<storage, read_write> grads: array<QuadGrads>;
@group(0) @binding(2) var<storage, read_write> exp_avg: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> exp_avg_sq: array<vec4<f32>>;

fn step_quad(dual: bool, at: u32) {
    // An array of quads has as many as are whole.
    if at >= arrayLength(&exp_avg) { return; }
    let x = Elements(widen_params(params[at]), exp_avg[at], exp_avg_sq[at]);
    let stepped = update(dual, coeffs, widen_grads(grads[at]), x);
    params[at] = narrow_params(stepped.p);
    exp_avg[at] = stepped.m;
    exp_avg_sq[at] = stepped.v;
    store_copy(at, stepped.p);
}

// The number of this invocation, whose workgroups lie in rows where one row can't have all.
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
