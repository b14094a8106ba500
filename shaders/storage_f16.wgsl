// Four f16 in a buffer, two in a word. The last elements of a tensor move in parts; a part is a
// word.
//
// The conversions are in integers, which round as the CPU does and keep subnormals and NaNs. WGSL
// does not define the rounding and the subnormals of its own conversions, and a driver may assume
// that there is no NaN.

alias QuadF16 = vec2<u32>;
alias PartF16 = u32;
const PART_F16: u32 = 2;

fn widen_f16(quad: QuadF16) -> vec4<f32> {
    return bitcast<vec4<f32>>(widen_bits_f16(quad));
}

fn narrow_f16(x: vec4<f32>) -> QuadF16 {
    return narrow_bits_f16(bitcast<vec4<u32>>(x));
}

// The bits of the f32.
fn widen_bits_f16(quad: QuadF16) -> vec4<u32> {
    let h = vec4(quad.x, quad.x >> 16, quad.y, quad.y >> 16);
    let magnitude = h & vec4(0x7fffu);
    let sign = (h & vec4(0x8000u)) << vec4(16u);
    // A subnormal is its integer value times 2^-24, which is exact, and normal in f32.
    let subnormal = bitcast<vec4<u32>>(vec4<f32>(vec4<i32>(magnitude)) * 0x1p-24f);
    // Infinity and NaN go from the highest exponent to the highest exponent.
    let exponent = select(vec4(112u << 23), vec4(224u << 23), magnitude >= vec4(0x7c00u));
    let other = (magnitude << vec4(13u)) + exponent;
    return sign | select(other, subnormal, magnitude < vec4(0x400u));
}

// From the bits of f32, to nearest even; overflows to infinity; a NaN becomes a quiet NaN.
fn narrow_bits_f16(bits: vec4<u32>) -> QuadF16 {
    let magnitude = bits & vec4(0x7fffffffu);
    let sign = (bits >> vec4(16u)) & vec4(0x8000u);
    // A subnormal f16 is the whole fraction, shifted to units of 2^-24; a shift by 25 or more
    // leaves 0.
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

// A part whose first element is from `now` and whose second is from `old`.
fn first_f16(now: PartF16, old: PartF16) -> PartF16 {
    return (now & 0xffffu) | (old & 0xffff0000u);
}
