//! A grant of sound as it is used: one capture, from its start to its end.

use super::file::GrantEnd;
use super::{GrantService, GuardError, Holder, guarded, refused_to};
use crate::api::ApiError;
use crate::clock;
use ringfence_grants::{AudioCapture, GrantId, State};
use std::sync::Arc;

impl GrantService {
    /// Lets sound be captured once by whoever gets what is returned, until the grant's end comes. It is written down before.
    pub(crate) async fn capture(
        self: &Arc<Self>,
        holder: &Holder<'_>,
    ) -> Result<(AudioCapture, GrantEnd), ApiError> {
        self.audit.well()?;
        let rules = self.rules()?;
        let capture = self.table().capture(clock::moment(), holder.presented(), &rules);
        let capture = capture.map_err(|refusal| refused_to(holder, refusal))?;
        let (grant, source) = (capture.grant(), capture.source().to_string());
        let end = self.end_of(grant).ok_or_else(|| guarded(&GuardError::Ended))?;
        let (first, _) = self.live(grant);
        first.get_or_try_init(|| self.record_first_use(grant, holder.who, source)).await?;
        Ok((capture, GrantEnd(end)))
    }

    /// Whether a grant has ended by its time, and by nobody's will.
    pub(crate) fn has_expired(&self, grant: GrantId) -> bool {
        self.table().grant(grant).is_some_and(|grant| grant.state == State::Expired)
    }
}
