// A sequence's rows as one: 64 lanes, one column of one sequence each.

struct Parameters {
    sequences: u32,
    columns: u32,
}

var<immediate> p: Parameters;

@group(0) @binding(0) var<storage, read> x: array<f32>;
// For each sequence its first row and the row after its last.
@group(0) @binding(1) var<storage, read> spans: array<vec2<u32>>;
@group(0) @binding(2) var<storage, read_write> to: array<f32>;

struct Where {
    @builtin(local_invocation_index) index: u32,
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
}

fn place(at: Where) -> u32 {
    return (at.group.y * at.groups.x + at.group.x) * 64u + at.index;
}

@compute @workgroup_size(64)
fn mean(at: Where) {
    let i = place(at);
    if i >= p.sequences * p.columns {
        return;
    }
    let span = spans[i / p.columns];
    var sum = 0.0;
    for (var row = span.x; row < span.y; row++) {
        sum += x[row * p.columns + i % p.columns];
    }
    to[i] = sum / f32(span.y - span.x);
}

@compute @workgroup_size(64)
fn first(at: Where) {
    let i = place(at);
    if i < p.sequences * p.columns {
        to[i] = x[spans[i / p.columns].x * p.columns + i % p.columns];
    }
}
