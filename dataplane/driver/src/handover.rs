//! What shards give each other: frames and clients that came to the wrong one, and news of the neighbours.
//!
//! # Theory of operation
//!
//! Each shard has an inbox: a channel without locks, and with a bound, that the other shards put letters in. A frame is copied into
//! a buffer of the inbox and from there into a lease of its shard: two copies, which only the first frames of a flow pay
//! for, and the acknowledgements of one that is lent. The buffers come from two stores, because most of those frames are small. A store or a channel that is empty or
//! full is a lost frame, which is counted, as on any link.
//!
//! A shard that waits is woken by the eventfd of its mailbox, and only then: before it waits it says so, and looks
//! once more ([`Post::goes_to_sleep`]); who puts a letter in afterwards sees it ([`Inbox::wake_up`]).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};

use crossbeam_channel::{Receiver, Sender, unbounded};
use nix::sys::eventfd::EventFd;
use usernet_core::config::MacAddr;
use usernet_core::op::RESERVE_BYTES_MAX;
use usernet_core::{ForwardId, Input, LentFlow, Offload, Op, ShardId};

use crate::arena::LARGE_ROOM;
use crate::backend::Backend;
use crate::counters::Counter;
use crate::engine::Engine;
use crate::listen::Taken;
use crate::stream::Stream;

/// Letters in an inbox: the first frames of a thousand connections at once.
const LETTERS_MAX: usize = 2_048;

/// Buffers for frames without payload to speak of.
const SMALL_BUFFERS: usize = 1_024;

/// Buffers for any frame. Like the small ones they cost address space until they are used.
const LARGE_BUFFERS: usize = 64;

/// Letters taken per turn, as many as frames.
const LETTERS_PER_TURN: usize = 256;

/// Letters taken before the ops they caused are run.
const LETTERS_PER_STEP: usize = 16;

/// What one shard has for another.
pub(crate) enum Letter {
    /// A frame, at the front of a buffer of the inbox.
    Frame { buffer: Box<[u8]>, len: usize, offload: Offload },
    /// A client of a forward.
    Client { client: Taken, forward: ForwardId },
    /// A station has this address.
    Neighbor { ip: IpAddr, mac: MacAddr },
    /// A flow that is lent, or given back, with its socket.
    Flow(Box<(LentFlow, Stream)>),
    /// A flow that was lent has ended.
    Ended { guest: SocketAddr, remote: SocketAddr },
}

/// Both ends of a queue: any shard puts in, one takes out. It has memory for what is in it, which others bound.
struct Store<T> {
    sender: Sender<T>,
    receiver: Receiver<T>,
}

impl<T> Store<T> {
    fn new() -> Self {
        let (sender, receiver) = unbounded();
        Self { sender, receiver }
    }
}

/// Buffers of one size, made as they are needed.
struct Buffers {
    store: Store<Box<[u8]>>,
    len: usize,
    /// How many may still be made.
    unmade: AtomicUsize,
}

impl Buffers {
    fn new(count: usize, len: usize) -> Self {
        Self { store: Store::new(), len, unmade: AtomicUsize::new(count) }
    }

    fn take(&self) -> Option<Box<[u8]>> {
        if let Ok(buffer) = self.store.receiver.try_recv() {
            return Some(buffer);
        }
        let one_less = |unmade: usize| unmade.checked_sub(1);
        let (relaxed, unmade) = (Ordering::Relaxed, &self.unmade);
        unmade.fetch_update(relaxed, relaxed, one_less).ok()?;
        Some(vec![0; self.len].into_boxed_slice())
    }

    fn give_back(&self, buffer: Box<[u8]>) {
        let _ = self.store.sender.try_send(buffer);
    }
}

/// Where a shard gets its letters.
struct Inbox {
    letters: Store<Letter>,
    small: Buffers,
    large: Buffers,
    /// It waits, or is about to.
    is_asleep: AtomicBool,
    /// Ends the waiting.
    wake: Arc<EventFd>,
}

