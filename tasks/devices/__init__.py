"""What the hardware is and how fast: a library that knows nothing of Prefect or MLflow."""
