"""The only home of MLflow: what a run leaves, and how all of it gets there."""
