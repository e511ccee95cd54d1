//! Answering a request that gets no backend: as PostgreSQL does after an error, so that the session can go on.

use std::future::poll_fn;
use std::io;

use super::{End, Serving, poll_more};
use crate::metrics::ErrorSource;
use crate::wire::tag::{backend, frontend};
use crate::wire::{HEADER, Header, PgError, messages};

impl Serving {
    /// Tells the error and passes over what belongs to the request: the one message of a simple query or function call,
    /// everything up to Sync in the extended protocol. COPY data that nobody waits for is dropped without a word.
    pub(super) async fn refuse(&mut self, error: PgError) -> Result<(), End> {
        // A cancel request that comes from now on is not for the next one.
        self.session.registration.runs_nothing().await;
        let tag = self.skip_message().await?;
        if matches!(tag, frontend::COPY_DATA | frontend::COPY_DONE | frontend::COPY_FAIL) {
            return Ok(());
        }
        self.count_error(ErrorSource::Proxy, &error.code);
        self.client.queue(&error.encode());
        if !matches!(tag, frontend::QUERY | frontend::FUNCTION_CALL) {
            let mut tag = tag;
            while tag != frontend::SYNC {
                self.send().await?;
                tag = self.skip_message().await?;
                if tag == frontend::TERMINATE {
                    return Err(End::Terminated);
                }
            }
        }
        self.begun.fail(&mut self.flow);
        let mut ready = Vec::new();
        messages::framed(&mut ready, backend::READY, &[&[self.flow.status().byte()]]);
        self.client.queue(&ready);
        self.send().await
    }

    async fn send(&mut self) -> Result<(), End> {
        poll_fn(|cx| self.client.poll_send(cx)).await.map_err(|_| End::ClientGone)
    }

    /// Passes over one message, however long, and gives its type.
    async fn skip_message(&mut self) -> Result<u8, End> {
        let max = self.context.config.load().limits.max_message as usize;
        let header = loop {
            match Header::read(self.client.received(), max) {
                Ok(Some(header)) => break header,
                Ok(None) => self.more().await?,
                Err(fault) => return Err(End::ClientFault(fault.into())),
            }
        };
        let mut left = HEADER + header.payload;
        loop {
            let length = left.min(self.client.received().len());
            self.client.take(|_| io::Result::Ok(length)).map_err(|_| End::ClientGone)?;
            left -= length;
            if left == 0 {
                return Ok(header.tag);
            }
            self.more().await?;
        }
    }

    async fn more(&mut self) -> Result<(), End> {
        poll_fn(|cx| poll_more(&mut self.client, cx)).await
    }
}
