//! Runs simulations: one seed with its trace, or a range of seeds over all scenarios.

use std::process::ExitCode;

use usernet_sim::{Choices, Scenario, run, run_bytes, run_seed};

const USAGE: &str = "usage: usernet-sim [--scenario NAME] [--seed N | --seeds FIRST-LAST] [--trace]
       usernet-sim --bytes FILE    runs an input of the fuzz target `sequences`, with its trace
Without a scenario all are run. Scenarios:";

struct Arguments {
    scenarios: Vec<Scenario>,
    seeds: (u64, u64),
    is_traced: bool,
}

fn parse() -> Option<Arguments> {
    let mut parsed =
        Arguments { scenarios: Scenario::ALL.to_vec(), seeds: (0, 99), is_traced: false };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--scenario" => parsed.scenarios = vec![Scenario::of_name(&words.next()?)?],
            "--seed" => {
                let seed = words.next()?.parse().ok()?;
                parsed.seeds = (seed, seed);
            }
            "--seeds" => {
                let range = words.next()?;
                let (first, last) = range.split_once('-')?;
                parsed.seeds = (first.parse().ok()?, last.parse().ok()?);
            }
            "--trace" => parsed.is_traced = true,
            _ => return None,
        }
    }
    Some(parsed)
}

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("--bytes") {
        let path = std::env::args().nth(2).unwrap_or_default();
        return match std::fs::read(&path) {
            Ok(bytes) => {
                println!("{:#?}", run_bytes(&bytes, true));
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("cannot read {path}: {error}");
                ExitCode::from(2)
            }
        };
    }
    let Some(arguments) = parse() else {
        eprintln!("{USAGE}");
        Scenario::ALL.iter().for_each(|s| eprintln!("  {}", s.name()));
        return ExitCode::from(2);
    };
    let mut failures = 0;
    for &scenario in &arguments.scenarios {
        let (mut runs, mut inputs, mut bytes, mut stuck) = (0, 0, 0, 0);
        for seed in arguments.seeds.0..=arguments.seeds.1 {
            if arguments.is_traced {
                println!("{:#?}", run(scenario, Choices::from_seed(seed), true));
                continue;
            }
            match run_seed(scenario, seed) {
                Ok(summary) => {
                    runs += 1;
                    inputs += summary.inputs;
                    bytes += summary.bytes;
                    stuck += summary.stuck;
                }
                Err(_) => failures += 1,
            }
        }
        println!(
            "{:20} {runs} runs, {inputs} inputs, {bytes} bytes, {stuck} conversations excused",
            scenario.name()
        );
    }
    if failures > 0 {
        println!("{failures} failures");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
