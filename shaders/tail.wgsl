// The entry points for the last one to three elements, which are no whole quad: the same buffers, seen as arrays of parts.

@group(0) @binding(0) var<storage, read_write> params_parts: array<PartParams>;
@group(0) @binding(1) var<storage, read_write> grads_parts: array<PartGrads>;
@group(0) @binding(2) var<storage, read_write> exp_avg_parts: array<f32>;
@group(0) @binding(3) var<storage, read_write> exp_avg_sq_parts: array<f32>;

fn step_tail(dual: bool) {
    let len = arrayLength(&exp_avg_parts);
    let at = len / 4;
    let rest = len % 4;

    var params_quad = QuadParams();
    for (var k = 0u; k * PART_PARAMS < rest; k++) { params_quad[k] = params_parts[at * PARTS_PARAMS + k]; }
    var grads_quad = QuadGrads();
    for (var k = 0u; k * PART_GRADS < rest; k++) { grads_quad[k] = grads_parts[at * PARTS_GRADS + k]; }
    var m = vec4<f32>();
    var v = vec4<f32>();
    for (var k = 0u; k < rest; k++) {
        m[k] = exp_avg_parts[at * 4 + k];
        v[k] = exp_avg_sq_parts[at * 4 + k];
    }

    let stepped = update(dual, coeffs, widen_grads(grads_quad), Elements(widen_params(params_quad), m, v));

    let quad = narrow_params(stepped.p);
    for (var k = 0u; k * PART_PARAMS < rest; k++) {
        // Half a word of an odd count belongs to somebody else.
        let whole = rest - k * PART_PARAMS >= PART_PARAMS;
        params_parts[at * PARTS_PARAMS + k] = select(first_params(quad[k], params_quad[k]), quad[k], whole);
    }
    for (var k = 0u; k < rest; k++) {
        exp_avg_parts[at * 4 + k] = stepped.m[k];
        exp_avg_sq_parts[at * 4 + k] = stepped.v[k];
    }
    store_copy_tail(at, rest, stepped.p);
}

@compute @workgroup_size(1)
fn dual_adam_tail() {
    step_tail(true);
}

@compute @workgroup_size(1)
fn adam_tail() {
    step_tail(false);
}
