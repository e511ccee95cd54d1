//! A client that listens: its LISTEN and UNLISTEN go to the backend that its database's clients share, and what comes
//! from there is told between its transactions, as PostgreSQL does it.

use std::io;
use std::task::{Context as TaskContext, Poll};

use super::begun::Begun;
use super::{End, MAX_UNSENT, NoBackend, Serving, unless_over};
use crate::config::PoolMode;
use crate::listen::{Heard, Listener};
use crate::net::Endpoint;
use crate::relay::{ChannelChange, Flow};

impl Serving {
    /// Answers a request that listens or ceases to, if it needs no backend of its own; says whether it did.
    pub(super) async fn listens(&mut self) -> Result<bool, NoBackend> {
        if self.session.mode != PoolMode::Transaction || self.session.kept.is_some() || self.begun != Begun::No {
            return Ok(false);
        }
        let Some(request) = self.flow.listen_request(self.client.received()) else { return Ok(false) };
        match &request.change {
            ChannelChange::Listen(channel) => {
                if Box::pin(self.listen(channel.clone())).await? == Heard::Elsewhere {
                    return Ok(false);
                }
            }
            ChannelChange::Unlisten(channel) => self.unlisten(&Some(channel.clone())),
            ChannelChange::UnlistenAll => self.unlisten(&None),
        }
        self.flow.listened(&request, self.client.received());
        self.client.queue(&request.answer);
        let taken = self.client.take(|_| io::Result::Ok(request.length));
        taken.map(|()| true).map_err(|_| NoBackend::End(End::ClientGone))
    }

    async fn listen(&mut self, channel: String) -> Result<Heard, NoBackend> {
        let Serving { session, context, listener, .. } = self;
        let heard = unless_over(session, context.hubs.listen(listener, &session.pool, channel.clone())).await;
        session.registration.runs_nothing().await;
        let heard = heard?.map_err(NoBackend::Refused)?;
        if heard == Heard::Yes {
            self.flow.state.channels.share(channel);
        }
        Ok(heard)
    }

    /// None stands for all channels.
    fn unlisten(&mut self, channel: &Option<String>) {
        self.flow.state.channels.unshare(channel.as_deref());
        match (channel, &mut self.listener) {
            (Some(channel), Some(listener)) => {
                listener.unlisten(channel);
                if listener.is_empty() {
                    self.listener = None;
                }
            }
            _ => self.listener = None,
        }
    }

    /// Takes over what the client has ceased to listen to on its own backend: it does on the shared one, too.
    pub(super) fn unlisten_own(&mut self) {
        if !self.flow.state.channels.watched() {
            return;
        }
        for channel in self.flow.state.channels.take() {
            self.unlisten(&channel);
        }
    }
}

/// Tells the client what it listens to, as far as it takes it, and as long as it is in no transaction.
pub(super) fn tell_notifications(
    listener: Option<&Listener>,
    flow: &Flow,
    client: &mut Endpoint,
    cx: &mut TaskContext<'_>,
) -> Result<(), End> {
    let Some(listener) = listener.filter(|_| flow.is_free()) else { return Ok(()) };
    loop {
        // Many of them go out in one write.
        while client.unsent() <= MAX_UNSENT {
            match listener.poll_next(cx) {
                Poll::Ready(Ok(frame)) => client.queue(&frame),
                Poll::Ready(Err(error)) => return Err(End::Told(error)),
                Poll::Pending if !client.has_unsent() => return Ok(()),
                Poll::Pending => break,
            }
        }
        match client.poll_send(cx) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(_)) => return Err(End::ClientGone),
            Poll::Pending => return listener.poll_ended(cx).map_err(End::Told),
        }
    }
}
