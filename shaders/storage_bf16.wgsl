// Four bf16 in a buffer, two in a word. The last elements of a tensor move in parts; a part is a
// word.
//
// The conversions are in integers, which round as the CPU does and keep subnormals and NaNs. With
// floats, a driver may assume that there is no NaN.

alias QuadBf16 = vec2<u32>;
alias PartBf16 = u32;
const PART_BF16: u32 = 2;

fn widen_bf16(quad: QuadBf16) -> vec4<f32> {
    return bitcast<vec4<f32>>(widen_bits_bf16(quad));
}

fn narrow_bf16(x: vec4<f32>) -> QuadBf16 {
    return narrow_bits_bf16(bitcast<vec4<u32>>(x));
}

// The bits of the f32.
fn widen_bits_bf16(quad: QuadBf16) -> vec4<u32> {
    let low = quad << vec2(16u);
    let high = quad & vec2(0xffff0000u);
    return vec4(low.x, high.x, low.y, high.y);
}

// From the bits of f32, to nearest even; a NaN becomes a quiet NaN.
fn narrow_bits_bf16(bits: vec4<u32>) -> QuadBf16 {
    let nan = (bits & vec4(0x7fffffffu)) > vec4(0x7f800000u);
    let odd = (bits >> vec4(16u)) & vec4(1u);
    let rounded = select(bits + 0x7fffu + odd, bits | vec4(0x400000u), nan);
    return (rounded.xz >> vec2(16u)) | (rounded.yw & vec2(0xffff0000u));
}

// A part whose first element is from `now` and whose second is from `old`.
fn first_bf16(now: PartBf16, old: PartBf16) -> PartBf16 {
    return (now & 0xffffu) | (old & 0xffff0000u);
}
