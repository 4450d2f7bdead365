"""The Krylov methods behind the solvers: steps, the loop that they share, scaling, and the solves of derivatives."""
