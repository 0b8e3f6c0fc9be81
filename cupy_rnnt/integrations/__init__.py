"""The loss inside toolkits: a module for each, which is imported only if it is asked for.

:mod:`~cupy_rnnt.integrations.transformers` patches transducers of transformers, and
:mod:`~cupy_rnnt.integrations.nemo` has a joint network for models of NeMo.
:mod:`~cupy_rnnt.integrations.speechbrain`, :mod:`~cupy_rnnt.integrations.espnet` and
:mod:`~cupy_rnnt.integrations.icefall` have functions in the place of the toolkits'.
"""
