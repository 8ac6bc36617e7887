//! The link between guest and core, with its faults: frames are lost, repeated, delayed, overtaken, damaged.

use std::time::Duration;

use usernet_core::{Instant, Offload};

use crate::choice::Choices;

/// What goes wrong, in parts per thousand frames, per direction.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Lost.
    pub loss: u16,
    /// Delivered twice.
    pub duplicate: u16,
    /// Delivered late, behind others.
    pub reorder: u16,
    /// A byte changed, or the end cut off.
    pub corrupt: u16,
    /// Every frame takes so long.
    pub delay: Duration,
    /// And up to this longer; later frames wait behind it.
    pub jitter: Duration,
}

impl Faults {
    /// Whether no frame is lost, nor late enough for a retransmission.
    pub fn is_perfect(&self) -> bool {
        self.loss == 0 && self.reorder == 0 && self.corrupt == 0 && self.duplicate == 0
    }
}

/// A frame on its way.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Ethernet header first.
    pub bytes: Vec<u8>,
    /// What the link says of it.
    pub offload: Offload,
    /// The link has changed it.
    pub is_damaged: bool,
}

/// One direction.
pub struct Line {
    /// What goes wrong; nothing at the end of a run.
    pub faults: Faults,
    last_arrival: Instant,
}

impl Line {
    /// A line with these faults.
    pub fn new(faults: Faults) -> Self {
        Self { faults, last_arrival: Instant::ZERO }
    }

    /// When the frame arrives, and in which shape: not at all, once or twice.
    pub fn carry(
        &mut self,
        now: Instant,
        choices: &mut Choices,
        frame: Frame,
    ) -> Vec<(Instant, Frame)> {
        if choices.chance(self.faults.loss) {
            return Vec::new();
        }
        let copies = 1 + usize::from(choices.chance(self.faults.duplicate));
        let mut arrivals = Vec::with_capacity(copies);
        for _ in 0..copies {
            let late = now + self.faults.delay + choices.duration(self.faults.jitter);
            let at = if choices.chance(self.faults.reorder) {
                late + choices.duration(self.faults.delay * 2 + Duration::from_millis(2))
            } else {
                self.last_arrival = self.last_arrival.max(late);
                self.last_arrival
            };
            let mut frame = frame.clone();
            if choices.chance(self.faults.corrupt) {
                damage(choices, &mut frame);
            }
            arrivals.push((at, frame));
        }
        arrivals
    }
}

/// Changes one byte behind the Ethernet header of an IP packet, or cuts its end off. The Internet checksum
/// finds every change of a single byte; what has no checksum (ARP) stays whole.
fn damage(choices: &mut Choices, frame: &mut Frame) {
    let is_ip = matches!(frame.bytes.get(12..14), Some([0x08, 0x00] | [0x86, 0xdd]));
    if !is_ip || frame.bytes.len() < 16 {
        return;
    }
    frame.is_damaged = true;
    frame.offload = Offload::default();
    let at = 14 + choices.below(frame.bytes.len() as u64 - 14) as usize;
    // Two changed bytes in fragments of one datagram may make up for each other.
    if choices.chance(200) || is_fragment(&frame.bytes) {
        frame.bytes.truncate(at);
    } else {
        frame.bytes[at] ^= 1 << choices.below(8);
    }
}

fn is_fragment(frame: &[u8]) -> bool {
    match frame.get(12..14) {
        Some([0x08, 0x00]) => frame.get(20..22).is_some_and(|f| f[0] & 0x3f != 0 || f[1] != 0),
        Some([0x86, 0xdd]) => frame.get(20) == Some(&44),
        _ => false,
    }
}
