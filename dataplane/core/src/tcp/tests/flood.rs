//! Floods of small segments.

use super::*;

/// Segments until a flood is seen.
const SEGMENTS: usize = 256;
const INTERVAL: Duration = Duration::from_micros(500);
const QUICK: Duration = Duration::from_micros(2);

/// A guest that writes what its window has room for, to a host that takes it at once.
struct Writer {
    flow: Flow,
    /// Where the window ends.
    edge: u32,
    /// How often it was acknowledged.
    acknowledged: usize,
}

impl Writer {
    fn new() -> Self {
        let flow = established();
        // The window of a SYN-ACK is not scaled.
        let edge = flow.guest + 0xffff;
        Self { flow, edge, acknowledged: 0 }
    }

    /// In the midst of a flood.
    fn flooding() -> Self {
        let mut writer = Self::new();
        writer.write(2 * SEGMENTS, 64, QUICK);
        assert_eq!(writer.floods(), 1);
        writer
    }

    fn room(&self) -> u32 {
        self.edge - self.flow.guest
    }

    fn floods(&self) -> u64 {
        self.flow.world.shard.counters().value(Counter::TcpFloods)
    }

    /// `times` segments of `len` bytes, one every `gap` where there is room: how often they are acknowledged.
    fn write(&mut self, times: usize, len: u32, gap: Duration) -> usize {
        let before = self.acknowledged;
        for _ in 0..times {
            self.pass(gap);
            if self.room() >= len {
                self.flow.send(ACK, &vec![7; len as usize]);
                self.flow.sent(len);
                self.hear();
            }
        }
        self.acknowledged - before
    }

    fn pass(&mut self, time: Duration) {
        self.flow.world.pass(time);
        self.flow.world.flush();
        self.hear();
    }

    fn hear(&mut self) {
        self.flow.world.shard.check();
        while !self.flow.world.written.is_empty() {
            let got = self.flow.got();
            let edge = got.ack + (u32::from(got.window) << 7);
            assert!(edge >= self.edge, "the window's edge does not move back");
            self.edge = edge;
            self.acknowledged += 1;
        }
    }
}

#[test]
fn a_flood_is_acknowledged_at_intervals() {
    let mut writer = Writer::flooding();
    // Ten milliseconds.
    let acknowledged = writer.write(5000, 64, QUICK);
    assert!((15..=21).contains(&acknowledged), "{acknowledged} times");
    assert_eq!(writer.floods(), 1);
}

#[test]
fn small_segments_that_are_no_flood_are_acknowledged_each() {
    let mut writer = Writer::new();
    let acknowledged = writer.write(4 * SEGMENTS, 64, Duration::from_micros(6));
    assert_eq!((acknowledged, writer.floods()), (4 * SEGMENTS, 0));
}

#[test]
fn large_segments_are_no_flood_however_quick() {
    let mut writer = Writer::new();
    let acknowledged = writer.write(4 * SEGMENTS, 1024, Duration::from_micros(1));
    assert_eq!((acknowledged, writer.floods()), (4 * SEGMENTS, 0));
}

#[test]
fn a_flood_is_held_up_once_it_has_used_up_what_it_was_promised() {
    let mut writer = Writer::flooding();
    while writer.room() >= 64 {
        writer.write(SEGMENTS, 64, QUICK);
        assert!(writer.flow.guest < 4 << 20, "{} bytes of room", writer.room());
    }
    // From here on it may send 4 to 8 KiB per interval, of 16 that it would.
    let begin = writer.flow.guest;
    writer.write(10_000, 64, QUICK);
    let sent = writer.flow.guest - begin;
    assert!((150_000..400_000).contains(&sent), "{sent} bytes in 40 intervals");
}

#[test]
fn what_was_promised_is_used_up_before_the_window_shrinks() {
    let mut writer = Writer::flooding();
    while writer.room() >= 64 {
        writer.write(SEGMENTS, 64, QUICK);
    }
    writer.pass(INTERVAL);
    // Of the 8 KiB that it begins with, a quarter less for each interval since: not yet the least there is.
    let room = writer.room();
    assert!(room > 4 << 10 && room < 8 << 10, "{room} bytes");
}

#[test]
fn segments_that_have_become_large_end_a_flood() {
    let mut writer = Writer::flooding();
    while writer.room() >= 64 {
        writer.write(SEGMENTS, 64, QUICK);
    }
    // What the guest's kernel has joined meanwhile.
    let intervals = (0..).find(|_| writer.write(250, 1460, QUICK) == 250).expect("an end");
    assert!((20..40).contains(&intervals), "after {intervals} intervals");
    assert!(writer.room() > 1 << 20, "{} bytes of room", writer.room());
}

#[test]
fn the_window_opens_soon_when_nothing_comes_any_more() {
    let mut writer = Writer::flooding();
    while writer.room() >= 64 {
        writer.write(SEGMENTS, 64, QUICK);
    }
    for _ in 0..12 {
        writer.pass(INTERVAL);
    }
    // The last step, to 1.2 MB, is less than half a window: the guest is told with what comes next.
    assert!(writer.room() > 700 << 10, "{} bytes of room", writer.room());
    let acknowledged = writer.acknowledged;
    writer.pass(INTERVAL * 10);
    assert_eq!(writer.acknowledged, acknowledged, "it is over");
}

#[test]
fn the_end_of_a_flood_is_acknowledged_at_once() {
    let mut writer = Writer::flooding();
    writer.flow.send(ACK | FIN, b"bye");
    assert_eq!(writer.flow.got().ack, writer.flow.guest);
    writer.pass(INTERVAL * 20);
}

#[test]
fn a_connection_that_is_reset_amid_a_flood_leaves_nothing_behind() {
    let mut writer = Writer::flooding();
    writer.flow.send(RST, b"");
    let acknowledged = writer.acknowledged;
    writer.pass(INTERVAL * 3);
    assert_eq!(writer.acknowledged, acknowledged);
}
