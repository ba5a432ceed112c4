// Rows of a product for each lane: tiles of 16 rows.
const LANE_ROWS = 1u;

