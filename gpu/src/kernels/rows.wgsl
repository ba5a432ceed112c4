// Kernels that look at a row as a whole: one workgroup of 64 lanes for each row. Each lane reads and writes every 64th
// element only, so between two passes over a row no lane waits for another's writes.

struct Parameters {
    rows: u32,
    columns: u32,
    // Added to the variance; or what scores are multiplied with.
    value: f32,
    // Of `layer_norm_to`: the first row of the input.
    first: u32,
}

var<immediate> p: Parameters;

const LEAST = -3.4028234e38;

fn row_of(lane: Lane) -> u32 {
    return lane.group.y * lane.groups.x + lane.group.x;
}

@group(0) @binding(0) var<storage, read_write> x: array<f32>;
@group(0) @binding(1) var<storage, read> added: array<f32>;
@group(0) @binding(2) var<storage, read> norm_weight: array<f32>;
@group(0) @binding(3) var<storage, read> norm_bias: array<f32>;

// x = norm(x + added)
@compute @workgroup_size(64)
fn layer_norm(lane: Lane) {
    let row = row_of(lane);
    if row >= p.rows {
        return;
    }
    let start = row * p.columns;
    var sum = 0.0;
    for (var i = lane.index; i < p.columns; i += 64u) {
        let both = x[start + i] + added[start + i];
        x[start + i] = both;
        sum += both;
    }
    let mean = sum_of(sum, lane) / f32(p.columns);
    var squares = 0.0;
    for (var i = lane.index; i < p.columns; i += 64u) {
        let off = x[start + i] - mean;
        squares += off * off;
    }
    let scale = 1.0 / sqrt(sum_of(squares, lane) / f32(p.columns) + p.value);
    for (var i = lane.index; i < p.columns; i += 64u) {
        x[start + i] = (x[start + i] - mean) * scale * norm_weight[i] + norm_bias[i];
    }
}

@group(0) @binding(0) var<storage, read> input: array<f32>;
@group(0) @binding(1) var<storage, read_write> normed: array<f32>;

// normed = norm(input)
@compute @workgroup_size(64)
fn layer_norm_to(lane: Lane) {
    let row = row_of(lane);
    if row >= p.rows {
        return;
    }
    let start = (p.first + row) * p.columns;
    var sum = 0.0;
    for (var i = lane.index; i < p.columns; i += 64u) {
        sum += input[start + i];
    }
    let mean = sum_of(sum, lane) / f32(p.columns);
    var squares = 0.0;
    for (var i = lane.index; i < p.columns; i += 64u) {
        let off = input[start + i] - mean;
        squares += off * off;
    }
    let scale = 1.0 / sqrt(sum_of(squares, lane) / f32(p.columns) + p.value);
    for (var i = lane.index; i < p.columns; i += 64u) {
        normed[row * p.columns + i] = (input[start + i] - mean) * scale * norm_weight[i] + norm_bias[i];
    }
}

@group(0) @binding(1) var<storage, read> rms_weight: array<f32>;
@group(0) @binding(2) var<storage, read_write> to: array<f32>;

// to = input / rms(input) * weight
@compute @workgroup_size(64)
fn rms_norm(lane: Lane) {
    let row = row_of(lane);
    if row >= p.rows {
        return;
    }
    let start = row * p.columns;
    var squares = 0.0;
    for (var i = lane.index; i < p.columns; i += 64u) {
        squares += input[start + i] * input[start + i];
    }
    let scale = 1.0 / sqrt(sum_of(squares, lane) / f32(p.columns) + p.value);
    for (var i = lane.index; i < p.columns; i += 64u) {
        to[start + i] = input[start + i] * scale * rms_weight[i];
    }
}

// x = x / length(x); what is shorter than 1e-12 isn't scaled up, as in PyTorch's `normalize`.
@compute @workgroup_size(64)
fn normalize(lane: Lane) {
    let row = row_of(lane);
    if row >= p.rows {
        return;
    }
    let start = row * p.columns;
    var most = 0.0;
    for (var i = lane.index; i < p.columns; i += 64u) {
        most = max(most, abs(x[start + i]));
    }
    // Squares of what is scaled to at most 1 neither overflow nor vanish.
    let unit = max(max_of(most, lane), 1e-30);
    var squares = 0.0;
    for (var i = lane.index; i < p.columns; i += 64u) {
        let share = x[start + i] / unit;
        squares += share * share;
    }
    let length = max(sqrt(sum_of(squares, lane)) * unit, 1e-12);
    for (var i = lane.index; i < p.columns; i += 64u) {
        x[start + i] /= length;
    }
}

// x[i] = exp(value * (x[i] - max)) / sum of those
@compute @workgroup_size(64)
fn softmax(lane: Lane) {
    let row = row_of(lane);
    if row >= p.rows {
        return;
    }
    let start = row * p.columns;
    var most = LEAST;
    for (var i = lane.index; i < p.columns; i += 64u) {
        most = max(most, x[start + i]);
    }
    let top = max_of(most, lane);
    var sum = 0.0;
    for (var i = lane.index; i < p.columns; i += 64u) {
        let power = exp((x[start + i] - top) * p.value);
        x[start + i] = power;
        sum += power;
    }
    let total = sum_of(sum, lane);
    for (var i = lane.index; i < p.columns; i += 64u) {
        x[start + i] /= total;
    }
}

@group(0) @binding(1) var<storage, read_write> places: array<u32>;
var<workgroup> lane_place: array<u32, 64>;
var<workgroup> lane_value: array<f32, 64>;

// places[row] = the first column that has the row's largest element
@compute @workgroup_size(64)
fn argmax(lane: Lane) {
    let row = row_of(lane);
    if row >= p.rows {
        return;
    }
    let start = row * p.columns;
    var best = LEAST;
    var place = 0xffffffffu;
    for (var i = lane.index; i < p.columns; i += 64u) {
        let value = input[start + i];
        if place == 0xffffffffu || value > best {
            best = value;
            place = i;
        }
    }
    lane_place[lane.index] = place;
    lane_value[lane.index] = best;
    workgroupBarrier();
    if lane.index > 0u {
        return;
    }
    for (var i = 1u; i < min(64u, p.columns); i++) {
        let value = lane_value[i];
        if value > best || (value == best && lane_place[i] < place) {
            best = value;
            place = lane_place[i];
        }
    }
    places[row] = place;
}
