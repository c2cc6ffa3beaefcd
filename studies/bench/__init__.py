"""How fast a meta-gradient is, how much memory it takes, and what it is compared with."""
