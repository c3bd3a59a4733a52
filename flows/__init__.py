"""What runs: one module a flow, each with its command line (`python -m flows.NAME`)."""
