// How the 64 lanes of a workgroup add up: a tree over shared memory. Every lane has to take part.

struct Lane {
    @builtin(local_invocation_index) index: u32,
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
}

var<workgroup> partial: array<f32, 64>;

fn sum_of(x: f32, lane: Lane) -> f32 {
    // Whoever still reads the last sum is done.
    workgroupBarrier();
    partial[lane.index] = x;
    workgroupBarrier();
    for (var half = 32u; half > 0u; half >>= 1u) {
        if lane.index < half {
            partial[lane.index] += partial[lane.index + half];
        }
        workgroupBarrier();
    }
    return partial[0];
}

fn max_of(x: f32, lane: Lane) -> f32 {
    workgroupBarrier();
    partial[lane.index] = x;
    workgroupBarrier();
    for (var half = 32u; half > 0u; half >>= 1u) {
        if lane.index < half {
            partial[lane.index] = max(partial[lane.index], partial[lane.index + half]);
        }
        workgroupBarrier();
    }
    return partial[0];
}

var<workgroup> partial_four: array<vec4<f32>, 64>;

fn sum_of_four(x: vec4<f32>, lane: Lane) -> vec4<f32> {
    workgroupBarrier();
    partial_four[lane.index] = x;
    workgroupBarrier();
    for (var half = 32u; half > 0u; half >>= 1u) {
        if lane.index < half {
            partial_four[lane.index] += partial_four[lane.index + half];
        }
        workgroupBarrier();
    }
    return partial_four[0];
}

fn max_of_four(x: vec4<f32>, lane: Lane) -> vec4<f32> {
    workgroupBarrier();
    partial_four[lane.index] = x;
    workgroupBarrier();
    for (var half = 32u; half > 0u; half >>= 1u) {
        if lane.index < half {
            partial_four[lane.index] = max(partial_four[lane.index], partial_four[lane.index + half]);
        }
        workgroupBarrier();
    }
    return partial_four[0];
}

