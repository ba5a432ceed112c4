//! `POST /v2/models/{model}/infer`: tensors to a job of the model's kind, and what came of it to tensors.

use super::VERSION;
use super::parameters::Parameters;
use super::request::Parsed;
use super::response::{self, InferResponse, Output, Values};
use super::signature::{ANSWER, AUDIO, EMBEDDING, INPUT_IDS, PROMPT, Signature, TEXT, TRANSCRIPT};
use super::tensor::{Datatype, Tensor, invalid};
use crate::api::body::{self, BODY_BYTES_MAX, BODY_TIME_MAX};
use crate::api::generate::{Sampling, Stop};
use crate::api::identity::Caller;
use crate::api::{ApiError, App, answered, audio, openai, transcript};
use crate::clock;
use crate::dispatch::{AudioSource, JobInput, JobRequest, Purpose};
use crate::workers::Made;
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use hyper::body::Bytes;
use ringfence_protocol::{AUDIO_BYTES_MAX, Architecture, EmbedInput, GenerateInput, ITEMS_MAX, Item, Prompt};
use ringfence_scheduler::quotas::DEADLINE_MAX;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::SemaphorePermit;

/// Answers one inference.
pub(super) async fn infer(
    app: &Arc<App>,
    caller: Caller,
    model: String,
    request: Request,
) -> Result<Response, ApiError> {
    let received = clock::instant();
    let architecture = app.dispatcher.architecture_for(Some(&caller.client), &model)?;
    let headers = request.headers().clone();
    let (body, _place) = read(request, architecture).await?;
    let Parsed { id, mut parameters, inputs, outputs } =
        Parsed::read(&headers, body, &Signature::of(architecture))?;
    let deadline = deadline(&headers, &mut parameters)?;
    let input = input(architecture, inputs, &mut parameters)?;
    parameters.end("a request to this model")?;
    let items = match &input {
        JobInput::Items(input) => input.items.len(),
        JobInput::Granted { .. } | JobInput::Audio { .. } | JobInput::Generate { .. } | JobInput::Live(_) => {
            1
        }
    };
    let request_id = caller.who.request.clone().unwrap_or_default();
    let job = JobRequest {
        client: caller.client,
        request_id: request_id.clone(),
        who: caller.who,
        model,
        input,
        received,
        deadline,
        dimensions: None,
        purpose: Purpose::Client,
    };
    let answered = app.dispatcher.answer(job).await?;
    let (outputs, binary) = response::outputs(outputs_of(&answered.output.made, items)?, &outputs);
    let (model_name, id) = (answered.model.as_str(), id.unwrap_or(request_id));
    let body = InferResponse { model_name, model_version: VERSION, id, outputs };
    answered::stamped(response::response(&body, &binary)?, &answered, received)
}

/// The body, bounded by what the model takes. Where that is a file of audio, there is a place for it among the uploads, which
/// is held as long as the permit.
async fn read(
    request: Request,
    architecture: Architecture,
) -> Result<(Bytes, Option<SemaphorePermit<'static>>), ApiError> {
    require_known_encoding(request.headers())?;
    let (max, within, place) = match architecture {
        Architecture::Bert | Architecture::Llama => (BODY_BYTES_MAX, BODY_TIME_MAX, None),
        Architecture::Whisper => {
            (BODY_BYTES_MAX + AUDIO_BYTES_MAX, audio::FORM_TIME_MAX, Some(audio::upload_place()?))
        }
    };
    Ok((body::read_within(request, max, within).await?.into(), place))
}

/// Clients of this protocol often say nothing of what they send.
fn require_known_encoding(headers: &HeaderMap) -> Result<(), ApiError> {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let essence = text(header::CONTENT_TYPE).and_then(|kind| kind.split(';').next()).map(str::trim);
    let typed = essence.is_none_or(|essence| {
        ["application/json", "application/octet-stream"]
            .iter()
            .any(|known| essence.eq_ignore_ascii_case(known))
    });
    if typed
        && text(header::CONTENT_ENCODING).is_none_or(|encoding| encoding.eq_ignore_ascii_case("identity"))
    {
        return Ok(());
    }
    let message = "send the body as application/json or application/octet-stream, and not compressed";
    Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "content_type_unsupported", message))
}

/// The header's deadline, else that of the parameter `timeout`, in microseconds; 0 is none.
fn deadline(headers: &HeaderMap, parameters: &mut Parameters) -> Result<Option<Duration>, ApiError> {
    parameters.count("priority")?;
    let micros = parameters.count("timeout")?.filter(|micros| *micros > 0);
    match openai::deadline(headers, None)? {
        Some(deadline) => Ok(Some(deadline)),
        None => micros.map(timeout).transpose(),
    }
}

fn timeout(micros: u64) -> Result<Duration, ApiError> {
    let message = || format!("timeout is a number of microseconds from 1 to {}", DEADLINE_MAX.as_micros());
    let deadline = Some(Duration::from_micros(micros)).filter(openai::can_be_deadline);
    deadline.ok_or_else(|| ApiError::invalid("deadline_invalid", "timeout", message()))
}

