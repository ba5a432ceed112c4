// A convolution along time: 64 lanes, one output of one step each.

struct Parameters {
    // Steps of the result; of the input.
    steps: u32,
    input_steps: u32,
    channels: u32,
    // Of `unfold`: the first result.
    outputs: u32,
    kernel: u32,
    stride: u32,
    padding: u32,
    activation: u32,
}

var<immediate> p: Parameters;

// A row for each step, a column for each channel.
@group(0) @binding(0) var<storage, read> input: array<f32>;
// For each output and each tap the channels.
@group(0) @binding(1) var<storage, read> weights: array<f32>;
@group(0) @binding(2) var<storage, read> bias: array<f32>;
@group(0) @binding(3) var<storage, read_write> to: array<f32>;

@compute @workgroup_size(64)
fn conv1d(
    @builtin(local_invocation_index) index: u32,
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    let i = (group.y * groups.x + group.x) * 64u + index;
    if i >= p.steps * p.outputs {
        return;
    }
    let output = i % p.outputs;
    let begin = i / p.outputs * p.stride;
    var sum = bias[output];
    for (var tap = 0u; tap < p.kernel; tap++) {
        // Below 0 this wraps to far beyond the last step.
        let step = begin + tap - p.padding;
        if step < p.input_steps {
            let row = step * p.channels;
            let taps = (output * p.kernel + tap) * p.channels;
            for (var channel = 0u; channel < p.channels; channel++) {
                sum += input[row + channel] * weights[taps + channel];
            }
        }
    }
    to[i] = activate(sum, p.activation);
}

@group(0) @binding(1) var<storage, read_write> unfolded: array<f32>;

// Row i of the result: the input's steps that result `p.outputs + i` is made of, one after another.
@compute @workgroup_size(64)
fn unfold(
    @builtin(local_invocation_index) index: u32,
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    let i = (group.y * groups.x + group.x) * 64u + index;
    let width = p.kernel * p.channels;
    if i >= p.steps * width {
        return;
    }
    let column = i % width;
    // Below 0 this wraps to far beyond the last step.
    let step = (p.outputs + i / width) * p.stride + column / p.channels - p.padding;
    var float = 0.0;
    if step < p.input_steps {
        float = input[step * p.channels + column % p.channels];
    }
    unfolded[i] = float;
}
