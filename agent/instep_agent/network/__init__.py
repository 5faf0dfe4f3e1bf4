"""RDMA ports, network interfaces and namespaces: what sources read them with."""
