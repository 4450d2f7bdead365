"""How far psi that is inferred from rewards is from psi, and what that costs.

    python benchmarks/inferred_psi.py RUN [--tasks 20] [--noise 0] [--json FILE]

RUN is a run of `admrl train`. For each task, drawn uniformly, one episode is played with the zero-shot policy of the
true psi in the run's model, and one with the policy of the middle of the box, as a method does that knows nothing;
psi is inferred from each. Gaps of the method that is told psi, and of the one that infers it:

    admrl evaluate RUN --infer-psi 2 --config.num-stages 1 --config.num-stage-samples 400
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import torch

from admrl import EvaluationConfig, infer_psi, load_run, zero_shot
from admrl.config.evaluation import evaluation_virtual
from admrl.solving.rollouts import real_rollout
from task_families import spawn_generators


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, help="run folder of `admrl train`")
    parser.add_argument("--tasks", type=int, default=20, help="drawn uniformly from the box")
    parser.add_argument("--updates", type=int, default=40, help="TRPO updates of every policy")
    parser.add_argument("--noise", type=float, default=0.0, help="standard deviation added to every reward")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="4 tasks, 5 updates")
    parser.add_argument("--json", type=Path, help="write the rows here")
    return parser.parse_args()


def estimate(run, psi, played, arguments):
    """psi (M, k) from one episode each of the policies that are solved for `played` (M, k)."""
    family, learner = run.family, run.learner
    generators = spawn_generators(torch.Generator().manual_seed(arguments.seed), len(psi))
    config = replace(EvaluationConfig(), num_updates=arguments.updates)
    virtual = evaluation_virtual(run.virtual, config)
    solution = zero_shot(family, learner.model, played, run.policy, 1, virtual, generators)
    rollout = real_rollout(family, replace(solution, psi=psi.to(solution.psi)), 1, generators)
    rewards = family.reward(psi.to(rollout.obs)[:, None, None], rollout.obs, rollout.act, rollout.next_obs)
    noise = torch.randn(rewards.shape, generator=torch.Generator().manual_seed(arguments.seed + 1)).to(
        rewards
    )
    rewards = rewards + arguments.noise * noise
    begin = time.perf_counter()
    found = infer_psi(family, rollout.obs, rollout.act, rollout.next_obs, rewards)
    return found, (time.perf_counter() - begin) / len(psi)


def rows_of(name, found, seconds, psi, arguments):
    """Errors in each coordinate."""
    error = (found.psi - psi.double()).abs()
    covered = ((found.low <= psi) & (psi <= found.high)).double().mean(0)
    within = (error <= 0.1).all(-1).sum()
    base = {"episode": name, "tasks": len(psi), "noise": arguments.noise, "threads": torch.get_num_threads()}
    values = [
        ("tasks within 0.1 in each coordinate", int(within), "tasks"),
        ("tasks identified", int(found.identified.all(-1).sum()), "tasks"),
        ("seconds a task", seconds, "s"),
    ]
    for i, (parameter, unit) in enumerate(zip(found.names, found.units, strict=True)):
        values += [
            (f"largest error of {parameter}", float(error[:, i].max()), unit),
            (f"median error of {parameter}", float(error[:, i].median()), unit),
            (f"coverage of {parameter}, 90 %", float(covered[i]), "share"),
        ]
    return [{"name": n, "value": v, "unit": u, **base} for n, v, u in values]


def main():
    arguments = parse_arguments()
    if arguments.quick:
        arguments.tasks, arguments.updates = 4, 5
    run = load_run(arguments.run)
    box = run.family.box
    psi = box.sample(arguments.tasks, "uniform", torch.Generator().manual_seed(arguments.seed))
    middle = box.from_unit(torch.zeros_like(psi))
    rows = []
    for name, played in (("policy of the true psi", psi), ("policy of the middle", middle)):
        found, seconds = estimate(run, psi, played, arguments)
        rows += rows_of(name, found, seconds, psi, arguments)
        for m in range(len(psi)):
            print(f"psi {[round(x, 3) for x in psi[m].tolist()]}, {name}: {found.describe(m)}")
    for row in rows:
        print(f"{row['episode']}: {row['name']}: {row['value']:.4g} {row['unit']}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
