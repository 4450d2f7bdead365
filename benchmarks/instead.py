"""What a user would do instead: a whole family of tasks, solved by meta-training or task by task.

    pip install "admrl[sac]" sb3-contrib
    python benchmarks/instead.py OUT [--family hopper2d] [--grid 4 4] [--methods ours sac-each ...] [--figure FILE]

Every method is to have good policies for all tasks of a grid. Counted are all real samples that it draws for that,
and the processor time of its one thread, its own scoring left out:

    ours        `admrl train` by uniform selection (preset laptop), then every task solved in the model, zero-shot
    ours-adv    the same by adversarial selection
    sac-each    stable-baselines3's SAC with its defaults on every task alone
    trpo-each   sb3-contrib's TRPO with its defaults on every task alone
    sac-psi     stable-baselines3's SAC on all tasks, which sees psi and draws it for every episode
    mt-joint    our SAC on all tasks, which sees psi (preset laptop)
    pearl       our PEARL (preset laptop) and two episodes of every task

Scores are returns of EPISODES episodes, by the mean action but for ours, whose policies are stochastic. OUT holds a
file for each job; those that are there are not done again, and one that was stopped begins again. A table of all
follows, and a figure with --figure.
"""

import argparse
import shutil
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from admrl.config.evaluation import EvaluationConfig
from admrl.config.presets import PRESETS
from admrl.evaluation.evaluator import adapt_and_score
from admrl.jobs.reporter import Silent
from admrl.run_kinds import METHOD_RUNS
from admrl.storage.files import make_folder, parse_json, write_json
from admrl.training.run import Run, prepare_run, train_run
from task_families import make

METHODS = ("ours", "ours-adv", "sac-each", "trpo-each", "sac-psi", "mt-joint", "pearl")
EPISODES = 5
SCORED = {"sac": (2500, 5000, 10_000, 20_000), "trpo": (10_000, 25_000, 50_000, 100_000)}
"""Samples of a task after which its policy is scored."""
SCORED_PSI = (20_000, 50_000, 100_000, 150_000)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, help="folder of the jobs' files")
    parser.add_argument("--family", default="hopper2d")
    parser.add_argument("--grid", type=int, nargs="+", default=[4, 4], help="tasks per task parameter")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--quick", action="store_true", help="smoke sizes: does it run?")
    return parser.parse_args()


def scored_by_itself(agent, family, psi, shows_psi):
    """Mean returns (K,) of a stable-baselines3 agent in tasks psi (K, k)."""
    returns = []
    for m, task in enumerate(psi):
        env, total = family.make_env(task, shows_psi=shows_psi), 0.0
        for episode in range(EPISODES):
            obs, _ = env.reset(seed=1000 * m + episode)
            done = False
            while not done:
                obs, reward, terminated, truncated, _ = env.step(agent.predict(obs, deterministic=True)[0])
                total, done = total + float(reward), terminated or truncated
        env.close()
        returns.append(total / EPISODES)
    return returns


def external(algorithm, family, train_psi, test_psi, counts, seed):
    """An agent of stable-baselines3 on one task, or (None) on all: scores after each of counts."""
    if algorithm == "sac":
        from stable_baselines3 import SAC as Agent
    else:
        from sb3_contrib import TRPO as Agent
    shows = train_psi is None
    agent = Agent("MlpPolicy", family.make_env(train_psi, shows_psi=shows), seed=seed, device="cpu")
    rows, seconds, before = [], 0.0, 0
    for count in counts:
        begin = time.process_time()
        agent.learn(count - before, reset_num_timesteps=False)
        seconds, before = seconds + time.process_time() - begin, count
        returns = scored_by_itself(agent, family, test_psi, shows)
        rows.append({"real": int(agent.num_timesteps), "seconds": seconds, "returns": returns})
    return rows


def scored_by_us(run, psi, num_stages, num_stage_samples):
    """Mean returns (K,) of a run on tasks psi (K, k), and the samples of all tasks."""
    config = EvaluationConfig(
        num_policy_seeds=1,
        num_episodes=EPISODES,
        num_stages=num_stages,
        **({"num_stage_samples": num_stage_samples} if num_stages else {}),
    )
    adapted = adapt_and_score(run.family, run.adapter(config), psi, config, 0)
    return np.nanmean(adapted.episode_return[0, :, -1], -1).tolist(), num_stages * num_stage_samples * len(
        psi
    )


def ours(selector, path, arguments, psi):
    """`admrl train`, scored after some of its tasks: the time of all policies is part of it."""
    preset = "smoke" if arguments.quick else "laptop"
    config, seconds, rows = PRESETS[preset], 0.0, []
    counts = [n for n in (1, 2, 4) if n < config.num_tasks] + [config.num_tasks]
    for number, count in enumerate(counts):
        begin = time.process_time()
        if number == 0:
            prepare_run(
                path,
                family=arguments.family,
                variant="released",
                selector=selector,
                preset=preset,
                seed=arguments.seed,
                config=replace(config, num_tasks=count),
            )
        run = Run.resume(path, length=count)
        train_run(run, Silent(), checkpoint_seconds=1e6)
        seconds += time.process_time() - begin
        begin = time.process_time()
        returns, extra = scored_by_us(run, psi, 0, 0)
        solving = time.process_time() - begin
        rows.append(
            {"real": run.state.samples.real + extra, "seconds": seconds + solving, "returns": returns}
        )
    return rows


