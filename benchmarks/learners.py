"""Return against real samples of the inner methods on one task, from an untrained model on.

    python benchmarks/learners.py OUT [--families hopper2d ant2d] [--learners slbo slbo-gaussian mbpo] [--seeds 0 1 2]

Each job solves one task (--psi, or the family's first) by stages: real samples of the present policies, then fits of
the model and policy updates in it (Alg. 1, lines 5-7). After every stage the policy is tested in the simulator as its
method is tested (SLBO: its stochastic policy, MBPO: the mean), with episodes that are not counted. OUT holds a file
for every job; those that are there are not done again. A table of all follows.

    slbo           TRPO on episodes in the model, members that predict the mean
    slbo-gaussian  the same with members that predict mean and variance
    mbpo           SAC on short branches from real states, members that predict mean and variance, as in the paper
    mbpo-mean      the same with members that predict the mean
"""

import argparse
import time
from dataclasses import asdict
from pathlib import Path

import torch

from admrl.config.training import MbpoConfig, MetaTrainConfig, SlboConfig, VirtualTrainingConfig
from admrl.solving.adaptation import adapt
from admrl.solving.inner_method import make_method
from admrl.solving.rollouts import SolutionPolicy, gaussian_noise
from admrl.solving.samples import SampleCounts
from admrl.storage.files import json_text, make_folder, parse_json, write_json
from dynamics import DynamicsConfig, ModelLearner
from task_families import collect, make, spawn_generators

LEARNERS = {
    "slbo": ("slbo", "mean"),
    "slbo-gaussian": ("slbo", "gaussian"),
    "mbpo": ("mbpo", "gaussian"),
    "mbpo-mean": ("mbpo", "mean"),
}
EPISODES = 20  # of a test


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, help="folder of the jobs' files")
    parser.add_argument("--families", nargs="+", default=["hopper2d", "ant2d"])
    parser.add_argument("--learners", nargs="+", default=["slbo", "slbo-gaussian", "mbpo"], choices=LEARNERS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--psi", nargs="+", type=float, help="the task; the family's first task if it is left out"
    )
    parser.add_argument("--stages", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=4, help="of Alg. 2 in a stage")
    parser.add_argument("--samples", type=int, default=2000, help="real samples of a stage")
    parser.add_argument("--gradient-steps", type=int, default=40, help="of SAC per update")
    parser.add_argument("--quick", action="store_true", help="one stage of one iteration, one seed")
    return parser.parse_args()


def configuration(name, arguments):
    learner, predicts = LEARNERS[name]
    return MetaTrainConfig(
        learner=learner,
        first_psi=None if arguments.psi is None else tuple(arguments.psi),
        slbo=SlboConfig(1, arguments.iterations, arguments.samples),
        mbpo=MbpoConfig(num_gradient_steps=arguments.gradient_steps, batch_size=128),
        virtual=VirtualTrainingConfig(num_model_steps=100, num_policy_updates=10, num_samples=4000),
        dynamics=DynamicsConfig(hidden_sizes=(128, 128), predicts=predicts),
    )


def tested(family, method, solution, seed):
    """Mean undiscounted return of an episode in the simulator."""
    generators = spawn_generators(torch.Generator().manual_seed(1000 + seed), 1)
    shape = (1, EPISODES)
    noise = gaussian_noise(shape, family.horizon, family.act_size, generators, solution.psi)
    act = SolutionPolicy(solution, is_mean=method.is_tested_by_mean).actor(noise, generators)
    none = torch.zeros(shape)
    simulator = family.make_simulator(shape, psi=solution.psi)
    rollout = collect(simulator, family, lambda t, obs: (act(t, obs), none), family.horizon, generators)
    reward = family.reward(solution.psi[:, None, None], rollout.obs, rollout.act, rollout.next_obs)
    return float(torch.where(rollout.first_episode(), reward, 0.0).sum(-1).mean())


def job(family, config, arguments, seed):
    """Returns after every stage, the first before any sample."""
    model_generator, *generators = spawn_generators(torch.Generator().manual_seed(seed), 2)
    learner = ModelLearner.make(family, config.dynamics, config.fit, model_generator)
    method, samples = make_method(family, config), SampleCounts()
    psi = family.box.check(family.first_psi if config.first_psi is None else torch.tensor(config.first_psi))
    solution = method.begin(learner.model, psi, generators)
    rows, begin = [], time.perf_counter()
    for stage in range(arguments.stages + 1):
        if stage:
            solution = adapt(
                method,
                family,
                learner,
                solution,
                config.slbo,
                config.virtual.num_policy_updates,
                generators,
                samples=samples,
            )
        held_out = float(learner.held_out_loss().mean()) if stage else None
        value = tested(family, method, solution, seed)
        rows.append({"real": samples.real, "virtual": samples.virtual, "return": value, "held_out": held_out})
        rows[-1]["seconds"] = time.perf_counter() - begin
    return rows


def table(found, arguments):
    """Mean and range over seeds after every stage."""
    for name in arguments.families:
        for learner in arguments.learners:
            jobs = [found[key] for seed in arguments.seeds if (key := (name, learner, seed)) in found]
            print(f"\n{name}, {learner}, {len(jobs)} seeds")
            for stages in zip(*jobs, strict=True):
                returns = torch.tensor([row["return"] for row in stages])
                seconds = sum(row["seconds"] for row in stages) / len(stages)
                print(
                    f"  {stages[0]['real']:6d} real samples: {returns.mean():8.1f}  "
                    f"({returns.min():.1f} to {returns.max():.1f}), {seconds:.0f} s"
                )


def main():
    arguments = parse_arguments()
    if arguments.quick:
        arguments.stages, arguments.iterations, arguments.seeds = 1, 1, [0]
    torch.set_num_threads(1)
    make_folder(arguments.out)
    found = {}
    for seed in arguments.seeds:
        for name in arguments.families:
            for learner in arguments.learners:
                family, config = make(name), configuration(learner, arguments)
                file = arguments.out / f"{name}-{learner}-{seed}.json"
                asked = parse_json(json_text(asdict(config) | {"stages": arguments.stages}))
                if not file.exists():
                    rows = job(family, config, arguments, seed)
                    write_json(file, {"config": asked, "rows": rows})
                    print(f"{file.name}: {rows[-1]['return']:.1f}, {rows[-1]['seconds']:.0f} s", flush=True)
                said = parse_json(file.read_bytes())
                if said["config"] != asked:
                    raise SystemExit(f"{file}: was made with other settings; name another folder")
                found[name, learner, seed] = said["rows"]
    table(found, arguments)


if __name__ == "__main__":
    main()
