// Attention against keys and values that stay: one workgroup of 64 lanes for four neighbouring queries and one head, so that
// keys and values are read once for four queries. Scores are never stored: keys come in chunks, and the sums so far
// are rescaled when a larger score appears (Milakov and Gimelshein 2018).

struct Parameters {
    rows: u32,
    heads: u32,
    // Floats of a head, at most 256.
    head: u32,
    scale: f32,
    // Tokens that the first query sees, and how many more each later one does.
    seen: u32,
    more: u32,
}

var<immediate> p: Parameters;

// A row: the queries of all heads.
@group(0) @binding(0) var<storage, read> queries_of: array<f32>;
// A row: a token's keys of all heads, then its values.
@group(0) @binding(1) var<storage, read> memory: array<f32>;
@group(0) @binding(2) var<storage, read_write> to: array<f32>;

const CHUNK = 64u;
const LEAST = -3.4028234e38;
// A component for each of the four rows, here and below.
var<workgroup> queries: array<vec4<f32>, 256>;
var<workgroup> shares: array<vec4<f32>, 64>;

@compute @workgroup_size(64)
fn attend(lane: Lane) {
    let item = lane.group.y * lane.groups.x + lane.group.x;
    if item >= (p.rows + 3u) / 4u * p.heads {
        return;
    }
    let row = item / p.heads * 4u;
    let rows = min(4u, p.rows - row);
    // What each of the four sees.
    let ends = p.seen + p.more * (row + vec4(0u, 1u, 2u, 3u));
    let end = p.seen + p.more * (row + rows - 1u);
    let first = item % p.heads * p.head;
    let width = p.heads * p.head;
    for (var i = lane.index; i < p.head; i += CHUNK) {
        for (var r = 0u; r < rows; r++) {
            queries[i][r] = queries_of[(row + r) * width + first + i];
        }
    }
    workgroupBarrier();
    var most = vec4(LEAST);
    var total = vec4(0.0);
    // The lane's elements of the head: `lane.index`, and every 64th from there.
    var sums: array<vec4<f32>, 4>;
    for (var base = 0u; base < end; base += CHUNK) {
        let count = min(CHUNK, end - base);
        var score = vec4(LEAST);
        if lane.index < count {
            let key = (base + lane.index) * 2u * width + first;
            score = vec4(0.0);
            for (var i = 0u; i < p.head; i++) {
                score += queries[i] * memory[key + i];
            }
            score = select(vec4(LEAST), score, vec4(base + lane.index) < ends);
        }
        let larger = max(most, max_of_four(score, lane));
        var share = vec4(0.0);
        if lane.index < count {
            // What isn't seen has no share, also where a score is as small as the least.
            share = select(vec4(0.0), exp((score - larger) * p.scale), vec4(base + lane.index) < ends);
        }
        shares[lane.index] = share;
        let kept = exp((most - larger) * p.scale);
        // Waits for all lanes, so that their shares are there.
        total = total * kept + sum_of_four(share, lane);
        most = larger;
        for (var d = 0u; d < 4u; d++) {
            let i = lane.index + d * CHUNK;
            if i < p.head {
                var sum = sums[d] * kept;
                for (var k = 0u; k < count; k++) {
                    sum += shares[k] * memory[(base + k) * 2u * width + width + first + i];
                }
                sums[d] = sum;
            }
        }
        workgroupBarrier();
    }
    for (var d = 0u; d < 4u; d++) {
        let i = lane.index + d * CHUNK;
        if i < p.head {
            let result = sums[d] / total;
            for (var r = 0u; r < rows; r++) {
                to[(row + r) * width + first + i] = result[r];
            }
        }
    }
}
