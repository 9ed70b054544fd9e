"""A forest of extremely randomised trees (Geurts et al. 2006), fitted by scikit-learn and read with numpy alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from router.learned.store import Array, Part, RouterModelInvalid

TREES = 100
MIN_LEAF = 8
"""rows in a leaf, at least: outcomes are noisy, and a leaf of few rows repeats the noise"""
FEATURES_A_SPLIT = 0.3


class Forest:
    """All trees' nodes in one table, so that one step goes down a level in all trees at once.

    `feature` and `threshold` have an entry a node, `children` two (left, then right; a leaf is its own child), `value`
    a row a node and a column a target, `roots` a node a tree.
    """

    def __init__(self, feature: Array, threshold: Array, children: Array, value: Array, roots: Array) -> None:
        # indices as numpy wants them: others it converts at every step
        self._feature = feature.astype(np.intp)
        self._threshold = threshold
        self._children = children.astype(np.intp)
        self._value = value
        self._roots = roots.astype(np.intp)

    def predict(self, row: Array) -> Array:
        """The trees' mean for one row of features; shape (targets,)."""
        node = self._roots
        while True:
            above = row.take(self._feature.take(node)) > self._threshold.take(node)
            following = self._children.take(2 * node + above)
            if (following == node).all():
                return np.asarray(self._value[node].mean(axis=0))
            node = following

    @classmethod
    def from_sklearn(cls, fitted: Any, *, scale: Array) -> Forest:
        """Take over the nodes of a fitted forest; `scale` multiplies the targets."""
        trees = [estimator.tree_ for estimator in fitted.estimators_]
        starts = np.cumsum([0, *(tree.node_count for tree in trees)])
        children = []
        for tree, start in zip(trees, starts, strict=False):
            own = np.arange(tree.node_count)
            leaf = tree.children_left < 0
            sides = (tree.children_left, tree.children_right)
            children.append(np.stack([np.where(leaf, own, side) + start for side in sides], axis=1).ravel())
        return cls(
            np.maximum(np.concatenate([tree.feature for tree in trees]), 0).astype(np.int32),
            np.concatenate([tree.threshold for tree in trees]).astype(np.float32),
            np.concatenate(children).astype(np.int32),
            (np.concatenate([tree.value[:, :, 0] for tree in trees]) * scale).astype(np.float32),
            starts[:-1].astype(np.int32),
        )

    def part(self) -> Part:
        """To save, as a share of the part of whoever uses it."""
        return Part(
            "forest",
            arrays={
                "feature": self._feature.astype(np.int32),
                "threshold": self._threshold,
                "children": self._children.astype(np.int32),
                "value": self._value,
                "roots": self._roots.astype(np.int32),
            },
        )

    @classmethod
    def from_part(cls, part: Part, *, features: int, targets: int) -> Forest:
        """From a part that holds one. Raises RouterModelInvalid, also where walking down a tree would not end."""
        feature = part.array("feature", -1, kind="i")
        number = len(feature)
        children = part.array("children", 2 * number, kind="i")
        left, right = children[::2], children[1::2]
        roots = part.array("roots", -1, kind="i")
        own = np.arange(number)
        leaf = (left == own) & (right == own)
        inside = (left > own) & (right > own) & (left < number) & (right < number)
        if not len(roots) or not (leaf | inside).all() or roots.min() < 0 or roots.max() >= number:
            raise RouterModelInvalid(f"the trees of part '{part.kind}' have nodes that lead nowhere")
        if feature.min() < 0 or feature.max() >= features:
            raise RouterModelInvalid(f"the trees of part '{part.kind}' ask for features that do not exist")
        return cls(feature, part.array("threshold", number), children, part.array("value", number, targets), roots)


def fit_trees(features: Array, targets: Array, weights: Array, *, seed: int, trees: int = TREES) -> Any:
    """scikit-learn's own forest, which predicts many rows at once."""
    from sklearn.ensemble import ExtraTreesRegressor

    forest = ExtraTreesRegressor(
        trees, min_samples_leaf=MIN_LEAF, max_features=FEATURES_A_SPLIT, random_state=seed, n_jobs=-1
    )
    fitted = forest.fit(features, targets, sample_weight=weights)
    # several threads add up the trees in any order, and the last bits of a sum depend on it
    return fitted.set_params(n_jobs=1)
