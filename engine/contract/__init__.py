"""What the control plane and the data plane say to each other: pure data, no I/O."""
