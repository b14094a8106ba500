// The 16-bit copy that f32 masters keep of the new parameters. Only written, which WGSL calls read_write.

@group(0) @binding(4) var<storage, read_write> copy: array<QuadCopy>;
@group(0) @binding(4) var<storage, read_write> copy_parts: array<PartCopy>;

fn store_copy(at: u32, p: vec4<f32>) {
    copy[at] = narrow_copy(p);
}

fn store_copy_tail(at: u32, rest: u32, p: vec4<f32>) {
    let quad = narrow_copy(p);
    let first = at * PARTS_COPY;
    for (var k = 0u; k * PART_COPY < rest; k++) {
        let whole = rest - k * PART_COPY >= PART_COPY;
        copy_parts[first + k] = select(first_copy(quad[k], copy_parts[first + k]), quad[k], whole);
    }
}
