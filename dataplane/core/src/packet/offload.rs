//! What a link without offload, a capture file and the simulator do with a frame instead of the kernel: complete its
//! checksum, cut a super-frame into segments, a train into datagrams, a large datagram into fragments.
//!
//! # Theory of operation
//!
//! [`cut`] allocates nothing and does not touch the frame. Every frame that comes out is told as two slices: its
//! headers, made in a scratch buffer, and its payload, which still lies in the frame; a gather write puts them
//! together. [`cut_in_place`] is for who wants them in one piece and has no further use for the frame, a tunnel: headers are
//! laid in front of their payload, over the end of the segment before, which is done with. All have complete checksums.
//!
//! - *TCP*: sequence numbers and IPv4 identifications count on; FIN and PSH are the last segment's, CWR is the first
//!   one's (RFC 3168, section 6.1.2). Segments are never larger than the MTU, whatever the frame asks for.
//! - *UDP*: a train's datagrams are what was sent, so their size is kept; one larger than the MTU is fragmented.
//! - *Fragments*: IPv4 loses its don't-fragment bit, IPv6 gets a fragment header; the identification is the caller's,
//!   who has to make it hard to guess (RFC 7739) and unlike the last.

use core::ops::Range;

use super::checksum::Sum;
use super::{ETHERNET_BYTES, EtherType, Malformed, Packet, parse, parse_ip, protocol};
use crate::op::{Checksum, Gso, Offload};

/// The longest headers: Ethernet, IPv4 with options or IPv6 with a fragment header, TCP with options.
const HEADERS_BYTES_MAX: usize = 14 + 60 + 60;
/// Bytes of an IPv6 fragment header.
const FRAGMENT_HEADER_BYTES: usize = 8;
/// Next header: fragment.
const FRAGMENT_PROTOCOL: u8 = 44;
/// Fragments but the last are multiples of this long (RFC 791, RFC 8200).
const FRAGMENT_UNIT: usize = 8;
const TCP_FIN: u8 = 0x01;
const TCP_PSH: u8 = 0x08;
const TCP_CWR: u8 = 0x80;
/// More fragments, in IPv4's flags.
const MORE_FRAGMENTS: u16 = 0x2000;

/// Receives a frame: its headers, and the payload that follows them.
pub type Emit<'a> = dyn FnMut(&[u8], &[u8]) + 'a;

