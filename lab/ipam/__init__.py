"""What tries to break the IPAM: a model of it, a state machine that compares the two, and processes that are killed."""
