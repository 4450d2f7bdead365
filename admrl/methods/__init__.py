"""What the methods of `admrl train-baseline` share: state, run folder, tasks and episodes."""
