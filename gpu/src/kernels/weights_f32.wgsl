// Weights stored as singles: `stride` is the words of a row.

@group(0) @binding(1) var<storage, read> weights: array<f32>;

// Four neighbours of a row, 0 beyond its end.
fn weight_quad(row: u32, column: u32, columns: u32, stride: u32) -> vec4<f32> {
    let first = row * stride + column;
    if column + 3u < columns {
        return vec4(weights[first], weights[first + 1u], weights[first + 2u], weights[first + 3u]);
    }
    var quad = vec4(0.0, 0.0, 0.0, 0.0);
    for (var i = 0u; column + i < columns; i++) {
        quad[i] = weights[first + i];
    }
    return quad;
}

