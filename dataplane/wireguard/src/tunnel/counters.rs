//! One counter per outcome. The packet path counts; it does not talk.

usernet_core::declare_counter! {
    /// Packets and super-frames from the guest.
    PacketsFromGuest = "tunnel_packets_from_guest",
    /// Packets and super-frames to the guest.
    PacketsToGuest = "tunnel_packets_to_guest",
    /// Packets that reached the guest as parts of a super-frame.
    PacketsJoined = "tunnel_packets_joined",
    /// Datagrams to peers, handshakes included.
    DatagramsToWire = "tunnel_datagrams_to_wire",
    /// Trains that they were sent in.
    TrainsToWire = "tunnel_trains_to_wire",
    /// Datagrams from the wire, whoever sent them.
    DatagramsFromWire = "tunnel_datagrams_from_wire",
    /// Handshakes that we asked for, repetitions included.
    Initiations = "tunnel_initiations",
    /// Handshakes that made a session.
    Handshakes = "tunnel_handshakes",
    /// Empty packets to peers, so that they know of us.
    Keepalives = "tunnel_keepalives",
    /// Times that an endpoint changed because its peer spoke from another one.
    Roamed = "tunnel_roamed",
    /// Cookies sent instead of an answer, under load.
    Cookies = "tunnel_cookies",
    /// Attempts to reach a peer that were given up after 90 seconds.
    Unanswered = "tunnel_unanswered",
    /// ICMP errors to the guest.
    ErrorsToGuest = "tunnel_errors_to_guest",
    /// Guest's packets that are not IP, or not what their headers say.
    DropGuestMalformed = "tunnel_drop_guest_malformed",
    /// Guest's packets for which no peer is responsible.
    DropNoPeer = "tunnel_drop_no_peer",
    /// Guest's packets to a peer of unknown endpoint.
    DropNoEndpoint = "tunnel_drop_no_endpoint",
    /// Guest's packets that do not fit into a datagram.
    DropTooLarge = "tunnel_drop_too_large",
    /// Guest's packets that did not wait for a handshake: enough wait already, or it was given up.
    DropNoSession = "tunnel_drop_no_session",
    /// Datagrams that are no WireGuard messages.
    DropNotWireguard = "tunnel_drop_not_wireguard",
    /// Datagrams for a session that does not exist, or not any more.
    DropUnknownSession = "tunnel_drop_unknown_session",
    /// Datagrams that are not authentic.
    DropForged = "tunnel_drop_forged",
    /// Datagrams that have been received before, or are too old to know.
    DropReplayed = "tunnel_drop_replayed",
    /// Datagrams numbered so high that their keys are used up.
    DropExhausted = "tunnel_drop_exhausted",
    /// Packets of a peer that are not IP.
    DropPeerMalformed = "tunnel_drop_peer_malformed",
    /// Packets with a source address that their peer may not use.
    DropSpoofed = "tunnel_drop_spoofed",
    /// Handshakes that were meant for another key than ours.
    DropOtherKey = "tunnel_drop_other_key",
    /// Handshakes of keys that no peer has.
    DropUnknownPeer = "tunnel_drop_unknown_peer",
    /// Handshakes not newer than one before: replayed, or the peer's clock went back.
    DropStaleHandshake = "tunnel_drop_stale_handshake",
    /// Handshake messages that fit to no handshake.
    DropHandshake = "tunnel_drop_handshake",
    /// Handshakes ignored under load: too many of one address.
    DropUnderLoad = "tunnel_drop_under_load",
}

/// The values.
#[derive(Clone, Debug)]
pub struct Counters([u64; Counter::ALL.len()]);

impl Default for Counters {
    fn default() -> Self {
        Self([0; Counter::ALL.len()])
    }
}

impl Counters {
    /// One of them.
    pub fn get(&self, counter: Counter) -> u64 {
        self.0[counter as usize]
    }

    /// Names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Counter::ALL.iter().map(|&c| (c.name(), self.0[c as usize]))
    }

    pub(super) fn count(&mut self, counter: Counter) {
        self.add(counter, 1);
    }

    pub(super) fn add(&mut self, counter: Counter, n: u64) {
        self.0[counter as usize] += n;
    }
}
