// Four f32 in a buffer. The last elements of a tensor move in parts; a part is one element.

alias QuadF32 = vec4<f32>;
alias PartF32 = f32;
const PART_F32: u32 = 1;

fn widen_f32(quad: QuadF32) -> vec4<f32> {
    return quad;
}

fn narrow_f32(x: vec4<f32>) -> QuadF32 {
    return x;
}

// `now`: an f32 part has only one element.
fn first_f32(now: PartF32, old: PartF32) -> PartF32 {
    return now;
}
