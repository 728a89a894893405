"""The sub-commands of `rhizome-ipam`."""
