//! What goes into the next step: one item of each lane in turn, as long as the token budget lasts.

/// How many of each lane's waiting items to take. `length(lane, n)` is the tokens of the n-th waiting item of a lane.
/// The first item is taken whatever its length, so that the first lane always moves on.
pub fn choose(lanes: usize, budget: usize, length: impl Fn(usize, usize) -> Option<usize>) -> Vec<usize> {
    let mut taken = vec![0; lanes];
    let mut tokens = 0;
    loop {
        let before = tokens;
        for (lane, taken) in taken.iter_mut().enumerate() {
            if let Some(more) = length(lane, *taken)
                && (tokens == 0 || tokens + more <= budget)
            {
                *taken += 1;
                tokens += more;
            }
        }
        if tokens == before {
            return taken;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(jobs: &[&[usize]], budget: usize, taken: &[usize]) {
        assert_eq!(choose(jobs.len(), budget, |job, n| jobs[job].get(n).copied()), taken, "{jobs:?}");
    }

    #[test]
    fn lanes_share_a_step_item_by_item() {
        check(&[], 10, &[]);
        check(&[&[], &[]], 10, &[0, 0]);
        check(&[&[4, 4, 4], &[4]], 12, &[2, 1]);
        check(&[&[4, 4, 4], &[4, 4, 4]], 100, &[3, 3]);
    }

    #[test]
    fn the_first_lanes_next_item_always_runs() {
        check(&[&[50, 1], &[1]], 10, &[1, 0]);
        check(&[&[8, 8], &[3]], 10, &[1, 0]);
        check(&[&[8, 8], &[2, 2]], 10, &[1, 1]);
    }
}
