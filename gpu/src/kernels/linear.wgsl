// to = activation(input * weights^T + bias), over one part of the weights: its outputs go to the columns from `first`.

struct Parameters {
    rows: u32,
    inputs: u32,
    outputs: u32,
    // Column of `to`, and place in `bias`, of the part's first output.
    first: u32,
    to_columns: u32,
    // Words from one row of weights to the next.
    stride: u32,
    activation: u32,
}

var<immediate> p: Parameters;

@group(0) @binding(0) var<storage, read> input: array<f32>;
@group(0) @binding(2) var<storage, read> bias: array<f32>;
@group(0) @binding(3) var<storage, read_write> to: array<f32>;

fn store(row: u32, output: u32, sum: f32) {
    let column = p.first + output;
    to[row * p.to_columns + column] = activate(sum + bias[column], p.activation);
}

// Four neighbours of a row of the input, 0 beyond its end.
fn input_quad(row: u32, column: u32) -> vec4<f32> {
    let first = row * p.inputs + column;
    if column + 3u < p.inputs {
        return vec4(input[first], input[first + 1u], input[first + 2u], input[first + 3u]);
    }
    var quad = vec4(0.0, 0.0, 0.0, 0.0);
    for (var i = 0u; column + i < p.inputs; i++) {
        quad[i] = input[first + i];
    }
    return quad;
}

// A tile of 16 * LANE_ROWS rows by 64 outputs for each workgroup of 256 lanes, in steps of 16 inputs that go through
// shared memory, four of them together. A lane has every 16th row and every 16th output, so that neighbouring lanes read
// and write neighbours; a line's pitch is odd against bank conflicts.
const ROWS = 16u * LANE_ROWS;
const OUTPUTS = 64u;
const QUADS = 4u;
const PITCH = QUADS + 1u;
var<workgroup> left: array<vec4<f32>, ROWS * PITCH>;
var<workgroup> right: array<vec4<f32>, OUTPUTS * PITCH>;

@compute @workgroup_size(256)
fn gemm(
    @builtin(local_invocation_index) index: u32,
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    let tile = group.y * groups.x + group.x;
    let across = (p.outputs + OUTPUTS - 1u) / OUTPUTS;
    let down = (p.rows + ROWS - 1u) / ROWS;
    if tile >= across * down {
        return;
    }
    let top = tile / across * ROWS;
    let side = tile % across * OUTPUTS;
    let line = index / QUADS;
    let quad = index % QUADS;
    let lane_row = index / 16u;
    let lane_output = index % 16u;
    var sums: array<vec4<f32>, LANE_ROWS>;
    for (var depth = 0u; depth < p.inputs; depth += 4u * QUADS) {
        let column = depth + 4u * quad;
        if line < ROWS {
            var four = vec4(0.0, 0.0, 0.0, 0.0);
            if column < p.inputs && top + line < p.rows {
                four = input_quad(top + line, column);
            }
            left[line * PITCH + quad] = four;
        }
        var four = vec4(0.0, 0.0, 0.0, 0.0);
        if column < p.inputs && side + line < p.outputs {
            four = weight_quad(side + line, column, p.inputs, p.stride);
        }
        right[line * PITCH + quad] = four;
        workgroupBarrier();
        for (var k = 0u; k < QUADS; k++) {
            let a = right[lane_output * PITCH + k];
            let b = right[(lane_output + 16u) * PITCH + k];
            let c = right[(lane_output + 32u) * PITCH + k];
            let d = right[(lane_output + 48u) * PITCH + k];
            for (var i = 0u; i < LANE_ROWS; i++) {
                let l = left[(lane_row + 16u * i) * PITCH + k];
                sums[i] += vec4(dot(l, a), dot(l, b), dot(l, c), dot(l, d));
            }
        }
        workgroupBarrier();
    }
    for (var i = 0u; i < LANE_ROWS; i++) {
        for (var j = 0u; j < 4u; j++) {
            let row = top + lane_row + 16u * i;
            let output = side + lane_output + 16u * j;
            if row < p.rows && output < p.outputs {
                store(row, output, sums[i][j]);
            }
        }
    }
}

// One element of the result for each workgroup of 64 lanes: for few rows, where the time is that of reading the weights.
@compute @workgroup_size(64)
fn gemv(lane: Lane) {
    let element = lane.group.y * lane.groups.x + lane.group.x;
    if element >= p.rows * p.outputs {
        return;
    }
    // The rows of one output beside each other: its weights are read once from memory, then from the cache.
    let row = element % p.rows;
    let output = element / p.rows;
    var products = 0.0;
    for (var column = lane.index * 4u; column < p.inputs; column += 256u) {
        products += dot(input_quad(row, column), weight_quad(output, column, p.inputs, p.stride));
    }
    let sum = sum_of(products, lane);
    if lane.index == 0u {
        store(row, output, sum);
    }
}
