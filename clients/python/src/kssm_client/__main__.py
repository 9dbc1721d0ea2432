"""``python -m kssm_client`` is ``kssm-client``."""

from kssm_client.cli import main

if __name__ == "__main__":
    main()
