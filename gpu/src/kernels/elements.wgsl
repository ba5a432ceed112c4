// Kernels that look at each element alone: 64 lanes, one element each.

struct Parameters {
    count: u32,
    activation: u32,
    // Of `rope`: columns of a row, the first that is turned, heads, floats of a head; of `add`: the first that is added to.
    columns: u32,
    first: u32,
    heads: u32,
    head: u32,
}

var<immediate> p: Parameters;

@group(0) @binding(0) var<storage, read_write> x: array<f32>;
@group(0) @binding(1) var<storage, read> added: array<f32>;

fn place(group: vec3<u32>, groups: vec3<u32>, index: u32) -> u32 {
    return (group.y * groups.x + group.x) * 64u + index;
}

@compute @workgroup_size(64)
fn add(
    @builtin(local_invocation_index) index: u32,
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    let i = place(group, groups, index);
    if i < p.count {
        x[p.first + i] += added[i];
    }
}

@compute @workgroup_size(64)
fn activate_all(
    @builtin(local_invocation_index) index: u32,
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    let i = place(group, groups, index);
    if i < p.count {
        x[i] = activate(x[i], p.activation);
    }
}

@group(0) @binding(1) var<storage, read> positions: array<u32>;
// For each position the cosines of a head's turns, then their sines.
@group(0) @binding(2) var<storage, read> turns: array<f32>;

// Turns element i of each head against element i + head / 2, by the angle of i at the row's position.
@compute @workgroup_size(64)
fn rope(
    @builtin(local_invocation_index) index: u32,
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    let item = place(group, groups, index);
    if item >= p.count {
        return;
    }
    let half = p.head / 2u;
    let i = item % half;
    let head = item / half % p.heads;
    let row = item / half / p.heads;
    let turn = positions[row] * p.head + i;
    let cosine = turns[turn];
    let sine = turns[turn + half];
    let a = row * p.columns + p.first + head * p.head + i;
    let b = a + half;
    let before = vec2(x[a], x[b]);
    x[a] = before.x * cosine - before.y * sine;
    x[b] = before.y * cosine + before.x * sine;
}
