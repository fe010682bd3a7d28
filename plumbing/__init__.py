r"""What a reader may skip: settings and command line, loading a model, run folder and checkpoints, processes, pictures.

Nothing here is specific to PMD or RPG. `train.py` calls each piece by name where it needs it.
"""
