//! The tensors of a Whisper model by the names that its forms give them, and which part of which source each is.

use super::Sizes;

/// How the tensors of a source are named and cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Naming {
    /// As OpenAI's own code does; ggml keeps these names.
    OpenAi,
    /// As CTranslate2 does, with query, key and value in one tensor.
    Ctranslate2,
}

/// A tensor of the package and where it comes from.
#[derive(Debug)]
pub(super) struct Planned {
    /// Its name in the package.
    pub(super) name: String,
    /// Its shape.
    pub(super) shape: Vec<usize>,
    /// The tensor that it is taken from.
    pub(super) source: String,
    /// It is this part, of so many equal parts along the first dimension.
    pub(super) part: (usize, usize),
}

impl Planned {
    /// The shape of the whole source.
    pub(super) fn source_shape(&self) -> Vec<usize> {
        let mut shape = self.shape.clone();
        shape[0] *= self.part.1;
        shape
    }
}

/// Every tensor that a model of these sizes has, in the package's order.
pub(super) fn plan(sizes: &Sizes, naming: Naming) -> Vec<Planned> {
    let mut plan = Vec::new();
    add(&mut plan, sizes, naming, ENCODER, None);
    for layer in 0..sizes.audio_layers {
        add(&mut plan, sizes, naming, LAYER, Some((Side::Encoder, layer)));
    }
    add(&mut plan, sizes, naming, DECODER, None);
    for layer in 0..sizes.text_layers {
        add(&mut plan, sizes, naming, LAYER, Some((Side::Decoder, layer)));
        add(&mut plan, sizes, naming, CROSS, Some((Side::Decoder, layer)));
    }
    plan
}

/// The parts of CTranslate2's fused biases that must be zero, because Whisper's keys have no bias.
pub(super) fn key_biases(sizes: &Sizes) -> impl Iterator<Item = (String, (usize, usize))> {
    let own =
        |side: Side, layer| (format!("{}self_attention/linear_0/bias", prefixes(side, layer).2), (1, 3));
    let cross = |layer| (format!("{}attention/linear_1/bias", prefixes(Side::Decoder, layer).2), (0, 2));
    (0..sizes.audio_layers)
        .map(move |layer| own(Side::Encoder, layer))
        .chain((0..sizes.text_layers).flat_map(move |layer| [own(Side::Decoder, layer), cross(layer)]))
}

#[derive(Clone, Copy)]
enum Side {
    Encoder,
    Decoder,
}

/// The beginnings of a layer's names: in the package, in OpenAI's form, in CTranslate2's.
fn prefixes(side: Side, layer: usize) -> (String, String, String) {
    let side = match side {
        Side::Encoder => "encoder",
        Side::Decoder => "decoder",
    };
    (
        format!("model.{side}.layers.{layer}."),
        format!("{side}.blocks.{layer}."),
        format!("{side}/layer_{layer}/"),
    )
}

fn add(plan: &mut Vec<Planned>, sizes: &Sizes, naming: Naming, rows: &[Row], layer: Option<(Side, usize)>) {
    let (package, openai, ctranslate2) = layer.map_or_else(
        || ("model.".to_owned(), String::new(), String::new()),
        |(side, layer)| prefixes(side, layer),
    );
    plan.extend(rows.iter().map(|row| {
        let (source, part) = match naming {
            Naming::OpenAi => (format!("{openai}{}", row.openai), (0, 1)),
            Naming::Ctranslate2 => (format!("{ctranslate2}{}", row.ctranslate2), row.part),
        };
        Planned { name: format!("{package}{}", row.package), shape: row.shape.of(sizes), source, part }
    }));
}

/// Shapes, outermost dimension first.
#[derive(Clone, Copy)]
enum Shape {
    /// The width of the model.
    State,
    /// A projection.
    Square,
    /// From the width to that of the inner layer.
    Up,
    UpBias,
    /// And back.
    Down,
    MelConvolution,
    Convolution,
    AudioPositions,
    TextPositions,
    Vocabulary,
}

impl Shape {
    fn of(self, sizes: &Sizes) -> Vec<usize> {
        let (state, inner) = (sizes.state, sizes.inner());
        match self {
            Shape::State => vec![state],
            Shape::Square => vec![state, state],
            Shape::Up => vec![inner, state],
            Shape::UpBias => vec![inner],
            Shape::Down => vec![state, inner],
            Shape::MelConvolution => vec![state, sizes.mels, KERNEL],
            Shape::Convolution => vec![state, state, KERNEL],
            Shape::AudioPositions => vec![sizes.audio_positions, state],
            Shape::TextPositions => vec![sizes.text_positions, state],
            Shape::Vocabulary => vec![sizes.vocabulary, state],
        }
    }
}

/// Width of both convolutions.
const KERNEL: usize = 3;

/// One tensor by its three names.
struct Row {
    package: &'static str,
    openai: &'static str,
    ctranslate2: &'static str,
    shape: Shape,
    /// Which of how many parts of CTranslate2's tensor.
    part: (usize, usize),
}

const fn row(
    package: &'static str,
    openai: &'static str,
    ctranslate2: &'static str,
    shape: Shape,
    part: (usize, usize),
) -> Row {
    Row { package, openai, ctranslate2, shape, part }
}

