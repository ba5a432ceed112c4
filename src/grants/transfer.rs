//! A client's own reading and writing of a granted file, step by step between its connection and the file's service. The
//! server holds one step at a time.

use super::guard::Opening;
use super::spending::{Facts, Spending, Used};
use super::{GrantService, GuardError, Holder, Socket, guarded, refused_to};
use crate::api::ApiError;
use crate::audit::{Lane, Place};
use crate::clock;
use crate::workers::{receive_carried, watch as watch_readiness};
use axum::http::StatusCode;
use ringfence_protocol::{FILE_STEP_BYTES_MAX, FileLink, FileReply, FileRequest, Packet};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::sync::{oneshot, watch};

/// How long a file's service may take over one step.
const STEP_WAIT_MAX: Duration = Duration::from_secs(10);

/// A file that a client reads or writes, until this is dropped.
pub(crate) struct Transfer {
    link: AsyncFd<FileLink>,
    packet: Packet,
    /// Bytes of the file when it was opened.
    pub(crate) size: u64,
    ended: watch::Receiver<bool>,
    spending: Arc<Spending>,
}

impl GrantService {
    /// Opens a file that its holder reads itself, at most so many bytes of it.
    pub(crate) async fn read_for_client(
        self: &Arc<Self>,
        holder: &Holder<'_>,
        path: &str,
        bytes_max: u64,
    ) -> Result<Transfer, ApiError> {
        let place = self.audit.place(Lane::Use).await?;
        let read = self.table().read(clock::moment(), holder.presented(), path, bytes_max);
        let used = Used::Read(read.map_err(|refusal| refused_to(holder, refusal))?);
        let transfer = self.open_for_client(used, holder, place).await?;
        transfer.spending.hold_at_most(transfer.size);
        Ok(transfer)
    }

    /// Opens a file that its holder writes anew, at most so many bytes. It becomes what it was written at
    /// [`Transfer::commit`], and not before.
    pub(crate) async fn write_for_client(
        self: &Arc<Self>,
        holder: &Holder<'_>,
        path: &str,
        bytes_max: u64,
    ) -> Result<Transfer, ApiError> {
        let place = self.audit.place(Lane::Use).await?;
        let write = self.table().write(clock::moment(), holder.presented(), path, bytes_max);
        let used = Used::Write(write.map_err(|refusal| refused_to(holder, refusal))?);
        self.open_for_client(used, holder, place).await
    }

    async fn open_for_client(
        self: &Arc<Self>,
        used: Used,
        holder: &Holder<'_>,
        place: Place,
    ) -> Result<Transfer, ApiError> {
        let access = used.access();
        let (facts, spending) = self.begin(used, holder.who, place).await?;
        let Facts { grant, root, path, until_boot_ms, bytes_max, .. } = facts;
        let (Some(ended), Some(guard)) = (self.end_of(grant), self.guard_of(root)) else {
            return Err(guarded(&GuardError::Ended));
        };
        let Socket { theirs, fileguards: socket } =
            Socket::new().map_err(|error| ApiError::internal(&error))?;
        let (closed, when_closed) = oneshot::channel();
        let opening =
            Opening { grant, path, access, until_boot_ms, bytes_max, socket, ended: ended.clone(), closed };
        let opened = guard.open(opening).await.map_err(|error| guarded(&error));
        let size = opened.inspect_err(|error| spending.refused(error.code()))?;
        tokio::spawn(spending.opened(when_closed));
        let link = watch_readiness(FileLink::new(theirs)).map_err(|error| ApiError::internal(&error))?;
        Ok(Transfer { link, packet: Packet::default(), size, ended, spending })
    }
}

impl Transfer {
    /// The bytes from `offset` on, at most `length` and at most one step of them; none at the end of the file.
    pub(crate) async fn read(&mut self, offset: u64, length: u64) -> Result<Vec<u8>, ApiError> {
        let length = length.min(FILE_STEP_BYTES_MAX as u64) as u32;
        match self.exchange(&FileRequest::Read { offset, length }, &[]).await? {
            FileReply::Bytes { offset: at, .. } if at == offset => Ok(self.packet.carried().to_vec()),
            reply => Err(answered(&reply)),
        }
    }

    /// Writes at most one step.
    pub(crate) async fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), ApiError> {
        let length = u32::try_from(bytes.len()).expect("a step's length");
        match self.exchange(&FileRequest::Write { offset, length }, bytes).await? {
            FileReply::Written { offset: at } if at == offset => Ok(()),
            reply => Err(answered(&reply)),
        }
    }

    /// Puts what was written into the file's place, durably; its length.
    pub(crate) async fn commit(&mut self) -> Result<u64, ApiError> {
        match self.exchange(&FileRequest::Commit, &[]).await? {
            FileReply::Committed { size } => Ok(size),
            reply => Err(answered(&reply)),
        }
    }

    /// Counts what was used before the answer is given: the next use is decided by it.
    pub(crate) async fn finish(self) {
        let Self { link, spending, .. } = self;
        drop(link);
        spending.counted().await;
    }

    /// One request and its reply, unless the grant ends first.
    async fn exchange(&mut self, request: &FileRequest, carried: &[u8]) -> Result<FileReply, ApiError> {
        // Where that fails, what it said before it closed the socket is still there.
        drop(self.link.get_ref().send_carrying(request, carried));
        let Self { link, packet, ended, .. } = self;
        let over = || guarded(&GuardError::Ended);
        let reply = tokio::select! {
            biased;
            _ = ended.wait_for(|ended| *ended) => return Err(over()),
            reply = tokio::time::timeout(STEP_WAIT_MAX, receive_carried(link, packet)) => reply,
        };
        match reply {
            Ok(Ok(received)) => Ok(received.message),
            Ok(Err(_)) => Err(over()),
            Err(_) => Err(guarded(&GuardError::Busy)),
        }
    }
}

/// A reply that is not what was asked for.
fn answered(reply: &FileReply) -> ApiError {
    match reply {
        FileReply::Refused(refusal) => guarded(&GuardError::File(*refusal)),
        FileReply::Bytes { .. } | FileReply::Written { .. } | FileReply::Committed { .. } => ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "file_service_failed",
            "the file service answered something else",
        ),
    }
}
