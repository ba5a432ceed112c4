// How the 64 lanes of a workgroup add up: inside each subgroup by one instruction, then over shared memory. Every lane
// has to take part.

struct Lane {
    @builtin(local_invocation_index) index: u32,
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_invocation_id) in_subgroup: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
}

// One for each subgroup; there are no more subgroups than lanes.
var<workgroup> partial: array<f32, 64>;

fn sum_of(x: f32, lane: Lane) -> f32 {
    let own = subgroupAdd(x);
    // Whoever still reads the last sum is done.
    workgroupBarrier();
    if lane.in_subgroup == 0u {
        partial[lane.subgroup] = own;
    }
    workgroupBarrier();
    var sum = 0.0;
    for (var i = 0u; i < lane.subgroups; i++) {
        sum += partial[i];
    }
    return sum;
}

fn max_of(x: f32, lane: Lane) -> f32 {
    let own = subgroupMax(x);
    workgroupBarrier();
    if lane.in_subgroup == 0u {
        partial[lane.subgroup] = own;
    }
    workgroupBarrier();
    var most = partial[0];
    for (var i = 1u; i < lane.subgroups; i++) {
        most = max(most, partial[i]);
    }
    return most;
}

var<workgroup> partial_four: array<vec4<f32>, 64>;

fn sum_of_four(x: vec4<f32>, lane: Lane) -> vec4<f32> {
    let own = subgroupAdd(x);
    workgroupBarrier();
    if lane.in_subgroup == 0u {
        partial_four[lane.subgroup] = own;
    }
    workgroupBarrier();
    var sum = vec4(0.0);
    for (var i = 0u; i < lane.subgroups; i++) {
        sum += partial_four[i];
    }
    return sum;
}

fn max_of_four(x: vec4<f32>, lane: Lane) -> vec4<f32> {
    let own = subgroupMax(x);
    workgroupBarrier();
    if lane.in_subgroup == 0u {
        partial_four[lane.subgroup] = own;
    }
    workgroupBarrier();
    var most = partial_four[0];
    for (var i = 1u; i < lane.subgroups; i++) {
        most = max(most, partial_four[i]);
    }
    return most;
}

