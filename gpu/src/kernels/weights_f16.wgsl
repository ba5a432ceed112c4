
// Weights stored as halves, two in a word, a row padded with 0 to whole words: `stride` is the words of a row.

@group(0) @binding(1) var<storage, read> weights: array<u32>;

// Four neighbours of a row, 0 beyond its end; `column` is even.
fn weight_quad(row: u32, column: u32, columns: u32, stride: u32) -> Quad {
    let word = row * stride + column / 2u;
    if column + 2u < columns {
        return Quad(pair(weights[word]), pair(weights[word + 1u]));
    }
    return Quad(pair(weights[word]), 0, 0);
}
