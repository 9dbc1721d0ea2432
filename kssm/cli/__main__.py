"""``python -m kssm.cli`` is the ``kssm`` command."""

from kssm.cli import main

main()
