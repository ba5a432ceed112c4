// What happens to each element after a product: 0 nothing, 1 GELU with the error function, 2 SiLU.

// Largest absolute error 5e-7: x times a polynomial in x * x that is minimax on [0, 3.8], beyond which erf is 1 to f32;
// the same as the CPU's kernels use.
fn erf(x: f32) -> f32 {
    if abs(x) >= 3.8 {
        return sign(x);
    }
    let u = x * x * 0.13850416 - 1.0;
    var sum = -0.0022928866;
    sum = sum * u + 0.0057425457;
    sum = sum * u - 0.0045077363;
    sum = sum * u + 0.005586294;
    sum = sum * u - 0.016949274;
    sum = sum * u + 0.029478591;
    sum = sum * u - 0.039694253;
    sum = sum * u + 0.05414788;
    sum = sum * u - 0.07231751;
    sum = sum * u + 0.09097311;
    sum = sum * u - 0.11120756;
    sum = sum * u + 0.13773143;
    sum = sum * u - 0.18564051;
    sum = sum * u + 0.37210768;
    return clamp(x * sum, -1.0, 1.0);
}

fn activate(x: f32, activation: u32) -> f32 {
    switch activation {
        case 1u: { return 0.5 * x * (1.0 + erf(x * 0.70710678)); }
        // Below -80 it is nothing to f32, and soon the exponential would be infinite.
        case 2u: { return select(x / (1.0 + exp(-x)), 0.0, x < -80.0); }
        default: { return x; }
    }
}

