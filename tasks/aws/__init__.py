"""Who we are to AWS, what its refusals mean, and Prefect's block of credentials."""
