"""The Optuna study, which is the only truth of a search: its trials, storage, sampler, and drivers that share it."""
