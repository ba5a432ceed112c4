// Self-attention over a ragged batch: one workgroup of 64 lanes for each row and head. Scores are never stored: keys
// come in chunks, and the sum so far is rescaled when a larger score appears (Milakov and Gimelshein 2018).

struct Parameters {
    rows: u32,
    heads: u32,
    // Floats of a head, at most 256.
    head: u32,
    scale: f32,
}

var<immediate> p: Parameters;

// A row: the queries of all heads, their keys, their values.
@group(0) @binding(0) var<storage, read> qkv: array<f32>;
// For each row the first row of its sequence and the row after its last.
@group(0) @binding(1) var<storage, read> spans: array<vec2<u32>>;
@group(0) @binding(2) var<storage, read_write> to: array<f32>;

const CHUNK = 64u;
var<workgroup> query: array<f32, 256>;
var<workgroup> shares: array<f32, 64>;

@compute @workgroup_size(64)
fn attention(lane: Lane) {
    let item = lane.group.y * lane.groups.x + lane.group.x;
    if item >= p.rows * p.heads {
        return;
    }
    let row = item / p.heads;
    let first = item % p.heads * p.head;
    let width = p.heads * p.head;
    let span = spans[row];
    for (var i = lane.index; i < p.head; i += CHUNK) {
        query[i] = qkv[row * 3u * width + first + i];
    }
    workgroupBarrier();
    var most = -3.4028234e38;
    var total = 0.0;
    // The lane's elements of the head: `lane.index`, and every 64th from there.
    var sums: array<f32, 4>;
    for (var base = span.x; base < span.y; base += CHUNK) {
        let count = min(CHUNK, span.y - base);
        var score = -3.4028234e38;
        if lane.index < count {
            let key = (base + lane.index) * 3u * width + width + first;
            score = 0.0;
            for (var i = 0u; i < p.head; i++) {
                score += query[i] * qkv[key + i];
            }
        }
        let larger = max(most, max_of(score, lane));
        var share = 0.0;
        if lane.index < count {
            share = exp((score - larger) * p.scale);
        }
        shares[lane.index] = share;
        let kept = exp((most - larger) * p.scale);
        // Waits for all lanes, so that their shares are there.
        total = total * kept + sum_of(share, lane);
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
            to[row * width + first + i] = sums[d] / total;
        }
    }
}
