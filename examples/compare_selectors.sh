#!/bin/sh
# Adversarial, uniform and gaussian task selection (or others) with equal budgets, several training seeds, one reference A*.
#
#   sh examples/compare_selectors.sh FOLDER [FAMILY...]        families: hopper2d walker2d by default
#
# Every step is resumable: run the same command again after an interruption, and it goes on where it stopped.
# Sizes, by environment variables:
#   SEEDS="0 1 2 3 4"   training seeds                    PRESET=laptop   smoke, laptop or paper
#   SELECTORS="adversarial uniform gaussian"              any names of `admrl train --selector`
#   POLICY_SEEDS=4      policies solved per cell          STAGES=3        0: zero-shot alone
#   TASKS="--tasks paper"   or --grid 2 2                 JOBS=2          processes
#   TRAIN=""  EVALUATE=""  REFERENCE=""                   further options of these three commands
set -eu
FOLDER=$1
shift
[ $# -gt 0 ] || set -- hopper2d walker2d
SEEDS=${SEEDS:-0 1 2 3 4} SELECTORS=${SELECTORS:-adversarial uniform gaussian} PRESET=${PRESET:-laptop} POLICY_SEEDS=${POLICY_SEEDS:-4} STAGES=${STAGES:-3}
TASKS=${TASKS:---tasks paper} JOBS=${JOBS:-2} TRAIN=${TRAIN:-} EVALUATE=${EVALUATE:-} REFERENCE=${REFERENCE:-}
ADMRL=${ADMRL:-admrl}
export OMP_NUM_THREADS=1

train() { # family selector seed: start it, or go on with it; a finished one is left alone
    run=$FOLDER/$1/$2-$3
    if [ -e "$run/config.json" ]; then
        $ADMRL train --resume "$run" >>"$run.log" 2>&1 || tail -n 1 "$run.log" | grep -q "done already"
    else
        # shellcheck disable=SC2086
        $ADMRL train --family "$1" --selector "$2" --seed "$3" --preset "$PRESET" --out "$run" $TRAIN >>"$run.log" 2>&1
    fi || echo "$run failed, see $run.log" >&2
}

for family in "$@"; do
    mkdir -p "$FOLDER/$family"
    # JOBS trainings at a time, one thread each
    running=0
    for seed in $SEEDS; do
        for selector in $SELECTORS; do
            train "$family" "$selector" "$seed" &
            running=$((running + 1))
            if [ "$running" -ge "$JOBS" ]; then
                wait
                running=0
            fi
        done
    done
    wait
    set -- # the runs; the loop has its families already
    for selector in $SELECTORS; do
        for seed in $SEEDS; do
            set -- "$@" "$FOLDER/$family/$selector-$seed"
        done
    done
    # shellcheck disable=SC2086
    $ADMRL reference --family "$family" $TASKS --out "$FOLDER/$family/reference.json" --num-workers "$JOBS" $REFERENCE
    # shellcheck disable=SC2086
    $ADMRL evaluate "$@" $TASKS --reference "$FOLDER/$family/reference.json" --name selectors \
        --num-workers "$JOBS" --config.num-policy-seeds "$POLICY_SEEDS" --config.num-stages "$STAGES" $EVALUATE
    $ADMRL compare "$@" --tasks selectors --out "$FOLDER/$family/report"
done
