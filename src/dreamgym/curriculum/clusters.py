"""Tasks in clusters, each of which is one group G of Eq. 7 (arXiv 2511.03773 §5: for PPO, where a task has few rollouts of its own).

The encoder reads the instructions. Which one the paper uses, and how many clusters, it leaves open.
"""

from collections.abc import Mapping

from dreamgym.core.errors import MissingExtraError
from dreamgym.core.types import Task
from dreamgym.replay.encoders import Encoder


def clusters_of(tasks: Mapping[str, Task], n: int, encoder: Encoder, seed: int) -> dict[str, int]:
    """The cluster of each task, 0 to ``n`` - 1 (fewer where there are fewer instructions): k-means over unit vectors."""
    try:
        from sklearn.cluster import KMeans
    except ImportError as e:
        raise MissingExtraError("scikit-learn", "cluster") from e

    names = sorted(tasks)
    vectors = encoder.encode([((), tasks[name].instruction) for name in names])
    n = min(n, len({tasks[name].instruction for name in names}))
    labels = KMeans(n, n_init=4, random_state=seed).fit_predict(vectors)
    return dict(zip(names, map(int, labels), strict=True))
