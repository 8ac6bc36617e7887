//! The simulator with the fuzzer's bytes in the place of its seed: the first chooses the scenario, the others what goes
//! wrong in it. An input is replayed with its trace by `cargo run -p usernet-sim -- --bytes FILE`.

#![no_main]

use libfuzzer_sys::fuzz_target;

/// More choices than this make longer runs, not other ones.
const BYTES_MAX: usize = 1_024;

fuzz_target!(|bytes: &[u8]| {
    let bytes = &bytes[..bytes.len().min(BYTES_MAX)];
    let _ = usernet_sim::run_bytes(bytes, false);
});
