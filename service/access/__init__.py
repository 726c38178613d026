"""Who asks, and what they may: tokens of an OIDC issuer, API keys, limits per client (decision 15)."""
