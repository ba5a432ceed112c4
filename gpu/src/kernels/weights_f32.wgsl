// Weights stored as singles: `stride` is the words of a row.

@group(0) @binding(1) var<storage, read> weights: array<f32>;

// Two neighbours of a row, the second 0 beyond its end.
fn weight_pair(row: u32, column: u32, columns: u32, stride: u32) -> vec2<f32> {
    let first = row * stride + column;
    if column + 1u < columns {
        return vec2(weights[first], weights[first + 1u]);
    }
    return vec2(weights[first], 0.0);
}