impl Inbox {
    fn new(wake: Arc<EventFd>) -> Self {
        Self {
            letters: Store::new(),
            small: Buffers::new(SMALL_BUFFERS, RESERVE_BYTES_MAX),
            large: Buffers::new(LARGE_BUFFERS, LARGE_ROOM),
            is_asleep: AtomicBool::new(false),
            wake,
        }
    }

    fn buffers(&self, len: usize) -> &Buffers {
        if len <= RESERVE_BYTES_MAX { &self.small } else { &self.large }
    }

    /// Ends its shard's waiting, if it waits.
    fn wake_up(&self) {
        // Pairs with the fence of `goes_to_sleep`: either we see the flag, or it sees the letter.
        fence(Ordering::SeqCst);
        if self.is_asleep.load(Ordering::Relaxed) && self.is_asleep.swap(false, Ordering::Relaxed) {
            // EAGAIN: it has been told more often than it can count.
            let _ = self.wake.write(1);
        }
    }
}

/// One shard's way to the others.
pub(crate) struct Post {
    own: usize,
    inboxes: Arc<[Inbox]>,
}

impl Post {
    /// One for each shard, given what wakes it.
    pub(crate) fn among(wakes: impl IntoIterator<Item = Arc<EventFd>>) -> Vec<Self> {
        let inboxes: Arc<[Inbox]> = wakes.into_iter().map(Inbox::new).collect();
        (0..inboxes.len()).map(|own| Self { own, inboxes: Arc::clone(&inboxes) }).collect()
    }

    /// To be called before waiting. False: there are letters, so do not.
    pub(crate) fn goes_to_sleep(&self) -> bool {
        let inbox = &self.inboxes[self.own];
        inbox.is_asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        inbox.letters.receiver.is_empty()
    }

    /// To be called after waiting.
    pub(crate) fn is_awake(&self) {
        self.inboxes[self.own].is_asleep.store(false, Ordering::Relaxed);
    }

    fn take(&self) -> Option<Letter> {
        self.inboxes[self.own].letters.receiver.try_recv().ok()
    }

    /// A buffer that came with a letter.
    fn give_back(&self, buffer: Box<[u8]>) {
        self.inboxes[self.own].buffers(buffer.len()).give_back(buffer);
    }

    /// Puts a letter in another's inbox, unless that is full.
    pub(crate) fn put(&self, to: ShardId, letter: Letter) -> Result<(), Letter> {
        let inbox = &self.inboxes[usize::from(to.0)];
        // Others may do the same at this moment: a few more do no harm.
        if inbox.letters.sender.len() >= LETTERS_MAX {
            return Err(letter);
        }
        inbox.letters.sender.try_send(letter).map_err(|gone| gone.into_inner())?;
        inbox.wake_up();
        Ok(())
    }

    /// Copies a frame that lies in parts to another's inbox. False: it has no room.
    fn put_frame<'a>(
        &self,
        to: ShardId,
        len: usize,
        parts: impl Iterator<Item = &'a [u8]>,
        offload: Offload,
    ) -> bool {
        let inbox = &self.inboxes[usize::from(to.0)];
        let Some(mut buffer) = inbox.buffers(len).take() else { return false };
        let mut rest = &mut buffer[..len];
        for part in parts {
            let (front, behind) = rest.split_at_mut(part.len());
            front.copy_from_slice(part);
            rest = behind;
        }
        match self.put(to, Letter::Frame { buffer, len, offload }) {
            Ok(()) => true,
            Err(Letter::Frame { buffer, .. }) => {
                inbox.buffers(buffer.len()).give_back(buffer);
                false
            }
            Err(_) => false,
        }
    }
}

/// The engine's side.
impl<B: Backend> Engine<B> {
    /// What other shards have for this one.
    pub(crate) fn take_letters(&mut self) {
        for _ in 0..LETTERS_PER_TURN / LETTERS_PER_STEP {
            let taken = self.take_some_letters();
            if taken > 0 {
                self.flush();
            }
            if taken < LETTERS_PER_STEP {
                return;
            }
        }
    }

