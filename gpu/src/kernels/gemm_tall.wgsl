// Rows of a product for each lane: tiles of 64 rows.
const LANE_ROWS = 4u;

