
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
