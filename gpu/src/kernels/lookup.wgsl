// to[i] = table[ids[i]], over one part of the table: other parts' rows are left alone.

struct Parameters {
    count: u32,
    columns: u32,
    // The part's rows.
    first: u32,
    end: u32,
}

var<immediate> p: Parameters;

@group(0) @binding(0) var<storage, read> singles: array<f32>;
@group(0) @binding(0) var<storage, read> halves: array<u32>;
@group(0) @binding(1) var<storage, read> ids: array<u32>;
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
fn lookup_f32(at: Where) {
    let i = place(at);
    if i >= p.count {
        return;
    }
    let id = ids[i / p.columns];
    if id >= p.first && id < p.end {
        to[i] = singles[(id - p.first) * p.columns + i % p.columns];
    }
}

// Rows of halves follow each other without padding, as they do in a file.
@compute @workgroup_size(64)
fn lookup_f16(at: Where) {
    let i = place(at);
    if i >= p.count {
        return;
    }
    let id = ids[i / p.columns];
    if id >= p.first && id < p.end {
        let element = (id - p.first) * p.columns + i % p.columns;
        to[i] = unpack2x16float(halves[element / 2u])[element % 2u];
    }
}
