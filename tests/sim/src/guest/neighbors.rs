//! Messages by which the guest's stack learns the gateway's address anew, as an attentive gateway might send them.

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
    EthernetRepr, Icmpv6Packet, Icmpv6Repr, IpProtocol, Ipv6Packet, Ipv6Repr, NdiscRepr,
    RawHardwareAddress,
};
use usernet_core::Config;

/// A request for the guest's own address from the gateway, per family.
pub(super) fn refresh(config: &Config) -> Vec<Vec<u8>> {
    [arp(config), solicitation(config)].into_iter().flatten().collect()
}

fn ethernet(config: &Config, ethertype: EthernetProtocol, len: usize) -> Vec<u8> {
    let header = EthernetRepr {
        src_addr: EthernetAddress(config.host_mac.0),
        dst_addr: EthernetAddress(config.guest_mac.0),
        ethertype,
    };
    let mut bytes = vec![0; header.buffer_len() + len];
    header.emit(&mut EthernetFrame::new_unchecked(&mut bytes));
    bytes
}

fn arp(config: &Config) -> Option<Vec<u8>> {
    let net = config.net4?;
    let request = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: EthernetAddress(config.host_mac.0),
        source_protocol_addr: net.gateway,
        target_hardware_addr: EthernetAddress(config.guest_mac.0),
        target_protocol_addr: net.guest,
    };
    let mut bytes = ethernet(config, EthernetProtocol::Arp, request.buffer_len());
    request.emit(&mut ArpPacket::new_unchecked(&mut bytes[14..]));
    Some(bytes)
}

fn solicitation(config: &Config) -> Option<Vec<u8>> {
    let net = config.net6?;
    let message = Icmpv6Repr::Ndisc(NdiscRepr::NeighborSolicit {
        target_addr: net.guest,
        lladdr: Some(RawHardwareAddress::from_bytes(&config.host_mac.0)),
    });
    let header = Ipv6Repr {
        src_addr: net.gateway,
        dst_addr: net.guest,
        next_header: IpProtocol::Icmpv6,
        payload_len: message.buffer_len(),
        hop_limit: 255,
    };
    let len = header.buffer_len() + message.buffer_len();
    let mut bytes = ethernet(config, EthernetProtocol::Ipv6, len);
    header.emit(&mut Ipv6Packet::new_unchecked(&mut bytes[14..]));
    message.emit(
        &net.gateway,
        &net.guest,
        &mut Icmpv6Packet::new_unchecked(&mut bytes[54..]),
        &ChecksumCapabilities::default(),
    );
    Some(bytes)
}
