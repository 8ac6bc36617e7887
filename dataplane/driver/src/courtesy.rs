//! A thread that joins fast streams lets those who write go on.
//!
//! The kernel tells of each write to a joined stream's socket, and whoever is woken so interrupts the one that wakes it, on
//! the same core: at 40 Gbit/s each 128 KiB that a client wrote were followed by two switches of its core, and by the wake-up of the
//! server for these 128 KiB. Under `SCHED_BATCH` (sched(7)) a thread does not interrupt others by being woken. It comes to
//! its turn when the client has to wait, or has had its time, and finds more to move. Measured with cubic: a fifth more
//! throughput, and half of the time (decision 13).
//!
//! Nothing is held up but by who has something to do on the same core, and that only while joined streams are fast: a
//! thread that answers has to come to its turn at once. It makes no difference to streams that pass the link.

use std::time::Duration;

use usernet_core::Instant;

use crate::backend::Backend;
use crate::counters::Counter;
use crate::engine::Engine;
use crate::sys;

/// How often it is asked how fast they are.
const PERIOD: Duration = Duration::from_millis(10);

/// Bytes in a period from which on they are fast: 3.4 Gbit/s.
const FAST_BYTES: u64 = 4 << 20;

/// Bytes in a period below which they are no more.
const SLOW_BYTES: u64 = 1 << 20;

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Courtesy {
    /// Bytes that joined streams have moved in this period.
    bytes: u64,
    /// Its begin.
    since: Instant,
    /// The thread is scheduled so.
    is_on: bool,
    /// Who has given the process another class than the usual one has meant it.
    is_allowed: bool,
}

impl Courtesy {
    pub(crate) fn new(is_allowed: bool) -> Self {
        Self { bytes: 0, since: Instant::ZERO, is_on: false, is_allowed }
    }

    /// Joined streams have moved so much.
    pub(crate) fn on_moved(&mut self, bytes: u64) {
        self.bytes += bytes;
    }

    /// A turn has ended. Some: from now on it shall be so, and was not.
    fn on_turn(&mut self, now: Instant) -> Option<bool> {
        let time = now.since(self.since);
        if time < PERIOD {
            return None;
        }
        // A thread that was asleep for a while has moved as much in more than a period.
        let periods = (time.as_nanos() / PERIOD.as_nanos()) as u64;
        let bytes = std::mem::take(&mut self.bytes) / periods;
        self.since = now;
        let is_fast = bytes >= if self.is_on { SLOW_BYTES } else { FAST_BYTES };
        if !self.is_allowed || is_fast == self.is_on {
            return None;
        }
        self.is_on = is_fast;
        Some(is_fast)
    }
}

impl<B: Backend> Engine<B> {
    /// The turn ends: how the thread is to be scheduled.
    pub(crate) fn be_courteous(&mut self) {
        let Some(is_courteous) = self.courtesy.on_turn(self.now) else { return };
        if sys::schedule_as_batch(is_courteous).is_err() {
            self.courtesy.is_allowed = false;
        } else if is_courteous {
            self.count(Counter::Courtesies);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Periods of these bytes each, and what they led to.
    fn after(courtesy: &mut Courtesy, now: &mut Instant, periods: &[u64]) -> Vec<Option<bool>> {
        let period = |&bytes: &u64| {
            *now = *now + PERIOD / 2;
            courtesy.on_moved(bytes / 2);
            assert_eq!(courtesy.on_turn(*now), None, "the period has not ended");
            *now = *now + PERIOD / 2;
            courtesy.on_moved(bytes / 2);
            courtesy.on_turn(*now)
        };
        periods.iter().map(period).collect()
    }

    #[test]
    fn it_lasts_as_long_as_streams_are_fast() {
        let (mut courtesy, mut now) = (Courtesy::new(true), Instant::ZERO);
        let periods = [0, SLOW_BYTES, FAST_BYTES, SLOW_BYTES, FAST_BYTES, 0, 0];
        let told = after(&mut courtesy, &mut now, &periods);
        assert_eq!(told, [None, None, Some(true), None, None, Some(false), None]);
    }

    #[test]
    fn what_was_moved_in_a_long_time_is_not_fast() {
        let (mut courtesy, mut now) = (Courtesy::new(true), Instant::ZERO);
        courtesy.on_moved(FAST_BYTES);
        now = now + PERIOD * 2;
        assert_eq!(courtesy.on_turn(now), None);
        courtesy.on_moved(FAST_BYTES);
        now = now + PERIOD;
        assert_eq!(courtesy.on_turn(now), Some(true));
        now = now + PERIOD * 1_000;
        assert_eq!(courtesy.on_turn(now), Some(false));
    }

    #[test]
    fn who_has_chosen_a_class_keeps_it() {
        let (mut courtesy, mut now) = (Courtesy::new(false), Instant::ZERO);
        assert_eq!(after(&mut courtesy, &mut now, &[FAST_BYTES; 3]), [None; 3]);
    }

    #[test]
    fn a_thread_can_be_scheduled_as_batch_and_as_usual_again() {
        assert!(sys::is_scheduled_as_usual());
        sys::schedule_as_batch(true).expect("nobody needs a privilege for it");
        assert!(!sys::is_scheduled_as_usual());
        sys::schedule_as_batch(false).expect("nor for this");
        assert!(sys::is_scheduled_as_usual());
    }
}
