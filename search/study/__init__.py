"""The Optuna study, which holds the whole state of a search: trials, storage, samplers, drivers that share it."""
