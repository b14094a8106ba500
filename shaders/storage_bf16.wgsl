// Four bf16 in a buffer, two in a word. A part, the unit for the last elements of a tensor, is a
// word.
//
// The conversions use integers: they round as the CPU does, keep subnormals, and keep a NaN a NaN,
// although a driver may assume that no float is NaN.

alias QuadBf16 = vec2<u32>;
alias PartBf16 = u32;
const PART_BF16: u32 = 2;

fn widen_bf16(quad: QuadBf16) -> vec4<f32> {
    let low = quad << vec2(16u);
    let high = quad & vec2(0xffff0000u);
    return bitcast<vec4<f32>>(vec4(low.x, high.x, low.y, high.y));
}

// Rounds to nearest even. A NaN becomes a quiet NaN.
fn narrow_bf16(x: vec4<f32>) -> QuadBf16 {
    let bits = bitcast<vec4<u32>>(x);
    let nan = (bits & vec4(0x7fffffffu)) > vec4(0x7f800000u);
    let odd = (bits >> vec4(16u)) & vec4(1u);
    let rounded = select(bits + 0x7fffu + odd, bits | vec4(0x400000u), nan);
    return (rounded.xz >> vec2(16u)) | (rounded.yw & vec2(0xffff0000u));
}

// A part with the first element of `now` and the second of `old`.
fn first_bf16(now: PartBf16, old: PartBf16) -> PartBf16 {
    return (now & 0xffffu) | (old & 0xffff0000u);
}
