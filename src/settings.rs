//! What `quotas.toml` comes to for a model on this machine.

use crate::packages::Predicted;
use ringfence_scheduler::quotas::ModelQuota;

const MIB: u64 = 1024 * 1024;

/// Room for jobs' inputs in a lease that follows from a profile.
const INPUTS_BYTES: u64 = 64 * MIB;

// The file's bound of jobs in a worker is the protocol's.
const _: () = assert!(ringfence_scheduler::CONCURRENCY_MAX as u32 == ringfence_protocol::SLOTS_MAX);

/// The lease in bytes for weights of this many bytes, and for what the model was measured to take.
///
/// # Errors
/// The model does not fit in the lease that the file names: said before a worker is started for it.
pub(crate) fn lease_bytes(
    quota: &ModelQuota,
    weight_bytes: u64,
    predicted: Option<&Predicted>,
) -> Result<u64, String> {
    let Some(mib) = quota.lease_mib else {
        let guess = weight_bytes + weight_bytes / 4 + 256 * MIB;
        let measured = predicted.map_or(0, |predicted| {
            predicted.peak_bytes.saturating_add(predicted.peak_bytes / 10).saturating_add(INPUTS_BYTES)
        });
        return Ok(guess.max(measured));
    };
    match predicted {
        Some(predicted) if predicted.least_bytes > mib * MIB => Err(format!(
            "lease_too_small: its lease is {mib} MiB, and by its profile it takes {} MiB loaded with a step of one \
             token; raise models.NAME.lease_mib in quotas.toml to {} MiB for full steps",
            predicted.least_bytes.div_ceil(MIB),
            predicted.peak_bytes.div_ceil(MIB),
        )),
        _ => Ok(mib * MIB),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringfence_scheduler::quotas::Quotas;

    #[test]
    fn a_profile_raises_the_default_lease_and_refuses_one_that_is_too_small() {
        let predicted = Predicted { least_bytes: 90 * MIB, peak_bytes: 1000 * MIB };
        let quotas = Quotas::parse("[models.small]\nlease_mib = 89\n[models.fits]\nlease_mib = 90").unwrap();
        let modest = Predicted { peak_bytes: 100 * MIB, ..predicted };
        let lease = |name, predicted| lease_bytes(&quotas.model(name), 80 * MIB, predicted);
        assert_eq!(lease("any", None), Ok(356 * MIB));
        assert_eq!(lease("any", Some(&predicted)), Ok(1164 * MIB));
        assert_eq!(lease("any", Some(&modest)), Ok(356 * MIB));
        assert_eq!(lease("fits", Some(&predicted)), Ok(90 * MIB));
        assert_eq!(lease("small", None), Ok(89 * MIB));
        let refused = lease("small", Some(&predicted)).unwrap_err();
        assert!(
            refused.contains("89 MiB") && refused.contains("90 MiB") && refused.contains("1000 MiB"),
            "{refused}"
        );
    }
}
