//! When to look for events for a while before going to sleep.
//!
//! Who waits for an answer of the other side is woken sooner by a thread that has not gone to sleep itself: a wake-up
//! across cores costs 10 to 25 µs in a virtual machine, and a round trip through a translator has four of them
//! (measured: 90 µs, and 42 µs when the translator's two are spared).
//!
//! It is done only while it pays. Waits have to have been short for a while, which they are not at rest, nor on a
//! machine whose cores others want; and little must have been moved in the turns before: bulk needs the cores for
//! copying, and keeps everybody awake anyway.

use std::time::Duration;

/// Short waits in a row, more or less, before it is thought to pay.
const CONFIDENCE_MIN: u8 = 3;
/// What a long row of short waits counts at most: so soon are a few long ones noticed.
const CONFIDENCE_MAX: u8 = 8;
/// What a long wait costs.
const PENALTY: u8 = 2;
/// Bytes of a turn, in the mean of the last ones, above which it is bulk.
const BULK_BYTES: usize = 16 << 10;
/// Turns that the mean is taken over, more or less: a turn that moves nothing does not end a stream.
const TURNS: usize = 8;

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct BusyPoll {
    /// How long to look; zero: never.
    time: Duration,
    confidence: u8,
    /// Bytes moved in the last turns; those of older ones count less.
    moved: usize,
}

impl BusyPoll {
    pub(crate) fn new(time: Duration) -> Self {
        Self { time, confidence: 0, moved: 0 }
    }

    /// Bytes were read from the link or a socket.
    pub(crate) fn on_moved(&mut self, bytes: usize) {
        self.moved += bytes;
    }

    /// The turn ends: how long to look for events before sleeping, where nothing else is to be done for `timeout`. A
    /// deadline that is near is waited for awake, too: who went to sleep for it would be woken across cores.
    pub(crate) fn time(&mut self, timeout: Option<Duration>) -> Option<Duration> {
        let is_bulk = self.moved > TURNS * BULK_BYTES;
        self.moved -= self.moved.div_ceil(TURNS);
        (self.confidence >= CONFIDENCE_MIN && !is_bulk && timeout != Some(Duration::ZERO))
            .then(|| timeout.map_or(self.time, |timeout| timeout.min(self.time)))
    }

    /// An event came after this time.
    pub(crate) fn on_waited(&mut self, time: Duration) {
        self.confidence = if time < self.time {
            (self.confidence + 1).min(CONFIDENCE_MAX)
        } else {
            self.confidence.saturating_sub(PENALTY)
        };
    }

    /// A deadline came first.
    pub(crate) fn on_deadline(&mut self) {
        self.confidence = self.confidence.saturating_sub(PENALTY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: Duration = Duration::from_micros(50);
    const SHORT: Duration = Duration::from_micros(20);

    fn after(waits: &[Duration]) -> BusyPoll {
        let mut busy = BusyPoll::new(TIME);
        for &wait in waits {
            busy.on_waited(wait);
        }
        busy
    }

    #[test]
    fn a_row_of_short_waits_makes_it_pay() {
        assert_eq!(after(&[]).time(None), None);
        assert_eq!(after(&[SHORT; 2]).time(None), None);
        assert_eq!(after(&[SHORT; 3]).time(None), Some(TIME));
    }

    #[test]
    fn a_few_long_waits_end_it_however_long_it_paid() {
        let mut busy = after(&[SHORT; 1000]);
        for _ in 0..3 {
            assert_eq!(busy.time(None), Some(TIME));
            busy.on_waited(TIME);
        }
        assert_eq!(busy.time(None), None);
    }

    #[test]
    fn a_deadline_that_is_near_is_waited_for_awake() {
        let mut busy = after(&[SHORT; 8]);
        assert_eq!(busy.time(Some(SHORT)), Some(SHORT));
        assert_eq!(busy.time(Some(TIME * 2)), Some(TIME));
        assert_eq!(busy.time(Some(Duration::ZERO)), None, "there is something to do");
    }

    #[test]
    fn deadlines_one_after_the_other_end_it() {
        let mut busy = after(&[SHORT; 1000]);
        for _ in 0..3 {
            assert_eq!(busy.time(Some(SHORT)), Some(SHORT));
            busy.on_deadline();
        }
        assert_eq!(busy.time(Some(SHORT)), None);
    }

    #[test]
    fn a_turn_that_moved_much_is_followed_by_sleep() {
        let mut busy = after(&[SHORT; 8]);
        busy.on_moved(TURNS * BULK_BYTES + 1);
        assert_eq!(busy.time(None), None);
        assert_eq!(busy.time(None), Some(TIME));
    }

    #[test]
    fn a_turn_that_moved_nothing_does_not_end_a_stream() {
        let mut busy = after(&[SHORT; 8]);
        for _ in 0..100 {
            busy.on_moved(3 * BULK_BYTES);
            busy.time(None);
            busy.time(None);
        }
        assert_eq!(busy.time(None), None);
        for _ in 0..100 {
            busy.time(None);
        }
        assert_eq!(busy.time(None), Some(TIME));
        assert_eq!(busy.moved, 0);
    }

    #[test]
    fn no_time_is_never() {
        let mut busy = BusyPoll::new(Duration::ZERO);
        for _ in 0..10 {
            busy.on_waited(Duration::ZERO);
        }
        assert_eq!(busy.time(None), None);
    }
}
