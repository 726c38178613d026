"""The demonstration: a made-up CT series with a known tumour, sent through the real service. `make demo`."""
