// Four f32 in a buffer. A part, the unit for the last elements of a tensor, is one element.

alias QuadF32 = vec4<f32>;
alias PartF32 = f32;
const PART_F32: u32 = 1;

fn widen_f32(quad: QuadF32) -> vec4<f32> {
    return quad;
}

fn narrow_f32(x: vec4<f32>) -> QuadF32 {
    return x;
}

// A part with the first element of `now`; an f32 part has no second one.
fn first_f32(now: PartF32, old: PartF32) -> PartF32 {
    return now;
}
