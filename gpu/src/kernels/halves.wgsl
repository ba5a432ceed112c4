
// Products in f16: what comes from the input is rounded to it, beyond 65504 to infinity.
alias Quad = vec4<f16>;

fn pair(halves: u32) -> vec2<f16> {
    return vec2<f16>(unpack2x16float(halves));
}
