//! What the driver counts, beside the core's counters.

/// Makes the enum of what a part of the driver counts, and the values.
macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// What is counted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Counter { $($(#[doc = $doc])+ $variant,)+ }

        impl Counter {
            const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The name in the control API.
            const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }

        /// The values.
        #[derive(Clone, Debug)]
        pub(crate) struct Counters([u64; Counter::ALL.len()]);

        impl Default for Counters {
            fn default() -> Self {
                Self([0; Counter::ALL.len()])
            }
        }

        impl Counters {
            /// Counts one.
            pub(crate) fn count(&mut self, counter: Counter) {
                self.0[counter as usize] += 1;
            }

            /// Names and values.
            pub(crate) fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
                Counter::ALL.iter().map(|&c| (c.name(), self.0[c as usize]))
            }
        }
    };
}

pub(crate) use counters;

counters! {
    /// Frames, clients and news for another shard that had no room for them.
    HandOversLost = "driver_hand_overs_lost",
    /// Flows that went to another shard, or back.
    FlowsLent = "driver_flows_lent",
    /// Turns of the loop.
    Turns = "driver_turns",
    /// Waits that ended without going to sleep.
    WaitsAwake = "driver_waits_awake",
    /// Times that joined streams became so fast that the thread lets others go on (`SCHED_BATCH`).
    Courtesies = "driver_courtesies",
    /// Frames with an impossible virtio-net header.
    BadVnetHeaders = "driver_bad_vnet_headers",
    /// Reads of the TAP that failed for another reason than that it is empty.
    TapReadErrors = "driver_tap_read_errors",
    /// Frames that the TAP did not take: its interface is down, or the kernel had no memory.
    TapWriteErrors = "driver_tap_write_errors",
    /// Turns that left frames in the TAP because no buffer was free.
    TapStarved = "driver_tap_starved",
    /// Sends that found the socket full and waited.
    SendsParked = "driver_sends_parked",
    /// Waiting sends that went on before the kernel told of room.
    SendsRetried = "driver_sends_retried",
    /// Peeks that waited for a free buffer.
    PeeksParked = "driver_peeks_parked",
    /// Times that a stream began to be read because peeking at it took long.
    StreamsHeld = "driver_streams_held",
    /// Datagrams that the socket's buffer had no room for.
    DatagramsDropped = "driver_datagrams_dropped",
    /// Trains that were put together from datagrams that came one by one, in either direction.
    TrainsJoined = "driver_trains_joined",
    /// Trains of datagrams that the kernel would not cut, and that were sent one by one.
    TrainsCut = "driver_trains_cut",
    /// Datagrams that came with fewer bytes than they had.
    DatagramsTruncated = "driver_datagrams_truncated",
    /// Datagrams to one of more addresses of the host's than are told apart: they are answered from any.
    LocalsFull = "driver_locals_full",
    /// Times that a listener had to wait for a free descriptor.
    AcceptsStarved = "driver_accepts_starved",
    /// Events for sockets that were closed meanwhile.
    StaleEvents = "driver_stale_events",
    /// Ops for sockets that do not exist.
    StaleOps = "driver_stale_ops",
    /// Socket options that the kernel refused.
    OptionsRefused = "driver_options_refused",
    /// Frames that were not written to the capture file.
    CaptureErrors = "driver_capture_errors",
    /// Watches over sockets that ended because the ring was full of events, and were started again.
    WatchesRestarted = "driver_watches_restarted",
}
