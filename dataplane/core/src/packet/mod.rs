//! Frames: what is in them ([`parse()`]), how ours are made ([`build`]), their sums ([`checksum`]), and what links without
//! offload want done ([`offload`]).

pub mod build;
pub mod checksum;
pub mod error;
pub mod offload;

mod parse;

pub use parse::{
    ETHERNET_BYTES, EtherType, Fragment, Malformed, Packet, has_valid_header, parse, parse_ip,
};

/// Protocol numbers (IANA).
pub mod protocol {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
}
