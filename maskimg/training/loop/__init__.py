"""What every stage of a training stands on: steps, checkpoints, budgets, processes and signals.
It does not know what is trained."""
