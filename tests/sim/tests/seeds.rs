//! Thousands of seeds over all scenarios. `USERNET_SIM_SEEDS=FIRST-LAST` chooses others.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;

use usernet_sim::{Choices, Scenario, run_bytes, run_seed};

/// With 21 scenarios: thousands of runs, in less than two minutes on two cores.
const SEEDS: (u64, u64) = (0, 499);

fn seeds() -> (u64, u64) {
    let Ok(range) = std::env::var("USERNET_SIM_SEEDS") else { return SEEDS };
    let (first, last) = range.split_once('-').expect("USERNET_SIM_SEEDS=FIRST-LAST");
    (first.parse().expect("a number"), last.parse().expect("a number"))
}

#[test]
fn every_seed_of_every_scenario_keeps_the_rules() {
    let (first, last) = seeds();
    let next = AtomicU64::new(0);
    let failures = Mutex::new(Vec::new());
    let (conversations, stuck) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let (handed_over, floods) = (AtomicU64::new(0), AtomicU64::new(0));
    let lent = AtomicU64::new(0);
    let work = || {
        loop {
            let job = next.fetch_add(1, Ordering::Relaxed);
            let scenarios = Scenario::ALL.len() as u64;
            let seed = first + job / scenarios;
            if seed > last {
                return;
            }
            let scenario = Scenario::ALL[(job % scenarios) as usize];
            match run_seed(scenario, seed) {
                Ok(summary) => {
                    conversations.fetch_add(summary.conversations, Ordering::Relaxed);
                    stuck.fetch_add(summary.stuck, Ordering::Relaxed);
                    handed_over.fetch_add(summary.handed_over, Ordering::Relaxed);
                    floods.fetch_add(summary.floods, Ordering::Relaxed);
                    lent.fetch_add(summary.lent, Ordering::Relaxed);
                }
                Err(why) => failures.lock().expect("no test thread panics").push(why),
            }
        }
    };
    let cores = thread::available_parallelism().map_or(1, |n| n.get());
    thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(work);
        }
    });
    let failures = failures.into_inner().expect("no test thread panics");
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n\n"));
    let (conversations, stuck) = (conversations.into_inner(), stuck.into_inner());
    // Two runs of three have several shards.
    let handed_over = handed_over.into_inner();
    assert!(handed_over > conversations as u64, "{handed_over} of {conversations} conversations");
    // One of three has flows that are lent.
    assert!(lent.into_inner() > 5 * (last - first), "flows are lent all the time");
    assert!(floods.into_inner() * 10 > last - first, "small writes are a flood now and then");
    assert!(stuck * 100 <= conversations, "{stuck} of {conversations} conversations were excused");
}

#[test]
fn the_bytes_of_a_fuzzer_are_runs_too() {
    for seed in 0..1_000 {
        let mut choices = Choices::from_seed(seed);
        let len = choices.below(400);
        let bytes: Vec<u8> = (0..len).map(|_| choices.below(256) as u8).collect();
        let _ = run_bytes(&bytes, false);
    }
}

#[test]
fn what_the_fuzzer_starts_from_and_what_it_found_are_runs_without_a_fault() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/sequences");
    let inputs = std::fs::read_dir(corpus).expect("the corpus").map(|entry| entry.expect("a file"));
    let runs = inputs.map(|input| run_bytes(&std::fs::read(input.path()).expect("bytes"), false));
    assert!(runs.flatten().count() > Scenario::ALL.len(), "the first inputs, and what was found");
}

#[test]
fn a_seed_is_a_run() {
    let run = || run_seed(Scenario::Mixed, 1).map(|s| (s.inputs, s.bytes, s.lasted));
    let first = run().expect("the seed passes");
    assert_eq!(run().as_ref(), Ok(&first));
}
