//! What the core costs in time: the same logs whose instructions `bench counts` counts.

use bench::replay::{Replay, cases};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};

fn core(c: &mut Criterion) {
    for case in cases::ALL {
        let replay = || Replay::new((case.record)());
        let mut group = c.benchmark_group("core");
        group.throughput(Throughput::Elements(replay().units()));
        group.bench_function(format!("{}, per {}", case.name, case.unit), |b| {
            let run = |mut replay: Replay| {
                replay.run();
                replay
            };
            b.iter_batched(replay, run, BatchSize::PerIteration);
        });
        group.finish();
    }
}

criterion_group!(benches, core);
criterion_main!(benches);
