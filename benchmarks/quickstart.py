"""Wall time and peak memory of ``dreamgym quickstart`` with an empty run folder and an empty game cache.

python -m benchmarks.quickstart        # writes benchmarks/results/quickstart.json
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.cells import HERE, commit, matrix_products
from dreamgym.core.files import read_json, write_json
from dreamgym.pipeline.results import versions

KEPT = ("n_test", "before", "after", "dream_after", "real_steps", "paired_interval", "audit", "wall_s")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        start = time.perf_counter()
        words = [sys.executable, "-m", "dreamgym.cli", "quickstart", "--run", str(run)]
        subprocess.run(words, check=True, env={**os.environ, "DREAMGYM_CACHE": f"{folder}/cache"})
        wall = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        results = read_json(run / "results.json")
    write_json(
        HERE / "results" / "quickstart.json",
        {
            "quickstart_wall_s": round(wall, 1),
            "peak_rss_gib": round(peak, 2),
            "cores": os.cpu_count(),
            "commit": commit(),
            "versions": versions(),
            "matrix_products": matrix_products(),
            **{k: results[k] for k in KEPT},
        },
    )
    print(f"{wall:.0f} s, {peak:.2f} GiB")


if __name__ == "__main__":
    main()
