"""Which training samples does a prediction rest on? Influence functions (Koh and Liang 2017) of a small network.

Removing sample i from the mean loss moves the loss at a test point by about  g_test' H^-1 g_i / N:  one solve.
"""

import torch
from torch.func import grad, vmap

from policy_opt import LinearOperator, minres

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
inputs, targets = torch.randn(60, 3), torch.randn(60, 1)
test_input, test_target = torch.randn(3), torch.randn(1)
theta = {"w": torch.randn(3, 8) / 2, "b": torch.zeros(8), "out": torch.randn(8, 1) / 3}


def sample_loss(theta, x, y):
    prediction = torch.tanh(x @ theta["w"] + theta["b"]) @ theta["out"]
    return (prediction - y).square().sum() + 0.05 * sum(t.square().sum() for t in theta.values())


def loss(theta, inputs, targets):
    return vmap(sample_loss, in_dims=(None, 0, 0))(theta, inputs, targets).mean()


leaves = {name: value.requires_grad_() for name, value in theta.items()}
optimizer = torch.optim.LBFGS(
    leaves.values(), max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe"
)
optimizer.step(lambda: optimizer.zero_grad() or (value := loss(leaves, inputs, targets)).backward() or value)
theta = {name: value.detach() for name, value in leaves.items()}

H = LinearOperator.hessian(loss, theta, inputs, targets)
g_test = grad(sample_loss)(theta, test_input, test_target)
answer = minres(H, g_test, rtol=1e-10, max_steps=2000).require()
g = vmap(grad(sample_loss), in_dims=(None, 0, 0))(theta, inputs, targets)  # (60, ...) per sample
influence = sum((g[k] * answer.solution[k]).flatten(1).sum(1) for k in theta) / len(inputs)  # (60,)

print(answer.describe())
print("samples whose removal would raise the test loss most:", influence.topk(3).indices.tolist())
