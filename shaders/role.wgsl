// The buffer of one role. The build inserts this text once for each role of a variant. It replaces
// the words after $ by the names of the role and its format, and by the number of the binding.

alias Quad$Role = Quad$Format;
alias Part$Role = Part$Format;
const PART_$ROLE: u32 = PART_$FORMAT;
const PARTS_$ROLE: u32 = 4 / PART_$FORMAT;

@group(0) @binding($BINDING) var<storage, read_write> $role: array<Quad$Role>;
// The same buffer, for the last one to three elements, which are not a whole quad.
@group(0) @binding($BINDING) var<storage, read_write> $role_parts: array<Part$Role>;

fn load_$role(at: u32) -> vec4<f32> {
    return widen_$format($role[at]);
}

fn store_$role(at: u32, x: vec4<f32>) {
    $role[at] = narrow_$format(x);
}

fn load_$role_tail(at: u32, rest: u32) -> vec4<f32> {
    var quad = Quad$Role();
    for (var k = 0u; k * PART_$ROLE < rest; k++) { quad[k] = $role_parts[at * PARTS_$ROLE + k]; }
    return widen_$format(quad);
}

fn store_$role_tail(at: u32, rest: u32, x: vec4<f32>) {
    let quad = narrow_$format(x);
    for (var k = 0u; k * PART_$ROLE < rest; k++) {
        // After an odd number of 16-bit elements, the other half of the word is not the tensor's.
        let whole = rest - k * PART_$ROLE >= PART_$ROLE;
        let part = at * PARTS_$ROLE + k;
        $role_parts[part] = select(first_$format(quad[k], $role_parts[part]), quad[k], whole);
    }
}
