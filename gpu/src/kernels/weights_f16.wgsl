// Weights stored as halves, two in a word, a row padded with 0 to whole words: `stride` is the words of a row.

@group(0) @binding(1) var<storage, read> weights: array<u32>;

// Two neighbours of a row; `column` is even.
fn weight_pair(row: u32, column: u32, columns: u32, stride: u32) -> vec2<f32> {
    return unpack2x16float(weights[row * stride + column / 2u]);
}

