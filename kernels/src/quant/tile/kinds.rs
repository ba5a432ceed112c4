//! Products of each kind of block over a level's registers. The macros define them where a level has given names to what
//! differs: its registers and instructions, and sums of products of integers.

/// Defines the entry of each kind, given its bytes of a block, the groups of inputs that a block meets, and how one is
/// added to the sums: its rows' groups, the groups from a row to the next, its bytes.
macro_rules! entries {
    ($features:literal, $heights:tt, $(($tile:ident, $tile_of:ident, $bytes:literal, $groups:expr, $add:ident))*) => { $(
        /// # Safety
        /// The CPU has the level's features, and `t` describes memory that is there, unaliased where it is written; see
        /// [`QuantTile`].
        #[target_feature(enable = $features)]
        unsafe fn $tile(rows: usize, t: &QuantTile) {
            // SAFETY: passed on.
            unsafe { by_rows!($tile_of, rows, t, $heights) }
        }

        #[target_feature(enable = $features)]
        unsafe fn $tile_of<const R: usize>(t: &QuantTile) {
            // SAFETY: every access is one that `QuantTile` names.
            unsafe {
                let mut sums = [[load(t.bias), load(t.bias.add(LANES))]; R];
                for block in 0..t.depth / $groups {
                    let bytes = t.panel.add(block * $bytes * PANEL);
                    $add(&mut sums, t.input.add(block * $groups), t.depth, bytes);
                }
                for (r, sum) in sums.iter().enumerate() {
                    store(*sum, t.output.add(r * t.output_stride), t.columns);
                }
            }
        }
    )* };
}

/// Defines the tiles of a level with these features, of these heights.
macro_rules! kinds {
    ($features:literal, $heights:tt) => {
        $crate::quant::tile::kinds::entries!(
            $features,
            $heights,
            (q8_0, q8_0_of, 34, 1, add_q8_0)(q4_0, q4_0_of, 18, 1, add_q4_0)(q4_1, q4_1_of, 20, 1, add_q4_1)(
                q4_k, q4_k_of, 148, GROUPS, add_q4_k
            )
        );

        type Sums<const R: usize> = [[Floats; 2]; R];

        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn add_q8_0<const R: usize>(
            sums: &mut Sums<R>,
            input: *const Group,
            stride: usize,
            bytes: *const u8,
        ) {
            // SAFETY: the caller has a block there, and a group of each row.
            unsafe {
                let products = products_of_bytes::<R>(input, stride, bytes.add(2 * PANEL));
                let scales = [halves(bytes), halves(bytes.add(2 * LANES))];
                for (r, product) in products.iter().enumerate() {
                    let own = set((*input.add(r * stride)).scale);
                    for part in 0..2 {
                        let scale = multiply(scales[part], own);
                        sums[r][part] = multiply_add(floats(product[part]), scale, sums[r][part]);
                    }
                }
            }
        }

        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn add_q4_0<const R: usize>(
            sums: &mut Sums<R>,
            input: *const Group,
            stride: usize,
            bytes: *const u8,
        ) {
            // SAFETY: the caller has a block there, and a group of each row.
            unsafe {
                let scales = [halves(bytes), halves(bytes.add(2 * LANES))];
                let minimums = scales.map(|scale| multiply(scale, set(-8.0)));
                add_nibbles(sums, input, stride, scales, minimums, bytes.add(2 * PANEL));
            }
        }

        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn add_q4_1<const R: usize>(
            sums: &mut Sums<R>,
            input: *const Group,
            stride: usize,
            bytes: *const u8,
        ) {
            // SAFETY: the caller has a block there, and a group of each row.
            unsafe {
                let scales = [halves(bytes), halves(bytes.add(2 * LANES))];
                let minimums = [halves(bytes.add(2 * PANEL)), halves(bytes.add(2 * PANEL + 2 * LANES))];
                add_nibbles(sums, input, stride, scales, minimums, bytes.add(4 * PANEL));
            }
        }

        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn add_q4_k<const R: usize>(
            sums: &mut Sums<R>,
            input: *const Group,
            stride: usize,
            bytes: *const u8,
        ) {
            // SAFETY: the caller has a super-block there, and its groups of each row.
            unsafe {
                let scales = [halves(bytes), halves(bytes.add(2 * LANES))];
                let minimums = [halves(bytes.add(2 * PANEL)), halves(bytes.add(2 * PANEL + 2 * LANES))];
                // A super-block's minimums are taken away.
                let minimums = minimums.map(|minimum| multiply(minimum, set(-1.0)));
                for group in 0..GROUPS {
                    let bytes = bytes.add(4 * PANEL + group * 18 * PANEL);
                    let scales = [times_bytes(scales[0], bytes), times_bytes(scales[1], bytes.add(LANES))];
                    let minimums = [
                        times_bytes(minimums[0], bytes.add(PANEL)),
                        times_bytes(minimums[1], bytes.add(PANEL + LANES)),
                    ];
                    add_nibbles(sums, input.add(group), stride, scales, minimums, bytes.add(2 * PANEL));
                }
            }
        }

        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn add_nibbles<const R: usize>(
            sums: &mut Sums<R>,
            input: *const Group,
            stride: usize,
            scales: [Floats; 2],
            minimums: [Floats; 2],
            quants: *const u8,
        ) {
            // SAFETY: the caller has a group's nibbles there, and a group of each row.
            unsafe {
                let products = products_of_nibbles::<R>(input, stride, quants);
                for (r, product) in products.iter().enumerate() {
                    let input = &*input.add(r * stride);
                    for part in 0..2 {
                        let scale = multiply(scales[part], set(input.scale));
                        let sum = multiply_add(floats(product[part]), scale, sums[r][part]);
                        sums[r][part] = multiply_add(minimums[part], set(input.sum), sum);
                    }
                }
            }
        }
    };
}

