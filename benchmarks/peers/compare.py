"""mlserve beside other Python servers; `comparison.py` says how.

python benchmarks/peers/compare.py --help
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # what all benchmarks share
    from comparison import main

    main()
