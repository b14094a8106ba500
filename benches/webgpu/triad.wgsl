// A multiply and an add for each written value, over the streams of a step: its time is little more
// than that of memory and the dispatch.
//
// PARAM and GRAD stand for formats, UPDATED for the role that is updated, UPDATED_FORMAT for its
// format. Results are cut to bf16, not rounded: the stream is measured, not the conversion.

const WORKGROUP: u32 = 256;
override factor: f32;

alias Quad_f32 = vec4<f32>;
alias Quad_bf16 = vec2<u32>;

@group(0) @binding(0) var<storage, read_write> param: array<Quad_PARAM>;
@group(0) @binding(1) var<storage, read_write> grad: array<Quad_GRAD>;
@group(0) @binding(2) var<storage, read_write> exp_avg: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> exp_avg_sq: array<vec4<f32>>;

fn widen_f32(quad: Quad_f32) -> vec4<f32> {
    return quad;
}

fn widen_bf16(quad: Quad_bf16) -> vec4<f32> {
    let low = quad << vec2(16u);
    let high = quad & vec2(0xffff0000u);
    return bitcast<vec4<f32>>(vec4(low.x, high.x, low.y, high.y));
}

fn cut_f32(x: vec4<f32>) -> Quad_f32 {
    return x;
}

fn cut_bf16(x: vec4<f32>) -> Quad_bf16 {
    let bits = bitcast<vec4<u32>>(x);
    return (bits.xz >> vec2(16u)) | (bits.yw & vec2(0xffff0000u));
}

@compute @workgroup_size(WORKGROUP)
fn triad(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let at = (group.y * groups.x + group.x) * WORKGROUP + local;
    if at >= arrayLength(&exp_avg) { return; }
    let by = factor * widen_GRAD(grad[at]);
    exp_avg[at] += by;
    exp_avg_sq[at] += by;
    let p = widen_UPDATED_FORMAT(UPDATED[at]) + by;
    param[at] = cut_PARAM(p);
    // STORE
}
