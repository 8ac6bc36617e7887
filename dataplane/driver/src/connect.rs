//! Connects that are done before anybody is told.
//!
//! A connect to an address of the host itself is answered while the call runs, but a nonblocking socket says
//! `EINPROGRESS` all the same (`inet_stream_connect`): the answer is queued behind the lock that the call holds. A second
//! call finds the connection made, and the guest has its answer in the same turn: without a watch that fires at once, and
//! two waits. For everybody else that call is in vain, so it is made where it has paid lately, and now and then.

/// What a call that paid earns: so many in vain may follow it.
const EARNED: u8 = 4;
/// What can be earned.
const CREDIT_MAX: u8 = 16;
/// Who has no credit tries one of so many connects.
const TRY_EVERY: u8 = 16;

/// Whether asking at once has paid lately.
#[derive(Debug)]
pub(crate) struct Promptness {
    credit: u8,
    /// Connects that were not asked about since the last one that was.
    passed: u8,
}

impl Default for Promptness {
    fn default() -> Self {
        Self { credit: EARNED, passed: 0 }
    }
}

impl Promptness {
    /// Whether to ask about this one.
    pub(crate) fn asks(&mut self) -> bool {
        if self.credit > 0 || self.passed + 1 == TRY_EVERY {
            self.passed = 0;
            return true;
        }
        self.passed += 1;
        false
    }

    /// It was asked, and it was done already, or not.
    pub(crate) fn on_answer(&mut self, is_done: bool) {
        self.credit = match is_done {
            true => (self.credit + EARNED).min(CREDIT_MAX),
            false => self.credit.saturating_sub(1),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_connects_to_the_host_itself_asks_each_time() {
        let mut promptness = Promptness::default();
        for _ in 0..100 {
            assert!(promptness.asks());
            promptness.on_answer(true);
        }
    }

    #[test]
    fn who_connects_elsewhere_asks_now_and_then() {
        let mut promptness = Promptness::default();
        let mut asked = 0;
        for _ in 0..164 {
            if promptness.asks() {
                asked += 1;
                promptness.on_answer(false);
            }
        }
        assert_eq!(asked, 4 + 10);
        while !promptness.asks() {}
        promptness.on_answer(true);
        assert!(promptness.asks(), "it may be worth it again");
    }
}