def baseline(algorithm, path, arguments, psi):
    """`admrl train-baseline`, scored at its end."""
    from admrl.baselines.config import preset_config

    preset = "smoke" if arguments.quick else "laptop"
    begin = time.process_time()
    run = METHOD_RUNS["baseline"].prepare(
        path,
        algorithm=algorithm,
        family=arguments.family,
        variant="released",
        preset=preset,
        seed=arguments.seed,
        config=preset_config(preset, arguments.family, algorithm),
    )
    run.train(Silent(), checkpoint_seconds=1e6)
    seconds = time.process_time() - begin
    explores = algorithm == "pearl"
    returns, extra = scored_by_us(run, psi, int(explores), 2 * run.family.horizon)
    return [{"real": run.state.real_samples + extra, "seconds": seconds, "returns": returns}]


def jobs(arguments, family, psi):
    """Name and function of every job."""
    per_task = {k: tuple(n // 25 for n in v) if arguments.quick else v for k, v in SCORED.items()}
    for_all = (1000, 2000) if arguments.quick else SCORED_PSI
    for method in arguments.methods:
        name, path = f"{method}-{arguments.seed}", arguments.out / "runs" / f"{method}-{arguments.seed}"
        if method in ("ours", "ours-adv"):
            selector = "uniform" if method == "ours" else "adversarial"
            yield name, partial(ours, selector, path, arguments, psi)
        elif method in ("mt-joint", "pearl"):
            yield name, partial(baseline, method, path, arguments, psi)
        elif method == "sac-psi":
            yield name, partial(external, "sac", family, None, psi, for_all, arguments.seed)
        else:
            algorithm = method.removesuffix("-each")
            for m, task in enumerate(psi):
                yield (
                    f"{name}-task{m}",
                    partial(
                        external,
                        algorithm,
                        family,
                        task,
                        psi[m][None],
                        per_task[algorithm],
                        arguments.seed + m,
                    ),
                )


def curves(arguments, found):
    """Rows {real, seconds, returns (K,)} of every method; for those task by task, sums over tasks."""
    together = {}
    for method in arguments.methods:
        name = f"{method}-{arguments.seed}"
        parts = [rows for key, rows in found.items() if key == name or key.startswith(f"{name}-task")]
        together[method] = [
            {
                "real": sum(row["real"] for row in rows),
                "minutes": sum(row["seconds"] for row in rows) / 60,
                "returns": [value for row in rows for value in row["returns"]],
            }
            for rows in zip(*parts, strict=True)
        ]
    return together


def draw(together, file):
    """Mean and worst return against real samples and processor time."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(9, 6), sharey="row", sharex="col", layout="constrained")
    for method, rows in together.items():
        for row, (title, take) in enumerate((("mean return", np.mean), ("worst return", np.min))):
            for column, key in enumerate(("real", "minutes")):
                x, y = [r[key] for r in rows], [take(r["returns"]) for r in rows]
                axes[row, column].plot(x, y, marker="o", markersize=3, label=method)
                axes[row, column].set_xscale("log")
            axes[row, 0].set_ylabel(title)
    axes[1, 0].set_xlabel("real samples of all tasks together")
    axes[1, 1].set_xlabel("minutes of one thread")
    axes[0, 1].legend(fontsize=8)
    figure.savefig(file, dpi=110)


def main():
    arguments = parse_arguments()
    torch.set_num_threads(1)
    make_folder(arguments.out)
    family = make(arguments.family)
    psi = family.box.grid(arguments.grid)
    asked = {"family": arguments.family, "grid": arguments.grid, "quick": arguments.quick}
    found = {}
    for name, job in jobs(arguments, family, psi):
        file = arguments.out / f"{name}.json"
        if not file.exists():
            shutil.rmtree(arguments.out / "runs" / name, ignore_errors=True)  # of a job that was stopped
            write_json(file, {"settings": asked, "rows": job()})
        said = parse_json(file.read_bytes())
        if said["settings"] != asked:
            raise SystemExit(f"{file}: was made with other settings; name another folder")
        found[name] = said["rows"]
        last = said["rows"][-1]
        print(f"{name}: mean {np.mean(last['returns']):.0f}, {last['seconds'] / 60:.1f} min", flush=True)
    together = curves(arguments, found)
    for method, rows in together.items():
        for row in rows:
            returns = np.array(row["returns"])
            print(
                f"{method:10s} {row['real']:9d} real samples {row['minutes']:7.1f} min  mean {returns.mean():7.0f}  "
                f"worst {returns.min():7.0f}"
            )
    if arguments.figure:
        draw(together, arguments.figure)


if __name__ == "__main__":
    main()
