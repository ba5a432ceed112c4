
// A tile of 16 * LANE_ROWS rows by 64 outputs for each workgroup of 256 lanes, in steps of 16 inputs that go through
// shared memory, four of them together. A lane has every 16th row and every 16th output, so that neighbouring lanes read
// and write neighbours; a line's pitch is odd against bank conflicts. Four products are summed as they are, then in f32.
const ROWS = 16u * LANE_ROWS;
const OUTPUTS = 64u;
const QUADS = 4u;
const PITCH = QUADS + 1u;
var<workgroup> left: array<Quad, ROWS * PITCH>;
var<workgroup> right: array<Quad, OUTPUTS * PITCH>;

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
    let line = index / QUADS;
    let quad = index % QUADS;
    let lane_row = index / 16u;
    let lane_output = index % 16u;
    var sums: array<vec4<f32>, LANE_ROWS>;
    for (var depth = 0u; depth < p.inputs; depth += 4u * QUADS) {
        let column = depth + 4u * quad;
        if line < ROWS {
            var four = Quad();
            if column < p.inputs && top + line < p.rows {
                four = Quad(input_quad(top + line, column));
            }
            left[line * PITCH + quad] = four;
        }
        var four = Quad();
        if column < p.inputs && side + line < p.outputs {
            four = weight_quad(side + line, column, p.inputs, p.stride);
        }
        right[line * PITCH + quad] = four;
        workgroupBarrier();
        for (var k = 0u; k < QUADS; k++) {
            let a = right[lane_output * PITCH + k];
            let b = right[(lane_output + 16u) * PITCH + k];
            let c = right[(lane_output + 32u) * PITCH + k];
            let d = right[(lane_output + 48u) * PITCH + k];
            for (var i = 0u; i < LANE_ROWS; i++) {
                let l = left[(lane_row + 16u * i) * PITCH + k];
                sums[i] += vec4<f32>(vec4(dot(l, a), dot(l, b), dot(l, c), dot(l, d)));
            }
        }
        workgroupBarrier();
    }
    for (var i = 0u; i < LANE_ROWS; i++) {
        for (var j = 0u; j < 4u; j++) {
            let row = top + lane_row + 16u * i;
            let output = side + lane_output + 16u * j;
            if row < p.rows && output < p.outputs {
                store(row, output, sums[i][j]);
            }
        }
    }
}
