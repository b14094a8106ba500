// Four f16 in a buffer, two in a word. A part, the unit for the last elements of a tensor, is a
// word.
//
// The conversions use integers, since WGSL does not fix the rounding and the subnormals of its own
// conversions. They round as the CPU does, keep subnormals, and keep a NaN a NaN, although a driver
// may assume that no float is NaN.

alias QuadF16 = vec2<u32>;
alias PartF16 = u32;
const PART_F16: u32 = 2;

fn widen_f16(quad: QuadF16) -> vec4<f32> {
    let h = vec4(quad.x, quad.x >> 16, quad.y, quad.y >> 16);
    let magnitude = h & vec4(0x7fffu);
    let sign = (h & vec4(0x8000u)) << vec4(16u);
    // A subnormal is its integer value times 2^-24. The product is exact, and normal in f32.
    let subnormal = bitcast<vec4<u32>>(vec4<f32>(vec4<i32>(magnitude)) * 0x1p-24f);
    // The highest exponent, of infinity and NaN, becomes the highest exponent.
    let exponent = select(vec4(112u << 23), vec4(224u << 23), magnitude >= vec4(0x7c00u));
    let other = (magnitude << vec4(13u)) + exponent;
    return bitcast<vec4<f32>>(sign | select(other, subnormal, magnitude < vec4(0x400u)));
}

// Rounds to nearest even. Overflows to infinity. A NaN becomes a quiet NaN.
fn narrow_f16(x: vec4<f32>) -> QuadF16 {
    let bits = bitcast<vec4<u32>>(x);
    let magnitude = bits & vec4(0x7fffffffu);
    let sign = (bits >> vec4(16u)) & vec4(0x8000u);
    // A value that is subnormal in f16 becomes its fraction, with the leading 1, in units of 2^-24.
    // A shift by 25 or more leaves nothing of it.
    let is_subnormal = magnitude < vec4(0x38800000u);
    let fraction = (magnitude & vec4(0x7fffffu)) | vec4(0x800000u);
    let unrounded = select(magnitude - (112u << 23), fraction, is_subnormal);
    let shift = select(vec4(13u), min(126u - (magnitude >> vec4(23u)), vec4(25u)), is_subnormal);
    let odd = (unrounded >> shift) & vec4(1u);
    let rounded = (unrounded + ((vec4(1u) << (shift - 1u)) - 1u) + odd) >> shift;
    let quiet_nan = ((magnitude >> vec4(13u)) & vec4(0x3ffu)) | vec4(0x7e00u);
    let h = sign | select(min(rounded, vec4(0x7c00u)), quiet_nan, magnitude > vec4(0x7f800000u));
    return h.xz | (h.yw << vec2(16u));
}

// A part with the first element of `now` and the second of `old`.
fn first_f16(now: PartF16, old: PartF16) -> PartF16 {
    return (now & 0xffffu) | (old & 0xffff0000u);
}