/// The job's input, by what the model is.
fn input(
    architecture: Architecture,
    inputs: Vec<Tensor>,
    parameters: &mut Parameters,
) -> Result<JobInput, ApiError> {
    match architecture {
        Architecture::Bert => {
            let truncate = parameters.flag("truncate")?.unwrap_or(false);
            Ok(JobInput::Items(EmbedInput { items: items(inputs)?, truncate }))
        }
        Architecture::Whisper => {
            let translate = parameters.flag("translate")?.unwrap_or(false);
            let (language, prompt) = (parameters.text("language")?, parameters.text("prompt")?);
            let temperature = parameters.number("temperature")?.map(|temperature| temperature as f32);
            let options = audio::options(translate, language, prompt, temperature)?;
            Ok(JobInput::Audio { options, source: sound(inputs)?, pieces: None })
        }
        Architecture::Llama => {
            let options = sampling(parameters)?.options(None)?;
            let input = Box::new(GenerateInput { prompt: prompt(inputs)?, options });
            Ok(JobInput::Generate { input, file: None, pieces: None })
        }
    }
}

/// How a text is written, by the parameters of OpenAI's names.
fn sampling(parameters: &mut Parameters) -> Result<Sampling, ApiError> {
    let narrow = |name: &str, count: Option<u64>| {
        let wrong = |_| ApiError::invalid("parameter_invalid", name, format!("{name} is too large"));
        count.map(u32::try_from).transpose().map_err(wrong)
    };
    let mut float = |name: &str| Ok::<_, ApiError>(parameters.number(name)?.map(|number| number as f32));
    let (temperature, top_p, min_p) = (float("temperature")?, float("top_p")?, float("min_p")?);
    Ok(Sampling {
        temperature,
        top_p,
        min_p,
        max_tokens: narrow("max_tokens", parameters.count("max_tokens")?)?,
        top_k: narrow("top_k", parameters.count("top_k")?)?,
        seed: parameters.count("seed")?.map(u64::cast_signed),
        stop: parameters.text("stop")?.map(Stop::One),
        ignore_eos: parameters.flag("ignore_eos")?.unwrap_or(false),
        ..Sampling::default()
    })
}

fn prompt(inputs: Vec<Tensor>) -> Result<Prompt, ApiError> {
    let tensor = only(inputs, &[PROMPT.name])?;
    tensor.expect(&[PROMPT.datatype], PROMPT.shape)?;
    Ok(Prompt::Text(tensor.into_texts()?.into_iter().collect()))
}

/// The only input of a model.
fn only(inputs: Vec<Tensor>, names: &[&str]) -> Result<Tensor, ApiError> {
    let expected = names.join(" or ");
    let mut inputs = inputs.into_iter();
    let first =
        inputs.next().ok_or_else(|| invalid(names[0], &format!("it is missing; expected is {expected}")))?;
    match std::iter::once(&first).chain(inputs.as_slice()).find(|input| !names.contains(&input.name())) {
        Some(unknown) => {
            Err(invalid(unknown.name(), &format!("the model has no such input, only {expected}")))
        }
        None if inputs.len() > 0 => {
            Err(invalid(first.name(), &format!("expected is one input, {expected}, not both")))
        }
        None => Ok(first),
    }
}

fn items(inputs: Vec<Tensor>) -> Result<Vec<Item>, ApiError> {
    let tensor = only(inputs, &[TEXT.name, INPUT_IDS.name])?;
    let name = tensor.name().to_owned();
    let items: Vec<Item> = if name == TEXT.name {
        tensor.expect(&[TEXT.datatype], TEXT.shape)?;
        tensor.into_texts()?.into_iter().map(Item::Text).collect()
    } else {
        tensor.expect(&[INPUT_IDS.datatype, Datatype::Int32], INPUT_IDS.shape)?;
        let token =
            |token: i64| u32::try_from(token).map_err(|_| invalid(&name, "a token is from 0 to 4294967295"));
        vec![Item::Tokens(tensor.into_whole()?.into_iter().map(token).collect::<Result<_, _>>()?)]
    };
    if items.len() > ITEMS_MAX {
        return Err(invalid(&name, &format!("at most {ITEMS_MAX} texts are taken at a time")));
    }
    openai::not_empty(&name, items)
}

fn sound(inputs: Vec<Tensor>) -> Result<AudioSource, ApiError> {
    let tensor = only(inputs, &[AUDIO.name])?;
    tensor.expect(&[AUDIO.datatype], AUDIO.shape)?;
    audio::sealed_bytes(AUDIO.name, &tensor.into_octets()?)
}

/// What came of a job, as the signature has it.
fn outputs_of(made: &Made, items: usize) -> Result<Vec<Output<'_>>, ApiError> {
    match made {
        Made::Vectors { data, .. } => {
            let width = (data.len() / 4).checked_div(items).unwrap_or(0);
            Ok(vec![Output { is: EMBEDDING, shape: vec![items, width], values: Values::Floats(data) }])
        }
        Made::Speech(speech) => {
            let values = Values::Texts(vec![transcript::text(speech)]);
            Ok(vec![Output { is: TRANSCRIPT, shape: vec![1], values }])
        }
        Made::Text(answer) => {
            let values = Values::Texts(vec![answer.text.clone()]);
            Ok(vec![Output { is: ANSWER, shape: vec![1], values }])
        }
        Made::Live => Err(ApiError::internal(&"an inference whose output was given on before")),
    }
}
