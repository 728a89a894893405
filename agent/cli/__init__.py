"""What people type: flags from the settings table, and the sub-commands of `rhizome-agent`."""
