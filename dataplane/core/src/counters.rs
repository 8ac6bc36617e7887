//! One counter per outcome. The packet path counts; it does not talk.

/// Makes the enum of what somebody counts, one variant per outcome, with a name for each.
#[macro_export]
macro_rules! declare_counter {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// What is counted. The name is what `usernet status` shows.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Counter { $($(#[doc = $doc])+ $variant,)+ }

        impl Counter {
            /// All of them, in the order of their declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The name in the control API: lower case, words joined by underscores.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }
    };
}

declare_counter! {
    /// Frames from the guest.
    FramesFromGuest = "frames_from_guest",
    /// Bytes in them.
    BytesFromGuest = "bytes_from_guest",
    /// Frames to the guest.
    FramesToGuest = "frames_to_guest",
    /// Bytes in them.
    BytesToGuest = "bytes_to_guest",
    /// Frames that end before their headers do, or whose lengths contradict each other.
    DropMalformed = "drop_malformed",
    /// Frames with a wrong checksum.
    DropChecksum = "drop_checksum",
    /// Frames of a protocol that is not translated.
    DropProtocol = "drop_protocol",
    /// Packets of a protocol that is switched off.
    DropProtocolOff = "drop_protocol_off",
    /// Frames for another station on the link.
    DropNotForUs = "drop_not_for_us",
    /// Frames of a family that is not configured.
    DropFamily = "drop_family",
    /// Frames with a source address that nobody may have (multicast, loopback, our own).
    DropSource = "drop_source",
    /// Packets that the rules drop: loopback, multicast and link-local destinations.
    DropByRule = "drop_by_rule",
    /// Packets whose TTL or hop limit runs out at the gateway.
    DropHopLimit = "drop_hop_limit",
    /// Frames that came to another shard than their flow's, and were handed over to it.
    HandedOver = "handed_over",
    /// Clients of forwards that were handed over to the shard of their flow.
    ClientsHandedOver = "clients_handed_over",
    /// No buffer was free for a frame of our own.
    DropNoBuffer = "drop_no_buffer",
    /// ARP requests for one of our addresses, answered.
    ArpAnswered = "arp_answered",
    /// Neighbour solicitations for one of our addresses, answered.
    NdpAnswered = "ndp_answered",
    /// Router advertisements sent on request.
    RouterAdvertisements = "router_advertisements",
    /// Echo requests to one of our addresses, answered; fragments count one by one.
    EchoAnswered = "echo_answered",
    /// ICMP errors to the guest.
    ErrorsToGuest = "errors_to_guest",
    /// ICMP errors not told because there were too many.
    ErrorsLimited = "errors_limited",
    /// ICMP errors not told because none may be about such a packet (errors, multicast, no own address).
    ErrorsForbidden = "errors_forbidden",
    /// ICMP errors from the guest.
    ErrorsFromGuest = "errors_from_guest",
    /// ARP and neighbour discovery messages that ask nothing of us.
    ResolutionHeard = "resolution_heard",
    /// DHCP messages, of either version, answered.
    DhcpAnswered = "dhcp_answered",
    /// DHCPv4 requests for an address that the guest may not have, answered with NAK.
    DhcpRefused = "dhcp_refused",
    /// Addresses that a DHCP client declined: somebody else on the link has the guest's address.
    DhcpDeclined = "dhcp_declined",
    /// DHCP messages that are malformed, for another server, or need no answer.
    DhcpIgnored = "dhcp_ignored",
    /// Ping mappings opened.
    PingOpened = "ping_opened",
    /// Ping mappings ended, however.
    PingClosed = "ping_closed",
    /// Echo requests not sent because the table of ping mappings, or of sockets, was full.
    PingTableFull = "ping_table_full",
    /// Echo requests not sent because the kernel gives us no ping socket.
    PingUnavailable = "ping_unavailable",
    /// Datagrams of ping sockets that are no echo replies.
    PingUnexpected = "ping_unexpected",
    /// Inputs for a socket that has ended meanwhile.
    StaleInputs = "stale_inputs",
    /// TCP flows opened by the guest.
    TcpOpenedByGuest = "tcp_opened_by_guest",
    /// TCP flows opened by the host side through a forward.
    TcpOpenedByHost = "tcp_opened_by_host",
    /// TCP connections joined to the guest's loopback without passing the link.
    TcpSpliced = "tcp_spliced",
    /// TCP flows ended, however.
    TcpClosed = "tcp_closed",
    /// TCP connects that the host side did not answer or refused.
    TcpConnectFailed = "tcp_connect_failed",
    /// TCP segments for a flow that does not exist, answered with RST.
    TcpNoFlow = "tcp_no_flow",
    /// TCP flows not opened because the table, or the half-open limit, was full.
    TcpTableFull = "tcp_table_full",
    /// TCP segments outside of the window or with an impossible acknowledgement.
    TcpUnacceptable = "tcp_unacceptable",
    /// TCP segments ahead of a gap.
    TcpOutOfOrder = "tcp_out_of_order",
    /// TCP payload not taken because too many buffers were kept; the guest sends it again.
    TcpKeptTooMuch = "tcp_kept_too_much",
    /// Times that a guest flooded a connection with small segments, which were then acknowledged at intervals.
    TcpFloods = "tcp_floods",
    /// TCP data sent to the guest again.
    TcpRetransmits = "tcp_retransmits",
    /// TCP flows given up because the guest did not acknowledge or answer.
    TcpGuestTimedOut = "tcp_guest_timed_out",
    /// RSTs to the guest.
    TcpResetsToGuest = "tcp_resets_to_guest",
    /// RSTs from the guest.
    TcpResetsFromGuest = "tcp_resets_from_guest",
    /// TCP connections from the guest's loopback to the host's.
    OutwardConnections = "outward_connections",
    /// Those that nobody answered on the host; their clients were reset.
    OutwardRefused = "outward_refused",
    /// Those that were joined and have ended.
    OutwardEnded = "outward_ended",
    /// UDP clients in the guest's namespace that were given a socket on the host.
    OutwardClients = "outward_clients",
    /// Those that were forgotten because they were idle.
    OutwardIdle = "outward_idle",
    /// Datagrams from the host's loopback by others than the server that was asked.
    OutwardFiltered = "outward_filtered",
    /// Datagrams between the two loopbacks that could not be delivered.
    OutwardErrors = "outward_errors",
    /// Connections and datagrams from the guest's loopback refused because a table, or the half-open limit, was full.
    OutwardTableFull = "outward_table_full",
    /// UDP mappings made.
    UdpMappings = "udp_mappings",
    /// UDP mappings ended because they were idle.
    UdpMappingsIdle = "udp_mappings_idle",
    /// UDP mappings that the host side could not open a socket for.
    UdpOpenFailed = "udp_open_failed",
    /// UDP datagrams not sent because the host side refused their mapping a socket a moment ago.
    UdpNoSocket = "udp_no_socket",
    /// UDP datagrams not sent because the table of mappings, or of sockets, was full.
    UdpTableFull = "udp_table_full",
    /// UDP clients of forwards forgotten for new ones because their table was full.
    UdpPeersEvicted = "udp_peers_evicted",
    /// UDP clients of forwards that another one with the same address and port, as the guest sees it, took over from.
    UdpPeersReplaced = "udp_peers_replaced",
    /// UDP datagrams from the host side for a forward that leads nowhere in the sender's family.
    UdpForwardUnusable = "udp_forward_unusable",
    /// UDP datagrams from the host side that their mapping does not let in.
    UdpFiltered = "udp_filtered",
    /// UDP datagrams from the host side that are too long for the guest's family.
    UdpTooLong = "udp_too_long",
    /// UDP datagrams that could not be delivered, as the host side told.
    UdpErrors = "udp_errors",
    /// Packets from the guest whose TTL ran out here.
    DropTimeExceeded = "drop_time_exceeded",
    /// Packets from the guest to a destination that the rules refuse, or where nobody is; the guest was told.
    DropUnreachable = "drop_unreachable",
    /// DNS queries from the guest.
    DnsQueries = "dns_queries",
    /// DNS answers to the guest.
    DnsAnswers = "dns_answers",
    /// DNS queries sent again, to another resolver.
    DnsRetries = "dns_retries",
    /// DNS queries that no resolver answered.
    DnsUnanswered = "dns_unanswered",
    /// DNS queries when no resolver is known; the guest was told.
    DnsNoResolver = "dns_no_resolver",
    /// DNS queries given up for new ones because the table was full.
    DnsEvicted = "dns_evicted",
    /// DNS queries not forwarded: too short, too long, fragmented, or no socket was left.
    DnsNotForwarded = "dns_not_forwarded",
    /// Datagrams to the DNS forwarder that answer none of its queries.
    DnsUnexpected = "dns_unexpected",
    /// Datagrams put together from fragments.
    ReassemblyWhole = "reassembly_whole",
    /// Datagrams whose fragments overlapped or contradicted each other, dropped.
    ReassemblyOverlaps = "reassembly_overlaps",
    /// Fragments that came twice.
    ReassemblyDuplicates = "reassembly_duplicates",
    /// Fragments of a datagram that was dropped before.
    ReassemblyLate = "reassembly_late",
    /// Datagrams whose fragments did not all come in time.
    ReassemblyTimeouts = "reassembly_timeouts",
    /// Incomplete datagrams dropped for newer ones because a limit was reached.
    ReassemblyEvicted = "reassembly_evicted",
}

/// How many counters there are.
pub const COUNTERS: usize = Counter::ALL.len();

/// The values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counters([u64; COUNTERS]);

impl Default for Counters {
    fn default() -> Self {
        Self([0; COUNTERS])
    }
}

impl Counters {
    /// Counts one.
    pub fn count(&mut self, counter: Counter) {
        self.add(counter, 1);
    }

    /// Counts `n`.
    pub fn add(&mut self, counter: Counter, n: u64) {
        self.0[counter as usize] += n;
    }

    /// The value.
    pub fn value(&self, counter: Counter) -> u64 {
        self.0[counter as usize]
    }

    /// Names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Counter::ALL.iter().map(|&c| (c.name(), self.value(c)))
    }
}
