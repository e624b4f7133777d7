"""Real environments and their state mappers, each behind an extra, all behind ``dreamgym.core.env.Env``."""
