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

// A tile of 16 * LANE_ROWS rows by 64 outputs for each workgroup of 256 lanes, LANE_ROWS by 4 for each lane, in steps of
// 16 inputs that go through shared memory. Columns of both sides lie beside each other there, padded against bank
// conflicts.
const ROWS = 16u * LANE_ROWS;
const OUTPUTS = 64u;
const DEPTH = 16u;
const LEFT_PITCH = ROWS + 4u;
const RIGHT_PITCH = OUTPUTS + 4u;
var<workgroup> left: array<f32, DEPTH * LEFT_PITCH>;
var<workgroup> right: array<f32, DEPTH * RIGHT_PITCH>;

fn input_pair(row: u32, column: u32) -> vec2<f32> {
    let first = row * p.inputs + column;
    if column + 1u < p.inputs {
        return vec2(input[first], input[first + 1u]);
    }
    return vec2(input[first], 0.0);
}

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
    let lane_row = index / 16u * LANE_ROWS;
    let lane_output = index % 16u * 4u;
    var sums: array<vec4<f32>, LANE_ROWS>;
    for (var depth = 0u; depth < p.inputs; depth += DEPTH) {
        // 8 neighbouring lanes read the 16 neighbours of one row, two each.
        let inside = index % 8u * 2u;
        let column = depth + inside;
        for (var line = index / 8u; line < ROWS; line += 32u) {
            var pair = vec2(0.0, 0.0);
            if column < p.inputs && top + line < p.rows {
                pair = input_pair(top + line, column);
            }
            left[inside * LEFT_PITCH + line] = pair.x;
            left[(inside + 1u) * LEFT_PITCH + line] = pair.y;
        }
        for (var line = index / 8u; line < OUTPUTS; line += 32u) {
            var pair = vec2(0.0, 0.0);
            if column < p.inputs && side + line < p.outputs {
                pair = weight_pair(side + line, column, p.inputs, p.stride);
            }
            right[inside * RIGHT_PITCH + line] = pair.x;
            right[(inside + 1u) * RIGHT_PITCH + line] = pair.y;
        }
        workgroupBarrier();
        for (var k = 0u; k < DEPTH; k++) {
            let l = k * LEFT_PITCH + lane_row;
            let r = k * RIGHT_PITCH + lane_output;
            let columns = vec4(right[r], right[r + 1u], right[r + 2u], right[r + 3u]);
            for (var i = 0u; i < LANE_ROWS; i++) {
                sums[i] += left[l + i] * columns;
            }
        }
        workgroupBarrier();
    }
    for (var i = 0u; i < LANE_ROWS; i++) {
        for (var j = 0u; j < 4u; j++) {
            let row = top + lane_row + i;
            let output = side + lane_output + j;
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
    for (var column = lane.index * 2u; column < p.inputs; column += 128u) {
        products += dot(input_pair(row, column), weight_pair(output, column, p.inputs, p.stride));
    }
    let sum = sum_of(products, lane);
    if lane.index == 0u {
        store(row, output, sum);
    }
}
