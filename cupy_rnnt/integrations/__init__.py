"""The loss inside toolkits: a module for each, which is imported only if it is asked for.

:mod:`cupy_rnnt.integrations.transformers` has ``patch(model)`` for transducers of transformers.
"""
