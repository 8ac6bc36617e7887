//! Sequences of frames from the guest and of events of the host, through a whole shard.

#![no_main]

use std::time::Duration;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use usernet_core::op::{Checksum, Offload};
use usernet_fuzz::frames::GuestFrame;
use usernet_fuzz::world::World;

/// The most events of one input: more find nothing more, and cost time.
const EVENTS_MAX: usize = 200;

#[derive(Arbitrary, Debug)]
enum Event {
    Frame(GuestFrame),
    Raw { bytes: Vec<u8>, partial: Option<(u16, u16)> },
    Host { socket: u8, choice: u8, amount: u16 },
    Wait { milliseconds: u16 },
    Deadline,
    Flush,
    Short { is_short: bool },
}

fuzz_target!(|input: (u8, Vec<Event>)| {
    let (how, events) = input;
    let flushes_always = how & 1 == 1;
    let mut world = World::new(how >> 1);
    for event in events.into_iter().take(EVENTS_MAX) {
        match event {
            Event::Frame(frame) => {
                let (bytes, offload) = frame.bytes(&world);
                world.frame(bytes, offload);
            }
            Event::Raw { bytes, partial } => {
                let checksum = match partial {
                    Some((start, offset)) => Checksum::Partial { start, offset },
                    None => Checksum::Unchecked,
                };
                world.frame(bytes, Offload { checksum, ..Offload::default() });
            }
            Event::Host { socket, choice, amount } => world.host(socket, choice, amount),
            Event::Wait { milliseconds } => {
                world.wait(Duration::from_millis(u64::from(milliseconds)));
            }
            Event::Deadline => world.wait_for_deadline(),
            Event::Flush => world.flush(),
            Event::Short { is_short } => world.set_short(is_short),
        }
        if flushes_always {
            world.flush();
        }
    }
});
