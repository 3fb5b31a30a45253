"""The benchmark suite: ``python -m bench``. It imports zokern; nothing imports it.

``cases`` says what is measured, ``kernels``, ``step``, ``drift`` and others measure it (``modes``: by where perturbed weights are),
``oracle`` refuses what is wrong, ``timing`` and ``clock`` tell the time, ``record`` writes one JSON line a candidate, ``table`` prints
them. ``claims`` holds README and docs to the records. ``gpu`` runs the parts of bench/gpu.sh.
"""
