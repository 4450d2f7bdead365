"""The gradient of the sub-optimality gap in the task parameters, AdMRL Eq. 2, and its estimators.

    dL/dpsi = d eta*/d psi |theta*  -  ( (d theta_hat/d psi)' d eta*/d theta |theta_hat  +  d eta*/d psi |theta_hat )
              `optimal`                  `implicit`                                         `adapted`

    d theta_hat/d psi = -H^-1 B,   H = d2 eta^/d theta d theta',   B = d2 eta^/d theta d psi'         (Eq. 5)

eta is the discounted return of one episode; everything here is divided by the horizon (reward per step), so that
a step size means the same for every family. ^ is the model in which theta_hat was trained, * the simulator.
"""

from admrl.gradient.estimators import ESTIMATORS, task_gradient
from admrl.gradient.evidence import Evidence
from admrl.gradient.implicit import gap_gradient
from admrl.gradient.result import TaskGradient

__all__ = ["task_gradient", "gap_gradient", "TaskGradient", "Evidence", "ESTIMATORS"]
