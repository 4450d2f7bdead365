"""The methods of `admrl train-baseline`: their rooms, names, and names in tables."""

METHODS = {
    "baselines": {
        "pearl": "PEARL",
        "crl": "CRL",
        "sac": "multi-task SAC",
        "mt-joint": "MT-joint",
        "pearl-mt": "PEARL-MT",
    },
    "inner_loop": {
        "maml-trpo": "MAML-TRPO",
        "maml-ppo": "MAML-PPO",
        "promp": "ProMP",
        "maml-mt": "MAML-MT",
        "maesn": "MAESN",
    },
    "offline": {"macaw": "MACAW"},
    "recurrent": {"rl2": "RL2"},
    "mql": {"mql": "MQL"},
}
"""By room of `admrl`, whose config.py describes their settings and whose run.py their run folders."""
TITLES = {name: title for methods in METHODS.values() for name, title in methods.items()}
ALGORITHMS = tuple(TITLES)
PUBLISHED = {
    "half_cheetah_fwd_back": (2, 2),
    "half_cheetah_vel": (100, 30),
    "ant_fwd_back": (2, 2),
    "ant_dir": (45, 5),
    "ant_goal": (150, 30),
    "humanoid_direc_2d": (100, 30),
    "walker2d_params": (40, 10),
    "hopper2d_params": (40, 10),
    "point_robot": (80, 20),
    "sparse_point_robot": (80, 20),
}
"""Training and test tasks of the families whose source papers publish them."""
