
// A tile of 64 rows by 64 outputs for each workgroup, in steps of 32 inputs that go through shared memory: a matrix is
// loaded without a look at where the input ends. A subgroup has two by two matrices of the tile. LANES are that many of the
// largest subgroups; where they come smaller, some do what another does too.
override LANES: u32;
const SIDE = 64u;
const DEPTH = 32u;
const QUADS = DEPTH / 4u;
// A multiple of 16 bytes, as the instruction demands, and not one of 128, against bank conflicts.
const PITCH = DEPTH + 8u;
const BLOCK = 2u * EDGE;
const BLOCKS = SIDE / BLOCK;
var<workgroup> left: array<f16, SIDE * PITCH>;
var<workgroup> right: array<f16, SIDE * PITCH>;
var<workgroup> tile: array<f32, SIDE * SIDE>;

@compute @workgroup_size(LANES)
fn gemm(
    @builtin(local_invocation_index) index: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    let number = group.y * groups.x + group.x;
    let across = (p.outputs + SIDE - 1u) / SIDE;
    let down = (p.rows + SIDE - 1u) / SIDE;
    if number >= across * down {
        return;
    }
    let top = number / across * SIDE;
    let side = number % across * SIDE;
    let block = subgroup % (BLOCKS * BLOCKS);
    let upper = block / BLOCKS * BLOCK;
    let lower = upper + EDGE;
    let near = block % BLOCKS * BLOCK;
    let far = near + EDGE;
    var upper_near = Sums();
    var upper_far = Sums();
    var lower_near = Sums();
    var lower_far = Sums();
    for (var depth = 0u; depth < p.inputs; depth += DEPTH) {
        for (var i = index; i < SIDE * QUADS; i += LANES) {
            let line = i / QUADS;
            let column = depth + 4u * (i % QUADS);
            let at = line * PITCH + 4u * (i % QUADS);
            var of_input = Quad();
            var of_weights = Quad();
            if column < p.inputs && top + line < p.rows {
                of_input = Quad(input_quad(top + line, column));
            }
            if column < p.inputs && side + line < p.outputs {
                of_weights = weight_quad(side + line, column, p.inputs, p.stride);
            }
            for (var j = 0u; j < 4u; j++) {
                left[at + j] = of_input[j];
                right[at + j] = of_weights[j];
            }
        }
        workgroupBarrier();
        for (var k = 0u; k < DEPTH; k += EDGE) {
            // Rows of the input lie one after another, and so do columns of the transposed weights.
            let a = coopLoadT<Left>(&left[upper * PITCH + k], PITCH);
            let b = coopLoadT<Left>(&left[lower * PITCH + k], PITCH);
            let c = coopLoad<Right>(&right[near * PITCH + k], PITCH);
            let d = coopLoad<Right>(&right[far * PITCH + k], PITCH);
            upper_near = coopMultiplyAdd(a, c, upper_near);
            upper_far = coopMultiplyAdd(a, d, upper_far);
            lower_near = coopMultiplyAdd(b, c, lower_near);
            lower_far = coopMultiplyAdd(b, d, lower_far);
        }
        workgroupBarrier();
    }
    coopStoreT(upper_near, &tile[upper * SIDE + near], SIDE);
    coopStoreT(upper_far, &tile[upper * SIDE + far], SIDE);
    coopStoreT(lower_near, &tile[lower * SIDE + near], SIDE);
    coopStoreT(lower_far, &tile[lower * SIDE + far], SIDE);
    workgroupBarrier();
    for (var i = index; i < SIDE * SIDE; i += LANES) {
        let row = top + i / SIDE;
        let output = side + i % SIDE;
        if row < p.rows && output < p.outputs {
            store(row, output, tile[i]);
        }
    }
}
