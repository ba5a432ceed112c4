
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
