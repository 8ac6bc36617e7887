//! Frames in one line, for the trace.

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use usernet_core::packet::{EtherType, parse};

/// Who to whom, and what.
pub(crate) fn frame(bytes: &[u8]) -> String {
    let Ok(sliced) = SlicedPacket::from_ethernet(bytes) else {
        return format!("malformed, {} bytes", bytes.len());
    };
    if let Some(NetSlice::Arp(arp)) = &sliced.net {
        return format!("ARP {:?}", arp.operation());
    }
    let Ok(EtherType::Ip(packet)) = parse(bytes) else {
        return format!("not IP, {} bytes", bytes.len());
    };
    let (from, to) = (packet.source, packet.destination);
    match &sliced.transport {
        Some(TransportSlice::Tcp(tcp)) => {
            let flags = [
                (tcp.syn(), "SYN "),
                (tcp.fin(), "FIN "),
                (tcp.rst(), "RST "),
                (tcp.psh(), "PSH "),
            ];
            let flags: String = flags.iter().filter(|f| f.0).map(|f| f.1).collect();
            format!(
                "TCP {from}:{} > {to}:{} {flags}seq {} ack {} win {} len {}",
                tcp.source_port(),
                tcp.destination_port(),
                tcp.sequence_number(),
                if tcp.ack() { tcp.acknowledgment_number().to_string() } else { "-".to_owned() },
                tcp.window_size(),
                tcp.payload().len()
            )
        }
        Some(TransportSlice::Udp(udp)) => format!(
            "UDP {from}:{} > {to}:{} len {}",
            udp.source_port(),
            udp.destination_port(),
            udp.payload().len()
        ),
        Some(TransportSlice::Icmpv4(_) | TransportSlice::Icmpv6(_)) => {
            let icmp = &bytes[packet.payload()];
            format!("ICMP {from} > {to} type {} code {}", icmp[0], icmp[1])
        }
        Some(TransportSlice::Igmp(_)) => "IGMP".to_owned(),
        None => format!("IP {from} > {to} protocol {} {:?}", packet.protocol, packet.fragment),
    }
}
