"""A run among runs: its life in MLflow beside Prefect, what it goes on with, repeats, or need not do again."""