const WHOLE: (usize, usize) = (0, 1);

#[rustfmt::skip]
const ENCODER: &[Row] = &[
    row("encoder.conv1.weight", "encoder.conv1.weight", "encoder/conv1/weight", Shape::MelConvolution, WHOLE),
    row("encoder.conv1.bias", "encoder.conv1.bias", "encoder/conv1/bias", Shape::State, WHOLE),
    row("encoder.conv2.weight", "encoder.conv2.weight", "encoder/conv2/weight", Shape::Convolution, WHOLE),
    row("encoder.conv2.bias", "encoder.conv2.bias", "encoder/conv2/bias", Shape::State, WHOLE),
    row("encoder.embed_positions.weight", "encoder.positional_embedding", "encoder/position_encodings/encodings", Shape::AudioPositions, WHOLE),
    row("encoder.layer_norm.weight", "encoder.ln_post.weight", "encoder/layer_norm/gamma", Shape::State, WHOLE),
    row("encoder.layer_norm.bias", "encoder.ln_post.bias", "encoder/layer_norm/beta", Shape::State, WHOLE),
];

#[rustfmt::skip]
const DECODER: &[Row] = &[
    row("decoder.embed_tokens.weight", "decoder.token_embedding.weight", "decoder/embeddings/weight", Shape::Vocabulary, WHOLE),
    row("decoder.embed_positions.weight", "decoder.positional_embedding", "decoder/position_encodings/encodings", Shape::TextPositions, WHOLE),
    row("decoder.layer_norm.weight", "decoder.ln.weight", "decoder/layer_norm/gamma", Shape::State, WHOLE),
    row("decoder.layer_norm.bias", "decoder.ln.bias", "decoder/layer_norm/beta", Shape::State, WHOLE),
];

#[rustfmt::skip]
const LAYER: &[Row] = &[
    row("self_attn_layer_norm.weight", "attn_ln.weight", "self_attention/layer_norm/gamma", Shape::State, WHOLE),
    row("self_attn_layer_norm.bias", "attn_ln.bias", "self_attention/layer_norm/beta", Shape::State, WHOLE),
    row("self_attn.q_proj.weight", "attn.query.weight", "self_attention/linear_0/weight", Shape::Square, (0, 3)),
    row("self_attn.q_proj.bias", "attn.query.bias", "self_attention/linear_0/bias", Shape::State, (0, 3)),
    row("self_attn.k_proj.weight", "attn.key.weight", "self_attention/linear_0/weight", Shape::Square, (1, 3)),
    row("self_attn.v_proj.weight", "attn.value.weight", "self_attention/linear_0/weight", Shape::Square, (2, 3)),
    row("self_attn.v_proj.bias", "attn.value.bias", "self_attention/linear_0/bias", Shape::State, (2, 3)),
    row("self_attn.out_proj.weight", "attn.out.weight", "self_attention/linear_1/weight", Shape::Square, WHOLE),
    row("self_attn.out_proj.bias", "attn.out.bias", "self_attention/linear_1/bias", Shape::State, WHOLE),
    row("final_layer_norm.weight", "mlp_ln.weight", "ffn/layer_norm/gamma", Shape::State, WHOLE),
    row("final_layer_norm.bias", "mlp_ln.bias", "ffn/layer_norm/beta", Shape::State, WHOLE),
    row("fc1.weight", "mlp.0.weight", "ffn/linear_0/weight", Shape::Up, WHOLE),
    row("fc1.bias", "mlp.0.bias", "ffn/linear_0/bias", Shape::UpBias, WHOLE),
    row("fc2.weight", "mlp.2.weight", "ffn/linear_1/weight", Shape::Down, WHOLE),
    row("fc2.bias", "mlp.2.bias", "ffn/linear_1/bias", Shape::State, WHOLE),
];

#[rustfmt::skip]
const CROSS: &[Row] = &[
    row("encoder_attn_layer_norm.weight", "cross_attn_ln.weight", "attention/layer_norm/gamma", Shape::State, WHOLE),
    row("encoder_attn_layer_norm.bias", "cross_attn_ln.bias", "attention/layer_norm/beta", Shape::State, WHOLE),
    row("encoder_attn.q_proj.weight", "cross_attn.query.weight", "attention/linear_0/weight", Shape::Square, WHOLE),
    row("encoder_attn.q_proj.bias", "cross_attn.query.bias", "attention/linear_0/bias", Shape::State, WHOLE),
    row("encoder_attn.k_proj.weight", "cross_attn.key.weight", "attention/linear_1/weight", Shape::Square, (0, 2)),
    row("encoder_attn.v_proj.weight", "cross_attn.value.weight", "attention/linear_1/weight", Shape::Square, (1, 2)),
    row("encoder_attn.v_proj.bias", "cross_attn.value.bias", "attention/linear_1/bias", Shape::State, (1, 2)),
    row("encoder_attn.out_proj.weight", "cross_attn.out.weight", "attention/linear_2/weight", Shape::Square, WHOLE),
    row("encoder_attn.out_proj.bias", "cross_attn.out.bias", "attention/linear_2/bias", Shape::State, WHOLE),
];