/// Puts the checksum in that [`Checksum::Partial`] leaves open. Offsets beyond the frame are left alone.
pub fn complete_checksum(frame: &mut [u8], offload: &Offload) {
    let Some((at, sum)) = open_checksum(frame, offload.checksum) else { return };
    frame[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

/// Where a checksum is open, within the frame, and what belongs there.
fn open_checksum(frame: &[u8], checksum: Checksum) -> Option<(usize, u16)> {
    let Checksum::Partial { start, offset } = checksum else { return None };
    let start = usize::from(start);
    let at = start + usize::from(offset);
    if at + 2 > frame.len() {
        return None;
    }
    Some((at, not_zero(Sum::default().bytes(&frame[start..]).checksum())))
}

/// A UDP checksum of 0 means none (RFC 768); to all others its two representations are the same.
const fn not_zero(sum: u16) -> u16 {
    if sum == 0 { 0xffff } else { sum }
}

/// Cuts `frame` into frames of at most `mtu` bytes of IP with complete checksums, in order. `identification` is that
/// of the fragments, if any; a train with several fragmented datagrams counts it on. Frames that are not what
/// `offload` says of them are refused, and nothing is emitted.
pub fn cut(
    frame: &[u8],
    offload: Offload,
    mtu: u16,
    identification: u32,
    emit: &mut Emit<'_>,
) -> Result<(), Malformed> {
    if offload.gso == Gso::None {
        return whole(frame, offload.checksum, emit);
    }
    let Ok(EtherType::Ip(packet)) = parse(frame) else { return Err(Malformed) };
    let cutter = Cutter::new(frame, ETHERNET_BYTES, packet, mtu, identification)?;
    match cutter.plan(frame, offload.gso)? {
        Plan::Segments(segments) => {
            for index in 0..segments.count {
                let (headers, payload) = cutter.segment(frame, &segments, index);
                emit(headers.bytes(), &frame[payload]);
            }
            Ok(())
        }
        Plan::Datagrams(segments) => cutter.datagrams(frame, &segments, emit),
        Plan::Fragments => cutter.fragment(frame, offload.checksum, emit),
    }
}

/// Cuts an IP packet without an Ethernet header, which is used up, into packets with complete checksums, in order; sizes
/// are as asked for. Packets that are not what `offload` says of them are refused, and nothing is emitted.
pub fn cut_in_place(
    packet: &mut [u8],
    offload: Offload,
    emit: &mut dyn FnMut(&[u8]),
) -> Result<(), Malformed> {
    if offload.gso == Gso::None {
        complete_checksum(packet, &offload);
        emit(packet);
        return Ok(());
    }
    let cutter = Cutter::new(packet, 0, parse_ip(packet)?, u16::MAX, 0)?;
    match cutter.plan(packet, offload.gso)? {
        Plan::Segments(segments) | Plan::Datagrams(segments) => {
            for index in 0..segments.count {
                let (headers, payload) = cutter.segment(packet, &segments, index);
                let start = payload.start - headers.len;
                packet[start..payload.start].copy_from_slice(headers.bytes());
                emit(&packet[start..payload.end]);
            }
            Ok(())
        }
        Plan::Fragments => Err(Malformed),
    }
}

/// A frame that stays one.
fn whole(frame: &[u8], checksum: Checksum, emit: &mut Emit<'_>) -> Result<(), Malformed> {
    let Some((at, sum)) = open_checksum(frame, checksum) else {
        emit(frame, &[]);
        return Ok(());
    };
    let mut headers = Headers::of(frame.get(..at + 2).ok_or(Malformed)?)?;
    headers.put(at, sum);
    emit(headers.bytes(), &frame[at + 2..]);
    Ok(())
}

/// Headers under construction.
#[derive(Clone, Copy)]
struct Headers {
    bytes: [u8; HEADERS_BYTES_MAX],
    len: usize,
}

impl Headers {
    fn of(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut headers = Self { bytes: [0; HEADERS_BYTES_MAX], len: 0 };
        headers.append(bytes)?;
        Ok(headers)
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), Malformed> {
        let end = self.len + bytes.len();
        self.bytes.get_mut(self.len..end).ok_or(Malformed)?.copy_from_slice(bytes);
        self.len = end;
        Ok(())
    }

    /// Writes a 16-bit word; `at` lies within the headers.
    fn put(&mut self, at: usize, word: u16) {
        self.bytes[at..at + 2].copy_from_slice(&word.to_be_bytes());
    }

    fn word(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// What becomes of a frame.
enum Plan {
    /// TCP.
    Segments(Segments),
    /// UDP: what is larger than the MTU is fragmented further.
    Datagrams(Segments),
    /// One datagram in fragments.
    Fragments,
}

/// Pieces of equal size, the last one aside.
struct Segments {
    /// The first one's headers, as they are in the frame.
    template: Headers,
    /// Payload bytes of each.
    size: usize,
    /// How many.
    count: usize,
}

/// A frame to be cut: what is known of it without holding it.
struct Cutter {
    packet: Packet,
    /// Where the IP header starts.
    ip_start: usize,
    /// Where the transport header starts.
    ip_end: usize,
    mtu: usize,
    identification: u32,
}

impl Cutter {
    /// Refuses what the core never makes: fragments of fragments, and extension headers.
    fn new(
        frame: &[u8],
        ip_start: usize,
        packet: Packet,
        mtu: u16,
        identification: u32,
    ) -> Result<Self, Malformed> {
        let ip_end = packet.payload_start as usize;
        let ip_bytes = match frame.get(ip_start) {
            Some(first) if packet.source.is_ipv4() => usize::from(first & 0xf) * 4,
            Some(_) => 40,
            None => return Err(Malformed),
        };
        if packet.fragment.is_some() || ip_end != ip_start + ip_bytes {
            return Err(Malformed);
        }
        Ok(Self { packet, ip_start, ip_end, mtu: usize::from(mtu), identification })
    }

    /// Everything up to `end`, to be changed.
    fn headers(&self, frame: &[u8], end: usize) -> Result<Headers, Malformed> {
        if end > self.packet.payload_end as usize {
            return Err(Malformed);
        }
        Headers::of(frame.get(..end).ok_or(Malformed)?)
    }

    fn payload_behind(&self, end: usize) -> Range<usize> {
        end..self.packet.payload_end as usize
    }

    /// Sets the IP header's length for `ip_payload` bytes behind it, and IPv4's checksum.
    fn set_length(&self, headers: &mut Headers, ip_payload: usize) {
        if self.packet.source.is_ipv6() {
            return headers.put(self.ip_start + 4, ip_payload as u16);
        }
        let total = self.ip_end - self.ip_start + ip_payload;
        headers.put(self.ip_start + 2, total as u16);
        headers.put(self.ip_start + 10, 0);
        let sum = Sum::default().bytes(&headers.bytes[self.ip_start..self.ip_end]).checksum();
        headers.put(self.ip_start + 10, sum);
    }

    /// Sets the transport checksum at `at`.
    fn set_checksum(&self, headers: &mut Headers, at: usize, payload: &[u8]) {
        headers.put(at, 0);
        let transport = &headers.bytes()[self.ip_end..];
        let len = transport.len() + payload.len();
        let Packet { source, destination, protocol, .. } = self.packet;
        let sum = Sum::pseudo_header(source, destination, protocol, len);
        let sum = sum.bytes(transport).bytes(payload).checksum();
        headers.put(at, not_zero(sum));
    }

    fn plan(&self, frame: &[u8], gso: Gso) -> Result<Plan, Malformed> {
        match gso {
            Gso::Tcp4 { size } if self.packet.source.is_ipv4() => self.tcp(frame, size),
            Gso::Tcp6 { size } if self.packet.source.is_ipv6() => self.tcp(frame, size),
            Gso::None | Gso::Tcp4 { .. } | Gso::Tcp6 { .. } => Err(Malformed),
            Gso::Udp { size } => self.udp(frame, size),
            Gso::Fragment => Ok(Plan::Fragments),
        }
    }

    fn tcp(&self, frame: &[u8], size: u16) -> Result<Plan, Malformed> {
        let offset = *frame.get(self.ip_end + 12).ok_or(Malformed)?;
        let tcp_bytes = usize::from(offset >> 4) * 4;
        let end = self.ip_end + tcp_bytes;
        if self.packet.protocol != protocol::TCP || tcp_bytes < 20 {
            return Err(Malformed);
        }
        let template = self.headers(frame, end)?;
        let room = self.mtu.saturating_sub(end - self.ip_start);
        Ok(Plan::Segments(self.segments(template, usize::from(size).min(room))?))
    }

    fn udp(&self, frame: &[u8], size: u16) -> Result<Plan, Malformed> {
        if self.packet.protocol != protocol::UDP {
            return Err(Malformed);
        }
        let template = self.headers(frame, self.ip_end + 8)?;
        self.check_room(8)?;
        Ok(Plan::Datagrams(self.segments(template, usize::from(size))?))
    }

    fn segments(&self, template: Headers, size: usize) -> Result<Segments, Malformed> {
        if size == 0 {
            return Err(Malformed);
        }
        let count = self.payload_behind(template.len).len().div_ceil(size).max(1);
        Ok(Segments { template, size, count })
    }

    /// One of them: its headers, complete, and where its payload lies.
    fn segment(&self, frame: &[u8], segments: &Segments, index: usize) -> (Headers, Range<usize>) {
        let mut headers = segments.template;
        let all = self.payload_behind(headers.len);
        let start = index * segments.size;
        let payload = all.start + start..all.end.min(all.start + start + segments.size);
        let transport_bytes = headers.len - self.ip_end + payload.len();
        self.count_on(&mut headers, index);
        self.set_length(&mut headers, transport_bytes);
        let checksum_at = if self.packet.protocol == protocol::TCP {
            self.set_segment(&mut headers, index, start, index + 1 == segments.count);
            16
        } else {
            headers.put(self.ip_end + 4, transport_bytes as u16);
            6
        };
        self.set_checksum(&mut headers, self.ip_end + checksum_at, &frame[payload.clone()]);
        (headers, payload)
    }

    /// TCP: sets what counts on from segment to segment, and the flags that only one of them has.
    fn set_segment(&self, headers: &mut Headers, index: usize, start: usize, is_last: bool) {
        let at = self.ip_end + 4;
        let sequence = &mut headers.bytes[at..at + 4];
        let first = u32::from_be_bytes([sequence[0], sequence[1], sequence[2], sequence[3]]);
        sequence.copy_from_slice(&first.wrapping_add(start as u32).to_be_bytes());
        let flags = &mut headers.bytes[self.ip_end + 13];
        if index != 0 {
            *flags &= !TCP_CWR;
        }
        if !is_last {
            *flags &= !(TCP_FIN | TCP_PSH);
        }
    }

    /// IPv4: a different identification for each.
    fn count_on(&self, headers: &mut Headers, index: usize) {
        if self.packet.source.is_ipv4() {
            let at = self.ip_start + 4;
            headers.put(at, headers.word(at).wrapping_add(index as u16));
        }
    }

    fn datagrams(
        &self,
        frame: &[u8],
        segments: &Segments,
        emit: &mut Emit<'_>,
    ) -> Result<(), Malformed> {
        for index in 0..segments.count {
            let (headers, payload) = self.segment(frame, segments, index);
            let identification = self.identification.wrapping_add(index as u32);
            self.fragments(&headers, &frame[payload], identification, emit)?;
        }
        Ok(())
    }

    fn fragment(
        &self,
        frame: &[u8],
        checksum: Checksum,
        emit: &mut Emit<'_>,
    ) -> Result<(), Malformed> {
        // Headers reach as far as the checksum, which is to be changed.
        let packet = &frame[..self.packet.payload_end as usize];
        let headers = match open_checksum(packet, checksum) {
            Some((at, _)) if at < self.ip_end => return Err(Malformed),
            Some((at, sum)) => {
                let mut headers = self.headers(frame, at + 2)?;
                headers.put(at, sum);
                headers
            }
            None => self.headers(frame, self.ip_end)?,
        };
        self.check_room(headers.len - self.ip_end)?;
        let payload = &frame[self.payload_behind(headers.len)];
        self.fragments(&headers, payload, self.identification, emit)
    }

    /// Whether a first fragment takes a transport header of `transport_bytes`, and all take something.
    fn check_room(&self, transport_bytes: usize) -> Result<(), Malformed> {
        if self.fragment_bytes() >= transport_bytes.max(FRAGMENT_UNIT) {
            return Ok(());
        }
        Err(Malformed)
    }

    /// Bytes of IP payload in every fragment but the last.
    fn fragment_bytes(&self) -> usize {
        let extension = if self.packet.source.is_ipv6() { FRAGMENT_HEADER_BYTES } else { 0 };
        let room = self.mtu.saturating_sub(self.ip_end - self.ip_start + extension);
        room / FRAGMENT_UNIT * FRAGMENT_UNIT
    }

    /// One datagram, whose headers are complete: as it is, or in fragments.
    fn fragments(
        &self,
        headers: &Headers,
        payload: &[u8],
        identification: u32,
        emit: &mut Emit<'_>,
    ) -> Result<(), Malformed> {
        if headers.len - self.ip_start + payload.len() <= self.mtu {
            emit(headers.bytes(), payload);
            return Ok(());
        }
        let (ip, transport) = headers.bytes().split_at(self.ip_end);
        let total = transport.len() + payload.len();
        let size = self.fragment_bytes();
        let mut start = 0;
        while start < total {
            let end = total.min(start + size);
            let mut fragment = Headers::of(ip)?;
            let is_last = end == total;
            self.make_fragment(&mut fragment, start, end - start, is_last, identification)?;
            // The transport header fits into the first fragment whole.
            let from = start.saturating_sub(transport.len());
            if start == 0 {
                fragment.append(transport)?;
            }
            emit(fragment.bytes(), &payload[from..end - transport.len()]);
            start = end;
        }
        Ok(())
    }

    fn make_fragment(
        &self,
        headers: &mut Headers,
        start: usize,
        len: usize,
        is_last: bool,
        identification: u32,
    ) -> Result<(), Malformed> {
        // `start` is a multiple of 8: IPv6's field is the byte offset with flags in its low bits.
        let units = (start / FRAGMENT_UNIT) as u16;
        if self.packet.source.is_ipv4() {
            headers.put(self.ip_start + 4, identification as u16);
            let more = if is_last { 0 } else { MORE_FRAGMENTS };
            headers.put(self.ip_start + 6, units | more);
            self.set_length(headers, len);
            return Ok(());
        }
        headers.bytes[self.ip_start + 6] = FRAGMENT_PROTOCOL;
        self.set_length(headers, FRAGMENT_HEADER_BYTES + len);
        let mut extension = [0; FRAGMENT_HEADER_BYTES];
        extension[0] = self.packet.protocol;
        extension[2..4].copy_from_slice(&(units << 3 | u16::from(!is_last)).to_be_bytes());
        extension[4..8].copy_from_slice(&identification.to_be_bytes());
        headers.append(&extension)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::packet::build::{self, IpHeader};
    use crate::packet::checksum;
    use alloc::vec;
    use alloc::vec::Vec;
    use core::net::IpAddr;
    use proptest::prelude::*;

    fn ip(is_v4: bool, protocol: u8) -> IpHeader {
        let config = Config::example();
        let (net4, net6) = (config.net4.expect("IPv4"), config.net6.expect("IPv6"));
        let (source, destination): (IpAddr, IpAddr) = if is_v4 {
            ([192, 0, 2, 1].into(), net4.guest.into())
        } else {
            (net6.dns.expect("DNS").into(), net6.guest.into())
        };
        let (source_mac, destination_mac) = (config.host_mac, config.guest_mac);
        IpHeader {
            source_mac,
            destination_mac,
            source,
            destination,
            protocol,
            tos: 0x2,
            hop_limit: 64,
        }
    }

    fn bytes(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
    }

    fn udp_frame(is_v4: bool, payload: &[u8], segment: u16, mtu: u16) -> (Vec<u8>, Offload) {
        let ip = ip(is_v4, protocol::UDP);
        let mut frame = vec![0; ip.bytes() + 8];
        let offload = build::udp(&mut frame, ip, 5353, 40_000, payload.len(), segment, mtu);
        frame.extend_from_slice(payload);
        (frame, offload)
    }

    fn tcp_frame(is_v4: bool, options: usize, payload: &[u8]) -> (Vec<u8>, Checksum) {
        let ip = ip(is_v4, protocol::TCP);
        let mut frame = vec![1; ip.bytes() + 20 + options];
        let len = 20 + options + payload.len();
        ip.write(&mut frame, len);
        let start = ip.bytes();
        let tcp = &mut frame[start..];
        tcp[4..8].copy_from_slice(&0xffff_ff00_u32.to_be_bytes());
        tcp[12..14].copy_from_slice(&[((20 + options) as u8) << 2, 0xd9]);
        tcp[16..18].copy_from_slice(&ip.pseudo_header(len).folded().to_be_bytes());
        frame.extend_from_slice(payload);
        (frame, Checksum::Partial { start: start as u16, offset: 16 })
    }

    /// All frames, parsed, each within the MTU and with a valid IPv4 header.
    fn pieces(frame: &[u8], offload: Offload, mtu: u16) -> Vec<(Packet, Vec<u8>)> {
        let mut out = vec![];
        let emitted = cut(frame, offload, mtu, 0x1234_5678, &mut |headers, payload| {
            let mut piece = headers.to_vec();
            piece.extend_from_slice(payload);
            out.push(piece);
        });
        assert_eq!(emitted, Ok(()));
        let parsed = |piece: Vec<u8>| {
            assert!(piece.len() <= usize::from(mtu) + ETHERNET_BYTES, "within the MTU");
            if piece[12..14] == [0x08, 0x00] {
                assert_eq!(Sum::default().bytes(&piece[14..34]).folded(), 0xffff);
            }
            let Ok(EtherType::Ip(packet)) = parse(&piece) else { panic!("an IP packet") };
            assert_eq!(packet.payload_end as usize, piece.len(), "no more than the IP length says");
            (packet, piece)
        };
        out.into_iter().map(parsed).collect()
    }

    fn is_valid(packet: &Packet, segment: &[u8]) -> bool {
        checksum::is_valid(packet.source, packet.destination, packet.protocol, segment)
    }

    /// Puts fragments together: the IP payload.
    fn joined(pieces: &[(Packet, Vec<u8>)]) -> Vec<u8> {
        let mut whole = vec![];
        for (index, (packet, piece)) in pieces.iter().enumerate() {
            if pieces.len() > 1 {
                let fragment = packet.fragment.expect("a fragment");
                assert_eq!(fragment.offset as usize, whole.len());
                assert_eq!(fragment.more, index + 1 < pieces.len());
                assert_eq!(fragment.identification & 0xffff, 0x5678);
            }
            whole.extend_from_slice(&piece[packet.payload()]);
        }
        whole
    }

    proptest! {
        #[test]
        fn tcp_segments_make_up_the_super_frame(
            is_v4 in any::<bool>(),
            options in 0usize..=10,
            len in 0usize..40_000,
            size in 1u16..9_000,
            mtu in 576u16..9_000,
        ) {
            let size = size.max(200);
            let payload = bytes(len);
            let (frame, checksum) = tcp_frame(is_v4, options * 4, &payload);
            let gso = if is_v4 { Gso::Tcp4 { size } } else { Gso::Tcp6 { size } };
            let pieces = pieces(&frame, Offload { checksum, gso }, mtu);
            let mut stream = vec![];
            for (index, (packet, piece)) in pieces.iter().enumerate() {
                let segment = &piece[packet.payload()];
                prop_assert!(is_valid(packet, segment));
                let sequence = u32::from_be_bytes(segment[4..8].try_into().expect("4 bytes"));
                prop_assert_eq!(sequence, 0xffff_ff00_u32.wrapping_add(stream.len() as u32));
                let is_last = index + 1 == pieces.len();
                prop_assert_eq!(segment[13] & (TCP_FIN | TCP_PSH) == 0x09, is_last);
                prop_assert_eq!(segment[13] & TCP_CWR != 0, index == 0);
                stream.extend_from_slice(&segment[20 + options * 4..]);
            }
            prop_assert_eq!(stream, payload);
        }

        #[test]
        fn cut_in_place_comes_out_the_same(
            is_v4 in any::<bool>(), is_tcp in any::<bool>(), len in 1usize..20_000, size in 1u16..3_000,
        ) {
            let payload = bytes(len);
            let (frame, offload) = if is_tcp {
                let (frame, checksum) = tcp_frame(is_v4, 12, &payload);
                let gso = if is_v4 { Gso::Tcp4 { size } } else { Gso::Tcp6 { size } };
                (frame, Offload { checksum, gso })
            } else {
                udp_frame(is_v4, &payload, size, u16::MAX)
            };
            let mut apart = vec![];
            let _ = cut(&frame, offload, u16::MAX, 0, &mut |headers, payload| {
                let mut piece = headers[ETHERNET_BYTES..].to_vec();
                piece.extend_from_slice(payload);
                apart.push(piece);
            });
            let Checksum::Partial { start, offset } = offload.checksum else { unreachable!() };
            let start = start - ETHERNET_BYTES as u16;
            let offload = Offload { checksum: Checksum::Partial { start, offset }, ..offload };
            let mut packet = frame[ETHERNET_BYTES..].to_vec();
            let mut in_place = vec![];
            let done = cut_in_place(&mut packet, offload, &mut |piece| in_place.push(piece.to_vec()));
            prop_assert_eq!(done, Ok(()));
            prop_assert_eq!(in_place, apart);
        }

        #[test]
        fn a_trains_datagrams_keep_their_size(
            is_v4 in any::<bool>(),
            len in 1usize..20_000,
            size in 100u16..1_400,
        ) {
            let payload = bytes(len);
            let (frame, offload) = udp_frame(is_v4, &payload, size, 1500);
            let pieces = pieces(&frame, offload, 1500);
            prop_assert_eq!(pieces.len(), len.div_ceil(usize::from(size)).max(1));
            let mut all = vec![];
            for (packet, piece) in &pieces {
                let datagram = &piece[packet.payload()];
                prop_assert!(is_valid(packet, datagram));
                prop_assert_eq!(usize::from(u16::from_be_bytes([datagram[4], datagram[5]])), datagram.len());
                all.extend_from_slice(&datagram[8..]);
            }
            prop_assert_eq!(all, payload);
        }

        #[test]
        fn fragments_make_up_the_datagram(
            is_v4 in any::<bool>(),
            len in 0usize..65_000,
            mtu in 576u16..9_000,
        ) {
            let payload = bytes(len);
            let (frame, offload) = udp_frame(is_v4, &payload, 0, mtu);
            let pieces = pieces(&frame, offload, mtu);
            let whole = joined(&pieces);
            prop_assert_eq!(&whole[8..], &payload[..]);
            let valid = is_valid(&pieces[0].0, &whole);
            prop_assert!(valid);
            if pieces.len() > 1 && is_v4 {
                prop_assert!(pieces.iter().all(|(p, _)| !p.dont_fragment));
            }
        }

        #[test]
        fn nothing_that_is_put_in_panics(
            mut frame in proptest::collection::vec(any::<u8>(), 0..200),
            is_v4 in any::<bool>(), start in 0u16..300, offset in 0u16..300, size: u16, mtu: u16,
            kind in 0u8..5,
        ) {
            if frame.len() > 14 {
                frame[12..15].copy_from_slice(if is_v4 { &[8, 0, 0x45] } else { &[0x86, 0xdd, 0x60] });
            }
            let gso = [Gso::None, Gso::Tcp4 { size }, Gso::Tcp6 { size }, Gso::Udp { size }, Gso::Fragment];
            let offload = Offload { checksum: Checksum::Partial { start, offset }, gso: gso[usize::from(kind)] };
            let _ = cut(&frame, offload, mtu, 0, &mut |_, _| {});
            let mut packet = frame.get(14..).unwrap_or_default().to_vec();
            let _ = cut_in_place(&mut packet, offload, &mut |_| {});
            complete_checksum(&mut frame, &offload);
        }
    }

    #[test]
    fn datagrams_of_a_train_that_exceed_the_mtu_are_fragmented() {
        let payload = bytes(6_000);
        let (frame, offload) = udp_frame(true, &payload, 3_000, 1500);
        assert_eq!(offload.gso, Gso::Udp { size: 3_000 });
        let pieces = pieces(&frame, offload, 1500);
        assert_eq!(pieces.len(), 6);
        let (first, second) = pieces.split_at(3);
        assert_eq!(first[0].0.fragment.map(|f| f.identification), Some(0x5678));
        assert_eq!(second[0].0.fragment.map(|f| f.identification), Some(0x5679));
        assert_eq!(&joined(first)[8..], &payload[..3_000]);
    }

    #[test]
    fn a_frame_that_stays_whole_gets_its_checksum_either_way() {
        for is_v4 in [true, false] {
            let (mut frame, offload) = udp_frame(is_v4, &bytes(333), 0, 1500);
            let pieces = pieces(&frame, offload, 1500);
            complete_checksum(&mut frame, &offload);
            assert_eq!(pieces[0].1, frame);
            assert!(is_valid(&pieces[0].0, &frame[pieces[0].0.payload()]));
        }
    }
}