    fn take_some_letters(&mut self) -> usize {
        for taken in 0..LETTERS_PER_STEP {
            if !self.queue.arena.has_large() {
                return taken;
            }
            let Some(letter) = self.post.as_ref().and_then(Post::take) else { return taken };
            match letter {
                Letter::Frame { buffer, len, offload } => self.on_handed_over(buffer, len, offload),
                Letter::Client { client, forward } => {
                    let (peer, local) = (client.peer, client.local);
                    let accepted = self.accepted.insert(client);
                    self.tell(Input::ClientHandedOver { accepted, forward, peer, local });
                }
                Letter::Neighbor { ip, mac } => self.tell(Input::Neighbor { ip, mac }),
                Letter::Flow(lent) => {
                    let (flow, stream) = *lent;
                    self.take_in(flow, stream);
                }
                Letter::Ended { guest, remote } => self.shard.forget_lent(guest, remote),
            }
        }
        LETTERS_PER_STEP
    }

    fn on_handed_over(&mut self, buffer: Box<[u8]>, len: usize, offload: Offload) {
        let lease = self.queue.arena.take_large().expect("the caller has looked");
        // SAFETY: just taken; it goes to the core, and nobody else looks at it.
        let bytes = unsafe { self.queue.arena.show(lease, len) };
        bytes.copy_from_slice(&buffer[..len]);
        if let Some(post) = &self.post {
            post.give_back(buffer);
        }
        self.tell(Input::HandedOver { lease, bytes, offload });
    }

    /// The ops of one frame for another shard: how many they are.
    pub(crate) fn hand_over(&mut self, ops: &[Op]) -> usize {
        self.run.clear();
        let mut target = None;
        for op in ops {
            let Op::HandOver { to, span, offload, more } = *op else { break };
            self.run.push(span);
            target = Some((to, offload));
            if !more {
                break;
            }
        }
        let count = self.run.len();
        let len: usize = self.run.iter().map(|span| span.len as usize).sum();
        let arena = &self.queue.arena;
        // SAFETY: the core has handed the leases over with the ops; nobody else looks at them.
        let parts = self.run.iter().map(|&span| &*unsafe { arena.span(span) });
        let went = match (&self.post, target) {
            (Some(post), Some((to, offload)))
                if len <= LARGE_ROOM && !self.lending.has_unsent() =>
            {
                post.put_frame(to, len, parts, offload)
            }
            _ => false,
        };
        if !went {
            self.count(Counter::HandOversLost);
        }
        for index in 0..count {
            self.queue.arena.release(self.run[index].lease);
        }
        count
    }

    /// A client for another shard. One that cannot go is reset.
    pub(crate) fn hand_over_client(
        &mut self,
        to: ShardId,
        accepted: usernet_core::AcceptedId,
        forward: ForwardId,
    ) {
        let Some(client) = self.accepted.take(accepted) else {
            return self.count(Counter::StaleOps);
        };
        let letter = Letter::Client { client, forward };
        let kept = match &self.post {
            Some(post) => post.put(to, letter).err(),
            None => Some(letter),
        };
        if let Some(Letter::Client { client, .. }) = kept {
            self.count(Counter::HandOversLost);
            client.refuse();
        }
    }

    /// News for another shard.
    pub(crate) fn tell_neighbor(&mut self, to: ShardId, ip: IpAddr, mac: MacAddr) {
        let letter = Letter::Neighbor { ip, mac };
        if self.post.as_ref().is_none_or(|post| post.put(to, letter).is_err()) {
            self.count(Counter::HandOversLost);
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::eventfd::EfdFlags;

    use super::*;

    fn two() -> [Post; 2] {
        let wake = || Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK).expect("an eventfd"));
        Post::among([wake(), wake()]).try_into().ok().expect("two were asked for")
    }

