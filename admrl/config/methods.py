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
}
"""By room of `admrl`, whose config.py describes their settings and whose run.py their run folders."""
TITLES = {name: title for methods in METHODS.values() for name, title in methods.items()}
ALGORITHMS = tuple(TITLES)
