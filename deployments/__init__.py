"""Where it runs: schedules, work pools, images, and the local stand-in for AWS."""