/// Defines the sums of products of a level that has an instruction for four products of bytes and their sum. Its first
/// factor has no sign, so that signed weights have 128 added, and products begin at what that adds to them.
macro_rules! vnni {
    ($features:literal) => {
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn products_of_bytes<const R: usize>(
            input: *const Group,
            stride: usize,
            quants: *const u8,
        ) -> [[Integers; 2]; R] {
            // SAFETY: the caller has a block's weights there, and a group of each row.
            unsafe {
                let mut products = [[set_integer(0); 2]; R];
                for (r, product) in products.iter_mut().enumerate() {
                    *product = [set_integer((*input.add(r * stride)).offset); 2];
                }
                for step in 0..rolled::<R>(8) {
                    let weights = [register(quants, step), register(quants, step + 8)];
                    for (r, product) in products.iter_mut().enumerate() {
                        let four = four(input.add(r * stride), step);
                        product[0] = add_products(product[0], weights[0], four);
                        product[1] = add_products(product[1], weights[1], four);
                    }
                }
                products
            }
        }

        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn products_of_nibbles<const R: usize>(
            input: *const Group,
            stride: usize,
            quants: *const u8,
        ) -> [[Integers; 2]; R] {
            // SAFETY: the caller has a group's nibbles there, and a group of each row.
            unsafe {
                let mut products = [[set_integer(0); 2]; R];
                for step in 0..rolled::<R>(4) {
                    let both = [register(quants, step), register(quants, step + 4)];
                    let low = both.map(|both| and(both, set_byte(15)));
                    let high = both.map(|both| and(shift::<4>(both), set_byte(15)));
                    for (r, product) in products.iter_mut().enumerate() {
                        let group = input.add(r * stride);
                        let inputs = [four(group, step), four(group, step + 4)];
                        for part in 0..2 {
                            product[part] = add_products(product[part], low[part], inputs[0]);
                            product[part] = add_products(product[part], high[part], inputs[1]);
                        }
                    }
                }
                products
            }
        }
    };
}

pub(crate) use {entries, kinds, vnni};
