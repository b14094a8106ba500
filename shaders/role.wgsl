// The buffer of one role. The build joins this text once for each role that a variant has, with the
// names of the role and of its format and the number of its binding in place of the words after $.

alias Quad$Role = Quad$Format;
alias Part$Role = Part$Format;
const PART_$ROLE: u32 = PART_$FORMAT;
const PARTS_$ROLE: u32 = 4 / PART_$FORMAT;

@group(0) @binding($BINDING) var<storage, read_write> $role: array<Quad$Role>;
// The same buffer for the last one to three elements, which do not fill a quad.
@group(0) @binding($BINDING) var<storage, read_write> $role_parts: array<Part$Role>;

fn load_$role(at: u32) -> vec4<f32> {
    return widen_$format($role[at]);
}

fn store_$role(at: u32, x: vec4<f32>) {
    $role[at] = narrow_$format(x);
}

// The stored form of the last `rest` elements.
fn quad_of_$role_tail(at: u32, rest: u32) -> Quad$Role {
    var quad = Quad$Role();
    for (var k = 0u; k * PART_$ROLE < rest; k++) { quad[k] = $role_parts[at * PARTS_$ROLE + k]; }
    return quad;
}

fn load_$role_tail(at: u32, rest: u32) -> vec4<f32> {
    return widen_$format(quad_of_$role_tail(at, rest));
}

fn store_$role_tail(at: u32, rest: u32, x: vec4<f32>) {
    let quad = narrow_$format(x);
    for (var k = 0u; k * PART_$ROLE < rest; k++) {
        // With an odd count, half of the last word is not this tensor's.
        let whole = rest - k * PART_$ROLE >= PART_$ROLE;
        let part = at * PARTS_$ROLE + k;
        $role_parts[part] = select(first_$format(quad[k], $role_parts[part]), quad[k], whole);
    }
}
