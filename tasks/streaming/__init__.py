"""Object storage → batches: a library that knows nothing of Prefect or MLflow."""
