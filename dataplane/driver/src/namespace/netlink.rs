//! One question, one answer: rtnetlink without an event loop.

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::LinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::errno::Errno;

use super::tap::errno;

/// The kernel's answers are smaller: links and routes with all their attributes take 2 KiB.
const ANSWER_BYTES_MAX: usize = 32 * 1024;

/// A socket to the kernel's tables of the namespace in which it was opened.
pub(super) struct Rtnetlink {
    socket: Socket,
    /// Of the last request; answers carry it.
    sequence: u32,
    answer: Vec<u8>,
}

impl Rtnetlink {
    /// Opens one in the namespace that the calling thread is in.
    pub(super) fn open() -> nix::Result<Self> {
        let socket = Socket::new(NETLINK_ROUTE).map_err(errno)?;
        // The kernel's address. Messages of other processes are refused from now on.
        socket.connect(&SocketAddr::new(0, 0)).map_err(errno)?;
        Ok(Self { socket, sequence: 0, answer: Vec::with_capacity(ANSWER_BYTES_MAX) })
    }

    /// Changes something.
    pub(super) fn change(&mut self, message: RouteNetlinkMessage, flags: u16) -> nix::Result<()> {
        self.ask(message, flags | NLM_F_ACK).map(drop)
    }

    /// Asks for something; none: it was acknowledged only.
    pub(super) fn ask(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> nix::Result<Option<RouteNetlinkMessage>> {
        self.send(message, flags)?;
        self.answer()
    }

    /// Asks for all there is of a kind, one message each.
    pub(super) fn dump(
        &mut self,
        message: RouteNetlinkMessage,
        mut each: impl FnMut(RouteNetlinkMessage),
    ) -> nix::Result<()> {
        self.send(message, NLM_F_DUMP)?;
        loop {
            self.receive()?;
            let mut rest = self.answer.as_slice();
            while !rest.is_empty() {
                // Kernels newer than the crate may have attributes that it does not understand.
                let length =
                    rest.first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes) as usize);
                let (one, behind) = rest.split_at_checked(length).ok_or(Errno::EPROTO)?;
                rest = behind.get(length.next_multiple_of(4) - length..).unwrap_or_default();
                if length == 0 {
                    return Err(Errno::EPROTO);
                }
                let Ok(packet) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(one) else {
                    continue;
                };
                match packet.payload {
                    NetlinkPayload::InnerMessage(message) => each(message),
                    NetlinkPayload::Done(_) => return Ok(()),
                    NetlinkPayload::Error(error) => {
                        return Err(error
                            .code
                            .map_or(Errno::EPROTO, |code| Errno::from_raw(-code.get())));
                    }
                    _ => {}
                }
            }
        }
    }

    fn send(&mut self, message: RouteNetlinkMessage, flags: u16) -> nix::Result<()> {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map_err(errno).map(drop)
    }

    /// Waits for bytes.
    fn receive(&mut self) -> nix::Result<()> {
        loop {
            self.answer.clear();
            match self.socket.recv(&mut self.answer, 0).map_err(errno) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(other) => return Err(other),
            }
        }
    }

    /// A device's state.
    pub(super) fn link(&mut self, index: u32) -> nix::Result<LinkMessage> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        match self.ask(RouteNetlinkMessage::GetLink(message), 0)? {
            Some(RouteNetlinkMessage::NewLink(link)) => Ok(link),
            Some(_) | None => Err(Errno::EPROTO),
        }
    }

    /// Waits for the answer to the last request.
    fn answer(&mut self) -> nix::Result<Option<RouteNetlinkMessage>> {
        loop {
            self.receive()?;
            let packet = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&self.answer)
                .map_err(|_| Errno::EPROTO)?;
            if packet.header.sequence_number != self.sequence {
                continue;
            }
            return match packet.payload {
                NetlinkPayload::InnerMessage(message) => Ok(Some(message)),
                NetlinkPayload::Error(error) => match error.code {
                    Some(code) => Err(Errno::from_raw(-code.get())),
                    None => Ok(None),
                },
                // The crate's enum is open to additions; nothing else answers a single question.
                _ => Err(Errno::EPROTO),
            };
        }
    }
}
