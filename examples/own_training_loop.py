"""Adversarial task search where the truth is known: does it find the worst task, and does training close the gap?

Trains a linear model on the linear-quadratic family for a few tasks and prints, for each, where the search stands,
how reproducible its gradient was, and the worst gap of the model over the whole box, in closed form.

    python examples/own_training_loop.py
"""

import math

import torch

from admrl import meta_train, new_state
from admrl.config.training import (
    DynamicsConfig,
    MetaTrainConfig,
    SlboConfig,
    TaskGradientConfig,
    VirtualTrainingConfig,
)
from dynamics import FitConfig
from task_families import make
from task_families.linear_quadratic import AffineDynamics

SIGMA = 0.3  # standard deviation of the policy's actions

config = MetaTrainConfig(
    num_tasks=4,
    num_zero_shot=2,
    num_first_stages=1,
    step_size=200.0,  # gaps are small here: unit coordinates per (gap / horizon)
    policy_hidden_sizes=(),  # an affine policy ...
    fixed_log_std=math.log(SIGMA),
    slbo=SlboConfig(num_stages=1, num_iterations=2, num_samples=1000, noise_scale=0.1),
    virtual=VirtualTrainingConfig(num_model_steps=20, num_policy_updates=15, num_samples=2000),
    dynamics=DynamicsConfig(hidden_sizes=(), num_members=1),  # ... and a linear model: closed forms exist
    gradient=TaskGradientConfig(num_samples=10_000, max_steps=10, damping=1e-3),
    fit=FitConfig(learning_rate=3e-3),
)


def as_affine(model) -> AffineDynamics:
    """A linear ensemble of one member in closed form."""
    return AffineDynamics.read_off(lambda obs, act: model(obs[None, None], act[None, None])[0, 0], 4, 2)


def main() -> None:
    torch.set_num_threads(1)
    family = make("linear_quadratic")
    state = new_state(family, "adversarial", config, seed=0, dtype=torch.float64)

    def show(state) -> None:
        record, model = state.records[-1], as_affine(state.learner.model)
        gaps = torch.stack([family.gap(psi, model, sigma=SIGMA) for psi in family.box.grid((5, 5))])
        worst = family.box.grid((5, 5))[gaps.argmax()].tolist()
        print(f"task {record.index + 1}: psi = ({record.psi[0]:+.2f}, {record.psi[1]:+.2f})")
        if record.gradient is not None:
            print(
                f"  gradient of the gap {[round(g * family.horizon, 2) for g in record.gradient['total']]}, "
                f"agreement of its halves {record.split_half_cosine:.3f}"
            )
        print(f"  after training: worst closed-form gap {float(gaps.max()):.3f} at psi = {worst}")

    meta_train(family, state, config, on_task=show)


if __name__ == "__main__":
    main()
