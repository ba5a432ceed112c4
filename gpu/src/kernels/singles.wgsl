
// Products in f32.
alias Quad = vec4<f32>;

fn pair(halves: u32) -> vec2<f32> {
    return unpack2x16float(halves);
}
