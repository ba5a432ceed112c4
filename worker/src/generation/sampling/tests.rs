use super::*;
use proptest::prelude::*;
use ringfence_protocol::GenerateOptions;
use std::collections::BTreeMap;

fn sampler(vocabulary: usize, change: impl FnOnce(&mut GenerateOptions)) -> Sampler {
    let mut options = GenerateOptions { temperature: 0.0, ..GenerateOptions::default() };
    change(&mut options);
    Sampler::new(Sampling::new(options), vocabulary).unwrap()
}

fn mask(vocabulary: usize, ids: &[u32]) -> Bitmask {
    let mut mask = Bitmask::none(vocabulary);
    ids.iter().for_each(|id| mask.allow(*id));
    mask
}

/// What is chosen one after another from the same logits.
fn ids(sampler: &mut Sampler, logits: &[f32], count: usize) -> Vec<u32> {
    (0..count).map(|_| sampler.sample(&mut logits.to_vec(), None).unwrap().id).collect()
}

#[test]
fn at_temperature_0_the_likeliest_token_is_taken_and_the_lower_id_of_two() {
    let mut logits = vec![-1.0; 100];
    for id in [77, 40, 41] {
        logits[id] = 3.5;
    }
    assert_eq!(ids(&mut sampler(100, |_| ()), &logits, 3), [40, 40, 40]);
    let allowed = mask(100, &[99, 41, 77]);
    assert_eq!(sampler(100, |_| ()).sample(&mut logits, Some(&allowed)).unwrap().id, 41);
}

#[test]
fn a_logit_that_is_no_number_or_infinite_is_an_error_wherever_it_is() {
    for broken in [f32::NAN, f32::INFINITY] {
        for id in [0, 31, 32, 49] {
            for temperature in [0.0, 1.0] {
                let mut logits = vec![0.5; 50];
                logits[id] = broken;
                let allowed = mask(50, &[7]);
                for allowed in [None, Some(&allowed)] {
                    let mut sampler = sampler(50, |options| options.temperature = temperature);
                    let sampled = sampler.sample(&mut logits.clone(), allowed);
                    assert_eq!(sampled, Err(SampleError::NotFinite), "{broken} at {id}");
                }
            }
        }
    }
}

#[test]
fn where_nothing_is_allowed_nothing_is_chosen() {
    let none = mask(50, &[]);
    for temperature in [0.0, 1.0] {
        let mut sampler = sampler(50, |options| options.temperature = temperature);
        assert_eq!(sampler.sample(&mut [0.0; 50], Some(&none)), Err(SampleError::NothingAllowed));
        assert_eq!(sampler.sample(&mut [f32::NEG_INFINITY; 50], None), Err(SampleError::NothingAllowed));
        let mut logits = [1.0; 50];
        logits[3] = f32::NEG_INFINITY;
        let third = mask(50, &[3]);
        assert_eq!(sampler.sample(&mut logits, Some(&third)), Err(SampleError::NothingAllowed));
    }
}

#[test]
fn penalties_count_what_they_are_documented_to_count() {
    let logits = [2.0, 1.9, 1.8, -1.0];
    let chosen = |change: fn(&mut GenerateOptions), prompt: &[u32], count| {
        let mut sampler = sampler(4, change);
        sampler.prompt(prompt);
        ids(&mut sampler, &logits, count)
    };
    assert_eq!(chosen(|_| (), &[0], 2), [0, 0]);
    // 2 / 1.2 is below 1.9 for a token of the prompt, and 1.9 / 1.2 below 1.8 for one of the answer.
    assert_eq!(chosen(|options| options.repetition_penalty = 1.2, &[0], 3), [1, 2, 0]);
    assert_eq!(chosen(|options| options.presence_penalty = 0.15, &[0], 4), [0, 1, 0, 0]);
    assert_eq!(chosen(|options| options.frequency_penalty = 0.15, &[0], 5), [0, 1, 0, 2, 1]);
}

