"""Pages to read beside the reference.

.. include:: own_op.md
"""
