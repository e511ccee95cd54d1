//! A client that listens: its LISTEN and UNLISTEN go to the backend that its database's clients share, and what comes
//! from there is told between its transactions, as PostgreSQL does it.

use std::io;
use std::task::{Context as TaskContext, Poll, Waker};

use super::begun::Begun;
use super::{End, MAX_UNSENT, NoBackend, Serving, unless_over};
use crate::config::PoolMode;
use crate::listen::{Heard, Listener};
use crate::net::Endpoint;
use crate::relay::{Ceased, ChannelChange, Flow};
use crate::wire::messages;
use crate::wire::tag::backend;

impl Serving {
    /// Answers a request that listens or ceases to, if it needs no backend of its own; says whether it did.
    pub(super) async fn listens(&mut self) -> Result<bool, NoBackend> {
        if self.session.mode != PoolMode::Transaction || self.session.kept.is_some() || self.begun != Begun::No {
            return Ok(false);
        }
        let Some(request) = self.flow.listen_request(self.client.received()) else { return Ok(false) };
        Box::pin(self.wait_while_paused()).await?;
        match &request.change {
            ChannelChange::Listen(channel) => {
                if Box::pin(self.listen(channel.clone())).await? == Heard::Elsewhere {
                    return Ok(false);
                }
            }
            ChannelChange::Unlisten(channel) => Box::pin(self.unlisten(Some(channel))).await?,
            ChannelChange::UnlistenAll => Box::pin(self.unlisten(None)).await?,
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

    /// Ceases to listen on the shared backend; the client has heard what was notified before. None stands for all channels.
    async fn unlisten(&mut self, channel: Option<&str>) -> Result<(), NoBackend> {
        let shared = &self.flow.state.channels;
        if channel.map_or(shared.watched(), |channel| shared.shares(channel)) {
            self.hear_all().await?;
            self.leave_channel(channel);
        }
        Ok(())
    }

    /// Waits until all is here that was notified before.
    async fn hear_all(&mut self) -> Result<(), NoBackend> {
        let Serving { session, listener, .. } = self;
        if let Some(listener) = listener {
            let all_is_here = unless_over(session, listener.all_is_here()).await;
            session.registration.runs_nothing().await;
            all_is_here?;
        }
        Ok(())
    }

    /// None stands for all channels.
    fn leave_channel(&mut self, channel: Option<&str>) {
        self.flow.state.channels.unshare(channel);
        let Some(listener) = &mut self.listener else { return };
        if let Some(channel) = channel {
            listener.unlisten(channel);
        }
        if channel.is_none() || listener.is_empty() {
            // What has come is heard before what the client asks for next; and if something was lost, it is too late to say so.
            let mut cx = TaskContext::from_waker(Waker::noop());
            while let Poll::Ready(Ok(frame)) = listener.poll_next(&mut cx) {
                self.client.queue(&frame);
            }
            self.listener = None;
        }
    }

    /// Takes over what the client has ceased to listen to on its own backend: it does on the shared one, too. As in PostgreSQL,
    /// what came during the transaction that did so is not heard.
    pub(super) async fn unlisten_own(&mut self) -> Result<(), End> {
        if !self.flow.state.channels.watched() {
            return Ok(());
        }
        let ceased = self.flow.state.channels.take();
        if ceased.iter().any(|ceased| ceased.alone)
            && let Err(NoBackend::End(end)) = Box::pin(self.hear_all()).await
        {
            return Err(end);
        }
        for Ceased { channel, alone } in ceased {
            if let Some(listener) = self.listener.as_ref().filter(|_| !alone) {
                listener.drop_waiting(&channel);
            }
            self.leave_channel(Some(&channel));
        }
        if self.flow.state.channels.owes_ready() {
            let mut ready = Vec::new();
            messages::framed(&mut ready, backend::READY, &[b"I"]);
            self.client.queue(&ready);
        }
        Ok(())
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
