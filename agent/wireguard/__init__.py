"""WireGuard devices behind one port: in the kernel (generic netlink) or in user space (wireguard-go, UAPI).

`choose` decides which; `genl` and `uapi` are the pure codecs; `kernel` and `userspace` are the two implementations of
`agent.host.WireGuard`. A third one, for tests, is `agent.fakes.wireguard`.
"""