    fn woken(post: &Post) -> bool {
        post.inboxes[post.own].wake.read().is_ok()
    }

    #[test]
    fn a_frame_in_parts_arrives_whole_and_its_buffer_goes_back() {
        let [first, second] = two();
        for _ in 0..3 * SMALL_BUFFERS {
            let parts = [&b"he"[..], b"ad", b"", b"er"];
            assert!(first.put_frame(ShardId(1), 6, parts.into_iter(), Offload::default()));
            let Some(Letter::Frame { buffer, len, .. }) = second.take() else { panic!("a frame") };
            assert_eq!(&buffer[..len], b"header");
            second.give_back(buffer);
        }
        assert!(first.take().is_none(), "nobody wrote to it");
    }

    #[test]
    fn an_inbox_that_is_full_takes_no_more_and_loses_no_buffer() {
        let [first, second] = two();
        let put = || first.put_frame(ShardId(1), 3, [&b"abc"[..]].into_iter(), Offload::default());
        assert_eq!((0..LETTERS_MAX).filter(|_| put()).count(), SMALL_BUFFERS);
        let large = vec![7; LARGE_ROOM];
        let put_large = || {
            let parts = [&large[..]].into_iter();
            first.put_frame(ShardId(1), LARGE_ROOM, parts, Offload::default())
        };
        assert_eq!((0..LETTERS_MAX).filter(|_| put_large()).count(), LARGE_BUFFERS);
        let mac = MacAddr([2; 6]);
        let news = || Letter::Neighbor { ip: [10, 0, 2, 100].into(), mac };
        let taken = (0..LETTERS_MAX).filter(|_| first.put(ShardId(1), news()).is_ok()).count();
        assert_eq!(taken, LETTERS_MAX - SMALL_BUFFERS - LARGE_BUFFERS);
        while let Some(letter) = second.take() {
            if let Letter::Frame { buffer, .. } = letter {
                second.give_back(buffer);
            }
        }
        assert_eq!((0..LETTERS_MAX).filter(|_| put()).count(), SMALL_BUFFERS);
    }

    #[test]
    fn only_a_shard_that_sleeps_is_woken_and_once() {
        let [first, second] = two();
        let mac = MacAddr([2; 6]);
        let put = || {
            let letter = Letter::Neighbor { ip: [10, 0, 2, 100].into(), mac };
            assert!(first.put(ShardId(1), letter).is_ok());
        };
        put();
        assert!(!woken(&second), "it is awake");
        assert!(!second.goes_to_sleep(), "there is a letter");
        second.is_awake();
        assert!(second.take().is_some());
        assert!(second.goes_to_sleep());
        put();
        put();
        assert!(woken(&second) && !woken(&second));
    }

    #[test]
    fn no_letter_is_slept_through() {
        let [first, second] = two();
        const LETTERS: usize = 20_000;
        let sender = std::thread::spawn(move || {
            for n in 0..LETTERS {
                let mac = MacAddr([n as u8; 6]);
                let mut letter = Letter::Neighbor { ip: [10, 0, 2, 100].into(), mac };
                while let Err(back) = first.put(ShardId(1), letter) {
                    letter = back;
                    std::thread::yield_now();
                }
            }
        });
        let mut taken = 0;
        while taken < LETTERS {
            if second.goes_to_sleep() {
                let wake = &second.inboxes[1].wake;
                let mut fds = [nix::poll::PollFd::new(
                    std::os::fd::AsFd::as_fd(wake),
                    nix::poll::PollFlags::POLLIN,
                )];
                let woken = nix::poll::poll(&mut fds, 20_000_u16).expect("poll");
                assert_eq!(woken, 1, "slept through {} letters", LETTERS - taken);
                let _ = wake.read();
            }
            second.is_awake();
            taken += std::iter::from_fn(|| second.take()).count();
        }
        sender.join().expect("no panic");
    }
}
