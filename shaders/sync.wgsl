// The entry points that take over into masters what other code wrote into their parameters. The
// build replaces the words after $ by the format of the parameters.
//
// A step leaves each parameter as the rounding of its master. Where the bits are others, the
// parameter was changed, and the master becomes its value. Elsewhere the master keeps its low bits.
// Masters are seen as bits, since a driver may flush a subnormal f32 or change a NaN.

@group(0) @binding(4) var<storage, read_write> master_bits: array<vec4<u32>>;
@group(0) @binding(4) var<storage, read_write> master_bits_parts: array<u32>;

fn synced(param: Quad$Format, master: vec4<u32>) -> vec4<u32> {
    let differences = narrow_bits_$format(master) ^ param;
    let low = differences & vec2(0xffffu);
    let high = differences >> vec2(16u);
    let changed = vec4(low.x, high.x, low.y, high.y) != vec4(0u);
    return select(master, widen_bits_$format(param), changed);
}

@compute @workgroup_size(WORKGROUP)
fn sync_masters(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let at = invocation(group, groups, local);
    if at >= arrayLength(&master_bits) { return; }
    let old = master_bits[at];
    let updated = synced(param[at], old);
    if any(updated != old) { master_bits[at] = updated; }
}

@compute @workgroup_size(1)
fn sync_masters_tail() {
    let len = arrayLength(&master_bits_parts);
    let start = len / 4 * 4;
    var bits = vec4<u32>();
    for (var k = 0u; start + k < len; k++) { bits[k] = master_bits_parts[start + k]; }
    let updated = synced(quad_of_param_tail(len / 4, len % 4), bits);
    for (var k = 0u; start + k < len; k++) { master_bits_parts[start + k] = updated[k]; }
}
