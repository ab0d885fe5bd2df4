"""Numbers of units put together: on one baseline per pair, with what is said of them said once."""

from __future__ import annotations

import numpy as np

from actpatch.engine.measured import Measured
from actpatch.runs.joining import Joined, in_all, said_once
from actpatch.runs.units import Unit, Units


def test_the_baselines_of_the_first_unit_count_and_what_changed_nothing_is_exactly_them():
    """Two blocks of patches on the same pairs, whose recordings are apart by rounding."""
    rng = np.random.default_rng(0)
    clean, corrupted = rng.standard_normal((2, 1, 3))
    apart = 1e-7
    for direction, base in (("denoising", corrupted), ("noising", clean)):
        joined = Joined([direction], 1, 4, 3)
        changed = rng.standard_normal((1, 2, 3))
        changed[0, 1] = base[0]  # the second patch of each unit changes nothing
        for number, shift in ((0, 0.0), (1, apart)):
            patched = changed + shift
            unit = Unit(number, range(3), range(2 * number, 2 * number + 2))
            joined.put(unit, [Measured(patched, clean + shift, corrupted + shift)])
        (found,) = joined.measured([()], [()])
        np.testing.assert_array_equal(found.clean, clean)
        np.testing.assert_array_equal(found.corrupted, corrupted)
        np.testing.assert_array_equal(found.patched[:, 1::2], np.broadcast_to(base[:, None], (1, 2, 3)))
        np.testing.assert_allclose(found.patched[0, 2], changed[0, 0] + apart, rtol=1e-15)


def test_what_is_lacking_is_not_a_number():
    joined = Joined(["noising"], 1, 2, 4)
    joined.put(Unit(1, range(2, 4), range(2)), [Measured(np.ones((1, 2, 2)), np.ones((1, 2)), np.zeros((1, 2)))])
    (found,) = joined.measured([()], [()])
    assert np.isnan(found.patched[:, :, :2]).all() and (found.patched[:, :, 2:] == 1).all()
    assert joined.known.tolist() == [False, False, True, True]


def test_units_cover_each_cell_once_and_halves_are_the_unit():
    units = Units((0, 3, 5), (0, 4, 9, 10))
    seen = np.zeros((5, 10), dtype=int)
    for number in range(len(units)):
        seen[np.ix_(units[number].pairs, units[number].patches)] += 1
        waiting, cells = [units[number]], 0
        while waiting:
            halves = units.halves(waiting.pop())
            cells += halves[0].n_rows if len(halves) == 1 else 0
            waiting += halves if len(halves) > 1 else []
        assert cells == units[number].n_rows
    assert (seen == 1).all()


def test_what_holds_for_all_units_and_what_is_said_of_several_once():
    assert in_all([("prefix", "resume", "linear"), ("linear", "prefix")]) == ("prefix", "linear")
    rounding = "rounding alone moves the rank by {}, {}% of its gap"
    notes = [rounding.format(0.2, 3), "its blocks are not run singly", rounding.format("1.5e-05", 12), "other"]
    assert said_once(notes) == (notes[0], notes[1], notes[3])
