//! What goes nowhere: whoever floods us with it pays as little as possible.

use usernet_core::op::{Checksum, Gso};
use usernet_core::{Counter, Offload};

use crate::replay::guest::{ACK, Connection, VALID, at, guest_port, server, udp};
use crate::replay::{Log, Recorder};

const PER_TURN: usize = 32;
const TURNS: usize = 32;
const FRAMES: usize = TURNS * PER_TURN;

/// The same frame over and over: counted as this, and nothing comes of it but so many frames to the guest.
fn repeated(frame: &[u8], offload: Offload, counter: Counter, answers: usize) -> Log {
    let mut rec = Recorder::new();
    rec.measure();
    for _ in 0..TURNS {
        for _ in 0..PER_TURN {
            rec.frame(frame.to_vec(), offload);
        }
        rec.turn();
    }
    assert_eq!(rec.counted(counter), FRAMES as u64, "all of them are dropped for this reason");
    assert_eq!(rec.measured_ops().len(), FRAMES + answers, "and their leases go back");
    rec.finish(FRAMES)
}

fn datagram(to: &str) -> Vec<u8> {
    let config = usernet_core::Config::example();
    udp(&config, guest_port(0), at(to), &[0; 100])
}

/// Its IP header says that it is longer than it is.
pub(super) fn malformed() -> Log {
    let frame = datagram("192.0.2.7:9");
    repeated(&frame[..frame.len() - 10], VALID, Counter::DropMalformed, 0)
}

pub(super) fn wrong_checksum() -> Log {
    let mut frame = datagram("192.0.2.7:9");
    let last = frame.len() - 1;
    frame[last] ^= 1;
    let unchecked = Offload { checksum: Checksum::Unchecked, gso: Gso::None };
    repeated(&frame, unchecked, Counter::DropChecksum, 0)
}

/// What avahi and others tell the link all day.
pub(super) fn multicast() -> Log {
    let mut frame = datagram("224.0.0.251:5353");
    frame[..6].copy_from_slice(&[0x01, 0x00, 0x5e, 0, 0, 0xfb]);
    repeated(&frame, VALID, Counter::DropByRule, 0)
}

/// Answered with a reset.
pub(super) fn no_flow() -> Log {
    let config = usernet_core::Config::example();
    let mut conn = Connection::unconnected(guest_port(0), server());
    let frame = conn.frame(&config, ACK, 0);
    repeated(&frame, VALID, Counter::TcpNoFlow, FRAMES)
}
