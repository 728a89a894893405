"""In-memory stand-ins for the operating system that obey the kernel's rules. For tests, dry runs and benchmarks."""
