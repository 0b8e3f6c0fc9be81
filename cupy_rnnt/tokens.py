"""What a row of logits holds, and what the blanks and the labels in it must be."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .ops.types import HostArray
from .topology import integer
from .transducer import NAMED, Transducer


class Tokens(NamedTuple):
    """A row of logits: V tokens, of which some are blanks, and then durations."""

    vocabulary: int
    transducer: Transducer = NAMED["regular"]

    @staticmethod
    def of(width: int, transducer: Transducer) -> Tokens:
        """Those of a row of `width` logits."""
        durations = transducer.durations
        if width <= durations:
            raise ValueError(
                f"a row has {width} logits, but {durations} of them are durations of the "
                f"transducer, and at least one token must be in front of them: at least 1 + "
                f"{durations} logits are needed"
            )
        return Tokens(width - durations, transducer)

    def blank(self, value: Any) -> int:
        """The index of the blank in ``[0, V)``, if every blank has a column of its own."""
        index, vocabulary, transducer = integer("blank", value), *self
        if not -vocabulary <= index < vocabulary:
            raise ValueError(
                f"blank is {index}, but it must be between {-vocabulary} and {vocabulary - 1}"
                + self._lacking(max(index + 1, -index))
            )
        blank, more = index % vocabulary, transducer.blanks - 1
        if transducer.blank_columns is not None:
            self._check_columns(transducer.blank_columns, blank)
        elif blank < more:
            raise ValueError(
                f"blank is {index}, but the transducer has {more} more blanks in front of it: it "
                f"must be between {more} and {vocabulary - 1}"
            )
        return blank

    def _check_columns(self, columns: tuple[int, ...], blank: int) -> None:
        """Columns of further blanks are in ``[-V, V)``, and no two blanks share one."""
        most, taken = self.vocabulary, {blank: "that of the blank"}
        for i, column in enumerate(columns):
            name = f"blank_columns[{i}]"
            if not -most <= column < most:
                raise ValueError(
                    f"{name} is {column}, but it must be between {-most} and {most - 1}"
                )
            if column % most in taken:
                raise ValueError(f"{name} is {column}, which is {taken[column % most]}")
            taken[column % most] = f"that of {name}"

    def check_labels(self, targets: HostArray, valid: HostArray, blank: int) -> None:
        """Valid labels lie in ``[0, V)`` and are none of the blanks."""
        outside = valid & ((targets < 0) | (targets >= self.vocabulary))
        if outside.any():
            b, u = np.unravel_index(np.argmax(outside), targets.shape)
            label = int(targets[b, u])
            padding = f": if it is padding, target_lengths[{b}] must not count it"
            raise ValueError(
                f"targets[{b}, {u}] is {label}, but the vocabulary has {self.vocabulary} entries"
                + (padding if label < 0 else self._lacking(label + 1))
            )
        blanks = self.transducer.columns_of_blanks(self.vocabulary, blank)
        is_blank = valid & np.logical_or.reduce([targets == column for column in blanks])
        if is_blank.any():
            b, u = np.unravel_index(np.argmax(is_blank), targets.shape)
            which = "the blank" if targets[b, u] == blank else "a further blank"
            raise ValueError(
                f"targets[{b}, {u}] is {targets[b, u]}, which is {which}; a label must differ from "
                "it"
            )

    def _lacking(self, needed: int) -> str:
        """What an error adds if there are too few tokens because durations are among them."""
        durations = self.transducer.durations
        if not durations or needed <= self.vocabulary:
            return ""
        row = f"{self.vocabulary} tokens + {durations} durations"
        return (
            f": a row has {self.vocabulary + durations} logits, which are {row}, but at least "
            f"{needed} + {durations} are needed"
        )
