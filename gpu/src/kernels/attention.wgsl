// Self-attention over a ragged batch: one workgroup of 64 lanes for four neighbouring rows of a sequence and one head, so
// that keys and values are read once for four queries. Scores are never stored: keys come in chunks, and the sums so far
// are rescaled when a larger score appears (Milakov and Gimelshein 2018).

struct Parameters {
    blocks: u32,
    heads: u32,
    // Floats of a head, at most 256.
    head: u32,
    scale: f32,
}

var<immediate> p: Parameters;

// A row: the queries of all heads, their keys, their values.
@group(0) @binding(0) var<storage, read> qkv: array<f32>;
// For each block its first row, the first row of its sequence, and the row after that one's last.
@group(0) @binding(1) var<storage, read> blocks: array<u32>;
@group(0) @binding(2) var<storage, read_write> to: array<f32>;

const CHUNK = 64u;
const LEAST = -3.4028234e38;
// A component for each of the four rows, here and below.
var<workgroup> queries: array<vec4<f32>, 256>;
var<workgroup> shares: array<vec4<f32>, 64>;

@compute @workgroup_size(64)
fn attention(lane: Lane) {
    let item = lane.group.y * lane.groups.x + lane.group.x;
    if item >= p.blocks * p.heads {
        return;
    }
    let block = item / p.heads * 3u;
    let row = blocks[block];
    let start = blocks[block + 1u];
    let end = blocks[block + 2u];
    let rows = min(4u, end - row);
    let first = item % p.heads * p.head;
    let width = p.heads * p.head;
    for (var i = lane.index; i < p.head; i += CHUNK) {
        for (var r = 0u; r < rows; r++) {
            queries[i][r] = qkv[(row + r) * 3u * width + first + i];
        }
    }
    workgroupBarrier();
    var most = vec4(LEAST);
    var total = vec4(0.0);
    // The lane's elements of the head: `lane.index`, and every 64th from there.
    var sums: array<vec4<f32>, 4>;
    for (var base = start; base < end; base += CHUNK) {
        let count = min(CHUNK, end - base);
        var score = vec4(LEAST);
        if lane.index < count {
            let key = (base + lane.index) * 3u * width + width + first;
            score = vec4(0.0);
            for (var i = 0u; i < p.head; i++) {
                score += queries[i] * qkv[key + i];
            }
        }
        let larger = max(most, max_of_four(score, lane));
        var share = vec4(0.0);
        if lane.index < count {
            share = exp((score - larger) * p.scale);
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
                    sum += shares[k] * qkv[(base + k) * 3u * width + 2u * width + first + i];
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
