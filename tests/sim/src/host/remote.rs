//! The applications behind the host's stream sockets: they read, write, finish and reset by their plan.

use std::time::Duration;

use usernet_core::HostError;
use usernet_core::op::CloseHow;

use crate::conversation::{Finish, Pace};
use crate::env::{Env, Event};

/// Something happened that the remote application may care for.
pub(super) fn wake(env: &mut Env, index: usize) {
    let conversation = &mut env.conversations[index];
    if !conversation.is_remote_scheduled {
        conversation.is_remote_scheduled = true;
        env.soon(Event::Remote(index));
    }
}

/// The application's turn.
pub(super) fn step(env: &mut Env, index: usize) {
    env.conversations[index].is_remote_scheduled = false;
    let host = &env.conversations[index].host;
    if !host.was_connected || host.was_refused || host.was_spliced || host.has_reset {
        return;
    }
    if env.is_closing {
        return reset(env, index);
    }
    let again = read(env, index);
    write(env, index);
    finish(env, index);
    if let Some(delay) = again {
        env.conversations[index].is_remote_scheduled = true;
        env.after(delay, Event::Remote(index));
    }
}

/// Reads at the application's pace; when to come back.
fn read(env: &mut Env, index: usize) -> Option<Duration> {
    let conversation = &mut env.conversations[index];
    let waiting = conversation.host.taken - conversation.host.read;
    let (take, again) = match conversation.plan.remote_manners.pace {
        Pace::Eager => (waiting, None),
        Pace::Slow { bytes, every } => {
            let take = waiting.min(u64::from(bytes));
            (take, (take > 0).then_some(every))
        }
        Pace::StopAfter(limit) => (waiting.min(limit.saturating_sub(conversation.host.read)), None),
    };
    conversation.host.read += take;
    if take > 0
        && let Some(socket) = conversation.host.socket
    {
        env.soon(Event::Send(socket));
    }
    again
}

/// Writes what it may and what fits the host's receive buffer.
fn write(env: &mut Env, index: usize) {
    let conversation = &mut env.conversations[index];
    let (host, plan) = (&mut conversation.host, &conversation.plan);
    let allowed = if plan.is_echo { host.read } else { plan.remote_manners.writes };
    let room = plan.host_buffer.saturating_sub(host.written - host.consumed);
    let most = (allowed - host.written).min(room);
    if most == 0 || host.closed.is_some() {
        return;
    }
    let bytes = if env.choices.chance(300) { env.choices.between(1, most) } else { most };
    let conversation = &mut env.conversations[index];
    conversation.host.written += bytes;
    let socket = conversation.host.socket;
    let is_more = bytes < most;
    if let Some(socket) = socket {
        env.soon(Event::Readable(socket));
    }
    if is_more {
        wake(env, index);
    }
}

fn finish(env: &mut Env, index: usize) {
    let conversation = &mut env.conversations[index];
    let (host, manners) = (&mut conversation.host, &conversation.plan.remote_manners);
    let has_read_all = host.saw_end && host.read == host.taken;
    let closes = match manners.finish {
        Finish::WhenWritten => host.written == manners.writes,
        Finish::AfterEnd => host.written == manners.writes && has_read_all,
        Finish::ResetAt(at) => {
            if host.read + host.written >= at {
                return reset(env, index);
            }
            false
        }
    };
    if closes && !host.has_closed && host.closed != Some(CloseHow::Reset) {
        host.has_closed = true;
        if let Some(socket) = host.socket {
            env.soon(Event::Readable(socket));
        }
    }
}

fn reset(env: &mut Env, index: usize) {
    let host = &mut env.conversations[index].host;
    host.has_reset = true;
    if let Some(socket) = host.socket {
        env.soon(Event::Failed(socket, HostError::Reset));
    }
}
