#!/usr/bin/env bash
# Builds all fuzz targets and runs each for a while, from a copy of the committed corpus.
#
# usage: fuzz/run.sh [SECONDS]    per target, default 60
#
# FUZZ_SEED: of the mutations, default 1, so that two runs on one commit do the same; 0 draws one and looks for what
# is new.
#
# The core forbids unsafe code, so there is nothing for a sanitizer to see: the targets are built without one, which
# the stable toolchain can do. What was found in a crash stays in fuzz/artifacts/TARGET.
set -u -o pipefail
cd "$(dirname "$0")" || exit 1

seconds=${1:-60}
seed=${FUZZ_SEED:-1}
targets=(frames sequences services spec compat api tunnel)
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT

cargo fuzz --version >/dev/null 2>&1 || cargo install --quiet --locked cargo-fuzz || exit 1
cargo fuzz build -s none --fuzz-dir . || exit 1

summary=()
status=0
for target in "${targets[@]}"; do
    log=$copy/$target.log
    mkdir -p "$copy/$target"
    cp -r "corpus/$target/." "$copy/$target/"
    mkdir -p "artifacts/$target"
    cargo fuzz run -s none --fuzz-dir . "$target" "$copy/$target" -- \
        -max_total_time="$seconds" -seed="$seed" -max_len=8192 -timeout=10 -rss_limit_mb=2048 \
        -print_final_stats=1 -verbosity=1 >"$log" 2>&1
    code=$?
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log" | tail -n 1)
    edges=$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$log" | tail -n 1)
    if [ $code = 0 ]; then
        summary+=("fuzz $target: ok, ${runs:-?} runs, ${edges:-?} edges")
        continue
    fi
    status=1
    tail -n 60 "$log"
    found=$(sed -n 's/.*Test unit written to \(.*\)$/\1/p' "$log" | tail -n 1)
    if [ -n "$found" ]; then
        found=${found#"$PWD/"}
        # Where the log is all that is left of a machine, the input is in it.
        echo "to reproduce: (cd fuzz && mkdir -p artifacts/$target && base64 -d >$found <<<$(base64 -w 0 "$found") &&" \
            "cargo fuzz run -s none --fuzz-dir . $target $found)"
    fi
    summary+=("fuzz $target: FAILED (exit $code), ${runs:-?} runs")
done
printf '%s\n' "${summary[@]}"
exit $status