#[test]
fn a_repetition_penalty_makes_negative_logits_more_negative() {
    let mut sampler = sampler(2, |options| options.repetition_penalty = 2.0);
    sampler.prompt(&[0]);
    assert_eq!(ids(&mut sampler, &[-1.0, -1.5], 1), [1]);
}

#[test]
fn a_bias_moves_a_token_and_must_be_of_a_known_one() {
    assert_eq!(
        ids(&mut sampler(3, |options| options.logit_bias = vec![(2, 5.0)]), &[1.0, 0.0, -3.0], 1),
        [2]
    );
    let options = GenerateOptions { logit_bias: vec![(3, 1.0)], ..GenerateOptions::default() };
    let refused = Sampler::new(Sampling::new(options), 3).map(|_| ());
    assert_eq!(refused, Err(BiasOfUnknownToken(3)));
}

#[test]
fn log_probabilities_are_of_the_model_whatever_bias_mask_and_temperature_did() {
    let logits: Vec<f32> = [4.0f32, 3.0, 2.0, 1.0].iter().map(|p| (p / 10.0).ln() + 7.0).collect();
    let mut sampler = sampler(4, |options| {
        options.logit_bias = vec![(1, -50.0)];
        options.logprobs = Some(2);
    });
    let sampled = sampler.sample(&mut logits.clone(), Some(&mask(4, &[1, 3]))).unwrap();
    assert_eq!(sampled.id, 3);
    assert!((sampled.logprob - 0.1f32.ln()).abs() < 1e-5, "{}", sampled.logprob);
    let top: Vec<u32> = sampled.top.iter().map(|(id, _)| *id).collect();
    assert_eq!(top, [0, 1]);
    assert!((sampled.top[1].1 - 0.3f32.ln()).abs() < 1e-5);
}

