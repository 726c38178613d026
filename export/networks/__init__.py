"""TAGS in PyTorch, written for export: static spatial sizes, exact rewrites instead of the paper's slow forms.

Layout inside the encoder is channels-last (B, D, H, W, C); at every network's border it is (B, C, D, H, W). Built
clean from the description of TAGS (arXiv 2505.17096) and 3DSAM-adapter (arXiv 2306.13465); sizes in `build.py`.
"""
