"""What this machine has: versions, packages, cache, network, devices, each with a plain verdict."""
