//! IEEE halves as their bits, where no instruction converts them.

/// The same number as a single; exact.
pub fn widen(half: u16) -> f32 {
    // The smallest normal half is 2^-14, and 2^-24 a unit of the subnormal ones.
    const UNIT: f32 = 1.0 / 16_777_216.0;
    let sign = u32::from(half & 0x8000) << 16;
    let exponent = u32::from(half >> 10 & 0x1f);
    let fraction = u32::from(half & 0x3ff);
    let magnitude = match exponent {
        0 => (fraction as f32 * UNIT).to_bits(),
        0x1f => 0x7f80_0000 | fraction << 13,
        _ => (exponent + 112) << 23 | fraction << 13,
    };
    f32::from_bits(sign | magnitude)
}

/// The nearest half, of two equally near ones the even; what was a half is the same again.
pub(crate) fn narrow(single: f32) -> u16 {
    const INFINITE: u32 = 0x7c00;
    /// Halfway from the largest half to what would be the next.
    const LARGE: u32 = 0x477f_f000;
    /// The smallest normal half, and what its exponent is moved by.
    const NORMAL: u32 = 0x3880_0000;
    const MOVED: u32 = 112 << 23;
    let sign = single.to_bits() >> 16 & 0x8000;
    let magnitude = single.to_bits() & 0x7fff_ffff;
    let half = if single.is_nan() {
        INFINITE | 0x200
    } else if magnitude >= LARGE {
        INFINITE
    } else if magnitude < NORMAL {
        (f32::from_bits(magnitude) * 16_777_216.0).round_ties_even() as u32
    } else {
        (magnitude + 0xfff + (magnitude >> 13 & 1) - MOVED) >> 13
    };
    (sign | half) as u16
}

/// Rows of halves in plain Rust.
pub(crate) mod scalar {
    /// # Safety
    /// None is needed; it is unsafe as its counterpart is.
    pub(crate) unsafe fn narrow(from: &[f32], to: &mut [u16]) {
        to.iter_mut().zip(from).for_each(|(to, from)| *to = super::narrow(*from));
    }
}

/// Rows of halves by the instructions for it.
pub(crate) mod f16c {
    use std::arch::x86_64::*;

    /// # Safety
    /// The CPU has AVX and F16C.
    #[target_feature(enable = "avx,f16c")]
    pub(crate) unsafe fn narrow(from: &[f32], to: &mut [u16]) {
        let (eights, rest) = from.as_chunks::<8>();
        let (places, rest_places) = to.as_chunks_mut::<8>();
        for (place, eight) in places.iter_mut().zip(eights) {
            // SAFETY: both have 8 numbers.
            unsafe {
                let halves = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm256_loadu_ps(eight.as_ptr()));
                _mm_storeu_si128(place.as_mut_ptr().cast(), halves);
            }
        }
        rest_places.iter_mut().zip(rest).for_each(|(to, from)| *to = super::narrow(*from));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_is_itself_again() {
        for half in 0..=u16::MAX {
            let single = widen(half);
            if !single.is_nan() {
                assert_eq!(narrow(single), half, "{single}");
            }
        }
        assert!(widen(narrow(f32::NAN)).is_nan());
    }

    #[test]
    fn instructions_narrow_as_plain_rust_does() {
        if !is_x86_feature_detected!("f16c") {
            return;
        }
        let singles: Vec<f32> = (0..=u32::MAX).step_by(65_521).map(f32::from_bits).collect();
        let mut halves = vec![0; singles.len()];
        // SAFETY: the CPU has it.
        unsafe { f16c::narrow(&singles, &mut halves) };
        for (single, half) in singles.iter().zip(halves) {
            assert!(single.is_nan() && widen(half).is_nan() || narrow(*single) == half, "{single}");
        }
    }

    #[test]
    fn singles_become_the_nearest_half() {
        for (single, half) in [
            (1.0, 0x3c00),
            // Halfway between two: the even one.
            (1.0 + 1.0 / 2048.0, 0x3c00),
            (1.0 + 3.0 / 2048.0, 0x3c02),
            (65_519.0, 0x7bff),
            (65_520.0, 0x7c00),
            (-1e30, 0xfc00),
            (2.9e-8, 0x0000),
            (3.0e-8, 0x0001),
            (6.1e-5, 0x03ff),
            (6.103e-5, 0x0400),
        ] {
            assert_eq!(narrow(single), half, "{single}");
        }
    }
}
