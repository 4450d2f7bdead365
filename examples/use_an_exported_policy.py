"""Act with a policy that `admrl export RUN --psi ... --format onnx` wrote: onnxruntime and numpy, nothing of ours.

python examples/use_an_exported_policy.py hopper2d.onnx
"""

import sys

import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession(sys.argv[1])
(observation,) = session.get_inputs()
obs = np.zeros((3, observation.shape[1]), dtype=np.float32)  # three states, from your robot or simulator
act = session.run(None, {observation.name: obs})[0]  # clamp it to the limits of your actions
print(act)
