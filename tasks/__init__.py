"""What a flow is chained from: one module a step, over three libraries that know nothing of Prefect."""
