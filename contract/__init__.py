"""What service, export and training agree on: tensor names, dtypes and shapes, grid and intensity rules, bundles.

numpy only, small on purpose. Everything that two sides must compute alike lives here and nowhere else.
"""
