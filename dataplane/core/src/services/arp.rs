//! ARP (RFC 826): our own addresses are answered for, and everybody's but the guest's if so configured; what is heard
//! is remembered.
//!
//! A probe (RFC 5227: sender 0.0.0.0) for one of our addresses is answered as any request, which tells the prober
//! that the address is taken. Announcements (target equal to sender) teach a neighbour and need no answer.

use core::net::IpAddr;

use smoltcp::wire::{ArpOperation, ArpPacket, ArpRepr, EthernetAddress};

use crate::config::MacAddr;
use crate::context::Context;
use crate::counters::Counter;
use crate::op::{LeaseId, Offload, Op};
use crate::packet::ETHERNET_BYTES;
use crate::services::answers_for;

/// Bytes of an ARP message for IPv4 over Ethernet.
const ARP_BYTES: usize = 28;

pub(crate) fn on_frame(ctx: &mut Context<'_>, lease: LeaseId, bytes: &mut [u8]) {
    let parsed =
        ArpPacket::new_checked(&bytes[ETHERNET_BYTES..]).and_then(|packet| ArpRepr::parse(&packet));
    let Ok(ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr: mac,
        source_protocol_addr: ip,
        target_protocol_addr: wanted,
        ..
    }) = parsed
    else {
        return ctx.drop_frame(lease, Counter::DropMalformed);
    };
    if ctx.config.net4.is_none() {
        return ctx.drop_frame(lease, Counter::DropFamily);
    }
    if ctx.rules.view.is_taken(IpAddr::V4(ip)) || !mac.is_unicast() {
        return ctx.drop_frame(lease, Counter::DropSource);
    }
    ctx.learn(IpAddr::V4(ip), MacAddr(mac.0));
    if operation == ArpOperation::Request && answers_for(ctx, ip.into(), wanted.into()) {
        let reply = ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Reply,
            source_hardware_addr: EthernetAddress(ctx.config.host_mac.0),
            source_protocol_addr: wanted,
            target_hardware_addr: mac,
            target_protocol_addr: ip,
        };
        send(ctx, mac, &reply);
    } else {
        ctx.count(Counter::ResolutionHeard);
    }
    ctx.op(Op::Release { lease });
}

fn send(ctx: &mut Context<'_>, to: EthernetAddress, reply: &ArpRepr) {
    ctx.count(Counter::ArpAnswered);
    let from = ctx.config.host_mac;
    ctx.emit(ETHERNET_BYTES + ARP_BYTES, Offload::default(), |frame| {
        frame[0..6].copy_from_slice(&to.0);
        frame[6..12].copy_from_slice(&from.0);
        frame[12..14].copy_from_slice(&[0x08, 0x06]);
        reply.emit(&mut ArpPacket::new_unchecked(&mut frame[ETHERNET_BYTES..]));
    });
}
