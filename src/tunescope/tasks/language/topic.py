"""Is an answer about the request? Told by the words that it shares with another answer to the same request."""

from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

CHANCE = 0.05  # of answers to other requests, those that pass for answers to this one


class Topic:
    """Answers about one request are told from answers about others.

    The measure is the cosine of TF-IDF vectors, without stop words, of the answer and of the request with its plain
    answer. It has to exceed what all but `CHANCE` of the plain answers have with requests of other groups.

    Args:
        requests, answers, groups: of plain prompts, with the answers that are known to them.

    Raises:
        ValueError: they are all of one group, or have no words.
    """

    def __init__(self, requests: Sequence[str], answers: Sequence[str], groups: Sequence[str]) -> None:
        about = [f"{request} {answer}" for request, answer in zip(requests, answers, strict=True)]
        self._words = TfidfVectorizer(stop_words="english", sublinear_tf=True).fit(about)
        alike = (self._words.transform(answers) @ self._words.transform(about).T).toarray()
        apart = np.not_equal.outer(np.array(groups), np.array(groups))
        if not apart.any():
            raise ValueError("all requests are of one group: there are no others to set them against")
        self.threshold = float(np.quantile(alike[apart], 1 - CHANCE))

    def alike(self, requests: Sequence[str], answers: Sequence[str], said: Sequence[str]) -> np.ndarray:
        """[n]: how much of what was said is about the request with its plain answer, from 0 to 1."""
        about = [f"{request} {answer}" for request, answer in zip(requests, answers, strict=True)]
        return np.asarray(self._words.transform(about).multiply(self._words.transform(said)).sum(1)).ravel()

    def __call__(self, requests: Sequence[str], answers: Sequence[str], said: Sequence[str]) -> list[bool]:
        """Whether what was said is about the request."""
        return [bool(one) for one in self.alike(requests, answers, said) > self.threshold]
