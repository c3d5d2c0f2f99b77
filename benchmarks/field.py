"""Other people's servers and mlserve under one and the same load; `peers/field_load.py` says how.

python benchmarks/field.py --help
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))  # where the peers' servers are set up
    from field_load import main

    main()