#[test]
fn of_equally_likely_tokens_the_lower_ids_are_in_the_top() {
    let mut sampler = sampler(40, |options| options.logprobs = Some(3));
    let top = sampler.sample(&mut [1.0; 40], None).unwrap().top;
    assert_eq!(top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!(sampler.sample(&mut [1.0; 40], None).unwrap().id, 0);
}

#[test]
fn a_seed_gives_the_same_tokens_again_and_another_seed_others() {
    let logits: Vec<f32> = (0..1000u32).map(|id| (id * 7919 % 1000) as f32 / 200.0).collect();
    let of = |seed| {
        let mut sampler = sampler(1000, |options| {
            options.temperature = 1.0;
            options.seed = seed;
        });
        ids(&mut sampler, &logits, 20)
    };
    assert_eq!(of(1), of(1));
    assert_ne!(of(1), of(2));
}

#[test]
fn each_token_takes_one_random_number_however_many_could_be_drawn() {
    // The second token is the same whether the first was drawn from one, from few or from all.
    let logits: Vec<f32> = (0..100u8).map(|id| f32::from(id % 10)).collect();
    let second = |only: Option<Bitmask>| {
        let mut sampler = sampler(100, |options| options.temperature = 1.5);
        sampler.sample(&mut logits.clone(), only.as_ref()).unwrap();
        sampler.sample(&mut logits.clone(), None).unwrap().id
    };
    let of_all = second(None);
    assert_eq!(second(Some(mask(100, &[5]))), of_all);
    assert_eq!(second(Some(mask(100, &[5, 6, 9]))), of_all);
}

#[test]
fn tokens_come_as_often_as_they_are_likely() {
    let logits: Vec<f32> = [0.5f32, 0.25, 0.15, 0.1].iter().map(|p| p.ln()).collect();
    let mut sampler = sampler(4, |options| options.temperature = 1.0);
    let mut counts = [0u32; 4];
    for id in ids(&mut sampler, &logits, 20_000) {
        counts[id as usize] += 1;
    }
    for (count, p) in counts.iter().zip([0.5, 0.25, 0.15, 0.1]) {
        assert!((f64::from(*count) / 20_000.0 - p).abs() < 0.015, "{counts:?}");
    }
}

/// The tokens that may be drawn and their probabilities, by sorting everything.
fn by_sorting(options: &GenerateOptions, logits: &[f32], allowed: &Bitmask) -> BTreeMap<u32, f64> {
    let mut tokens: Vec<(u32, f64)> = (0..)
        .zip(logits.iter().map(|logit| f64::from(*logit)))
        .filter(|(id, _)| allowed.allows(*id))
        .collect();
    tokens.sort_by(|left, right| right.1.total_cmp(&left.1).then(left.0.cmp(&right.0)));
    let max = tokens[0].1;
    tokens.iter_mut().for_each(|token| token.1 = ((token.1 - max) / f64::from(options.temperature)).exp());
    if options.top_k > 0 {
        tokens.truncate(options.top_k as usize);
    }
    let total: f64 = tokens.iter().map(|token| token.1).sum();
    let mut before = 0.0;
    tokens.retain(|token| {
        let kept = before == 0.0 || before < f64::from(options.top_p) * total;
        before += token.1;
        kept
    });
    tokens.retain(|token| token.1 >= f64::from(options.min_p));
    let total: f64 = tokens.iter().map(|token| token.1).sum();
    tokens.into_iter().map(|(id, weight)| (id, weight / total)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_drawn_is_what_sorting_all_tokens_would_leave(
        logits in prop::collection::vec((-40i8..40).prop_map(|logit| f32::from(logit) / 4.0), 1..700),
        temperature in 0.2f32..2.0, top_k in prop_oneof![Just(0u32), 1u32..200], min_p in prop_oneof![Just(0.0f32), 0.0f32..0.5],
        // Odd steps: a sum that meets the bound exactly may be rounded either way.
        top_p in prop_oneof![Just(1.0f32), (0u8..20).prop_map(|step| f32::from(step) / 20.0 + 0.000_37)],
        masked: bool,
    ) {
        let vocabulary = logits.len();
        let allowed: Vec<u32> = (0..vocabulary as u32).filter(|id| !masked || id % 3 == 0).collect();
        let allowed = mask(vocabulary, &allowed);
        let options = GenerateOptions { temperature, top_k, top_p: top_p.min(1.0), min_p, ..GenerateOptions::default() };
        let expected = by_sorting(&options, &logits, &allowed);
        let mut drawn = BTreeMap::new();
        for seed in 0..64 {
            let sampling = Sampling::new(GenerateOptions { seed, ..options.clone() });
            let sampled = Sampler::new(sampling, vocabulary).unwrap().sample(&mut logits.clone(), Some(&allowed));
            let id = sampled.unwrap().id;
            prop_assert!(expected.contains_key(&id), "{id} of {expected:?}");
            *drawn.entry(id).or_insert(0) += 1;
        }
        for (id, p) in expected {
            prop_assert!(p < 0.3 || drawn.contains_key(&id), "{id} with {p} was never drawn");
        }
    }

    #[test]
    fn the_likeliest_is_the_first_of_the_largest(
        logits in prop::collection::vec(-9i8..9, 1..200), allowed in prop::collection::vec(any::<bool>(), 200),
    ) {
        let logits: Vec<f32> = logits.into_iter().map(f32::from).collect();
        let ids: Vec<u32> = (0..logits.len() as u32).filter(|id| allowed[*id as usize]).collect();
        let mask = mask(logits.len(), &ids);
        let largest = ids.iter().map(|id| logits[*id as usize]).fold(f32::NEG_INFINITY, f32::max);
        let first = ids.iter().copied().find(|id| logits[*id as usize] == largest);
        prop_assert_eq!(choice::likeliest(&logits, Some(&mask)).ok(), first);
    }
}
