//! Reads bodies, within limits of size, memory and time.

use std::time::Duration;

use bytes::{Buf as _, Bytes};
use http_body_util::BodyExt as _;
use hyper::body::Body;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::budget::{Budget, UsedUp};

/// How to read a body.
#[derive(Debug)]
pub(super) struct BodyReader<'a> {
    /// The memory that it may take.
    pub(super) budget: &'a Budget,
    /// The largest body.
    pub(super) max_bytes: usize,
    /// How long it may take.
    pub(super) timeout: Duration,
    /// The number of bytes of the request's head that are kept besides.
    pub(super) head_bytes: usize,
}

/// A body and its memory permit, held until the event is durable or dropped, even if the client disconnects: while a
/// disk hangs, waiting events must not take more memory than `http.max_buffered_bytes`.
pub(super) struct Buffered {
    pub(super) body: Bytes,
    pub(super) permit: OwnedSemaphorePermit,
}

/// Why a body was not read to the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyError {
    /// It is larger than the limit.
    TooLarge,
    /// It took too long.
    TooSlow,
    /// The connection failed.
    Broken,
    /// There is no memory for it.
    UsedUp,
}

impl From<UsedUp> for BodyError {
    fn from(_: UsedUp) -> Self {
        Self::UsedUp
    }
}

impl BodyReader<'_> {
    /// Reads a body. `announced` is its length, if the client has announced it.
    pub(super) async fn read<B>(
        &self,
        announced: Option<u64>,
        body: B,
    ) -> Result<Buffered, BodyError>
    where
        B: Body<Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Unpin,
    {
        if announced.is_some_and(|announced| announced > self.max_bytes as u64) {
            return Err(BodyError::TooLarge);
        }
        let read = timeout(self.timeout, self.collect(body)).await;
        read.unwrap_or(Err(BodyError::TooSlow))
    }

    /// Collects a body. Permits cover only bytes that have arrived, those of the head included.
    async fn collect<B>(&self, mut body: B) -> Result<Buffered, BodyError>
    where
        B: Body<Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Unpin,
    {
        let mut first = Bytes::new();
        let mut rest = Vec::new();
        let mut permit = self.budget.acquire(self.head_bytes)?;
        while let Some(frame) = body.frame().await {
            let Ok(mut data) = frame.map_err(|_| BodyError::Broken)?.into_data() else {
                continue;
            };
            let length = data.remaining();
            let bytes = first.len() + rest.len() + length;
            if bytes > self.max_bytes {
                return Err(BodyError::TooLarge);
            }
            // Permits are counted for the whole body, so a client that sends it byte by byte does not take more.
            self.budget.enlarge(&mut permit, self.head_bytes + bytes)?;
            if first.is_empty() {
                first = data.copy_to_bytes(length);
            } else {
                rest.extend_from_slice(&data.copy_to_bytes(length));
            }
        }
        let body = if rest.is_empty() {
            first
        } else {
            [&first, &rest[..]].concat().into()
        };
        Ok(Buffered { body, permit })
    }
}
