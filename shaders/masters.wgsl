// The entry points that set f32 masters from the 16-bit parameters, whose copy they keep from then on.

@compute @workgroup_size(WORKGROUP)
fn set_masters(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let at = invocation(group, groups, local);
    if at >= arrayLength(&params) { return; }
    params[at] = widen_copy(copy[at]);
}

@compute @workgroup_size(1)
fn set_masters_tail() {
    let len = arrayLength(&params_parts);
    let at = len / 4;
    let rest = len % 4;
    var quad = QuadCopy();
    for (var k = 0u; k * PART_COPY < rest; k++) { quad[k] = copy_parts[at * PARTS_COPY + k]; }
    let p = widen_copy(quad);
    for (var k = 0u; k < rest; k++) { params_parts[at * 4 + k] = p[k]; }
}
